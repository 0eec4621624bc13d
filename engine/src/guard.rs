//! Stock tract computes some quantised graphs wrong, silently. This keeps that rule from being applied.
//!
//! `DequantizeLinearF32::declutter` (tract-core 0.23.9, `ops/quant.rs`) follows the single consumers of a
//! dequantised tensor up to the next quantisation and, where each maps every axis onto itself, replaces the
//! whole chain by a table of 256 values. Softmax, LogSoftmax and anything else that mixes elements *along* an
//! axis while keeping the shape passes that test, too. The table is also built in the type that comes out and
//! read with the one that went in, so a chain from u8 to i8 is wrong even where every step is element-wise.
//!
//! Refusing such graphs would refuse every quantised transformer. Instead the operator itself is replaced, when
//! it is parsed, in subgraphs too: [`Dequantize`] computes the same and builds a table only where that is
//! right. The pattern then cannot arise, whatever stands around it.

use std::sync::LazyLock;

use tract_onnx::model::{OnnxOpRegister, ParsingContext};
use tract_onnx::pb::NodeProto;
use tract_onnx::tract_core::ops::element_wise::ElementWiseOp;
use tract_onnx::tract_core::ops::quant::{
    DequantizeLinearF32, QuantizeLinearI8, QuantizeLinearU8, lookup_table,
};
use tract_onnx::tract_hir::internal::*;

const OPERATOR: &str = "DequantizeLinear";

/// Takes tract's operators and puts ours in place of the unsound one.
pub(crate) fn install(register: &mut OnnxOpRegister) {
    register.insert(OPERATOR, dequantize_linear);
}

fn dequantize_linear(
    ctx: &ParsingContext<'_>,
    node: &NodeProto,
) -> TractResult<(Box<dyn InferenceOp>, Vec<String>)> {
    static STOCK: LazyLock<OnnxOpRegister> = LazyLock::new(|| tract_onnx::onnx().op_register);
    let (op, closures) = STOCK.0.get(OPERATOR).context("tract has no DequantizeLinear")?(ctx, node)?;
    let stock =
        op.as_op().downcast_ref::<Box<dyn Expansion>>().context("tract's DequantizeLinear changed")?;
    Ok((expand(Guarded(stock.clone())), closures))
}

/// Tract's own expansion, with the unsound operator taken out of what it expands to.
#[derive(Clone, Debug)]
struct Guarded(Box<dyn Expansion>);

impl Expansion for Guarded {
    fn name(&self) -> StaticName {
        self.0.name()
    }

    fn rules<'r, 'p: 'r, 's: 'r>(
        &'s self,
        solver: &mut Solver<'r>,
        inputs: &'p [TensorProxy],
        outputs: &'p [TensorProxy],
    ) -> InferenceResult {
        self.0.rules(solver, inputs, outputs)
    }

    fn wire(&self, prefix: &str, model: &mut TypedModel, inputs: &[OutletId]) -> TractResult<TVec<OutletId>> {
        let outlets = self.0.wire(prefix, model, inputs)?;
        for outlet in &outlets {
            let node = model.node_mut(outlet.node);
            if let Some(stock) = node.op.downcast_ref::<DequantizeLinearF32>() {
                node.op = Box::new(Dequantize(stock.clone()));
            }
        }
        Ok(outlets)
    }
}

/// [`DequantizeLinearF32`] without its unsound rule.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Dequantize(DequantizeLinearF32);

impl Op for Dequantize {
    fn name(&self) -> StaticName {
        "Dequantize".into()
    }

    fn info(&self) -> TractResult<Vec<String>> {
        self.0.info()
    }

    op_as_typed_op!();
}

impl EvalOp for Dequantize {
    op_out_of_plan!();

    fn eval(&self, ctx: &EvalContext<'_>, inputs: TVec<TValue>) -> TractResult<TVec<TValue>> {
        self.0.eval(ctx, inputs)
    }
}

impl TypedOp for Dequantize {
    fn output_facts(&self, inputs: &[&TypedFact]) -> TractResult<TVec<TypedFact>> {
        self.0.output_facts(inputs)
    }

    fn axes_mapping(&self, inputs: &[&TypedFact], outputs: &[&TypedFact]) -> TractResult<AxesMapping> {
        self.0.axes_mapping(inputs, outputs)
    }

    fn change_axes(
        &self,
        model: &TypedModel,
        node: &TypedNode,
        io: InOut,
        change: &AxisOp,
    ) -> TractResult<Option<AxisChangeConsequence>> {
        self.0.change_axes(model, node, io, change)
    }

    fn declutter(&self, model: &TypedModel, node: &TypedNode) -> TractResult<Option<TypedModelPatch>> {
        let dtype = model.node_input_facts(node.id)?[0].datum_type;
        let Some(chain) = table_chain(model, node, dtype)? else { return Ok(None) };
        let Some(last) = chain.last() else { return Ok(None) };
        let mut values = tvec!(every_byte(dtype)?.into_tvalue());
        let ctx = EvalContext::out_of_plan();
        values = self.0.eval(&ctx, values)?;
        for step in &chain {
            values = step.op.eval(&ctx, values)?;
        }
        let table = lookup_table(tract_linalg::routines::lut_u8(values[0].as_bytes())?);
        let mut patch = TypedModelPatch::default();
        let input = patch.tap_model(model, node.inputs[0])?;
        let output = patch.wire_node(&last.name, table, &[input])?;
        patch.shunt_outside(model, OutletId::new(last.id, 0), output[0])?;
        Ok(Some(patch))
    }

    as_op!();
}

/// The nodes after `node`, up to and including a quantisation back to `dtype`, if each computes every element
/// from that element alone. The type says so, not the axes: an [`ElementWiseOp`] never sees its neighbours.
fn table_chain<'m>(
    model: &'m TypedModel,
    node: &TypedNode,
    dtype: DatumType,
) -> TractResult<Option<Vec<&'m TypedNode>>> {
    if dtype != DatumType::U8 && dtype != DatumType::I8 {
        return Ok(None);
    }
    let mut chain = Vec::new();
    let mut last = node.id;
    while let Some(next) = model.single_succ(last)? {
        let Some(op) = next.op_as::<ElementWiseOp>() else { return Ok(None) };
        // An output of the model must still be computed as such.
        if model.output_outlets()?.contains(&OutletId::new(last, 0)) {
            return Ok(None);
        }
        chain.push(next);
        last = next.id;
        if op.0.is::<QuantizeLinearU8>() || op.0.is::<QuantizeLinearI8>() {
            return Ok((next.outputs[0].fact.datum_type == dtype).then_some(chain));
        }
    }
    Ok(None)
}

/// All 256 values, in the order of their bytes: the order a table of bytes is read in.
fn every_byte(dtype: DatumType) -> TractResult<Tensor> {
    let mut tensor = Tensor::zero_dt(dtype, &[256])?;
    for (value, byte) in (0..=u8::MAX).zip(tensor.as_bytes_mut()) {
        *byte = value;
    }
    Ok(tensor)
}
