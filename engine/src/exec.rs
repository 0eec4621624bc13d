//! What runs a graph, at one set of shapes: the int8 kernels alone, or tract with regions of theirs in it.
//!
//! The packed weights belong to [`Executable`], arenas to [`State`]. The kernels read a request's bytes and write an
//! answer's where they lie: copies would take longer than a small model's run. Tract wants tensors of its own.

use tract_onnx::prelude::*;
use tract_onnx::tract_hir::internal::DimLike;
use tractd_bundle::DType;
use tractd_compiler::{Arena, Element, Port, Report, Whole};

use crate::convert::from_tract;
use crate::tensor::Tensor as Answer;

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
pub(crate) struct Int8 {
    whole: Whole,
    /// By the graph's inputs, which of the specs'.
    inputs: Vec<usize>,
    /// By the specs' outputs, which of the graph's.
    outputs: Vec<usize>,
    /// Bytes of each, in the order of the specs.
    output_bytes: Vec<usize>,
    /// Whether both orders are the same.
    in_order: bool,
}

/// Element type and shape of an output, as far as the graph alone decides them.
pub(crate) type OutputFact = (Option<DType>, Vec<Option<u32>>);

/// One session's buffers and operator states.
pub(crate) enum State {
    /// With the input tensors of the last run.
    Tract(TypedSimpleState, Vec<Arc<Tensor>>),
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
    ///
    /// # Errors
    /// One of `outputs` is none of the graph's.
    pub(crate) fn int8(
        whole: Whole,
        inputs: Vec<usize>,
        outputs: Vec<usize>,
        report: Report,
    ) -> TractResult<Executable> {
        let size = |&index: &usize| whole.output(index).map(bytes);
        let output_bytes = outputs.iter().map(size).collect::<Option<_>>().ok_or_else(no_port)?;
        let in_order = outputs.iter().copied().eq(0..whole.outputs().count());
        let int8 = Int8 { whole, inputs, outputs, output_bytes, in_order };
        Ok(Executable { runner: Runner::Int8(Arc::new(int8)), report })
    }

    pub(crate) fn state(&self) -> TractResult<State> {
        Ok(match &self.runner {
            Runner::Tract(plan) => State::Tract(plan.spawn()?, Vec::new()),
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
                    let port = int8.whole.output(index).ok_or_else(no_port)?;
                    let dims = port.shape.iter().map(|&dim| u32::try_from(dim).ok()).collect();
                    Ok((from_tract(datum_type(port.element)), dims))
                };
                int8.outputs.iter().map(output).collect()
            }
        }
    }
}

/// Inputs and outputs in the order of the specs. After an error the state is unfit for use.
pub(crate) fn run_tract(state: &mut TypedSimpleState, inputs: TVec<TValue>) -> TractResult<Vec<TValue>> {
    Ok(state.run(inputs)?.into_vec())
}

impl Int8 {
    /// Inputs and outputs in the order of the specs, inputs of the sizes that these say. Where `answers` holds what an
    /// earlier run of this graph left there, nothing is allocated.
    pub(crate) fn run(
        &self,
        arena: &mut Arena,
        inputs: &[&[u8]],
        answers: &mut Vec<Answer>,
        names: &[Arc<str>],
    ) -> TractResult<()> {
        let inputs: TVec<&[u8]> = self.inputs.iter().map(|&index| inputs[index]).collect();
        if !self.fit(answers, names) {
            let outputs = self.outputs.iter().zip(names);
            *answers = outputs.map(|(&index, name)| self.blank(index, name)).collect::<TractResult<_>>()?;
        }
        if self.in_order {
            let mut slices: TVec<&mut [u8]> = answers.iter_mut().map(|answer| &mut answer.data[..]).collect();
            return Ok(self.whole.run(arena, &inputs, &mut slices)?);
        }
        let mut made: Vec<Vec<u8>> = self.whole.outputs().map(|port| vec![0; bytes(port)]).collect();
        let mut slices: Vec<&mut [u8]> = made.iter_mut().map(Vec::as_mut_slice).collect();
        self.whole.run(arena, &inputs, &mut slices)?;
        for (answer, &index) in answers.iter_mut().zip(&self.outputs) {
            answer.data.copy_from_slice(&made[index]);
        }
        Ok(())
    }

    /// Whether these are answers that [`Int8::blank`] made for the same outputs.
    fn fit(&self, answers: &[Answer], names: &[Arc<str>]) -> bool {
        answers.len() == self.outputs.len()
            && (answers.iter().zip(names).zip(&self.output_bytes))
                .all(|((answer, name), &bytes)| Arc::ptr_eq(&answer.name, name) && answer.data.len() == bytes)
    }

    fn blank(&self, index: usize, name: &Arc<str>) -> TractResult<Answer> {
        let port = self.whole.output(index).ok_or_else(no_port)?;
        let no_dtype = || TractError::msg(format!("output `{name}` is of a type that no answer has"));
        Ok(Answer {
            name: name.clone(),
            dtype: from_tract(datum_type(port.element)).ok_or_else(no_dtype)?,
            shape: port.shape.iter().map(|&dim| dim as u32).collect(),
            data: vec![0; bytes(port)],
        })
    }
}

fn no_port() -> TractError {
    TractError::msg("an output without a port")
}

fn bytes(port: &Port) -> usize {
    port.shape.iter().product::<usize>() * datum_type(port.element).size_of()
}

fn datum_type(element: Element) -> DatumType {
    match element {
        Element::U8 => DatumType::U8,
        Element::I8 => DatumType::I8,
        Element::F32 => DatumType::F32,
    }
}
