//! Runs a model file so many times, for tools that count instructions (`scripts/bench-arm-instructions`):
//!
//! `repeat KERNELS RUNS MODEL.onnx`, with kernels by name as the daemon runs the file, or with `tract` as tract alone does.

use std::error::Error;
use std::path::Path;
use std::sync::Arc;

use tract_onnx::prelude::*;
use tractd_bundle::{Bundle, Dim, Limits};
use tractd_engine::{Input, Output, Plan, PlanOptions, Session, TensorView, Want};

fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [kernels, runs, model] = args.as_slice() else { return Err("repeat KERNELS RUNS MODEL.onnx".into()) };
    let (runs, model) = (runs.parse()?, Path::new(model));
    if kernels == "tract" { stock(runs, model) } else { ours(kernels, runs, model) }
}

fn stock(runs: usize, model: &Path) -> Result<(), Box<dyn Error>> {
    let plan = tract_onnx::onnx().model_for_path(model)?.into_optimized()?.into_runnable()?;
    let shape = plan.model().input_fact(0)?.shape.as_concrete().ok_or("a free dimension")?.to_vec();
    let mut state = plan.spawn()?;
    for _ in 0..runs {
        let mut input = Tensor::zero::<f32>(&shape)?;
        input.as_bytes_mut().copy_from_slice(&floats(shape.iter().product()));
        state.run(tvec!(input.into_tvalue()))?;
    }
    Ok(())
}

/// `model` is in a folder `NAME/VERSION`.
fn ours(kernels: &str, runs: usize, model: &Path) -> Result<(), Box<dyn Error>> {
    let bundle = Bundle::open(model.parent().ok_or("no folder")?, &Limits::default())?;
    let options = PlanOptions { tier: kernels.parse()?, ..PlanOptions::default() };
    let plan = Arc::new(Plan::load(&bundle, &options)?);
    let mut session = Session::new(plan.clone())?;
    let input = plan.inputs().first().ok_or("no input")?;
    let size = |dim: &Dim| if let Dim::Fixed(size) = dim { Ok(*size) } else { Err("a free dimension") };
    let shape = input.tensor.shape.iter().map(size).collect::<Result<Vec<u32>, _>>()?;
    let mut output = Output::default();
    for _ in 0..runs {
        let data = floats(shape.iter().product::<u32>() as usize);
        let view =
            TensorView { name: &input.tensor.name, dtype: input.tensor.dtype, shape: &shape, data: &data };
        session.run_into(Input::Tensors(&[view]), Want::ALL, &mut output)?;
    }
    Ok(())
}

/// Of -1 to 1, little-endian.
fn floats(count: usize) -> Vec<u8> {
    (0..count).flat_map(|index| ((index * 37 % 201) as f32 / 100.0 - 1.0).to_le_bytes()).collect()
}
