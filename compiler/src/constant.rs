//! Constants of the file, their sizes checked before anything is read of them.

use std::borrow::Cow;

use tract_onnx::pb::TensorProto;
use tract_onnx::pb::tensor_proto::{DataLocation, DataType};

use crate::CompileError;

/// Most elements of one constant: as protobuf, a file cannot hold more bytes.
const ELEMENTS_MAX: usize = 1 << 31;

/// A constant whose data has as many elements as its dimensions say.
#[derive(Clone, Copy)]
pub(crate) struct Constant<'a> {
    proto: &'a TensorProto,
    count: usize,
    pub(crate) dtype: DataType,
}

impl<'a> Constant<'a> {
    /// `None` for what is kept outside of the file, or has a type nothing here reads.
    pub(crate) fn new(proto: &'a TensorProto) -> Result<Option<Constant<'a>>, CompileError> {
        let bad = |reason| CompileError::Tensor { tensor: proto.name.clone(), reason };
        let count = elements(&proto.dims).ok_or(bad("a negative or overflowing dimension"))?;
        if proto.data_location == Some(DataLocation::External as i32) || proto.segment.is_some() {
            return Ok(None);
        }
        let Ok(dtype) = DataType::try_from(proto.data_type) else {
            return Err(bad("an unknown element type"));
        };
        let (size, typed) = match dtype {
            DataType::Uint8 | DataType::Int8 => (1, proto.int32_data.len()),
            DataType::Int32 => (4, proto.int32_data.len()),
            DataType::Float => (4, proto.float_data.len()),
            DataType::Int64 => (8, proto.int64_data.len()),
            _ => return Ok(None),
        };
        let raw = proto.raw_data.len();
        if if raw > 0 { Some(raw) != count.checked_mul(size) } else { typed != count } {
            return Err(bad("its data has another size than its dimensions"));
        }
        Ok(Some(Constant { proto, count, dtype }))
    }

    /// Checked to be few enough.
    pub(crate) fn dims(&self) -> Vec<usize> {
        self.proto.dims.iter().map(|&dim| dim as usize).collect()
    }

    pub(crate) fn count(&self) -> usize {
        self.count
    }

    /// u8 or i8, the bytes as they are.
    pub(crate) fn bytes(&self) -> Option<Cow<'a, [u8]>> {
        if !matches!(self.dtype, DataType::Uint8 | DataType::Int8) {
            return None;
        }
        Some(match self.proto.raw_data.is_empty() {
            false => Cow::Borrowed(&self.proto.raw_data),
            true => self.proto.int32_data.iter().map(|&value| value as u8).collect(),
        })
    }

    pub(crate) fn i32s(&self) -> Option<Vec<i32>> {
        (self.dtype == DataType::Int32).then(|| self.read(&self.proto.int32_data, i32::from_le_bytes))
    }

    pub(crate) fn i64s(&self) -> Option<Vec<i64>> {
        (self.dtype == DataType::Int64).then(|| self.read(&self.proto.int64_data, i64::from_le_bytes))
    }

    pub(crate) fn f32s(&self) -> Option<Vec<f32>> {
        (self.dtype == DataType::Float).then(|| self.read(&self.proto.float_data, f32::from_le_bytes))
    }

    fn read<T: Copy, const N: usize>(&self, typed: &[T], from: fn([u8; N]) -> T) -> Vec<T> {
        match self.proto.raw_data.is_empty() {
            true => typed.to_vec(),
            false => self.proto.raw_data.as_chunks::<N>().0.iter().map(|&bytes| from(bytes)).collect(),
        }
    }
}

/// The product of the dimensions, if it is one a tensor can have.
fn elements(dims: &[i64]) -> Option<usize> {
    let product = dims.iter().try_fold(1usize, |product, &dim| {
        usize::try_from(dim).ok().filter(|&dim| dim <= ELEMENTS_MAX).and_then(|dim| product.checked_mul(dim))
    });
    product.filter(|&count| count <= ELEMENTS_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tensor(dims: &[i64], dtype: DataType, raw: &[u8]) -> TensorProto {
        TensorProto {
            dims: dims.to_vec(),
            data_type: dtype as i32,
            raw_data: raw.to_vec(),
            ..TensorProto::default()
        }
    }

    fn refusal(proto: &TensorProto) -> Option<CompileError> {
        Constant::new(proto).err()
    }

    #[test]
    fn data_must_fill_the_dimensions() {
        let bad = |reason| Some(CompileError::Tensor { tensor: String::new(), reason });
        let size = bad("its data has another size than its dimensions");
        assert_eq!(refusal(&tensor(&[3], DataType::Int8, &[1, 2, 3])), None);
        assert_eq!(refusal(&tensor(&[4], DataType::Int8, &[1, 2, 3])), size);
        assert_eq!(refusal(&tensor(&[3], DataType::Float, &[1, 2, 3])), size);
        assert_eq!(refusal(&tensor(&[3], DataType::Int8, &[])), size);
        let dims = bad("a negative or overflowing dimension");
        assert_eq!(refusal(&tensor(&[-1], DataType::Int8, &[])), dims);
        assert_eq!(refusal(&tensor(&[1 << 40, 1 << 40, 1 << 40], DataType::Int8, &[])), dims);
        assert_eq!(refusal(&tensor(&[i64::MAX, 0], DataType::Int8, &[])), dims);
    }

    #[test]
    fn data_is_read_from_either_field() {
        let raw = tensor(&[2], DataType::Int32, &[1, 0, 0, 0, 255, 255, 255, 255]);
        let typed = TensorProto { int32_data: vec![1, -1], raw_data: vec![], ..raw.clone() };
        for proto in [raw, typed] {
            let constant = Constant::new(&proto).unwrap().unwrap();
            assert_eq!(constant.i32s(), Some(vec![1, -1]));
            assert_eq!(constant.f32s(), None);
            assert!(constant.bytes().is_none());
        }
    }
}
