//! What runs a graph, at one set of shapes.
//!
//! This is the seam for the int8 compiler: a graph, or regions of one, that became `Program`s run from here
//! (the arena belongs to [`State`], the packed weights to [`Executable`]). Everything before and after only
//! knows tensors in and tensors out.

use tract_onnx::prelude::*;
use tract_onnx::tract_hir::internal::DimLike;
use tractd_bundle::DType;

use crate::convert::from_tract;

/// A graph optimised for its shapes; shared by every session.
pub(crate) struct Executable {
    plan: Arc<TypedSimplePlan>,
}

/// One session's buffers and operator states.
pub(crate) struct State {
    state: TypedSimpleState,
}

impl Executable {
    /// Optimises `model`, whose input facts are concrete.
    pub(crate) fn prepare(model: InferenceModel) -> TractResult<Executable> {
        let typed = model.into_typed()?.into_decluttered()?;
        Ok(Executable { plan: typed.into_optimized()?.into_runnable()? })
    }

    pub(crate) fn state(&self) -> TractResult<State> {
        Ok(State { state: self.plan.spawn()? })
    }

    /// Element type and shape of each output; `None` in a shape for what only the data decides.
    pub(crate) fn outputs(&self) -> TractResult<Vec<(Option<DType>, Vec<Option<u32>>)>> {
        let model = self.plan.model();
        (0..model.output_outlets()?.len())
            .map(|index| {
                let fact = model.output_fact(index)?;
                let dim = |dim: &TDim| dim.to_usize().ok().and_then(|size| u32::try_from(size).ok());
                Ok((from_tract(fact.datum_type), fact.shape.iter().map(dim).collect()))
            })
            .collect()
    }
}

impl State {
    /// Inputs and outputs in the order of the specs. After an error the state is unfit for use.
    pub(crate) fn run(&mut self, inputs: Vec<Tensor>) -> TractResult<Vec<TValue>> {
        let inputs = inputs.into_iter().map(Tensor::into_tvalue).collect();
        Ok(self.state.run(inputs)?.into_vec())
    }
}
