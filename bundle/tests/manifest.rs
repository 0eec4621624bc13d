//! What a manifest may say.

use proptest::prelude::*;
use tractd_bundle::*;

const GOOD: &str = r#"
schema = 1
name = "m"
version = 1
[[input]]
name = "x"
dtype = "f32"
shape = [1, 3, 8, 8]
image = { width = 8, height = 8, channels = "rgb", layout = "nchw" }
[[output]]
name = "y"
dtype = "f32"
shape = ["n", 4]
top_k = 2
[[golden]]
inputs = ["golden/x"]
outputs = ["golden/y"]
from = "onnxruntime"
shape = { n = 2 }
"#;

/// The message for the good manifest with one text replaced.
fn refused(from: &str, to: &str) -> String {
    assert!(GOOD.contains(from), "{from}");
    Manifest::parse(&GOOD.replacen(from, to, 1)).expect_err(to).to_string()
}

fn check(from: &str, to: &str, expected: &str) {
    assert_eq!(refused(from, to), format!("manifest.toml: {expected}"));
}

#[test]
fn defaults() {
    let manifest = Manifest::parse(GOOD).unwrap();
    assert_eq!(manifest.tolerance, Tolerance { abs: 1e-4, rel: 1e-3 });
    let image = manifest.inputs[0].image.clone().unwrap();
    assert_eq!((image.resize, image.fit, image.scale), (Resize::Bilinear, Fit::Stretch, 1.0));
    assert!(!manifest.inputs[0].allow_nan);
    assert_eq!(manifest.arch, [""; 0]);
}

#[test]
fn names_and_numbers() {
    let name = "`name` must be 1 to 63 of a-z, 0-9, `_`, `-`, beginning with a letter or digit";
    for bad in ["", "M", "-m", "m/n", "m n", "../m", &"m".repeat(64)] {
        check("name = \"m\"", &format!("name = \"{bad}\""), name);
    }
    check("version = 1", "version = 0", "`version` must be 1 or more");
    check("schema = 1", "schema = 2", "schema 2 is not supported, only 1");
    check("schema = 1", "", "`schema` is missing: write `schema = 1`");
    check("version = 1", "version = 1\nmin_runtime = '1.2'", "`min_runtime` must be a version like `1.2.3`");
    check(
        "version = 1",
        "version = 1\ndescription = \"a\\u001b[2J\"",
        "`description` has a control character or line break",
    );
    check("version = 1", "version = 1\narch = ['X86']", "`arch` takes names like `x86_64`, `aarch64`, `arm`");
    let abs = "`tolerance.abs` must be a number, 0 or more";
    check("version = 1", "version = 1\ntolerance = { abs = -1.0 }", abs);
    check("version = 1", "version = 1\ntolerance = { abs = nan }", abs);
}

#[test]
fn unknown_keys() {
    for (from, to) in [
        ("version = 1", "version = 1\nsurprise = 1"),
        ("dtype = \"f32\"", "dtype = \"f32\"\nsurprise = 1"),
        ("top_k = 2", "top_k = 2\nsurprise = 1"),
        ("width = 8", "width = 8, surprise = 1"),
        ("from = \"onnxruntime\"", "from = \"onnxruntime\"\nsurprise = 1"),
        ("version = 1", "version = 1\ntolerance = { surprise = 1 }"),
    ] {
        assert!(refused(from, to).contains("unknown field `surprise`"), "{to}");
    }
    assert!(refused("\"f32\"", "\"float32\"").contains("unknown variant `float32`"));
}

#[test]
fn shapes() {
    let input = |shape: &str| {
        refused(
            "shape = [1, 3, 8, 8]\nimage = { width = 8, height = 8, channels = \"rgb\", layout = \"nchw\" }",
            &format!("shape = {shape}"),
        )
    };
    assert_eq!(input("[0]"), "manifest.toml: `input.x.shape` has a dimension of 0");
    assert_eq!(input("[1,1,1,1,1,1,1,1,1]"), "manifest.toml: `input.x.shape` has more than 8 dimensions");
    let large = "manifest.toml: `input.x.shape` is larger than 1 GiB";
    assert_eq!(input("[65536, 65536]"), large);
    // The product wraps around to 0 in 64 bits.
    assert_eq!(input("[4294967295, 4294967295, 4294967295]"), large);
    assert_eq!(input("[268435457]"), large);
    for bad in ["[-1]", "[4294967296]", "[1.5]"] {
        assert!(input(bad).contains("a dimension must be a size"), "{bad}");
    }
    let free = "manifest.toml: `input.x.shape` has `a b`: free dimensions are named like `n` or `seq_len`";
    assert_eq!(input("['a b']"), free);
}

