use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::{fmt, fs, io};

use tractd_bundle::{Bundle, Digest, Dim, InputSpec, OutputSpec};
use tractd_compiler::{Report, Tier};

use crate::cache::Cache;
use crate::exec::Executable;
use crate::graph::Graph;
use crate::interface::{Interface, shape_text};

/// What a plan may use up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlanOptions {
    /// Prepared graphs kept, one per combination of free dimensions: each holds its own packed weights. The
    /// least recently used goes first. At least 1.
    pub shapes_max: usize,
    /// The largest a request may make a free dimension, in elements. What memory a model was proven with says
    /// nothing about larger shapes.
    pub free_dim_max: u32,
    /// The largest picture decoded, in pixels: a small file can hold a huge one. The default passes an 8K frame
    /// (33 million), which takes 100 MB decoded.
    pub image_pixels_max: u64,
    /// The int8 kernels to pack for: the best this machine has, unless a lower tier is to be tried.
    pub tier: Tier,
    /// Folder in which compiled graphs are kept and looked for; it is made where it is missing. By default nothing is kept.
    pub cache: Option<PathBuf>,
    /// Whether these kernels run what they can of a graph; without, tract runs it all, for comparison.
    pub int8: bool,
}

impl Default for PlanOptions {
    fn default() -> PlanOptions {
        PlanOptions {
            shapes_max: 4,
            free_dim_max: 4096,
            image_pixels_max: 36_000_000,
            tier: Tier::detect(),
            cache: None,
            int8: true,
        }
    }
}

/// Why a bundle gives no plan.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// A file of the bundle could not be read.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// Not ONNX.
    #[error("the model is not an ONNX file: {0}")]
    NotOnnx(String),
    /// Operators nobody here can run.
    #[error("operator {operator} is not supported (node `{node}`){hint}")]
    UnsupportedOperator {
        /// With its domain where that is not ONNX's own.
        operator: String,
        /// The first node that has it.
        node: String,
        /// What to do about it.
        hint: &'static str,
    },
    /// Manifest and graph disagree, or the graph's interface cannot be served.
    #[error("{0}")]
    Interface(String),
    /// The graph's parts do not fit together.
    #[error("the graph is not sound: {0}")]
    Graph(String),
}

/// A model loaded: immutable, shared by sessions, each run as deterministic as the graph.
pub struct Plan {
    bundle: Bundle,
    options: PlanOptions,
    interface: Interface,
    output_names: Vec<Arc<str>>,
    labels: Vec<Arc<str>>,
    weight_bytes: u64,
    report: Report,
    from_cache: bool,
    free: Vec<String>,
    /// Kept to make the graph for further shapes; a model without free dimensions is done with it.
    graph: Option<Graph>,
    /// Least recently used first. A lock because sessions on several threads look up what one of them
    /// prepared; it is held for the look-up only, never while a graph is prepared.
    prepared: Mutex<Vec<(Shapes, Arc<Executable>)>>,
}

/// What a plan is put together from.
struct Made {
    graph: Graph,
    interface: Interface,
    free: Vec<String>,
    shapes: Shapes,
    executable: Executable,
    from_cache: bool,
}

/// The sizes of a plan's free dimensions, in the order of [`Plan::free`].
pub(crate) type Shapes = Vec<u32>;

impl Plan {
    /// Loads the bundle's model. Run untrusted bundles through [`crate::proof::prove`] first: this can use a
    /// lot of memory and time, and a hostile graph can crash it.
    ///
    /// # Errors
    /// [`LoadError`]
    pub fn load(bundle: &Bundle, options: &PlanOptions) -> Result<Plan, LoadError> {
        let labels: Vec<Arc<str>> = bundle.labels()?.into_iter().map(Arc::from).collect();
        let tier = options.int8.then_some(options.tier);
        let cache =
            tier.zip(options.cache.as_deref()).map(|(tier, dir)| Cache::new(dir, bundle.digest, tier));
        if let Some(plan) = cache.as_ref().and_then(|cache| Plan::restore(bundle, options, &labels, cache)) {
            return Ok(plan);
        }
        let file = fs::read(bundle.model_path())?;
        let manifest = bundle.manifest.as_ref();
        let (graph, interface) = Graph::read(&file, manifest, labels.len(), tier)?;
        drop(file);
        check_labels(&interface, &labels)?;
        let free = free_dims(&interface);
        // The author's own shapes, if there are any: 1 can be too small for a graph, and tells less.
        let golden = manifest.and_then(|manifest| manifest.golden.first());
        let size = |name: &String| golden.and_then(|golden| golden.shape.get(name)).copied().unwrap_or(1);
        let shapes: Shapes = free.iter().map(size).collect();
        let inputs = input_shapes(&interface, &free, &shapes);
        let executable = match cache {
            Some(cache) if free.is_empty() => graph.prepare_and_store(&inputs, &cache)?,
            _ => graph.prepare(&inputs)?,
        };
        let made = Made { graph, interface, free, shapes, executable, from_cache: false };
        Plan::new(bundle, options, labels, made)
    }

