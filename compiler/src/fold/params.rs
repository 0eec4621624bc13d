//! Scales, zero points and quantised constants.

use tract_onnx::pb::tensor_proto::DataType;

use super::{Fold, Skip, Taken, leave};
use crate::CompileError;
use crate::graph::{Node, NodeId, ValueId};
use crate::ir::Quant;

/// A quantised constant as i8: u8 values and their zero points are 128 lower.
pub(super) struct Raw {
    pub(super) dims: Vec<usize>,
    pub(super) data: Vec<i8>,
    /// One, or one per index of `axis`.
    pub(super) scales: Vec<f32>,
    /// As many as scales.
    pub(super) zeros: Vec<i8>,
    /// Which dimension scales run along, where there are several.
    pub(super) axis: usize,
}

/// A bias in the units of the sums, or in its own.
pub(super) enum Bias {
    None,
    Integers(Vec<i32>),
    Reals(Vec<f64>),
}

impl<'g> Fold<'g> {
    /// Scales of a node: constant, finite and positive.
    pub(super) fn scales(&self, id: NodeId, value: Option<ValueId>) -> Taken<Vec<f32>> {
        let bad =
            |reason| Skip::Bad(CompileError::Quantisation { node: self.graph.nodes[id].name(), reason });
        let value = value.ok_or_else(|| bad("no scale"))?;
        let Some(constant) = self.graph.constant(value)? else {
            return leave("a scale that is not a constant");
        };
        let Some(scales) = constant.f32s() else { return leave("a scale that is not f32") };
        if scales.is_empty() || constant.dims().len() > 1 && scales.len() > 1 {
            return Err(bad("scales that are no list"));
        }
        match scales.iter().all(|scale| scale.is_finite() && *scale > 0.0) {
            true => Ok(scales),
            false => Err(bad("a scale that is zero, negative or not a number")),
        }
    }

    /// Scale and zero point of a whole tensor. Without a zero point it is u8 and 0.
    pub(super) fn quant(&self, id: NodeId, scale: Option<ValueId>, zero: Option<ValueId>) -> Taken<Quant> {
        let scales = self.scales(id, scale)?;
        let (zeros, signed) = self.zeros(zero)?;
        match (scales.as_slice(), zeros.as_slice()) {
            (&[scale], &[zero]) => Ok(Quant { scale, zero: (zero as u8) ^ 0x80, signed }),
            _ => leave("activations quantised per axis"),
        }
    }

    /// By the inputs' indices.
    pub(super) fn quant_at(&self, id: NodeId, scale: usize, zero: usize) -> Taken<Quant> {
        let node = &self.graph.nodes[id];
        self.quant(id, node.input(scale), node.input(zero))
    }

    /// Zero points as i8, and whether they are i8 in the file.
    fn zeros(&self, value: Option<ValueId>) -> Taken<(Vec<i8>, bool)> {
        let Some(value) = value else { return Ok((vec![-128], false)) };
        let Some(constant) = self.graph.constant(value)? else {
            return leave("a zero point that is not a constant");
        };
        let Some(bytes) = constant.bytes() else { return leave("not 8 bits wide") };
        let signed = constant.dtype == DataType::Int8;
        Ok((as_i8(&bytes, signed), signed))
    }

    /// The quantised constant behind a dequantised one: `DequantizeLinear` of a constant, or of a float constant that the
    /// graph itself quantises.
    pub(super) fn dequantised(&self, value: ValueId) -> Taken<Raw> {
        let Some((id, node)) = self.graph.producer(value) else {
            return leave("an operand that is not quantised");
        };
        if node.op() != "DequantizeLinear" || node.int("block_size", 0) != 0 {
            return leave("an operand that is not quantised");
        }
        let Some(data) = node.input(0) else { return leave("no operand") };
        if self.graph.values[data].constant.is_some() {
            return self.raw(id, data, node.input(1), node.input(2), node.int("axis", 1));
        }
        match self.graph.producer(data) {
            Some((_, inner)) if inner.op() == "QuantizeLinear" => self.quantised_here(id, node, inner),
            _ => leave("an operand that is neither quantised nor a constant"),
        }
    }

    pub(super) fn raw(
        &self,
        id: NodeId,
        data: ValueId,
        scale: Option<ValueId>,
        zero: Option<ValueId>,
        axis: i64,
    ) -> Taken<Raw> {
        let Some(constant) = self.graph.constant(data)? else {
            return leave("weights that are not in the file");
        };
        let Some(bytes) = constant.bytes() else { return leave("weights that are not 8 bits wide") };
        let signed = constant.dtype == DataType::Int8;
        let scales = self.scales(id, scale)?;
        let zeros = match zero {
            None => vec![if signed { 0 } else { -128 }],
            Some(_) => match self.zeros(zero)? {
                (zeros, of) if of == signed => zeros,
                _ => return leave("weights of another type than their zero point"),
            },
        };
        let dims = constant.dims();
        let axis = crate::shapes::axis(axis, dims.len()).unwrap_or(usize::MAX);
        raw(dims, as_i8(&bytes, signed), scales, zeros, axis)
    }

