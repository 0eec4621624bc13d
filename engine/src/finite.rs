//! Finding what is not a number without making numbers of the bytes.

use tractd_bundle::DType;

/// The first NaN or infinity in little-endian `data`, counted in elements; integers have none.
pub(crate) fn first_not_finite(dtype: DType, data: &[u8]) -> Option<usize> {
    // An exponent of all ones is an infinity or a NaN. Sums over the whole slice vectorise where an early
    // exit would not; the position is only looked for once there is one.
    match dtype {
        DType::F16 => position(data, |element: [u8; 2]| u16::from_le_bytes(element) & 0x7c00 == 0x7c00),
        DType::F32 => {
            position(data, |element: [u8; 4]| u32::from_le_bytes(element) & 0x7f80_0000 == 0x7f80_0000)
        }
        DType::F64 => position(data, |element: [u8; 8]| {
            u64::from_le_bytes(element) & 0x7ff0_0000_0000_0000 == 0x7ff0_0000_0000_0000
        }),
        _ => None,
    }
}

fn position<const N: usize>(data: &[u8], bad: impl Fn([u8; N]) -> bool) -> Option<usize> {
    let (elements, _) = data.as_chunks::<N>();
    let any = elements.iter().fold(false, |any, &element| any | bad(element));
    if any { elements.iter().position(|&element| bad(element)) } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_float_type() {
        let f32s = |values: &[f32]| values.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>();
        let f64s = |values: &[f64]| values.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>();
        assert_eq!(first_not_finite(DType::F32, &f32s(&[0.0, f32::MAX, -f32::MIN_POSITIVE])), None);
        assert_eq!(first_not_finite(DType::F32, &f32s(&[0.0, f32::NAN, f32::INFINITY])), Some(1));
        assert_eq!(first_not_finite(DType::F32, &f32s(&[f32::NEG_INFINITY])), Some(0));
        assert_eq!(first_not_finite(DType::F64, &f64s(&[0.0, f64::MAX])), None);
        assert_eq!(first_not_finite(DType::F64, &f64s(&[0.0, -f64::NAN])), Some(1));
        // 65504, the largest half, and infinity after it.
        assert_eq!(first_not_finite(DType::F16, &[0xff, 0x7b]), None);
        assert_eq!(first_not_finite(DType::F16, &[0xff, 0x7b, 0x00, 0x7c]), Some(1));
        assert_eq!(first_not_finite(DType::U8, &[0xff; 8]), None);
    }
}
