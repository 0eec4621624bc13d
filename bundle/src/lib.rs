//! The model bundle: manifest, files, golden vectors; packing and unpacking.
//!
//! A bundle is one version of one model: `manifest.toml`, `model.onnx`, labels, and golden vectors another
//! runtime computed. It travels as `NAME-VERSION.tractd.tar.zst` and lies unpacked on a device. Whatever comes
//! in is hostile until [`unpack`] or [`Bundle::open`] has checked every path, size and count.
//!
//! This crate blocks, knows no runtime and never looks at what the model computes: of ONNX it reads only
//! enough to refuse weights kept outside the file.

mod bundle;
mod digest;
mod dtype;
mod files;
mod limits;
mod manifest;
mod onnx;
mod pack;
mod place;
mod tarball;
mod unpack;

pub use bundle::{Bundle, Kind, OpenError};
pub use digest::{Digest, DigestParseError};
pub use dtype::DType;
pub use limits::Limits;
pub use manifest::image::{Channels, Fit, ImageSpec, Layout, Resize};
pub use manifest::{
    Dim, GoldenSpec, InputSpec, MANIFEST_SCHEMA, Manifest, ManifestError, NAME_LEN_MAX, OutputSpec, Post,
    RANK_MAX, TENSORS_MAX, TOP_K_MAX, TensorSpec, Tolerance, is_model_name,
};
pub use onnx::ModelFileError;
pub use pack::{PackError, Packed, pack};
pub use place::{Disk, Place};
pub use unpack::{UnpackError, unpack, unpack_in};

/// The model's file in every bundle, bare or packed.
pub const MODEL_FILE: &str = "model.onnx";
/// The manifest's file in a packed bundle.
pub const MANIFEST_FILE: &str = "manifest.toml";
/// The labels of a bare model, one per line, if it has any.
pub const BARE_LABELS_FILE: &str = "labels.txt";
/// What every packed bundle's file name ends in.
pub const ARCHIVE_SUFFIX: &str = ".tractd.tar.zst";
