use std::sync::Arc;
use std::time::{Duration, Instant};

use tract_onnx::prelude::{IntoTValue, TValue, TVec, Tensor as TractTensor, TractError, tvec};
use tractd_bundle::{DType, Dim, InputSpec};

use crate::convert::{from_tract, to_tract};
use crate::exec::{State, run_tract};
use crate::image;
use crate::interface::shape_text;
use crate::plan::Shapes;
use crate::{Input, Output, Plan, Tensor, TensorView, Timings, Want, finite, post};

/// Input tensors kept from one run to the next, in bytes together: larger ones take long to compute on anyway, and would
/// be memory that idles.
const KEPT_BYTES_MAX: usize = 1 << 20;

/// One worker's state on a [`Plan`]: buffers and the graph's own state. Not shared; make one per thread.
pub struct Session {
    plan: Arc<Plan>,
    resizer: image::Resizer,
    /// For the shapes of the last run; requests of one model mostly repeat theirs.
    state: Option<(Shapes, State)>,
}

/// Why a run gave no answer. All but `Internal` are the request's fault.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RunError {
    /// No such input.
    #[error("the model has no input `{name}`; its inputs are {known}")]
    UnknownInput {
        /// As given.
        name: String,
        /// The model's inputs.
        known: String,
    },
    /// The same input again.
    #[error("input `{name}` is given twice")]
    DuplicateInput {
        /// Which.
        name: String,
    },
    /// An input is lacking.
    #[error("input `{name}` is missing")]
    MissingInput {
        /// Which.
        name: String,
    },
    /// Another element type.
    #[error("input `{name}` is {got} where the model takes {expected}")]
    WrongDtype {
        /// Which.
        name: String,
        /// The model's.
        expected: DType,
        /// The request's.
        got: DType,
    },
    /// Another shape, or free dimensions of one name that differ.
    #[error("input `{name}` has shape {got:?} where the model takes [{expected}]")]
    WrongShape {
        /// Which.
        name: String,
        /// The model's.
        expected: String,
        /// The request's.
        got: Vec<u32>,
    },
    /// Shape and bytes do not go together.
    #[error("input `{name}` has {got} bytes where its dtype and shape make {expected}")]
    WrongLength {
        /// Which.
        name: String,
        /// By dtype and shape.
        expected: u64,
        /// What came.
        got: u64,
    },
    /// NaN or infinite, and the manifest does not say `allow_nan`.
    #[error("input `{name}` has a NaN or infinity at element {index}")]
    NotFinite {
        /// Which.
        name: String,
        /// The first, counted over all elements.
        index: usize,
    },
    /// A `bool` that is neither 0 nor 1.
    #[error("input `{name}` has a bool other than 0 and 1 at element {index}")]
    NotBool {
        /// Which.
        name: String,
        /// The first, counted over all elements.
        index: usize,
    },
    /// Not a JPEG or PNG, or the model takes no pictures.
    #[error("{0}")]
    UnsupportedMedia(String),
    /// A damaged picture.
    #[error("the picture does not decode: {0}")]
    MediaDecode(String),
    /// Beyond a limit: a picture's pixels, a free dimension.
    #[error("{what} is {got}, more than the limit of {limit}")]
    TooLarge {
        /// What is too large.
        what: String,
        /// In the limit's unit.
        got: u64,
        /// In pixels or elements.
        limit: u64,
    },
    /// The free dimensions asked for fit the manifest, but the graph cannot be made for them.
    #[error("the model does not take these shapes: {0}")]
    UnfitShape(String),
    /// The graph failed on a sound input: the model's fault, or ours.
    #[error("the model failed: {0}")]
    Internal(String),
}

impl Session {
    /// A fresh state on `plan`.
    ///
    /// # Errors
    /// The graph's state cannot be set up.
    pub fn new(plan: Arc<Plan>) -> Result<Session, RunError> {
        let mut session = Session { plan, resizer: image::Resizer::default(), state: None };
        if session.plan.free_dims().is_empty() {
            session.prepare(Vec::new())?;
        }
        Ok(session)
    }

    /// The plan this runs.
    pub fn plan(&self) -> &Arc<Plan> {
        &self.plan
    }