    /// The plan kept of this bundle, if there is one and nothing is wrong with it.
    fn restore(
        bundle: &Bundle,
        options: &PlanOptions,
        labels: &[Arc<str>],
        cache: &Cache<'_>,
    ) -> Option<Plan> {
        let content = cache.read()?;
        let entry = cache.entry(&content)?;
        let (graph, interface, executable) =
            Graph::restore(&entry, bundle.manifest.as_ref(), labels.len(), cache.tier())?;
        check_labels(&interface, labels).ok()?;
        let free = free_dims(&interface);
        if !free.is_empty() {
            return None;
        }
        let made = Made { graph, interface, free, shapes: vec![], executable, from_cache: true };
        Plan::new(bundle, options, labels.to_vec(), made).ok()
    }

    fn new(
        bundle: &Bundle,
        options: &PlanOptions,
        labels: Vec<Arc<str>>,
        made: Made,
    ) -> Result<Plan, LoadError> {
        let Made { graph, mut interface, free, shapes, executable, from_cache } = made;
        check_outputs(&mut interface, &executable, bundle.manifest.is_none() && free.is_empty())?;
        Ok(Plan {
            bundle: bundle.clone(),
            options: options.clone(),
            from_cache,
            output_names: interface.outputs.iter().map(|out| Arc::from(out.tensor.name.as_str())).collect(),
            interface,
            labels,
            weight_bytes: graph.weight_bytes,
            report: executable.report.clone(),
            graph: (!free.is_empty()).then_some(graph),
            free,
            prepared: Mutex::new(vec![(shapes, Arc::new(executable))]),
        })
    }

    /// The model's name.
    pub fn name(&self) -> &str {
        self.bundle.name()
    }

    /// The model's version.
    pub fn version(&self) -> u64 {
        self.bundle.version()
    }

    /// The bundle's identity.
    pub fn digest(&self) -> Digest {
        self.bundle.digest
    }

    /// The bundle this was loaded from.
    pub fn bundle(&self) -> &Bundle {
        &self.bundle
    }

    /// What it takes: the manifest's word, or read off the graph.
    pub fn inputs(&self) -> &[InputSpec] {
        &self.interface.inputs
    }

    /// What it gives: the manifest's word, or read off the graph.
    pub fn outputs(&self) -> &[OutputSpec] {
        &self.interface.outputs
    }

    /// Class names by index; empty where there are none.
    pub fn labels(&self) -> &[Arc<str>] {
        &self.labels
    }

    /// Bytes of the graph's constants, as the file has them.
    pub fn weight_bytes(&self) -> u64 {
        self.weight_bytes
    }

    /// What of the graph runs on the int8 kernels, and what on tract, at the shapes it was loaded with.
    pub fn report(&self) -> &Report {
        &self.report
    }

    /// Whether [`PlanOptions::cache`] had it.
    pub fn is_from_cache(&self) -> bool {
        self.from_cache
    }

    /// Whether [`crate::Input::Media`] is understood.
    pub fn takes_media(&self) -> bool {
        self.interface.inputs.iter().any(|input| input.image.is_some())
    }

    /// The names of the inputs' free dimensions, sorted; empty for most models.
    pub fn free_dims(&self) -> &[String] {
        &self.free
    }

    pub(crate) fn options(&self) -> &PlanOptions {
        &self.options
    }

    pub(crate) fn output_names(&self) -> &[Arc<str>] {
        &self.output_names
    }

    /// The graph for these sizes of the free dimensions, prepared now if it is not at hand.
    pub(crate) fn executable(&self, shapes: &Shapes) -> Result<Arc<Executable>, LoadError> {
        if let Some(executable) = self.look_up(shapes) {
            return Ok(executable);
        }
        let graph =
            self.graph.as_ref().expect("without free dimensions there is one set of shapes, kept since load");
        let executable = Arc::new(graph.prepare(&input_shapes(&self.interface, &self.free, shapes))?);
        // Two sessions may have prepared the same: one result too many for a moment, and no waiting.
        let mut prepared = self.lock();
        prepared.retain(|(known, _)| known != shapes);
        let over = (prepared.len() + 1).saturating_sub(self.options.shapes_max.max(1));
        prepared.drain(..over);
        prepared.push((shapes.clone(), executable.clone()));
        Ok(executable)
    }

