//! Real model files through the public interface; `scripts/make-engine-test-models` made them.

// Clippy lets unwrap through in #[test] functions only, not in what they call.
#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};
use std::sync::Arc;

use tract_onnx::prelude::{Framework, InferenceModelExt, TVec, Tensor as TractTensor, tvec};
use tractd_bundle::{Bundle, DType, Dim, Limits};
use tractd_engine::{
    Input, LoadError, Output, Plan, PlanOptions, RunError, SelfTestError, Session, TensorView, Want,
    self_test,
};

fn folder(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/models").join(name)
}

fn bundle(name: &str) -> Bundle {
    Bundle::open(&folder(name), &Limits::default()).unwrap()
}

fn load(name: &str) -> Arc<Plan> {
    Arc::new(Plan::load(&bundle(name), &PlanOptions::default()).unwrap())
}

fn session(name: &str) -> Session {
    Session::new(load(name)).unwrap()
}

fn f32s(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

fn view<'a>(name: &'a str, dtype: DType, shape: &'a [u32], data: &'a [u8]) -> TensorView<'a> {
    TensorView { name, dtype, shape, data }
}

fn run(session: &mut Session, view: TensorView<'_>) -> Result<Output, RunError> {
    session.run(Input::Tensors(&[view]), Want::ALL)
}

const QUANTISED: [&str; 6] =
    ["qdq-softmax", "qdq-softmax-rows", "qdq-logsoftmax", "qdq-sigmoid", "qdq-mixed", "qdq-tanh-softmax"];

#[test]
fn golden_vectors_hold() {
    for name in QUANTISED.iter().chain(&["pictures", "rows"]) {
        let tested = self_test(&load(name)).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!(tested.golden, 2, "{name}");
    }
    assert_eq!(self_test(&load("ids")).unwrap().golden, 1);
}

/// If this fails after an update of tract, the rule was mended and `guard.rs` may go.
#[test]
fn stock_tract_is_still_wrong() {
    for name in ["qdq-softmax", "qdq-softmax-rows", "qdq-tanh-softmax", "qdq-logsoftmax"] {
        let bundle = bundle(name);
        let manifest = bundle.manifest.as_ref().unwrap();
        let input = bundle.golden(&manifest.golden[0].inputs[0]).unwrap();
        let expected = bundle.golden(&manifest.golden[0].outputs[0]).unwrap();
        let got = std::panic::catch_unwind(|| stock(&bundle, &input));
        let close = |got: &[u8]| {
            let float = |bytes: &[u8]| f32::from_le_bytes(bytes.try_into().unwrap());
            let far = |(a, b): (&[u8], &[u8])| (float(a) - float(b)).abs() > manifest.tolerance.abs;
            !got.chunks(4).zip(expected.chunks(4)).any(far)
        };
        assert!(!got.is_ok_and(|got| got.is_some_and(|got| close(&got))), "{name} is right");
    }
}

fn stock(bundle: &Bundle, input: &[u8]) -> Option<Vec<u8>> {
    let plan = tract_onnx::onnx().model_for_path(bundle.model_path()).ok()?.into_optimized().ok()?;
    let plan = tract_onnx::prelude::TypedSimplePlan::new(plan).ok()?;
    let mut tensor = TractTensor::zero::<f32>(&[2, 16]).ok()?;
    tensor.as_bytes_mut().copy_from_slice(input);
    let inputs: TVec<_> = tvec!(tensor.into());
    Some(plan.run(inputs).ok()?[0].as_bytes().to_vec())
}

#[test]
fn every_dtype_goes_through() {
    for (name, dtypes) in [("bare/dtypes-a/1", &DType::ALL[..8]), ("bare/dtypes-b/1", &DType::ALL[8..])] {
        let plan = load(name);
        let mut session = Session::new(plan.clone()).unwrap();
        let names: Vec<String> = dtypes.iter().map(|dtype| format!("in_{dtype}")).collect();
        // 0 and 1 in turn: sound in every type, bool included.
        let data: Vec<Vec<u8>> =
            dtypes.iter().map(|dtype| (0..4 * dtype.size()).map(|at| (at % 2) as u8).collect()).collect();
        let views: Vec<TensorView<'_>> = (names.iter().zip(dtypes).zip(&data))
            .map(|((name, &dtype), data)| view(name, dtype, &[2, 2], data))
            .collect();
        let output = session.run(Input::Tensors(&views), Want::ALL).unwrap();
        for ((tensor, dtype), data) in output.tensors.iter().zip(dtypes).zip(&data) {
            assert_eq!(tensor.name.as_ref(), format!("out_{dtype}"));
            assert_eq!((tensor.dtype, tensor.shape.as_slice()), (*dtype, &[2, 2][..]));
            assert_eq!(&tensor.data, data);
        }
        assert_eq!(plan.inputs().len(), dtypes.len());
    }
}