    /// Float weights that the file quantises itself, as quantisation-aware training leaves them.
    fn quantised_here(&self, id: NodeId, node: &Node<'_>, inner: &Node<'_>) -> Taken<Raw> {
        let same = (0..2).all(|index| node.input(index + 1) == inner.input(index + 1));
        let float = inner.input(0).map(|value| self.graph.constant(value)).transpose()?.flatten();
        let Some((float, values)) = float.and_then(|float| float.f32s().map(|values| (float, values))) else {
            return leave("an operand that is neither quantised nor a constant");
        };
        if !same || node.int("axis", 1) != inner.int("axis", 1) || inner.int("block_size", 0) != 0 {
            return leave("weights quantised and dequantised differently");
        }
        let scales = self.scales(id, inner.input(1))?;
        let (zeros, signed) = self.zeros(inner.input(2))?;
        let dims = float.dims();
        let axis = crate::shapes::axis(node.int("axis", 1), dims.len()).unwrap_or(usize::MAX);
        let mut raw = raw(dims, vec![0; values.len()], scales, zeros, axis)?;
        let inner: usize = raw.dims.iter().skip(axis.saturating_add(1)).product();
        for (index, (to, value)) in raw.data.iter_mut().zip(values).enumerate() {
            let channel = if raw.scales.len() == 1 { 0 } else { index / inner % raw.scales.len() };
            let zero = raw.zeros[channel.min(raw.zeros.len() - 1)];
            let quant = Quant { scale: raw.scales[channel], zero: (zero as u8) ^ 0x80, signed };
            *to = (quant.quantise(value) ^ 0x80) as i8;
        }
        Ok(raw)
    }

    /// The bias of a float operator: `DequantizeLinear` of i32, or plain float.
    pub(super) fn float_bias(&self, value: Option<ValueId>, unit: impl Fn(usize) -> f64) -> Taken<Bias> {
        let Some(value) = value else { return Ok(Bias::None) };
        if let Some(constant) = self.graph.constant(value)? {
            let Some(values) = constant.f32s() else { return leave("a bias that is not f32") };
            return reals(values.into_iter().map(f64::from).collect());
        }
        let Some((id, node)) = self.graph.producer(value).filter(|(_, node)| node.op() == "DequantizeLinear")
        else {
            return leave("a bias that is not a constant");
        };
        let constant = node.input(0).map(|value| self.graph.constant(value)).transpose()?.flatten();
        let Some(integers) = constant.and_then(|constant| constant.i32s()) else {
            let raw = self.dequantised(value)?;
            let real = |(index, &value): (usize, &i8)| {
                let at = if raw.scales.len() == 1 { 0 } else { index };
                (f64::from(value) - f64::from(raw.zeros[at])) * f64::from(raw.scales[at])
            };
            let fits = raw.scales.len() == 1 || raw.scales.len() == raw.data.len();
            return if fits {
                reals(raw.data.iter().enumerate().map(real).collect())
            } else {
                leave("a bias per axis")
            };
        };
        let scales = self.scales(id, node.input(1))?;
        let zero = node.input(2).map(|value| self.graph.constant(value)).transpose()?.flatten();
        if zero.is_some_and(|zero| zero.i32s().is_none_or(|zeros| zeros.iter().any(|&zero| zero != 0))) {
            return leave("a bias with a zero point");
        }
        if scales.len() != 1 && scales.len() != integers.len() {
            return leave("a bias with a wrong number of scales");
        }
        let scale = |index: usize| f64::from(scales[if scales.len() == 1 { 0 } else { index }]);
        // Exporters compute the product of the scales in various precisions.
        if (0..integers.len()).all(|index| (scale(index) / unit(index) - 1.0).abs() < 1e-3) {
            return Ok(Bias::Integers(integers));
        }
        reals(integers.iter().enumerate().map(|(index, &value)| f64::from(value) * scale(index)).collect())
    }
}

fn reals(values: Vec<f64>) -> Taken<Bias> {
    match values.iter().all(|value| value.is_finite()) {
        true => Ok(Bias::Reals(values)),
        false => leave("a bias that is not finite"),
    }
}

fn raw(dims: Vec<usize>, data: Vec<i8>, scales: Vec<f32>, zeros: Vec<i8>, axis: usize) -> Taken<Raw> {
    let channels = dims.get(axis).copied();
    let several = scales.len() > 1 || zeros.len() > 1;
    let fits = |count: usize| count == 1 || Some(count) == channels;
    if several && (!fits(scales.len()) || !fits(zeros.len())) {
        return leave("a number of scales or zero points that fits no dimension");
    }
    // As many of one as of the other.
    let count = scales.len().max(zeros.len());
    let scales = if scales.len() == count { scales } else { vec![scales[0]; count] };
    let zeros = match zeros.first() {
        Some(&zero) if zeros.len() != count => vec![zero; count],
        Some(_) => zeros,
        None => return leave("an empty zero point"),
    };
    Ok(Raw { dims, data, scales, zeros, axis })
}

fn as_i8(bytes: &[u8], signed: bool) -> Vec<i8> {
    let flip = if signed { 0 } else { 0x80 };
    bytes.iter().map(|&byte| (byte ^ flip) as i8).collect()
}