    /// Runs the model once. The session stays usable after an error.
    ///
    /// # Errors
    /// [`RunError`]
    pub fn run(&mut self, input: Input<'_>, want: Want) -> Result<Output, RunError> {
        let mut output = Output::default();
        let begin = Instant::now();
        let (mut ready, mut done) = (begin, begin);
        self.run_marked(input, want, &mut output, |mark| match mark {
            Mark::Ready => ready = Instant::now(),
            Mark::Done => done = Instant::now(),
        })?;
        let (pre_us, infer_us) = (micros(ready - begin), micros(done - ready));
        output.timings = Timings { pre_us, infer_us, post_us: micros(done.elapsed()) };
        Ok(output)
    }

    /// As [`Session::run`], but into the memory of an earlier answer, and untimed. Where the model runs on the int8
    /// kernels alone and is given up to four tensors, nothing is allocated and no clock read: a small model takes less
    /// time than these. After an error `output` holds nothing of use.
    ///
    /// # Errors
    /// [`RunError`]
    pub fn run_into(&mut self, input: Input<'_>, want: Want, output: &mut Output) -> Result<(), RunError> {
        output.timings = Timings::default();
        self.run_marked(input, want, output, |_| ())
    }

    fn run_marked(
        &mut self,
        input: Input<'_>,
        want: Want,
        output: &mut Output,
        mut reached: impl FnMut(Mark),
    ) -> Result<(), RunError> {
        let (given, shapes) = match input {
            Input::Tensors(views) => self.check(views)?,
            Input::Media(bytes) => self.read_media(bytes)?,
        };
        self.prepare(shapes)?;
        let (_, state) = self.state.as_mut().expect("just prepared");
        output.classes.clear();
        let ran = match state {
            State::Int8(int8, arena) => {
                let given = given.bytes()?;
                reached(Mark::Ready);
                int8.run(arena, &given, &mut output.tensors, self.plan.output_names()).map(|()| None)
            }
            State::Tract(state, kept) => {
                let given = given.tensors(kept)?;
                reached(Mark::Ready);
                run_tract(state, given).map(Some)
            }
        };
        reached(Mark::Done);
        let values = ran.map_err(|error| {
            self.state = None;
            internal(&error)
        })?;
        match values {
            Some(values) => self.collect(&values, want, output),
            None => self.finish(want, output),
        }
    }

    /// Checks everything about the views, and puts them in the order of the inputs.
    fn check<'v>(&self, views: &'v [TensorView<'v>]) -> Result<(Given<'v>, Shapes), RunError> {
        let inputs = self.plan.inputs();
        let mut by_input: TVec<Option<&TensorView<'_>>> = tvec![None; inputs.len()];
        for view in views {
            let named = |input: &InputSpec| input.tensor.name == view.name;
            let lone = inputs.len() == 1 && view.name.is_empty();
            let Some(index) = inputs.iter().position(|input| lone || named(input)) else {
                let known: Vec<&str> = inputs.iter().map(|input| input.tensor.name.as_str()).collect();
                return Err(RunError::UnknownInput { name: view.name.to_owned(), known: known.join(", ") });
            };
            if by_input[index].replace(view).is_some() {
                return Err(RunError::DuplicateInput { name: inputs[index].tensor.name.clone() });
            }
        }

        let mut free = FreeDims::new(&self.plan);
        let mut checked = TVec::with_capacity(inputs.len());
        for (input, view) in inputs.iter().zip(by_input) {
            let spec = &input.tensor;
            let name = || spec.name.clone();
            let view = view.ok_or_else(|| RunError::MissingInput { name: name() })?;
            if view.dtype != spec.dtype {
                return Err(RunError::WrongDtype { name: name(), expected: spec.dtype, got: view.dtype });
            }
            if !free.fit(&spec.shape, view.shape)? {
                let (expected, got) = (shape_text(&spec.shape), view.shape.to_vec());
                return Err(RunError::WrongShape { name: name(), expected, got });
            }
            let got = view.data.len() as u64;
            let expected = spec.byte_len(view.shape).unwrap_or(u64::MAX);
            if got != expected {
                return Err(RunError::WrongLength { name: name(), expected, got });
            }
            if !input.allow_nan
                && let Some(index) = finite::first_not_finite(spec.dtype, view.data)
            {
                return Err(RunError::NotFinite { name: name(), index });
            }
            // Anything but 0 and 1 in a bool is undefined behaviour once tract reads it as one.
            if spec.dtype == DType::Bool
                && let Some(index) = view.data.iter().position(|&byte| byte > 1)
            {
                return Err(RunError::NotBool { name: name(), index });
            }
            checked.push(view);
        }
        Ok((Given::Views(checked), free.sizes()))
    }

