//! A region as an operator of tract's.
//!
//! The rewritten file holds a node per region, with its index. tract's register of operators takes no closures, so the node is
//! read as a [`Stub`] first, and [`attach`] puts the region in its place before anything is analysed.

use std::fmt;
use std::sync::Arc;

use tract_onnx::model::{OnnxOpRegister, ParsingContext};
use tract_onnx::pb::NodeProto;
use tract_onnx::tract_hir::internal::*;
use tractd_kernels::{Arena, Element};

use crate::{Port, Region};

/// The operator of a region's node in a rewritten file.
pub const OPERATOR: &str = "TractdRegion";
/// Its domain.
pub const DOMAIN: &str = "tractd";
/// The attribute that has the region's index.
pub(crate) const INDEX: &str = "region";

/// Lets tract read rewritten files.
pub fn register(register: &mut OnnxOpRegister) {
    register.insert(OPERATOR, stub);
}

/// Puts the regions into a model read from a rewritten file.
///
/// # Errors
/// A node names a region that is not there.
pub fn attach(model: &mut InferenceModel, regions: &[Arc<Region>]) -> TractResult<()> {
    for id in 0..model.nodes().len() {
        let stub = model.node(id).op.as_op().downcast_ref::<Box<dyn Expansion>>();
        let Some(index) = stub.and_then(|stub| (**stub).as_any().downcast_ref::<Stub>()).map(|stub| stub.0)
        else {
            continue;
        };
        let region = regions.get(index).context("a node of a region that was not compiled")?;
        model.node_mut(id).op = expand(RegionOp(region.clone()));
    }
    Ok(())
}

fn stub(_: &ParsingContext<'_>, node: &NodeProto) -> TractResult<(Box<dyn InferenceOp>, Vec<String>)> {
    let index = node.attribute.iter().find(|attribute| attribute.name == INDEX);
    let index = index.and_then(|attribute| usize::try_from(attribute.i).ok());
    let index = index.context("a node of a region without an index")?;
    Ok((expand(Stub(index)), vec![]))
}

#[derive(Clone, Debug)]
struct Stub(usize);

impl Expansion for Stub {
    fn name(&self) -> StaticName {
        OPERATOR.into()
    }

    fn rules<'r, 'p: 'r, 's: 'r>(
        &'s self,
        _: &mut Solver<'r>,
        _: &'p [TensorProxy],
        _: &'p [TensorProxy],
    ) -> InferenceResult {
        bail!("a region that was not attached")
    }

    fn wire(&self, _: &str, _: &mut TypedModel, _: &[OutletId]) -> TractResult<TVec<OutletId>> {
        bail!("a region that was not attached")
    }
}

#[derive(Clone)]
struct RegionOp(Arc<Region>);

impl fmt::Debug for RegionOp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl PartialEq for RegionOp {
    fn eq(&self, other: &RegionOp) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Eq for RegionOp {}

fn datum_type(element: Element) -> DatumType {
    match element {
        Element::U8 => DatumType::U8,
        Element::I8 => DatumType::I8,
        Element::F32 => DatumType::F32,
    }
}

fn dims(port: &Port) -> TVec<TDim> {
    port.shape.iter().map(|dim| dim.to_dim()).collect()
}

impl Expansion for RegionOp {
    fn name(&self) -> StaticName {
        OPERATOR.into()
    }

    fn nboutputs(&self) -> TractResult<usize> {
        Ok(self.0.outputs().len())
    }

    fn rules<'r, 'p: 'r, 's: 'r>(
        &'s self,
        solver: &mut Solver<'r>,
        inputs: &'p [TensorProxy],
        outputs: &'p [TensorProxy],
    ) -> InferenceResult {
        check_input_arity(inputs, self.0.inputs().len())?;
        check_output_arity(outputs, self.0.outputs().len())?;
        let ports = inputs.iter().zip(self.0.inputs()).chain(outputs.iter().zip(self.0.outputs()));
        for (tensor, port) in ports {
            solver.equals(&tensor.datum_type, datum_type(port.element))?;
            solver.equals(&tensor.shape, dims(port))?;
        }
        Ok(())
    }

    fn wire(&self, prefix: &str, model: &mut TypedModel, inputs: &[OutletId]) -> TractResult<TVec<OutletId>> {
        model.wire_node(prefix, self.clone(), inputs)
    }
}

impl Op for RegionOp {
    fn name(&self) -> StaticName {
        OPERATOR.into()
    }

    op_as_typed_op!();
}

impl EvalOp for RegionOp {
    not_out_of_plan!();

    fn state(&self, _: &EvalContext<'_>) -> TractResult<Option<Box<dyn OpState>>> {
        Ok(Some(Box::new(State { region: self.0.clone(), arena: self.0.program().session() })))
    }
}

impl TypedOp for RegionOp {
    fn output_facts(&self, inputs: &[&TypedFact]) -> TractResult<TVec<TypedFact>> {
        for (fact, port) in inputs.iter().zip(self.0.inputs()) {
            let shape = ShapeFact::from_dims(dims(port));
            if fact.datum_type != datum_type(port.element) || fact.shape != shape {
                bail!("a region takes {port:?} and is given {fact:?}");
            }
        }
        Ok(self.0.outputs().iter().map(|port| datum_type(port.element).fact(dims(port))).collect())
    }

    as_op!();
}

/// One session's arena.
struct State {
    region: Arc<Region>,
    arena: Arena,
}

impl Clone for State {
    fn clone(&self) -> State {
        State { region: self.region.clone(), arena: self.region.program().session() }
    }
}

impl fmt::Debug for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.region.fmt(f)
    }
}

impl OpState for State {
    fn eval(&mut self, _: &EvalContext<'_>, _: &dyn Op, inputs: TVec<TValue>) -> TractResult<TVec<TValue>> {
        let blank = |port: &Port| Tensor::zero_dt(datum_type(port.element), &port.shape);
        let mut outputs = self.region.outputs().iter().map(blank).collect::<TractResult<TVec<Tensor>>>()?;
        let given: TractResult<TVec<&[u8]>> =
            inputs.iter().map(|input| Ok(input.try_as_plain_ram()?.as_bytes())).collect();
        let mut written: TVec<&mut [u8]> = outputs.iter_mut().map(Tensor::as_bytes_mut).collect();
        self.region.run(&mut self.arena, &given?, &mut written)?;
        drop(written);
        Ok(outputs.into_iter().map(Tensor::into_tvalue).collect())
    }

    fn reset_lanes(&mut self, _: &[LaneId]) -> TractResult<()> {
        // Nothing is carried from one run to the next.
        Ok(())
    }
}
