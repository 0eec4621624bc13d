//! Tensors as the command line meets them: NumPy files and nested JSON numbers in, raw little-endian bytes out.

use serde_json::Value;
use tractd_wire::{DType, RANK_MAX};

/// Bytes before a .npy file's header: magic, version, the header's length.
const NPY_PREAMBLE: usize = 10;

/// One named tensor: row-major, little-endian.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tensor {
    /// The input's or output's name; empty where a model has one input.
    pub name: String,
    /// Type of each element.
    pub dtype: DType,
    /// Extent of each axis, outermost first.
    pub shape: Vec<u32>,
    /// `shape` product × `dtype` size bytes.
    pub data: Vec<u8>,
}

/// Why a file was no tensor.
#[derive(Debug, thiserror::Error)]
pub enum TensorError {
    /// The file is no .npy file, or cut short.
    #[error("not a readable .npy file: {0}")]
    Npy(#[from] std::io::Error),
    /// A NumPy type that models do not take.
    #[error("NumPy type {0} has no tensor type; save with .astype(...) to a number type")]
    NpyType(String),
    /// Big-endian data.
    #[error("NumPy type {0} is big-endian; save with .astype('<f4') or the like")]
    BigEndian(String),
    /// Column-major data.
    #[error("the array is in Fortran order; save np.ascontiguousarray(array)")]
    Fortran,
    /// More axes, or longer ones, than the protocol carries.
    #[error("{rank} axes with extents {shape:?}: at most {RANK_MAX} axes, each below 2^32")]
    Shape {
        /// Number of axes.
        rank: usize,
        /// Their extents.
        shape: Vec<u64>,
    },
    /// Rows of different length.
    #[error("rows of different length: {found} after {expected} at depth {depth}")]
    Ragged {
        /// Nesting depth, from 0.
        depth: usize,
        /// Length of the first row at that depth.
        expected: usize,
        /// Length met later.
        found: usize,
    },
    /// Something that is neither list nor number.
    #[error("{0} is neither a number nor a list of numbers")]
    Element(String),
    /// A number that the tensor's type cannot hold.
    #[error("{value} does not fit {dtype}")]
    Range {
        /// The number.
        value: String,
        /// The tensor's type.
        dtype: &'static str,
    },
}

impl Tensor {
    /// Reads a .npy file.
    pub fn from_npy(bytes: &[u8]) -> Result<Self, TensorError> {
        let file = npyz::NpyFile::new(bytes)?;
        let npyz::DType::Plain(kind) = file.header().dtype() else {
            return Err(TensorError::NpyType(file.header().dtype().descr()));
        };
        let dtype = npy_dtype(&kind).ok_or_else(|| TensorError::NpyType(kind.to_string()))?;
        if kind.endianness() == npyz::Endianness::Big {
            return Err(TensorError::BigEndian(kind.to_string()));
        }
        if file.header().order() == npyz::Order::Fortran && file.header().shape().len() > 1 {
            return Err(TensorError::Fortran);
        }
        let wide = file.header().shape().to_vec();
        let shape = checked_shape(&wide)?;
        let expected = wide
            .iter()
            .try_fold(dtype.size() as u64, |bytes, &extent| bytes.checked_mul(extent))
            .ok_or_else(|| TensorError::Shape { rank: wide.len(), shape: wide.clone() })?;
        let data = file.into_inner();
        if data.len() as u64 != expected {
            let text = format!("{} bytes of data where the shape needs {expected}", data.len());
            return Err(std::io::Error::new(std::io::ErrorKind::UnexpectedEof, text).into());
        }
        Ok(Self { name: String::new(), dtype, shape, data: data.to_vec() })
    }

    /// The tensor as a .npy file.
    pub fn to_npy(&self) -> Vec<u8> {
        use std::fmt::Write;
        let dtype = self.dtype;
        let kind = match dtype {
            DType::U8 | DType::U16 | DType::U32 | DType::U64 => 'u',
            DType::I8 | DType::I16 | DType::I32 | DType::I64 => 'i',
            DType::F16 | DType::F32 | DType::F64 => 'f',
            DType::Bool => 'b',
        };
        let order = if dtype.size() == 1 { '|' } else { '<' };
        // A tuple of one needs its comma, and any may have one.
        let shape = self.shape.iter().fold(String::new(), |mut text, extent| {
            let _ = write!(text, "{extent},");
            text
        });
        let descr = format!("{order}{kind}{}", dtype.size());
        let mut header = format!("{{'descr': '{descr}', 'fortran_order': False, 'shape': ({shape}), }}");
        // The data begin on a multiple of 64; the header ends with a line break.
        let padding =
            (NPY_PREAMBLE + header.len() + 1).next_multiple_of(64) - NPY_PREAMBLE - 1 - header.len();
        header.extend(std::iter::repeat_n(' ', padding));
        header.push('\n');
        let header_len = u16::try_from(header.len()).expect("eight extents and a type are below 64 KiB");
        [b"\x93NUMPY\x01\x00".as_slice(), &header_len.to_le_bytes(), header.as_bytes(), &self.data].concat()
    }