    fn read_media<'v>(&mut self, bytes: &[u8]) -> Result<(Given<'v>, Shapes), RunError> {
        let plan = self.plan.clone();
        let input = plan.inputs().iter().find_map(|input| Some((&input.tensor, input.image.as_ref()?)));
        let Some((tensor, spec)) = input else {
            let problem =
                "this model takes no pictures; send tensors, or pack it with an [input.image] section";
            return Err(RunError::UnsupportedMedia(problem.to_owned()));
        };
        let picture = image::decode(bytes, spec, plan.options().image_pixels_max)?;
        // A free dimension is the batch: one picture.
        let size = |dim: &Dim| if let Dim::Fixed(size) = dim { *size } else { 1 };
        let shape: Vec<u32> = tensor.shape.iter().map(size).collect();
        let mut made = blank(tensor.dtype, &shape)?;
        self.resizer.fill(picture, spec, tensor.dtype, &mut made)?;
        Ok((Given::Picture(Box::new(made)), vec![1; plan.free_dims().len()]))
    }

    /// Sees to a state for these shapes.
    fn prepare(&mut self, shapes: Shapes) -> Result<(), RunError> {
        // Element by element: comparing empty slices as such, as those of most models are, has some C libraries load
        // from beside mapped memory with every byte masked out, which processors take 140 ns for.
        if self.state.as_ref().is_none_or(|(known, _)| known.iter().ne(&shapes)) {
            // First the old one goes: two sets of buffers at once would not be in anybody's budget.
            self.state = None;
            let executable =
                self.plan.executable(&shapes).map_err(|error| RunError::UnfitShape(error.to_string()))?;
            let state = executable.state().map_err(|error| internal(&error))?;
            self.state = Some((shapes, state));
        }
        Ok(())
    }

    /// The classes of what the kernels left in `output.tensors`.
    fn finish(&self, want: Want, output: &mut Output) -> Result<(), RunError> {
        for (answer, spec) in output.tensors.iter().zip(self.plan.outputs()) {
            if want.classes
                && let Some(top_k) = spec.post.top_k
            {
                let scores = scores(answer)?;
                output.classes = post::classes(&scores, top_k, spec.post.softmax, self.plan.labels());
            }
        }
        if !want.tensors {
            output.tensors.clear();
        }
        Ok(())
    }

    fn collect(&self, values: &[TValue], want: Want, output: &mut Output) -> Result<(), RunError> {
        output.tensors.clear();
        for ((value, spec), name) in values.iter().zip(self.plan.outputs()).zip(self.plan.output_names()) {
            if want.classes
                && let Some(top_k) = spec.post.top_k
            {
                let values = value.cast_to::<f32>().map_err(|error| internal(&error))?;
                let plain = values.try_as_plain_ram().map_err(|error| internal(&error))?;
                let scores = plain.as_slice::<f32>().map_err(|error| internal(&error))?;
                output.classes = post::classes(scores, top_k, spec.post.softmax, self.plan.labels());
            }
            if want.tensors {
                output.tensors.push(tensor(value, name)?);
            }
        }
        Ok(())
    }
}

/// Where in a run time is taken.
enum Mark {
    /// The inputs are checked and where they have to be.
    Ready,
    /// The graph has run.
    Done,
}

/// A run's inputs, in the order of the specs.
enum Given<'v> {
    /// Where the caller holds them.
    Views(TVec<&'v TensorView<'v>>),
    /// Made of a picture.
    Picture(Box<TractTensor>),
}

