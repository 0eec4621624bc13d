//! Reads what `scripts/make-compiler-models` writes.

/// The next part: its length as u32, and as many bytes.
pub(crate) fn part<'f>(file: &mut &'f [u8]) -> &'f [u8] {
    let (length, rest) = file.split_first_chunk::<4>().unwrap();
    let (part, rest) = rest.split_at(u32::from_le_bytes(*length) as usize);
    *file = rest;
    part
}
