//! From TOML to [`Manifest`]: what serde cannot say about a value stands here.

use std::collections::{BTreeMap, BTreeSet};

use serde::Deserialize;

use super::image::ImageSpec;
use super::*;
use crate::files::check_path;
use crate::limits::TAR_NAME_LEN;

/// Characters of an input's or output's name: what one frame on the wire holds.
const TENSOR_NAME_LEN_MAX: usize = 127;
/// Characters of a free dimension's name.
const DIM_NAME_LEN_MAX: usize = 32;
/// Bytes of one tensor; far above what a frame carries, far below what overflows an allocation size.
const TENSOR_BYTES_MAX: u64 = 1 << 30;
/// Pixels along one side of an image input; above it resizing buffers alone eat a gateway's memory.
const IMAGE_SIDE_MAX: u32 = 8192;
/// Golden vectors; every load on every device runs them all.
const GOLDEN_MAX: usize = 64;

pub(super) fn parse(text: &str) -> Result<Manifest, ManifestError> {
    let syntax = |error: toml::de::Error| ManifestError::Syntax(error.to_string());
    // The schema is read first: a newer format must not be reported as an unknown key.
    let table: toml::Table = text.parse().map_err(syntax)?;
    match table.get("schema").and_then(toml::Value::as_integer) {
        Some(schema) if schema == i64::from(MANIFEST_SCHEMA) => {}
        Some(found) => return Err(ManifestError::Schema { found }),
        None => return Err(field("schema", "is missing: write `schema = 1`")),
    }
    // Parsed from the text, not the table, so that errors point at the line.
    let raw: Raw = toml::from_str(text).map_err(syntax)?;
    raw.check()
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Raw {
    schema: u32,
    name: String,
    version: u64,
    #[serde(default)]
    description: String,
    #[serde(default)]
    license: String,
    labels: Option<String>,
    #[serde(default)]
    input: Vec<RawInput>,
    #[serde(default)]
    output: Vec<RawOutput>,
    #[serde(default)]
    arch: Vec<String>,
    min_runtime: Option<String>,
    peak_ram_bytes: Option<u64>,
    #[serde(default)]
    tolerance: Tolerance,
    #[serde(default)]
    golden: Vec<RawGolden>,
    #[serde(default)]
    provenance: BTreeMap<String, toml::Value>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawInput {
    name: String,
    dtype: DType,
    shape: Vec<Dim>,
    image: Option<ImageSpec>,
    #[serde(default)]
    allow_nan: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawOutput {
    name: String,
    dtype: DType,
    shape: Vec<Dim>,
    #[serde(default)]
    softmax: bool,
    top_k: Option<usize>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawGolden {
    inputs: Vec<String>,
    outputs: Vec<String>,
    from: String,
    #[serde(default)]
    shape: BTreeMap<String, u32>,
}

impl Raw {
    fn check(self) -> Result<Manifest, ManifestError> {
        if !is_model_name(&self.name) {
            return Err(field(
                "name",
                "must be 1 to 63 of a-z, 0-9, `_`, `-`, beginning with a letter or digit",
            ));
        }
        if self.version == 0 {
            return Err(field("version", "must be 1 or more"));
        }
        one_line("description", &self.description)?;
        one_line("license", &self.license)?;
        if let Some(labels) = &self.labels {
            payload_path("labels", labels)?;
        }
        for arch in &self.arch {
            let known = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit() || c == b'_';
            if arch.is_empty() || !arch.bytes().all(known) {
                return Err(field("arch", "takes names like `x86_64`, `aarch64`, `arm`"));
            }
        }
        if let Some(version) = &self.min_runtime
            && (version.split('.').count() != 3
                || version.split('.').any(|part| part.parse::<u32>().is_err()))
        {
            return Err(field("min_runtime", "must be a version like `1.2.3`"));
        }
        for (name, value) in [("abs", self.tolerance.abs), ("rel", self.tolerance.rel)] {
            if !value.is_finite() || value < 0.0 {
                return Err(field(&format!("tolerance.{name}"), "must be a number, 0 or more"));
            }
        }

        let inputs = checked_all("input", self.input, RawInput::check, |input| &input.tensor)?;
        let outputs = checked_all("output", self.output, RawOutput::check, |output| &output.tensor)?;
        if inputs.len() > 1
            && let Some(input) = inputs.iter().find(|input| input.image.is_some())
        {
            let at = format!("input.{}.image", input.tensor.name);
            return Err(field(&at, "works only where the model has a single input"));
        }
        if outputs.iter().filter(|output| output.post.top_k.is_some()).count() > 1 {
            return Err(field("output", "has `top_k` more than once: an answer holds one list of classes"));
        }
        if self.golden.len() > GOLDEN_MAX {
            return Err(field("golden", "has more than 64 vectors"));
        }
        let golden = (self.golden.into_iter().enumerate())
            .map(|(index, golden)| golden.check(index, &inputs, &outputs))
            .collect::<Result<_, _>>()?;

        Ok(Manifest {
            schema: self.schema,
            name: self.name,
            version: self.version,
            description: self.description,
            license: self.license,
            labels: self.labels,
            inputs,
            outputs,
            arch: self.arch,
            min_runtime: self.min_runtime,
            peak_ram_bytes: self.peak_ram_bytes,
            tolerance: self.tolerance,
            golden,
            provenance: self.provenance,
        })
    }
}

impl RawInput {
    fn check(self) -> Result<InputSpec, ManifestError> {
        let tensor = tensor("input", self.name, self.dtype, self.shape)?;
        if let Some(image) = &self.image {
            image_spec(&format!("input.{}.image", tensor.name), image, &tensor)?;
        }
        Ok(InputSpec { tensor, image: self.image, allow_nan: self.allow_nan })
    }
}

impl RawOutput {
    fn check(self) -> Result<OutputSpec, ManifestError> {
        let tensor = tensor("output", self.name, self.dtype, self.shape)?;
        let at = |key: &str| format!("output.{}.{key}", tensor.name);
        match self.top_k {
            Some(k) if !(1..=TOP_K_MAX).contains(&k) => return Err(field(&at("top_k"), "must be 1 to 10")),
            Some(_) if tensor.dtype == DType::Bool => {
                return Err(field(&at("top_k"), "needs numbers, not bool"));
            }
            None if self.softmax => {
                return Err(field(
                    &at("softmax"),
                    "gives the classes their scores: say how many with `top_k`",
                ));
            }
            _ => {}
        }
        if self.softmax && !tensor.dtype.is_float() {
            return Err(field(&at("softmax"), "needs a floating-point output"));
        }
        Ok(OutputSpec { post: Post { softmax: self.softmax, top_k: self.top_k }, tensor })
    }
}

impl RawGolden {
    fn check(
        self,
        index: usize,
        inputs: &[InputSpec],
        outputs: &[OutputSpec],
    ) -> Result<GoldenSpec, ManifestError> {
        let at = |key: &str| format!("golden[{index}].{key}");
        for (key, files, count) in
            [("inputs", &self.inputs, inputs.len()), ("outputs", &self.outputs, outputs.len())]
        {
            if files.len() != count {
                let problem = format!("names {} files where the model has {count} {key}", files.len());
                return Err(field(&at(key), &problem));
            }
            for file in files {
                payload_path(&at(key), file)?;
            }
        }
        one_line(&at("from"), &self.from)?;
        if self.from.is_empty() {
            return Err(field(&at("from"), "must say what computed the outputs"));
        }

        let specs = || inputs.iter().map(|input| &input.tensor).chain(outputs.iter().map(|out| &out.tensor));
        let free: BTreeSet<&str> = specs().flat_map(TensorSpec::free_dims).collect();
        if let Some(name) = self.shape.keys().find(|name| !free.contains(name.as_str())) {
            return Err(field(&at("shape"), &format!("names `{name}`, which no tensor has")));
        }
        if self.shape.values().any(|&size| size == 0) {
            return Err(field(&at("shape"), "takes sizes of 1 or more"));
        }
        for spec in specs() {
            let shape = (spec.resolved(&self.shape))
                .ok_or_else(|| field(&at("shape"), &format!("lacks a free dimension of `{}`", spec.name)))?;
            if spec.byte_len(&shape).is_none_or(|bytes| bytes > TENSOR_BYTES_MAX) {
                return Err(field(&at("shape"), &format!("makes `{}` larger than 1 GiB", spec.name)));
            }
        }
        Ok(GoldenSpec { inputs: self.inputs, outputs: self.outputs, from: self.from, shape: self.shape })
    }
}

fn checked_all<Raw, Spec>(
    kind: &str,
    raw: Vec<Raw>,
    check: impl FnMut(Raw) -> Result<Spec, ManifestError>,
    tensor: impl Fn(&Spec) -> &TensorSpec,
) -> Result<Vec<Spec>, ManifestError> {
    if !(1..=TENSORS_MAX).contains(&raw.len()) {
        return Err(field(kind, &format!("must stand 1 to {TENSORS_MAX} times, as [[{kind}]]")));
    }
    let specs: Vec<Spec> = raw.into_iter().map(check).collect::<Result<_, _>>()?;
    let mut names = BTreeSet::new();
    match specs.iter().map(tensor).find(|spec| !names.insert(&spec.name)) {
        Some(twice) => Err(field(&format!("{kind}.{}", twice.name), "is there twice")),
        None => Ok(specs),
    }
}

fn tensor(kind: &str, name: String, dtype: DType, shape: Vec<Dim>) -> Result<TensorSpec, ManifestError> {
    if !(1..=TENSOR_NAME_LEN_MAX).contains(&name.len()) || !name.bytes().all(|c| c.is_ascii_graphic()) {
        let problem = format!("must be 1 to {TENSOR_NAME_LEN_MAX} printable ASCII characters, not `{name}`");
        return Err(field(&format!("{kind}.name"), &problem));
    }
    let at = format!("{kind}.{name}.shape");
    if shape.len() > RANK_MAX {
        return Err(field(&at, &format!("has more than {RANK_MAX} dimensions")));
    }
    for dim in &shape {
        match dim {
            Dim::Fixed(0) => return Err(field(&at, "has a dimension of 0")),
            Dim::Fixed(_) => {}
            Dim::Free(name) if is_dim_name(name) => {}
            Dim::Free(name) => {
                return Err(field(
                    &at,
                    &format!("has `{name}`: free dimensions are named like `n` or `seq_len`"),
                ));
            }
        }
    }
    let spec = TensorSpec { name, dtype, shape };
    // Free dimensions count as 1 here; the engine bounds what a request may put in.
    let least: Vec<u32> =
        spec.shape.iter().map(|dim| if let Dim::Fixed(size) = dim { *size } else { 1 }).collect();
    if spec.byte_len(&least).is_none_or(|bytes| bytes > TENSOR_BYTES_MAX) {
        return Err(field(&at, "is larger than 1 GiB"));
    }
    Ok(spec)
}

fn is_dim_name(name: &str) -> bool {
    (1..=DIM_NAME_LEN_MAX).contains(&name.len())
        && !name.as_bytes()[0].is_ascii_digit()
        && name.bytes().all(|c| c.is_ascii_alphanumeric() || c == b'_')
}

fn image_spec(at: &str, image: &ImageSpec, tensor: &TensorSpec) -> Result<(), ManifestError> {
    let sides = 1..=IMAGE_SIDE_MAX;
    if !sides.contains(&image.width) || !sides.contains(&image.height) {
        return Err(field(at, &format!("takes width and height of 1 to {IMAGE_SIDE_MAX} pixels")));
    }
    let channels = image.channels.count() as u32;
    let (c, h, w) = (Dim::Fixed(channels), Dim::Fixed(image.height), Dim::Fixed(image.width));
    let pixels = match image.layout {
        image::Layout::Nchw => [c, h, w],
        image::Layout::Nhwc => [h, w, c],
    };
    match tensor.shape.split_first() {
        Some((Dim::Fixed(1) | Dim::Free(_), rest)) if rest == pixels => {}
        _ => {
            return Err(field(
                at,
                "does not give the tensor's shape: compare width, height, channels, layout",
            ));
        }
    }
    for (key, values) in [("mean", &image.mean), ("std", &image.std)] {
        if !(values.is_empty() || values.len() == 1 || values.len() == channels as usize) {
            return Err(field(&format!("{at}.{key}"), "takes one value, or one per channel"));
        }
    }
    if !image.mean.iter().chain([&image.scale]).all(|value| value.is_finite()) {
        return Err(field(at, "has a mean or scale that is not a finite number"));
    }
    if !image.std.iter().all(|value| value.is_normal()) {
        return Err(field(&format!("{at}.std"), "takes finite numbers other than 0"));
    }
    match tensor.dtype {
        DType::F32 => Ok(()),
        DType::U8 if image.scale == 1.0 && image.mean.is_empty() && image.std.is_empty() => Ok(()),
        DType::U8 => Err(field(at, "has scale, mean or std: a u8 input takes the pixels as they are")),
        other => Err(field(at, &format!("makes f32 or u8 inputs, not {other}"))),
    }
}

/// A path to a labels or golden file: one that cannot replace the manifest or the model.
fn payload_path(at: &str, path: &str) -> Result<(), ManifestError> {
    check_path(path, TAR_NAME_LEN).map_err(|problem| field(at, &format!("has `{path}`, which {problem}")))?;
    if path == crate::MANIFEST_FILE || path == crate::MODEL_FILE {
        return Err(field(at, &format!("cannot be `{path}`")));
    }
    Ok(())
}

/// These texts go to terminals and logs: no line breaks, no escape sequences.
fn one_line(at: &str, text: &str) -> Result<(), ManifestError> {
    if text.chars().any(char::is_control) {
        return Err(field(at, "has a control character or line break"));
    }
    Ok(())
}

fn field(at: &str, problem: &str) -> ManifestError {
    ManifestError::Field { field: at.to_owned(), problem: problem.to_owned() }
}
