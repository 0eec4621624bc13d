//! NumPy's archives: a .npy file per array, in a zip.

use std::io::{Cursor, Read, Write};

use anyhow::Context;
use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, ZipArchive, ZipWriter};

use crate::tensor::Tensor;

const SUFFIX: &str = ".npy";

/// The largest array read: what an archive says of its sizes is not to be believed.
const ARRAY_BYTES_MAX: u64 = 1 << 30;

/// The arrays of a .npz file, each with its name.
pub(crate) fn read(bytes: &[u8]) -> anyhow::Result<Vec<Tensor>> {
    let mut archive = ZipArchive::new(Cursor::new(bytes)).context("not a readable .npz file")?;
    (0..archive.len())
        .map(|index| {
            let entry = archive.by_index(index)?;
            let file = entry.name()?.into_owned();
            let name = file.strip_suffix(SUFFIX).unwrap_or(&file).to_owned();
            let mut array = Vec::new();
            entry.take(ARRAY_BYTES_MAX).read_to_end(&mut array).with_context(|| name.clone())?;
            let tensor = Tensor::from_npy(&array).with_context(|| name.clone())?;
            Ok(Tensor { name, ..tensor })
        })
        .collect()
}

/// The tensors as a .npz file.
pub(crate) fn write(tensors: &[Tensor]) -> anyhow::Result<Vec<u8>> {
    let mut archive = ZipWriter::new(Cursor::new(Vec::new()));
    let options = SimpleFileOptions::default().compression_method(CompressionMethod::Stored);
    for tensor in tensors {
        archive.start_file(format!("{}{SUFFIX}", tensor.name), options)?;
        archive.write_all(&tensor.to_npy())?;
    }
    Ok(archive.finish()?.into_inner())
}

#[cfg(test)]
mod tests {
    use tractd_wire::DType;

    use super::*;

    #[test]
    fn archives_written_are_read() {
        let tensor = |name: &str, dtype, data: &[u8]| Tensor {
            name: name.into(),
            dtype,
            shape: vec![2],
            data: data.into(),
        };
        let tensors = [tensor("x", DType::U8, &[1, 2]), tensor("a/b.c", DType::F32, &[0; 8])];
        assert_eq!(read(&write(&tensors).unwrap()).unwrap(), tensors);
        assert!(read(b"PK").unwrap_err().to_string().contains("not a readable .npz"));
    }
}
