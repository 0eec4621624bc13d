//! Between our element types and tract's.

use tract_onnx::prelude::DatumType;
use tractd_bundle::DType;

pub(crate) fn to_tract(dtype: DType) -> DatumType {
    match dtype {
        DType::U8 => DatumType::U8,
        DType::I8 => DatumType::I8,
        DType::U16 => DatumType::U16,
        DType::I16 => DatumType::I16,
        DType::U32 => DatumType::U32,
        DType::I32 => DatumType::I32,
        DType::U64 => DatumType::U64,
        DType::I64 => DatumType::I64,
        DType::F16 => DatumType::F16,
        DType::F32 => DatumType::F32,
        DType::F64 => DatumType::F64,
        DType::Bool => DatumType::Bool,
    }
}

/// `None` for what no frame carries: strings, symbolic dimensions, complex numbers.
pub(crate) fn from_tract(datum: DatumType) -> Option<DType> {
    DType::ALL.into_iter().find(|&dtype| to_tract(dtype) == datum.unquantized())
}