    /// Reads nested JSON lists of numbers as a tensor of `dtype`.
    pub fn from_json(name: &str, value: &Value, dtype: DType) -> Result<Self, TensorError> {
        let mut shape = Vec::new();
        let mut level = value;
        while let Value::Array(items) = level {
            shape.push(items.len() as u64);
            match items.first() {
                Some(first) => level = first,
                None => break,
            }
        }
        let narrow = checked_shape(&shape)?;
        let mut data = Vec::new();
        push_json(value, &shape, 0, dtype, &mut data)?;
        Ok(Self { name: name.to_owned(), dtype, shape: narrow, data })
    }

    /// `{dtype, shape, data}` with the elements as numbers, flat and row-major. Half floats stay bytes in hexadecimal:
    /// Rust has no type for them yet.
    pub fn to_json(&self) -> Value {
        let dtype = self.dtype;
        let number = |element: &[u8]| -> Value {
            macro_rules! read {
                ($kind:ty) => {
                    element.try_into().map(<$kind>::from_le_bytes).map_or(Value::Null, Value::from)
                };
            }
            match dtype {
                DType::U8 => read!(u8),
                DType::I8 => read!(i8),
                DType::U16 => read!(u16),
                DType::I16 => read!(i16),
                DType::U32 => read!(u32),
                DType::I32 => read!(i32),
                DType::U64 => read!(u64),
                DType::I64 => read!(i64),
                DType::F32 => read!(f32),
                DType::F64 => read!(f64),
                DType::Bool => Value::Bool(element != [0]),
                DType::F16 => Value::String(element.iter().map(|byte| format!("{byte:02x}")).collect()),
            }
        };
        let data: Vec<Value> = self.data.chunks(dtype.size()).map(number).collect();
        serde_json::json!({ "dtype": dtype.name(), "shape": self.shape, "data": data })
    }
}

fn npy_dtype(kind: &npyz::TypeStr) -> Option<DType> {
    use npyz::TypeChar::{Bool, Float, Int, Uint};
    Some(match (kind.type_char(), kind.size_field()) {
        (Uint, 1) => DType::U8,
        (Int, 1) => DType::I8,
        (Uint, 2) => DType::U16,
        (Int, 2) => DType::I16,
        (Uint, 4) => DType::U32,
        (Int, 4) => DType::I32,
        (Uint, 8) => DType::U64,
        (Int, 8) => DType::I64,
        (Float, 2) => DType::F16,
        (Float, 4) => DType::F32,
        (Float, 8) => DType::F64,
        (Bool, 1) => DType::Bool,
        _ => return None,
    })
}

fn checked_shape(wide: &[u64]) -> Result<Vec<u32>, TensorError> {
    let narrow = wide.iter().map(|&extent| u32::try_from(extent).ok()).collect::<Option<Vec<_>>>();
    narrow
        .filter(|shape| shape.len() <= RANK_MAX)
        .ok_or_else(|| TensorError::Shape { rank: wide.len(), shape: wide.to_vec() })
}

fn push_json(
    value: &Value,
    shape: &[u64],
    depth: usize,
    dtype: DType,
    out: &mut Vec<u8>,
) -> Result<(), TensorError> {
    match (value, shape.get(depth)) {
        (Value::Array(items), Some(&expected)) => {
            if items.len() as u64 != expected {
                return Err(TensorError::Ragged { depth, expected: expected as usize, found: items.len() });
            }
            items.iter().try_for_each(|item| push_json(item, shape, depth + 1, dtype, out))
        }
        (Value::Number(_) | Value::Bool(_), None) => push_number(value, dtype, out),
        (Value::Array(_), None) | (Value::Number(_) | Value::Bool(_), Some(_)) => {
            Err(TensorError::Element(format!("a value at depth {depth}")))
        }
        (other, _) => Err(TensorError::Element(other.to_string())),
    }
}

fn push_number(value: &Value, dtype: DType, out: &mut Vec<u8>) -> Result<(), TensorError> {
    let misfit = || TensorError::Range { value: value.to_string(), dtype: dtype.name() };
    let float = || value.as_f64().ok_or_else(misfit);
    // JSON has one number type: 3.0 is as good an integer as 3.
    let integer =
        || {
            value.as_i64().map(i128::from).or_else(|| value.as_u64().map(i128::from)).or_else(|| {
                value.as_f64().filter(|x| x.fract() == 0.0 && x.abs() < 9.0e15).map(|x| x as i128)
            })
        };
    macro_rules! int {
        ($kind:ty) => {
            out.extend_from_slice(
                &integer().and_then(|n| <$kind>::try_from(n).ok()).ok_or_else(misfit)?.to_le_bytes(),
            )
        };
    }
    match dtype {
        DType::U8 => int!(u8),
        DType::I8 => int!(i8),
        DType::U16 => int!(u16),
        DType::I16 => int!(i16),
        DType::U32 => int!(u32),
        DType::I32 => int!(i32),
        DType::U64 => int!(u64),
        DType::I64 => int!(i64),
        DType::F32 => out.extend_from_slice(&(float()? as f32).to_le_bytes()),
        DType::F64 => out.extend_from_slice(&float()?.to_le_bytes()),
        DType::Bool => match value {
            Value::Bool(b) => out.push(u8::from(*b)),
            _ => out.push(integer().filter(|n| (0..=1).contains(n)).ok_or_else(misfit)? as u8),
        },
        DType::F16 => return Err(misfit()),
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn npy(descr: &str, fortran: bool, shape: &str, data: &[u8]) -> Vec<u8> {
        let order = if fortran { "True" } else { "False" };
        let mut header = format!("{{'descr': '{descr}', 'fortran_order': {order}, 'shape': {shape}, }}");
        while !(10 + header.len() + 1).is_multiple_of(64) {
            header.push(' ');
        }
        header.push('\n');
        let mut file = b"\x93NUMPY\x01\x00".to_vec();
        file.extend_from_slice(&(header.len() as u16).to_le_bytes());
        file.extend_from_slice(header.as_bytes());
        file.extend_from_slice(data);
        file
    }

    #[test]
    fn npy_arrays_keep_type_shape_and_bytes() {
        let data = [1.0f32, -2.5].map(f32::to_le_bytes).concat();
        let tensor = Tensor::from_npy(&npy("<f4", false, "(1, 2)", &data)).unwrap();
        assert_eq!(tensor, Tensor { name: String::new(), dtype: DType::F32, shape: vec![1, 2], data });
        let scalar = Tensor::from_npy(&npy("|u1", false, "()", &[7])).unwrap();
        assert_eq!((scalar.shape, scalar.data), (vec![], vec![7]));
    }

    #[test]
    fn npy_files_written_are_read() {
        for dtype in [DType::U8, DType::I16, DType::F16, DType::F32, DType::I64, DType::Bool] {
            for shape in [vec![], vec![2], vec![1, 2, 1]] {
                let elements = shape.iter().product::<u32>() as usize;
                let data = vec![1; elements * dtype.size()];
                let tensor = Tensor { name: String::new(), dtype, shape, data };
                let file = tensor.to_npy();
                assert_eq!((file.len() - tensor.data.len()) % 64, 0);
                assert_eq!(Tensor::from_npy(&file).unwrap(), tensor);
            }
        }
    }

    #[test]
    fn npy_files_that_cannot_be_sent_say_what_to_do() {
        let check = |file: &[u8], says: &str| {
            let error = Tensor::from_npy(file).unwrap_err().to_string();
            assert!(error.contains(says), "{error:?} lacks {says:?}");
        };
        check(b"P6 not numpy", "not a readable .npy file");
        check(&npy(">f4", false, "(1,)", &[0; 4]), "save with .astype('<f4')");
        check(&npy("<c8", false, "(1,)", &[0; 8]), "has no tensor type");
        check(&npy("<f4", true, "(2, 2)", &[0; 16]), "np.ascontiguousarray");
        check(&npy("<f4", false, "(3,)", &[0; 8]), "8 bytes of data where the shape needs 12");
        check(&npy("|u1", false, "(1, 1, 1, 1, 1, 1, 1, 1, 1)", &[0]), "9 axes");
    }

    #[test]
    fn json_numbers_take_the_inputs_type() {
        let tensor = Tensor::from_json("x", &json!([[1, 2.0], [3, 255]]), DType::U8).unwrap();
        assert_eq!((tensor.shape, tensor.data), (vec![2, 2], vec![1, 2, 3, 255]));
        let tensor = Tensor::from_json("x", &json!(0.5), DType::F32).unwrap();
        assert_eq!((tensor.shape, tensor.data), (vec![], 0.5f32.to_le_bytes().to_vec()));
        let tensor = Tensor::from_json("x", &json!([]), DType::F32).unwrap();
        assert_eq!((tensor.shape, tensor.data), (vec![0], vec![]));
    }

    #[test]
    fn json_that_is_no_tensor_is_refused() {
        let check = |value: Value, dtype, says: &str| {
            let error = Tensor::from_json("x", &value, dtype).unwrap_err().to_string();
            assert!(error.contains(says), "{error:?} lacks {says:?}");
        };
        check(json!([[1, 2], [3]]), DType::U8, "rows of different length: 1 after 2 at depth 1");
        check(json!([1, "two"]), DType::U8, "\"two\" is neither a number nor a list");
        check(json!([1, [2]]), DType::U8, "a value at depth 1");
        check(json!([256]), DType::U8, "256 does not fit u8");
        check(json!([0.5]), DType::I32, "0.5 does not fit i32");
        check(json!([2]), DType::Bool, "2 does not fit bool");
    }
}