    fn look_up(&self, shapes: &Shapes) -> Option<Arc<Executable>> {
        let mut prepared = self.lock();
        let at = prepared.iter().position(|(known, _)| known == shapes)?;
        let entry = prepared.remove(at);
        let executable = entry.1.clone();
        prepared.push(entry);
        Some(executable)
    }

    fn lock(&self) -> MutexGuard<'_, Vec<(Shapes, Arc<Executable>)>> {
        // Nothing panics between taking an entry out and putting it back.
        self.prepared.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Plan({} {} {})", self.name(), self.version(), self.digest().short())
    }
}

fn free_dims(interface: &Interface) -> Vec<String> {
    let mut free: Vec<String> =
        interface.inputs.iter().flat_map(|input| input.tensor.free_dims()).map(str::to_owned).collect();
    free.sort_unstable();
    free.dedup();
    free
}

fn input_shapes(interface: &Interface, free: &[String], shapes: &Shapes) -> Vec<Vec<u32>> {
    let sizes: BTreeMap<String, u32> = free.iter().cloned().zip(shapes.iter().copied()).collect();
    (interface.inputs.iter())
        .map(|input| input.tensor.resolved(&sizes).expect("`free` has every free dimension of the inputs"))
        .collect()
}

fn check_labels(interface: &Interface, labels: &[Arc<str>]) -> Result<(), LoadError> {
    for output in interface.outputs.iter().filter(|output| output.post.top_k.is_some()) {
        let fixed = output.tensor.resolved(&BTreeMap::new());
        let classes = fixed.map(|shape| shape.iter().map(|&dim| u64::from(dim)).product::<u64>());
        if let Some(classes) = classes
            && !labels.is_empty()
            && classes != labels.len() as u64
        {
            return Err(LoadError::Interface(format!(
                "output `{}` has {classes} classes, the labels file {} lines",
                output.tensor.name,
                labels.len()
            )));
        }
    }
    Ok(())
}

/// Holds the outputs the graph really gives against the specs. Where nobody promised a size (`adopt`), the
/// graph's own is taken.
fn check_outputs(interface: &mut Interface, executable: &Executable, adopt: bool) -> Result<(), LoadError> {
    let real = executable.outputs().map_err(|error| LoadError::Graph(format!("{error:#}")))?;
    for (output, (dtype, shape)) in interface.outputs.iter_mut().zip(real) {
        let spec = &mut output.tensor;
        if dtype != Some(spec.dtype) {
            let real = dtype.map_or("something that cannot be served".to_owned(), |dtype| dtype.to_string());
            return Err(LoadError::Interface(format!(
                "output `{}` is {} by its declaration, {real} as computed",
                spec.name, spec.dtype
            )));
        }
        let fits = |(dim, real): (&Dim, &Option<u32>)| match (dim, real) {
            (Dim::Fixed(size), Some(real)) => size == real,
            _ => true,
        };
        if shape.len() != spec.shape.len() || !spec.shape.iter().zip(&shape).all(fits) {
            return Err(LoadError::Interface(format!(
                "output `{}` has shape [{}] by its declaration, {shape:?} as computed",
                spec.name,
                shape_text(&spec.shape)
            )));
        }
        if adopt {
            for (dim, real) in spec.shape.iter_mut().zip(shape) {
                if let Some(size) = real {
                    *dim = Dim::Fixed(size);
                }
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn the_least_recently_used_shapes_go() {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/models/rows");
        let bundle = Bundle::open(&dir, &tractd_bundle::Limits::default()).unwrap();
        let options = PlanOptions { shapes_max: 2, ..PlanOptions::default() };
        let plan = Plan::load(&bundle, &options).unwrap();
        let kept = |plan: &Plan| plan.lock().iter().map(|(shapes, _)| shapes[0]).collect::<Vec<u32>>();
        assert_eq!(kept(&plan), [1], "prepared at load, as the first golden vector has it");
        plan.executable(&vec![5]).unwrap();
        plan.executable(&vec![1]).unwrap();
        assert_eq!(kept(&plan), [5, 1]);
        plan.executable(&vec![7]).unwrap();
        assert_eq!(kept(&plan), [1, 7]);
    }

    #[test]
    fn a_plan_is_shared_between_threads() {
        fn shared<T: Send + Sync>() {}
        fn moved<T: Send>() {}
        shared::<Plan>();
        moved::<crate::Session>();
    }
}
