use std::sync::Arc;
use std::time::{Duration, Instant};

use tract_onnx::prelude::f16;
use tractd_bundle::{DType, Dim, GoldenSpec, Tolerance};

use crate::{Input, Output, Plan, RunError, Session, Tensor, TensorView, Want, finite};

/// What a self-test found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SelfTest {
    /// How many golden vectors held; none means one run on zeros succeeded.
    pub golden: usize,
    /// One run, the median of several.
    pub infer_us_median: u64,
}

/// Why a model does not pass.
#[derive(Debug, thiserror::Error)]
pub enum SelfTestError {
    /// A golden file is gone or has another size than the manifest says.
    #[error("golden file {file}: {problem}")]
    Golden {
        /// Which.
        file: String,
        /// Why.
        problem: String,
    },
    /// It does not run.
    #[error("golden vector {vector}: {source}")]
    Run {
        /// Which, counted from 0.
        vector: usize,
        /// Why.
        source: RunError,
    },
    /// It computes something else.
    #[error(
        "golden vector {vector}, output `{output}`[{index}]: {got} where {from} computed {expected} \
         (beyond abs {abs} + rel {rel})"
    )]
    Differs {
        /// Which, counted from 0.
        vector: usize,
        /// The output's name.
        output: String,
        /// Where in it, counted over all its elements.
        index: usize,
        /// Computed here.
        got: f64,
        /// The golden value.
        expected: f64,
        /// What computed the golden value.
        from: String,
        /// The manifest's tolerance.
        abs: f32,
        /// The manifest's tolerance.
        rel: f32,
    },
    /// An output of the wrong shape or type.
    #[error("golden vector {vector}, output `{output}`: {problem}")]
    Shape {
        /// Which, counted from 0.
        vector: usize,
        /// The output's name.
        output: String,
        /// What is wrong.
        problem: String,
    },
    /// Without golden vectors, zeros must at least give numbers.
    #[error("output `{output}` is NaN or infinite on an input of zeros")]
    NotFinite {
        /// The output's name.
        output: String,
    },
}

/// Runs at least this often, for a median.
const RUNS_MIN: usize = 5;
/// A quick model is run on for this long, or five runs would be over within one interruption.
const REPEAT_MIN: Duration = Duration::from_millis(20);
/// A slow model is not run again after this long.
const REPEAT_MAX: Duration = Duration::from_millis(200);
/// Runs at most, whatever the clock says.
const RUNS_MAX: usize = 1_001;

/// Runs every golden vector of the plan's bundle and compares; without any, one run on zeros must succeed and
/// be finite.
///
/// # Errors
/// The first thing that does not hold.
pub fn self_test(plan: &Arc<Plan>) -> Result<SelfTest, SelfTestError> {
    let started = Instant::now();
    let mut session =
        Session::new(plan.clone()).map_err(|source| SelfTestError::Run { vector: 0, source })?;
    let golden = plan.bundle().manifest.as_ref().map_or(&[][..], |manifest| &manifest.golden);
    let mut times = Vec::new();
    for (vector, spec) in golden.iter().enumerate() {
        let feeds = Feeds::golden(plan, spec)?;
        let output = feeds.run(&mut session, vector, &mut times)?;
        for ((tensor, file), spec) in output.tensors.iter().zip(&spec.outputs).zip(plan.outputs()) {
            let expected = read(plan, file)?;
            compare(plan, vector, tensor, &expected, spec.tensor.dtype)?;
        }
    }
    let repeat = match golden.first() {
        Some(first) => Feeds::golden(plan, first)?,
        None => Feeds::zeros(plan),
    };
    if golden.is_empty() {
        let output = repeat.run(&mut session, 0, &mut times)?;
        let bad = |tensor: &&Tensor| finite::first_not_finite(tensor.dtype, &tensor.data).is_some();
        if let Some(tensor) = output.tensors.iter().find(bad) {
            return Err(SelfTestError::NotFinite { output: tensor.name.to_string() });
        }
    }
    let enough = |runs| if runs < RUNS_MIN { REPEAT_MAX } else { REPEAT_MIN };
    while times.len() < RUNS_MAX && started.elapsed() < enough(times.len()) {
        repeat.run(&mut session, 0, &mut times)?;
    }
    times.sort_unstable();
    Ok(SelfTest { golden: golden.len(), infer_us_median: times[times.len() / 2] })
}

/// Whole inputs of one run.
struct Feeds {
    tensors: Vec<(String, DType, Vec<u32>, Vec<u8>)>,
}