#[test]
fn tensors() {
    let twice = "[[output]]\nname = \"y\"\ndtype = \"u8\"\nshape = [1]\n[[golden]]";
    check("[[golden]]", twice, "`output.y` is there twice");
    let nine: String =
        (0..8).map(|i| format!("[[output]]\nname = \"y{i}\"\ndtype = \"u8\"\nshape = [1]\n")).collect();
    check("[[golden]]", &format!("{nine}[[golden]]"), "`output` must stand 1 to 8 times, as [[output]]");
    let second = "[[input]]\nname = \"z\"\ndtype = \"u8\"\nshape = [1]\n[[golden]]";
    check("[[golden]]", second, "`input.x.image` works only where the model has a single input");
    let second = "[[output]]\nname = \"z\"\ndtype = \"u8\"\nshape = [1]\ntop_k = 1\n[[golden]]";
    check("[[golden]]", second, "`output` has `top_k` more than once: an answer holds one list of classes");
    check("top_k = 2", "top_k = 11", "`output.y.top_k` must be 1 to 10");
    check(
        "top_k = 2",
        "softmax = true",
        "`output.y.softmax` gives the classes their scores: say how many with `top_k`",
    );
}

#[test]
fn images() {
    let shape = "`input.x.image` does not give the tensor's shape: compare width, height, channels, layout";
    check("width = 8", "width = 4", shape);
    check("\"rgb\"", "\"gray\"", shape);
    check("\"nchw\"", "\"nhwc\"", shape);
    check("width = 8", "width = 0", "`input.x.image` takes width and height of 1 to 8192 pixels");
    check(
        "width = 8",
        "width = 8, mean = [1, 2]",
        "`input.x.image.mean` takes one value, or one per channel",
    );
    check("width = 8", "width = 8, std = [0.0]", "`input.x.image.std` takes finite numbers other than 0");
    let finite = "`input.x.image` has a mean or scale that is not a finite number";
    check("width = 8", "width = 8, scale = inf", finite);
    check("dtype = \"f32\"", "dtype = \"i64\"", "`input.x.image` makes f32 or u8 inputs, not i64");
    let scaled = GOOD.replacen("dtype = \"f32\"", "dtype = \"u8\"", 1);
    Manifest::parse(&scaled).unwrap();
    let text =
        Manifest::parse(&scaled.replace("width = 8", "width = 8, scale = 0.5")).unwrap_err().to_string();
    let raw =
        "manifest.toml: `input.x.image` has scale, mean or std: a u8 input takes the pixels as they are";
    assert_eq!(text, raw);
}

#[test]
fn golden() {
    check("[\"golden/x\"]", "[]", "`golden[0].inputs` names 0 files where the model has 1 inputs");
    check("golden/x", "../x", "`golden[0].inputs` has `../x`, which leads upwards");
    check("golden/y", "model.onnx", "`golden[0].outputs` cannot be `model.onnx`");
    check("{ n = 2 }", "{}", "`golden[0].shape` lacks a free dimension of `y`");
    check("{ n = 2 }", "{ n = 0 }", "`golden[0].shape` takes sizes of 1 or more");
    check("{ n = 2 }", "{ n = 2, m = 1 }", "`golden[0].shape` names `m`, which no tensor has");
    check("{ n = 2 }", "{ n = 4294967295 }", "`golden[0].shape` makes `y` larger than 1 GiB");
    check("\"onnxruntime\"", "\"\"", "`golden[0].from` must say what computed the outputs");
    check(
        "version = 1",
        "version = 1\nlabels = '/etc/passwd'",
        "`labels` has `/etc/passwd`, which is absolute",
    );
}

proptest! {
    /// No text makes the parser panic, near or far from the format.
    #[test]
    fn any_text(text in ".{0,400}") {
        _ = Manifest::parse(&text);
    }

    #[test]
    fn any_change(at in 0..GOOD.len(), with in "[ -~\n]{0,3}") {
        if let Ok(manifest) = Manifest::parse(&format!("{}{with}{}", &GOOD[..at], &GOOD[(at + 1).min(GOOD.len())..])) {
            prop_assert!(is_model_name(&manifest.name));
            for input in &manifest.inputs {
                prop_assert!(input.tensor.shape.iter().all(|dim| *dim != Dim::Fixed(0)));
            }
        }
    }

    /// A shape that is accepted has a size, and that size is the product.
    #[test]
    fn any_shape(dims in proptest::collection::vec(1u32.., 0..8)) {
        let spec = TensorSpec { name: "x".to_owned(), dtype: DType::F64, shape: vec![] };
        let wide = dims.iter().try_fold(8u128, |product, &dim| product.checked_mul(dim.into()));
        prop_assert_eq!(spec.byte_len(&dims), wide.and_then(|bytes| u64::try_from(bytes).ok()));
    }
}