#[test]
fn the_same_input_gives_the_same_bytes() {
    let plan = load("pictures");
    let data = f32s(&[0.25; 48]);
    let mut outputs = (0..4).map(|_| {
        let mut session = Session::new(plan.clone()).unwrap();
        run(&mut session, view("image", DType::F32, &[1, 3, 4, 4], &data)).unwrap().tensors
    });
    let first = outputs.next().unwrap();
    assert!(outputs.all(|output| output == first));
}

#[test]
fn an_earlier_answers_memory_is_used_again() {
    // Handed from model to model: what another one left must not matter.
    let mut output = Output::default();
    let mut reused = 0;
    for name in QUANTISED {
        let plan = load(name);
        let mut session = Session::new(plan.clone()).unwrap();
        let spec = &plan.inputs()[0].tensor;
        let mut before = None;
        for golden in &plan.bundle().manifest.as_ref().unwrap().golden {
            let data = plan.bundle().golden(&golden.inputs[0]).unwrap();
            let shape = spec.resolved(&golden.shape).unwrap();
            let views = [view(&spec.name, spec.dtype, &shape, &data)];
            let expected = session.run(Input::Tensors(&views), Want::ALL).unwrap();
            session.run_into(Input::Tensors(&views), Want::ALL, &mut output).unwrap();
            assert_eq!((&output.tensors, &output.classes), (&expected.tensors, &expected.classes), "{name}");
            let at = output.tensors[0].data.as_ptr();
            if plan.report().outside().count() == 0 {
                assert!(before.is_none_or(|before| before == at), "{name}");
                reused += usize::from(before.is_some());
                before = Some(at);
            }
        }
    }
    assert!(reused > 0, "none of these runs on the kernels alone");
}

#[test]
fn an_earlier_inputs_memory_makes_no_difference() {
    let (mut fresh, mut used) = (session("pictures"), session("pictures"));
    let mut answers = Vec::new();
    for value in [0.25, -0.5, 0.25] {
        let data = f32s(&[value; 48]);
        let image = || view("image", DType::F32, &[1, 3, 4, 4], &data);
        answers.push(run(&mut used, image()).unwrap().tensors);
        assert_eq!(answers.last(), Some(&run(&mut fresh, image()).unwrap().tensors));
        fresh = session("pictures");
    }
    assert_ne!(answers[0], answers[1]);
}