impl Feeds {
    fn golden(plan: &Plan, golden: &GoldenSpec) -> Result<Feeds, SelfTestError> {
        let tensors = (plan.inputs().iter().zip(&golden.inputs))
            .map(|(input, file)| {
                let shape = (input.tensor.resolved(&golden.shape))
                    .expect("Manifest::parse checked every golden vector's free dimensions");
                Ok((input.tensor.name.clone(), input.tensor.dtype, shape, read(plan, file)?))
            })
            .collect::<Result<_, _>>()?;
        Ok(Feeds { tensors })
    }

    /// Zeros, with every free dimension 1.
    fn zeros(plan: &Plan) -> Feeds {
        let tensors = plan.inputs().iter().map(|input| {
            let spec = &input.tensor;
            let size = |dim: &Dim| if let Dim::Fixed(size) = dim { *size } else { 1 };
            let shape: Vec<u32> = spec.shape.iter().map(size).collect();
            let bytes = spec.byte_len(&shape).and_then(|bytes| usize::try_from(bytes).ok()).unwrap_or(0);
            (spec.name.clone(), spec.dtype, shape, vec![0; bytes])
        });
        Feeds { tensors: tensors.collect() }
    }

    fn run(
        &self,
        session: &mut Session,
        vector: usize,
        times: &mut Vec<u64>,
    ) -> Result<Output, SelfTestError> {
        let views: Vec<TensorView<'_>> = (self.tensors.iter())
            .map(|(name, dtype, shape, data)| TensorView { name, dtype: *dtype, shape, data })
            .collect();
        let output = (session.run(Input::Tensors(&views), Want::ALL))
            .map_err(|source| SelfTestError::Run { vector, source })?;
        times.push(output.timings.infer_us.into());
        Ok(output)
    }
}

fn read(plan: &Plan, file: &str) -> Result<Vec<u8>, SelfTestError> {
    let problem =
        |error: std::io::Error| SelfTestError::Golden { file: file.to_owned(), problem: error.to_string() };
    plan.bundle().golden(file).map_err(problem)
}

fn compare(
    plan: &Plan,
    vector: usize,
    got: &Tensor,
    expected: &[u8],
    dtype: DType,
) -> Result<(), SelfTestError> {
    let output = || got.name.to_string();
    if got.dtype != dtype || got.data.len() != expected.len() {
        let problem = format!(
            "{} of shape {:?} where the golden file has {} bytes of {dtype}",
            got.dtype,
            got.shape,
            expected.len()
        );
        return Err(SelfTestError::Shape { vector, output: output(), problem });
    }
    let manifest = plan.bundle().manifest.as_ref().expect("golden vectors come from a manifest");
    let Tolerance { abs, rel } = manifest.tolerance;
    let within = |got: f64, expected: f64| {
        // Equal infinities are equal; NaN never is within anything.
        got == expected || (got - expected).abs() <= f64::from(abs) + f64::from(rel) * expected.abs()
    };
    for (index, (got_value, expected)) in values(dtype, &got.data).zip(values(dtype, expected)).enumerate() {
        if !within(got_value, expected) {
            let from = manifest.golden[vector].from.clone();
            return Err(SelfTestError::Differs {
                vector,
                output: output(),
                index,
                got: got_value,
                expected,
                from,
                abs,
                rel,
            });
        }
    }
    Ok(())
}

/// Little-endian elements as numbers. 64-bit integers lose what is beyond 2^53, far below any tolerance.
fn values(dtype: DType, data: &[u8]) -> Box<dyn Iterator<Item = f64> + '_> {
    fn each<const N: usize>(data: &[u8], value: fn([u8; N]) -> f64) -> Box<dyn Iterator<Item = f64> + '_> {
        Box::new(data.as_chunks::<N>().0.iter().map(move |&element| value(element)))
    }
    match dtype {
        DType::U8 | DType::Bool => each(data, |e| u8::from_le_bytes(e).into()),
        DType::I8 => each(data, |e| i8::from_le_bytes(e).into()),
        DType::U16 => each(data, |e| u16::from_le_bytes(e).into()),
        DType::I16 => each(data, |e| i16::from_le_bytes(e).into()),
        DType::U32 => each(data, |e| u32::from_le_bytes(e).into()),
        DType::I32 => each(data, |e| i32::from_le_bytes(e).into()),
        DType::U64 => each(data, |e| u64::from_le_bytes(e) as f64),
        DType::I64 => each(data, |e| i64::from_le_bytes(e) as f64),
        DType::F16 => each(data, |e| f16::from_le_bytes(e).to_f64()),
        DType::F32 => each(data, |e| f32::from_le_bytes(e).into()),
        DType::F64 => each(data, f64::from_le_bytes),
    }
}