impl Given<'_> {
    fn bytes(&self) -> Result<TVec<&[u8]>, RunError> {
        match self {
            Given::Views(views) => Ok(views.iter().map(|view| view.data).collect()),
            Given::Picture(tensor) => {
                let plain = tensor.try_as_plain_ram().map_err(|error| internal(&error))?;
                Ok(tvec![plain.as_bytes()])
            }
        }
    }

    /// Copies, in memory aligned for tract: in `kept`, that of the last run of these shapes, where it is free again.
    fn tensors(self, kept: &mut Vec<Arc<TractTensor>>) -> Result<TVec<TValue>, RunError> {
        let views = match self {
            Given::Views(views) => views,
            Given::Picture(tensor) => return Ok(tvec![tensor.into_tvalue()]),
        };
        for (index, view) in views.iter().enumerate() {
            if kept.get_mut(index).is_none_or(|tensor| Arc::get_mut(tensor).is_none()) {
                kept.truncate(index);
                kept.push(Arc::new(blank(view.dtype, view.shape)?));
            }
            let tensor = Arc::get_mut(&mut kept[index]).expect("nobody else has it");
            tensor.as_bytes_mut().copy_from_slice(view.data);
        }
        let values = kept.iter().map(|tensor| tensor.clone().into_tvalue()).collect();
        if views.iter().map(|view| view.data.len()).sum::<usize>() > KEPT_BYTES_MAX {
            kept.clear();
        }
        Ok(values)
    }
}

fn blank(dtype: DType, shape: &[u32]) -> Result<TractTensor, RunError> {
    let shape: Vec<usize> = shape.iter().map(|&dim| dim as usize).collect();
    TractTensor::zero_dt(to_tract(dtype), &shape).map_err(|error| internal(&error))
}

fn internal(error: &TractError) -> RunError {
    RunError::Internal(format!("{error:#}"))
}

/// The elements of what the kernels gave, which is one of these types.
fn scores(answer: &Tensor) -> Result<Vec<f32>, RunError> {
    match answer.dtype {
        DType::F32 => Ok(answer.data.as_chunks().0.iter().map(|&bytes| f32::from_le_bytes(bytes)).collect()),
        DType::U8 => Ok(answer.data.iter().map(|&byte| f32::from(byte)).collect()),
        DType::I8 => Ok(answer.data.iter().map(|&byte| f32::from(byte as i8)).collect()),
        other => Err(RunError::Internal(format!("output `{}` came out as {other}", answer.name))),
    }
}

fn tensor(value: &TValue, name: &Arc<str>) -> Result<Tensor, RunError> {
    let unusable = || RunError::Internal(format!("output `{name}` came out as {value:?}"));
    let dtype = from_tract(value.datum_type()).ok_or_else(unusable)?;
    let shape = value.shape().iter().map(|&dim| u32::try_from(dim)).collect::<Result<_, _>>();
    let plain = value.try_as_plain_ram().map_err(|_| unusable())?;
    Ok(Tensor {
        name: name.clone(),
        dtype,
        shape: shape.map_err(|_| unusable())?,
        data: plain.as_bytes().to_vec(),
    })
}

/// The free dimensions of one request, as its tensors show them one by one.
struct FreeDims<'p> {
    names: &'p [String],
    sizes: Vec<Option<u32>>,
    limit: u32,
}

impl<'p> FreeDims<'p> {
    fn new(plan: &'p Plan) -> FreeDims<'p> {
        let names = plan.free_dims();
        FreeDims { names, sizes: vec![None; names.len()], limit: plan.options().free_dim_max }
    }

    /// Whether `shape` is one `spec` allows, given what earlier tensors made of the same names.
    fn fit(&mut self, spec: &[Dim], shape: &[u32]) -> Result<bool, RunError> {
        if spec.len() != shape.len() {
            return Ok(false);
        }
        for (dim, &got) in spec.iter().zip(shape) {
            match dim {
                Dim::Fixed(size) if *size == got => {}
                Dim::Fixed(_) => return Ok(false),
                Dim::Free(_) if got == 0 => return Ok(false),
                Dim::Free(name) if got > self.limit => {
                    let what = format!("dimension `{name}`");
                    return Err(RunError::TooLarge { what, got: got.into(), limit: self.limit.into() });
                }
                Dim::Free(name) => {
                    let at = self.names.binary_search(name).expect("the plan collected all free dimensions");
                    if *self.sizes[at].get_or_insert(got) != got {
                        return Ok(false);
                    }
                }
            }
        }
        Ok(true)
    }

    /// Once every input has been seen.
    fn sizes(self) -> Shapes {
        self.sizes
            .into_iter()
            .map(|size| size.expect("each name stands in an input, and all were seen"))
            .collect()
    }
}

fn micros(took: Duration) -> u32 {
    u32::try_from(took.as_micros()).unwrap_or(u32::MAX)
}
