//! The format as it is in the field: a frozen manifest, a frozen digest, a frozen archive layout.

// Clippy lets unwrap through in #[test] functions only, not in what they call.
#![allow(clippy::unwrap_used)]

mod common;

use std::fs;

use tractd_bundle::*;

use common::{FILES, entries, files, fixture};

fn open() -> Bundle {
    Bundle::open(&fixture(), &Limits::default()).unwrap()
}

fn silent(_done: u64, _total: u64) {}

#[test]
fn schema_1_is_read() {
    let manifest = open().manifest.unwrap();
    let f32s = |name: &str, shape: Vec<Dim>| TensorSpec { name: name.to_owned(), dtype: DType::F32, shape };
    let n = || Dim::Free("n".to_owned());
    let expected = Manifest {
        schema: 1,
        name: "cell-counter_2".to_owned(),
        version: 12,
        description: "Counts cells under a microscope".to_owned(),
        license: "Apache-2.0".to_owned(),
        labels: Some("labels.txt".to_owned()),
        inputs: vec![InputSpec {
            tensor: f32s("picture", vec![n(), Dim::Fixed(2), Dim::Fixed(2), Dim::Fixed(3)]),
            image: Some(ImageSpec {
                width: 2,
                height: 2,
                channels: Channels::Rgb,
                layout: Layout::Nhwc,
                resize: Resize::Area,
                fit: Fit::Pad,
                scale: 0.5,
                mean: vec![0.25, 0.5, 0.75],
                std: vec![2.0],
            }),
            allow_nan: true,
        }],
        outputs: vec![
            OutputSpec {
                tensor: f32s("scores", vec![n(), Dim::Fixed(2)]),
                post: Post { softmax: true, top_k: Some(2) },
            },
            OutputSpec {
                tensor: TensorSpec { name: "count".to_owned(), dtype: DType::I64, shape: vec![] },
                post: Post::default(),
            },
        ],
        arch: vec!["x86_64".to_owned(), "aarch64".to_owned()],
        min_runtime: Some("0.1.0".to_owned()),
        peak_ram_bytes: Some(8 << 20),
        tolerance: Tolerance { abs: 0.01, rel: 0.0 },
        golden: vec![GoldenSpec {
            inputs: vec!["golden/0.picture.bin".to_owned()],
            outputs: vec!["golden/0.scores.bin".to_owned(), "golden/0.count.bin".to_owned()],
            from: "onnxruntime 1.32".to_owned(),
            shape: [("n".to_owned(), 1)].into(),
        }],
        provenance: toml::toml! {
            dataset = "made up"
            accuracy = { float = 0.98, int8 = 0.975 }
        }
        .into_iter()
        .collect(),
    };
    assert_eq!(manifest, expected);
    assert_eq!(manifest.files().into_iter().collect::<Vec<_>>(), FILES);
}

/// Computed with GNU tar and sha256sum, not with this crate:
/// `tar --format=ustar --sort=name --mode=0644 --owner=0 --group=0 --numeric-owner --mtime=@0 -b1 -cf - FILES | sha256sum`
/// (with FILES in the order of `common::FILES`).
const DIGEST: &str = "sha256:c11271c9fae02e75cb75d17ee926c06b937afa5a26342600f6244890ef19135f";

#[test]
fn the_digest_is_frozen() {
    let bundle = open();
    assert_eq!(bundle.digest.to_string(), DIGEST);
    assert_eq!((bundle.name(), bundle.version(), bundle.kind), ("cell-counter_2", 12, Kind::Packed));
    assert_eq!(bundle.labels().unwrap(), ["alive", "dead"]);
    assert_eq!(bundle.golden("golden/0.count.bin").unwrap(), 3i64.to_le_bytes());
    assert_eq!(bundle.archive_name(), "cell-counter_2-12.tractd.tar.zst");
}

#[test]
fn packing_twice_gives_the_same_bytes() {
    let dir = tempfile::tempdir().unwrap();
    let (one, two) = (dir.path().join("one"), dir.path().join("two"));
    let mut heard = Vec::new();
    let packed =
        pack(&fixture(), &one, &Limits::default(), &mut |done, total| heard.push((done, total))).unwrap();
    assert_eq!(packed.digest.to_string(), DIGEST);
    let total: u64 = files().iter().map(|(_, bytes)| bytes.len() as u64).sum();
    assert_eq!(heard.last(), Some(&(total, total)));

    // Another folder with other times, modes and a stray file.
    let copy = dir.path().join("copy");
    fs::create_dir_all(copy.join("golden")).unwrap();
    for (file, bytes) in files().iter().rev() {
        fs::write(copy.join(file), bytes).unwrap();
    }
    fs::write(copy.join(".DS_Store"), "stray").unwrap();
    let mut readonly = fs::metadata(copy.join("model.onnx")).unwrap().permissions();
    readonly.set_readonly(true);
    fs::set_permissions(copy.join("model.onnx"), readonly).unwrap();
    assert_eq!(pack(&copy, &two, &Limits::default(), &mut silent).unwrap(), packed);
    let bytes = fs::read(&one).unwrap();
    assert_eq!(bytes, fs::read(&two).unwrap());
    assert_eq!(bytes.len() as u64, packed.bytes);
    assert_eq!(
        entries(dir.path()).iter().filter(|path| path.extension().is_some_and(|e| e == "part")).count(),
        0
    );
}