#[test]
fn pictures_give_classes() {
    let mut session = session("pictures");
    let mut png = Vec::new();
    let gray = image::RgbImage::from_pixel(8, 8, image::Rgb([128; 3]));
    gray.write_to(&mut std::io::Cursor::new(&mut png), image::ImageFormat::Png).unwrap();
    let from_picture = session.run(Input::Media(&png), Want::ALL).unwrap();
    // 128 * 0.0078125 - 1 = 0, so only the bias is left.
    let zeros = f32s(&[0.0; 48]);
    let from_tensor = run(&mut session, view("image", DType::F32, &[1, 3, 4, 4], &zeros)).unwrap();
    assert_eq!(from_picture.tensors, from_tensor.tensors);
    assert_eq!(from_picture.classes, from_tensor.classes);

    let scores: Vec<f32> =
        from_tensor.tensors[0].data.chunks(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect();
    let best = (0..5).max_by(|&a, &b| scores[a].total_cmp(&scores[b])).unwrap();
    let labels = ["ash", "birch", "cedar", "oak", "yew"];
    let classes = &from_tensor.classes;
    assert_eq!(classes.len(), 3);
    assert_eq!((classes[0].index as usize, classes[0].label.as_ref()), (best, labels[best]));
    let softmax = scores[best].exp() / scores.iter().map(|score| score.exp()).sum::<f32>();
    assert!((classes[0].score - softmax).abs() < 1e-6);

    let only = session.run(Input::Media(&png), Want { tensors: false, classes: true }).unwrap();
    assert_eq!((only.tensors.len(), only.classes.len()), (0, 3));
    let only = session.run(Input::Media(&png), Want { tensors: true, classes: false }).unwrap();
    assert_eq!((only.tensors.len(), only.classes.len()), (1, 0));
}

#[test]
fn a_batch_of_any_size() {
    let plan = load("rows");
    let mut session = Session::new(plan.clone()).unwrap();
    let mut first = |n: u32| {
        let data = f32s(&vec![1.0; 4 * n as usize]);
        let output = run(&mut session, view("", DType::F32, &[n, 4], &data)).unwrap();
        assert_eq!(output.tensors[0].shape, [n, 3]);
        output.tensors[0].data[..12].to_vec()
    };
    let one = first(1);
    for n in [2, 7, 100, 2, 1, 4096] {
        assert_eq!(first(n), one, "{n} rows");
    }
    let data = f32s(&vec![0.0; 4 * 4097]);
    let error = run(&mut session, view("x", DType::F32, &[4097, 4], &data)).unwrap_err();
    assert_eq!(error, RunError::TooLarge { what: "dimension `n`".to_owned(), got: 4097, limit: 4096 });
    let error = run(&mut session, view("x", DType::F32, &[0, 4], &[])).unwrap_err();
    assert!(matches!(error, RunError::WrongShape { .. }));
}

#[test]
fn refused_requests() {
    let mut session = session("pictures");
    let shape = [1, 3, 4, 4];
    let data = f32s(&[0.0; 48]);
    let good = view("image", DType::F32, &shape, &data);
    let mut refusal = |views: &[TensorView<'_>]| session.run(Input::Tensors(views), Want::ALL).unwrap_err();
    let name = || "image".to_owned();

    assert_eq!(refusal(&[]), RunError::MissingInput { name: name() });
    let (other, known) = ("other".to_owned(), name());
    assert_eq!(
        refusal(&[TensorView { name: "other", ..good }]),
        RunError::UnknownInput { name: other, known }
    );
    assert_eq!(refusal(&[good, good]), RunError::DuplicateInput { name: name() });
    let wrong = RunError::WrongDtype { name: name(), expected: DType::F32, got: DType::U8 };
    assert_eq!(refusal(&[TensorView { dtype: DType::U8, ..good }]), wrong);
    let (expected, got) = ("1, 3, 4, 4".to_owned(), vec![1, 4, 4, 3]);
    let wrong = RunError::WrongShape { name: name(), expected, got };
    assert_eq!(refusal(&[TensorView { shape: &[1, 4, 4, 3], ..good }]), wrong);
    let wrong = RunError::WrongLength { name: name(), expected: 192, got: 191 };
    assert_eq!(refusal(&[TensorView { data: &data[..191], ..good }]), wrong);
    let mut nan = data.clone();
    nan[4 * 5..4 * 6].copy_from_slice(&f32::NAN.to_le_bytes());
    assert_eq!(refusal(&[TensorView { data: &nan, ..good }]), RunError::NotFinite { name: name(), index: 5 });
    // Still good for use.
    assert_eq!(session.run(Input::Tensors(&[good]), Want::ALL).unwrap().classes.len(), 3);
}

#[test]
fn bool_takes_zero_and_one() {
    let mut session = session("bare/dtypes-b/1");
    let zeros = [0; 32];
    let views = |bools| {
        let wide = |name, dtype: DType| view(name, dtype, &[2, 2], &zeros[..4 * dtype.size()]);
        let floats = [wide("in_f16", DType::F16), wide("in_f32", DType::F32), wide("in_f64", DType::F64)];
        [floats[0], floats[1], floats[2], view("in_bool", DType::Bool, &[2, 2], bools)]
    };
    session.run(Input::Tensors(&views(&[0, 1, 1, 0])), Want::ALL).unwrap();
    let error = session.run(Input::Tensors(&views(&[0, 1, 2, 0])), Want::ALL).unwrap_err();
    assert_eq!(error, RunError::NotBool { name: "in_bool".to_owned(), index: 2 });
}

#[test]
fn a_bare_model_speaks_for_itself() {
    let plan = load("bare/unnamed/1");
    assert_eq!((plan.name(), plan.version()), ("unnamed", 1));
    let input = &plan.inputs()[0].tensor;
    assert_eq!((input.name.as_str(), input.dtype), ("x", DType::F32));
    assert_eq!(input.shape, [Dim::Free("x_0".to_owned()), Dim::Fixed(3)]);
    assert_eq!(plan.free_dims(), ["x_0"]);
    assert_eq!(self_test(&plan).unwrap().golden, 0);
    let error = Session::new(plan).unwrap().run(Input::Media(b"\xff\xd8\xff"), Want::ALL).unwrap_err();
    assert!(matches!(error, RunError::UnsupportedMedia(text) if text.contains("[input.image]")));
}

#[test]
fn what_is_infinite_on_zeros_fails_its_test() {
    let error = self_test(&load("bare/infinite/1")).unwrap_err();
    assert!(matches!(error, SelfTestError::NotFinite { output } if output == "y"));
}

#[test]
fn unsupported_operators_are_named() {
    let error = Plan::load(&bundle("bare/qoperator/1"), &PlanOptions::default()).unwrap_err();
    assert_eq!(
        error.to_string(),
        "operator com.microsoft.QLinearReduceMean is not supported (node `mean`): \
         quantise the model in QDQ form instead (quant_format=QuantFormat.QDQ)"
    );
}

/// A copy of `pictures` with one text replaced in its manifest.
fn altered(from: &str, to: &str) -> Result<Plan, LoadError> {
    let dir = tempfile::tempdir().unwrap();
    let source = folder("pictures");
    std::fs::create_dir(dir.path().join("golden")).unwrap();
    for file in ["model.onnx", "labels.txt", "golden/0.image.bin", "golden/0.scores.bin"] {
        std::fs::copy(source.join(file), dir.path().join(file)).unwrap();
    }
    std::fs::copy(source.join("golden/1.image.bin"), dir.path().join("golden/1.image.bin")).unwrap();
    std::fs::copy(source.join("golden/1.scores.bin"), dir.path().join("golden/1.scores.bin")).unwrap();
    let manifest = std::fs::read_to_string(source.join("manifest.toml")).unwrap();
    assert!(manifest.contains(from));
    std::fs::write(dir.path().join("manifest.toml"), manifest.replace(from, to)).unwrap();
    Plan::load(&Bundle::open(dir.path(), &Limits::default()).unwrap(), &PlanOptions::default())
}

#[test]
fn manifest_and_graph_must_agree() {
    let check = |from: &str, to: &str, expected: &str| {
        assert_eq!(altered(from, to).unwrap_err().to_string(), expected);
    };
    check(
        "name = \"scores\"",
        "name = \"logits\"",
        "the graph has no output `logits`, which the manifest names; it has scores",
    );
    check(
        "shape = [1, 5]",
        "shape = [5, 1]",
        "output `scores` has shape [5, 1] by the manifest, which does not fit the graph's",
    );
    check(
        "dtype = \"f32\"\nshape = [1, 5]\nsoftmax = true",
        "dtype = \"i32\"\nshape = [1, 5]",
        "output `scores` is i32 by the manifest, f32 in the graph",
    );
}

fn load_cached(name: &str, cache: &Path) -> Arc<Plan> {
    let options = PlanOptions { cache: Some(cache.to_owned()), ..PlanOptions::default() };
    Arc::new(Plan::load(&bundle(name), &options).unwrap())
}

fn answer(plan: &Arc<Plan>) -> Vec<Vec<u8>> {
    let input = &plan.bundle().manifest.as_ref().unwrap().golden[0].inputs[0];
    let data = plan.bundle().golden(input).unwrap();
    let spec = &plan.inputs()[0].tensor;
    let shape = spec.resolved(&plan.bundle().manifest.as_ref().unwrap().golden[0].shape).unwrap();
    let mut session = Session::new(plan.clone()).unwrap();
    let output = run(&mut session, view(&spec.name, spec.dtype, &shape, &data)).unwrap();
    output.tensors.iter().map(|tensor| tensor.data.to_vec()).collect()
}

/// Runs without tract and has no free dimensions: what a cache keeps.
const KEPT: &str = "qdq-sigmoid";

#[test]
fn a_cached_plan_gives_the_same_bytes() {
    let cache = tempfile::tempdir().unwrap();
    for name in QUANTISED.iter().chain(&["pictures", "rows"]) {
        let plain = load(name);
        let kept = plain.report().outside().count() == 0 && plain.free_dims().is_empty();
        assert!(kept || *name != KEPT, "{name}");
        for from_cache in [false, kept] {
            let plan = load_cached(name, cache.path());
            assert_eq!(plan.is_from_cache(), from_cache, "{name}");
            assert_eq!(answer(&plan), answer(&plain), "{name}");
            assert_eq!((plan.report(), plan.weight_bytes()), (plain.report(), plain.weight_bytes()));
            assert_eq!((plan.inputs(), plan.outputs()), (plain.inputs(), plain.outputs()));
        }
    }
}

#[test]
fn a_wrong_cache_is_made_anew() {
    let cache = tempfile::tempdir().unwrap();
    let expected = answer(&load_cached(KEPT, cache.path()));
    let file = std::fs::read_dir(cache.path()).unwrap().next().unwrap().unwrap().path();
    let good = std::fs::read(&file).unwrap();
    let flipped = |at: usize| {
        let mut bytes = good.clone();
        bytes[at] ^= 1;
        bytes
    };
    let wrong =
        [vec![], good[..good.len() / 2].to_vec(), flipped(0), flipped(good.len() - 1), vec![0xff; 100_000]];
    for bytes in wrong {
        std::fs::write(&file, bytes).unwrap();
        for from_cache in [false, true] {
            let plan = load_cached(KEPT, cache.path());
            assert_eq!(plan.is_from_cache(), from_cache);
            assert_eq!(answer(&plan), expected);
        }
        assert_eq!(std::fs::read(&file).unwrap(), good);
    }
}

#[test]
fn a_cache_that_cannot_be_written_does_no_harm() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    std::fs::write(&file, "").unwrap();
    for _ in 0..2 {
        assert!(!load_cached(KEPT, &file.join("cache")).is_from_cache());
    }
}
