use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::files::read_limited;
use crate::manifest::is_model_name;
use crate::onnx::SelfContained;
use crate::{
    ARCHIVE_SUFFIX, BARE_LABELS_FILE, Digest, Disk, GoldenSpec, Limits, MANIFEST_FILE, MODEL_FILE, Manifest,
    ManifestError, ModelFileError, Place, TensorSpec, tarball,
};

/// A bundle lying in a folder, its files checked and its digest taken.
#[derive(Clone, Debug)]
pub struct Bundle {
    /// Where it lies.
    pub dir: PathBuf,
    /// What it says of itself; a bare model says nothing.
    pub manifest: Option<Manifest>,
    /// Over the files the manifest names, or over a bare model's files.
    pub digest: Digest,
    /// Which of the two.
    pub kind: Kind,
    name: String,
    version: u64,
    labels_file: Option<String>,
}

/// How a bundle came to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// With a manifest.
    Packed,
    /// A `model.onnx` in `<name>/<version>/`.
    Bare,
}

/// Why a folder is not a bundle.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// A file could not be read.
    #[error("{}: {source}", path.display())]
    Io {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// There is no `model.onnx`.
    #[error("{}: no {MODEL_FILE} there", dir.display())]
    NoModel {
        /// The folder.
        dir: PathBuf,
    },
    /// A bare model's folder does not say what it is.
    #[error("{}: a model without {MANIFEST_FILE} must lie in <name>/<version>/, as in digits/1/", dir.display())]
    BarePath {
        /// The folder.
        dir: PathBuf,
    },
    /// The manifest is refused.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    /// The model file is refused.
    #[error(transparent)]
    Model(#[from] ModelFileError),
    /// A golden file's size does not follow from the manifest.
    #[error("{file}: {found} bytes where the manifest's dtype and shape make {expected}")]
    GoldenSize {
        /// Which.
        file: String,
        /// By the manifest.
        expected: u64,
        /// On disk.
        found: u64,
    },
    /// Beyond [`Limits`].
    #[error("{what} exceeds the limit of {limit}")]
    TooLarge {
        /// Of what there is too much.
        what: String,
        /// In files or bytes.
        limit: u64,
    },
}

impl Bundle {
    /// Opens the bundle in `dir`: a folder with `manifest.toml`, or `<name>/<version>/` with a `model.onnx`.
    /// Reads every file once for the digest. Files the manifest does not name are not looked at.
    ///
    /// # Errors
    /// [`OpenError`]; nothing on disk is changed.
    pub fn open(dir: &Path, limits: &Limits) -> Result<Bundle, OpenError> {
        match Bundle::open_in(&Disk, dir, limits) {
            Err(OpenError::Io { path, source })
                if source.kind() == io::ErrorKind::NotFound && path == dir.join(MANIFEST_FILE) =>
            {
                Bundle::open_bare(dir, limits)
            }
            other => other,
        }
    }

    /// Opens the bundle in the folder `dir` of `place`, which must have a manifest. [`Bundle::labels`] and
    /// [`Bundle::golden`] look for their files on the disk.
    ///
    /// # Errors
    /// As [`Bundle::open`].
    pub fn open_in(place: &dyn Place, dir: &Path, limits: &Limits) -> Result<Bundle, OpenError> {
        let path = dir.join(MANIFEST_FILE);
        let manifest = match read_limited(place, &path, limits.manifest_bytes) {
            Ok(Some(bytes)) => bytes,
            Ok(None) => return Err(too_large(MANIFEST_FILE, limits.manifest_bytes)),
            Err(source) => return Err(OpenError::Io { path, source }),
        };
        let text = std::str::from_utf8(&manifest)
            .map_err(|_| ManifestError::Syntax("the file is not UTF-8".to_owned()))?;
        let manifest = Manifest::parse(text)?;
        find_model(place, dir)?;
        for golden in &manifest.golden {
            check_golden(place, dir, &manifest, golden)?;
        }
        let digest = digest(place, dir, manifest.files().into_iter(), limits)?;
        Ok(Bundle {
            dir: dir.to_owned(),
            digest,
            kind: Kind::Packed,
            name: manifest.name.clone(),
            version: manifest.version,
            labels_file: manifest.labels.clone(),
            manifest: Some(manifest),
        })
    }

    fn open_bare(dir: &Path, limits: &Limits) -> Result<Bundle, OpenError> {
        find_model(&Disk, dir)?;
        let labels = dir.join(BARE_LABELS_FILE).exists().then(|| BARE_LABELS_FILE.to_owned());
        let (name, version) =
            bare_identity(dir).ok_or_else(|| OpenError::BarePath { dir: dir.to_owned() })?;
        // Sorted: "labels.txt" stands before "model.onnx".
        let files = labels.as_deref().into_iter().chain([MODEL_FILE]);
        let digest = digest(&Disk, dir, files, limits)?;
        Ok(Bundle {
            dir: dir.to_owned(),
            manifest: None,
            digest,
            kind: Kind::Bare,
            name,
            version,
            labels_file: labels,
        })
    }

    /// The model's name, from the manifest or, for a bare model, from the path.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The model's version, from the manifest or, for a bare model, from the path.
    pub fn version(&self) -> u64 {
        self.version
    }

    /// Where `model.onnx` lies.
    pub fn model_path(&self) -> PathBuf {
        self.dir.join(MODEL_FILE)
    }

    /// The class names by index, empty where there are none.
    ///
    /// # Errors
    /// The file is gone or not UTF-8.
    pub fn labels(&self) -> io::Result<Vec<String>> {
        match &self.labels_file {
            Some(file) => Ok(fs::read_to_string(self.dir.join(file))?
                .lines()
                .map(|line| line.trim().to_owned())
                .collect()),
            None => Ok(Vec::new()),
        }
    }

    /// One golden file's raw bytes: little-endian, row-major.
    ///
    /// # Errors
    /// The file is gone.
    pub fn golden(&self, file: &str) -> io::Result<Vec<u8>> {
        fs::read(self.dir.join(file))
    }

    /// The archive's file name: `NAME-VERSION.tractd.tar.zst`.
    pub fn archive_name(&self) -> String {
        format!("{}-{}{ARCHIVE_SUFFIX}", self.name, self.version)
    }
}

fn bare_identity(dir: &Path) -> Option<(String, u64)> {
    // `models/digits/1` as given may be `.`, or a link like `current` to the real version.
    let dir = fs::canonicalize(dir).ok()?;
    let text = dir.file_name()?.to_str()?;
    let version: u64 = text.parse().ok()?;
    let name = dir.parent()?.file_name()?.to_str()?;
    (version > 0 && version.to_string() == text && is_model_name(name)).then(|| (name.to_owned(), version))
}

/// What is missing first is told first.
fn find_model(place: &dyn Place, dir: &Path) -> Result<(), OpenError> {
    let path = dir.join(MODEL_FILE);
    match place.open(&path) {
        Ok(_) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            Err(OpenError::NoModel { dir: dir.to_owned() })
        }
        Err(source) => Err(OpenError::Io { path, source }),
    }
}