#[test]
fn what_was_packed_unpacks() {
    let dir = tempfile::tempdir().unwrap();
    let archive = dir.path().join("archive");
    pack(&fixture(), &archive, &Limits::default(), &mut silent).unwrap();
    let dest = dir.path().join("out");
    let bundle = unpack(fs::File::open(&archive).unwrap(), &dest, &Limits::default()).unwrap();
    assert_eq!((bundle.digest.to_string().as_str(), &bundle.dir), (DIGEST, &dest));
    for (file, bytes) in files() {
        assert_eq!(fs::read(dest.join(&file)).unwrap(), bytes, "{file}");
    }
    assert_eq!(entries(dir.path()).len(), 1 + 1 + 1 + FILES.len(), "archive, out, golden, and the files");
    assert_eq!(Bundle::open(&dest, &Limits::default()).unwrap().digest, bundle.digest);

    let again = unpack(fs::File::open(&archive).unwrap(), &dest, &Limits::default());
    assert!(matches!(again, Err(UnpackError::DestinationExists { .. })));
}

#[test]
fn a_bare_model() {
    let dir = tempfile::tempdir().unwrap();
    let model = dir.path().join("models/digits/3");
    fs::create_dir_all(&model).unwrap();
    let open = || Bundle::open(&model, &Limits::default());
    assert!(matches!(open(), Err(OpenError::NoModel { .. })));
    fs::write(model.join("model.onnx"), &files()[5].1).unwrap();
    let bundle = open().unwrap();
    assert_eq!((bundle.name(), bundle.version(), bundle.kind), ("digits", 3, Kind::Bare));
    assert_eq!(bundle.labels().unwrap(), [""; 0]);
    fs::write(model.join("labels.txt"), "one\r\ntwo\n").unwrap();
    let labelled = open().unwrap();
    assert_eq!(labelled.labels().unwrap(), ["one", "two"]);
    assert_ne!(labelled.digest, bundle.digest);
    let refused = pack(&model, &dir.path().join("x"), &Limits::default(), &mut silent);
    assert!(matches!(refused, Err(PackError::NoManifest { .. })));

    for path in ["models/digits/0", "models/digits/03", "models/digits/latest", "models/Digits/3"] {
        let other = dir.path().join(path);
        fs::create_dir_all(&other).unwrap();
        fs::copy(model.join("model.onnx"), other.join("model.onnx")).unwrap();
        let refused = Bundle::open(&other, &Limits::default());
        assert!(matches!(refused, Err(OpenError::BarePath { .. })), "{path}");
    }
}

#[test]
fn a_folder_is_checked_like_an_archive() {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("golden")).unwrap();
    for (file, bytes) in files() {
        fs::write(dir.path().join(file), bytes).unwrap();
    }
    let open = |limits: &Limits| Bundle::open(dir.path(), limits).unwrap_err();
    let limits = Limits::default();
    let text = |limits: Limits| open(&limits).to_string();
    assert_eq!(
        text(Limits { file_bytes: 20, ..limits.clone() }),
        "golden/0.picture.bin exceeds the limit of 20"
    );
    assert_eq!(text(Limits { total_bytes: 90, ..limits.clone() }), "the bundle exceeds the limit of 90");
    assert_eq!(text(Limits { files: 5, ..limits.clone() }), "the number of files exceeds the limit of 5");
    assert_eq!(text(Limits { manifest_bytes: 9, ..limits.clone() }), "manifest.toml exceeds the limit of 9");

    fs::write(dir.path().join("golden/0.count.bin"), [0; 7]).unwrap();
    assert_eq!(
        open(&limits).to_string(),
        "golden/0.count.bin: 7 bytes where the manifest's dtype and shape make 8"
    );
    fs::write(dir.path().join("golden/0.count.bin"), [0; 8]).unwrap();
    fs::write(dir.path().join("model.onnx"), "not a model").unwrap();
    assert!(matches!(open(&limits), OpenError::Model(ModelFileError::NotOnnx)));
}
