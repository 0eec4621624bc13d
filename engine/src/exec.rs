//! What runs a graph, at one set of shapes: the int8 kernels alone, or tract with regions of theirs in it.
//!
//! The packed weights belong to [`Executable`], arenas to [`State`]. Everything before and after only knows tensors in
//! and tensors out.

use tract_onnx::prelude::*;
use tract_onnx::tract_hir::internal::DimLike;
use tractd_bundle::DType;
use tractd_compiler::{Arena, Element, Report, Whole};

use crate::convert::from_tract;

/// A graph optimised for its shapes; shared by every session.
pub(crate) struct Executable {
    runner: Runner,
    /// What runs where.
    pub(crate) report: Report,
}

enum Runner {
    Tract(Arc<TypedSimplePlan>),
    Int8(Arc<Int8>),
}

/// A graph that runs without tract.
struct Int8 {
    whole: Whole,
    /// By the graph's inputs, which of the specs'.
    inputs: Vec<usize>,
    /// By the specs' outputs, which of the graph's.
    outputs: Vec<usize>,
}

/// Element type and shape of an output, as far as the graph alone decides them.
pub(crate) type OutputFact = (Option<DType>, Vec<Option<u32>>);

/// One session's buffers and operator states.
pub(crate) enum State {
    Tract(TypedSimpleState),
    #[allow(private_interfaces, reason = "only looked into here")]
    Int8(Arc<Int8>, Arena),
}

impl Executable {
    /// Optimises `model`, whose input facts are concrete.
    pub(crate) fn on_tract(model: InferenceModel, report: Report) -> TractResult<Executable> {
        let typed = model.into_typed()?.into_decluttered()?;
        let plan = typed.into_optimized()?.into_runnable()?;
        Ok(Executable { runner: Runner::Tract(plan), report })
    }

    /// `inputs` are, by the graph's inputs, indices of the specs'; `outputs`, by the specs' outputs, of the graph's.
    pub(crate) fn int8(whole: Whole, inputs: Vec<usize>, outputs: Vec<usize>, report: Report) -> Executable {
        Executable { runner: Runner::Int8(Arc::new(Int8 { whole, inputs, outputs })), report }
    }

    pub(crate) fn state(&self) -> TractResult<State> {
        Ok(match &self.runner {
            Runner::Tract(plan) => State::Tract(plan.spawn()?),
            Runner::Int8(int8) => State::Int8(int8.clone(), int8.whole.region().program().session()),
        })
    }

    /// Element type and shape of each output; `None` in a shape for what only the data decides.
    pub(crate) fn outputs(&self) -> TractResult<Vec<OutputFact>> {
        match &self.runner {
            Runner::Tract(plan) => {
                let model = plan.model();
                (0..model.output_outlets()?.len())
                    .map(|index| {
                        let fact = model.output_fact(index)?;
                        let dim = |dim: &TDim| dim.to_usize().ok().and_then(|size| u32::try_from(size).ok());
                        Ok((from_tract(fact.datum_type), fact.shape.iter().map(dim).collect()))
                    })
                    .collect()
            }
            Runner::Int8(int8) => {
                let output = |&index: &usize| {
                    let port = int8
                        .whole
                        .output(index)
                        .ok_or_else(|| TractError::msg("an output without a port"))?;
                    let dims = port.shape.iter().map(|&dim| u32::try_from(dim).ok()).collect();
                    Ok((from_tract(datum_type(port.element)), dims))
                };
                int8.outputs.iter().map(output).collect()
            }
        }
    }
}

impl State {
    /// Inputs and outputs in the order of the specs. After an error the state is unfit for use.
    pub(crate) fn run(&mut self, inputs: Vec<Tensor>) -> TractResult<Vec<TValue>> {
        match self {
            State::Tract(state) => {
                Ok(state.run(inputs.into_iter().map(Tensor::into_tvalue).collect())?.into_vec())
            }
            State::Int8(int8, arena) => int8.run(arena, &inputs),
        }
    }
}

impl Int8 {
    fn run(&self, arena: &mut Arena, inputs: &[Tensor]) -> TractResult<Vec<TValue>> {
        let given = self.inputs.iter().map(|&index| Ok(inputs[index].try_as_plain_ram()?.as_bytes()));
        let given: Vec<&[u8]> = given.collect::<TractResult<_>>()?;
        let blank = self.whole.outputs().map(|port| Tensor::zero_dt(datum_type(port.element), &port.shape));
        let mut made: Vec<Tensor> = blank.collect::<TractResult<_>>()?;
        let mut slices: Vec<&mut [u8]> = made.iter_mut().map(Tensor::as_bytes_mut).collect();
        self.whole.run(arena, &given, &mut slices)?;
        let values: Vec<TValue> = made.into_iter().map(Tensor::into_tvalue).collect();
        Ok(self.outputs.iter().map(|&index| values[index].clone()).collect())
    }
}

fn datum_type(element: Element) -> DatumType {
    match element {
        Element::U8 => DatumType::U8,
        Element::I8 => DatumType::I8,
        Element::F32 => DatumType::F32,
    }
}