fn check_golden(
    place: &dyn Place,
    dir: &Path,
    manifest: &Manifest,
    golden: &GoldenSpec,
) -> Result<(), OpenError> {
    let inputs = golden.inputs.iter().zip(manifest.inputs.iter().map(|input| &input.tensor));
    let outputs = golden.outputs.iter().zip(manifest.outputs.iter().map(|output| &output.tensor));
    for (file, spec) in inputs.chain(outputs) {
        let expected = golden_len(spec, golden);
        let path = dir.join(file);
        let (_, found) = place.open(&path).map_err(|source| OpenError::Io { path, source })?;
        if found != expected {
            return Err(OpenError::GoldenSize { file: file.clone(), expected, found });
        }
    }
    Ok(())
}

fn golden_len(spec: &TensorSpec, golden: &GoldenSpec) -> u64 {
    spec.resolved(&golden.shape)
        .and_then(|shape| spec.byte_len(&shape))
        .expect("Manifest::parse checked every golden vector's free dimensions and sizes")
}

/// Over these files, each read once, in pieces: the model's bytes that are hashed are those that are checked.
fn digest<'a>(
    place: &dyn Place,
    dir: &Path,
    files: impl Iterator<Item = &'a str>,
    limits: &Limits,
) -> Result<Digest, OpenError> {
    let mut tar = tarball::Writer::new(io::sink());
    let (mut count, mut total) = (0, 0u64);
    for file in files {
        let path = dir.join(file);
        let mut check = None;
        let mut look = |size, bytes: &[u8]| {
            check.get_or_insert_with(|| SelfContained::new(size)).feed(bytes);
        };
        let size = match file {
            MODEL_FILE => append(place, &mut tar, &path, file, limits, &mut look)?,
            _ => append(place, &mut tar, &path, file, limits, &mut |_, _| ())?,
        };
        if file == MODEL_FILE {
            check.unwrap_or_else(|| SelfContained::new(0)).finish()?;
        }
        count += 1;
        total = total.saturating_add(size);
        if count > limits.files {
            return Err(too_large("the number of files", limits.files as u64));
        }
        if total > limits.total_bytes {
            return Err(too_large("the bundle", limits.total_bytes));
        }
    }
    let (_, digest) = tar.finish().map_err(|source| OpenError::Io { path: dir.to_owned(), source })?;
    Ok(digest)
}

/// Appends `path` as `name` and returns its size. `look` is shown the size and what was read, in pieces.
pub(crate) fn append<W: io::Write>(
    place: &dyn Place,
    tar: &mut tarball::Writer<W>,
    path: &Path,
    name: &str,
    limits: &Limits,
    look: &mut dyn FnMut(u64, &[u8]),
) -> Result<u64, OpenError> {
    let io_error = |source| OpenError::Io { path: path.to_owned(), source };
    let (mut file, size) = place.open(path).map_err(io_error)?;
    if size > limits.file_bytes() {
        return Err(too_large(name, limits.file_bytes()));
    }
    tar.file(name, size, &mut file, &mut |bytes| look(size, bytes)).map_err(io_error)?;
    Ok(size)
}

fn too_large(what: &str, limit: u64) -> OpenError {
    OpenError::TooLarge { what: what.to_owned(), limit }
}
