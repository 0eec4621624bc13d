//! Models that must not hurt: broken, looping, greedy, or wrong in what they answer. And two that must agree.

use tractd_ctl::exchange::Input;
use tractd_ctl::tensor::Tensor;
use tractd_tests::daemon::{Daemon, Home};
use tractd_tests::digits::{self, Expected, best, floats};
use tractd_tests::onnx::Graph;
use tractd_wire::{DType, Status};

/// Puts a bare ONNX file into the local models.
fn put(home: &Home, name: &str, file: &[u8]) {
    let dir = home.models().join(name).join("1");
    std::fs::create_dir_all(&dir).unwrap();
    std::fs::write(dir.join("model.onnx"), file).unwrap();
}

/// Why a model is not served.
fn reason(daemon: &Daemon<'_>, name: &str) -> String {
    let models = daemon.models();
    let entry = models["models"].as_array().unwrap().iter().find(|entry| entry["name"] == name);
    let entry = entry.unwrap_or_else(|| panic!("{name} is not listed: {models}"));
    assert_eq!(entry["state"], "failed", "{entry}");
    entry["reason"].as_str().unwrap().to_owned()
}

#[test]
fn a_model_written_by_hand_is_served() {
    let home = Home::new();
    put(&home, "negation", &Graph::new().node("Neg", &["x"], "y").file(&[1, 3]));
    let daemon = home.start();
    let data = [1.0f32, -2.0, 0.5].map(f32::to_le_bytes).concat();
    let x = Tensor { name: "x".into(), dtype: DType::F32, shape: vec![1, 3], data };
    let reply = daemon.ask("negation", Input::Tensors(vec![x]));
    assert_eq!((reply.status, reply.version, reply.signed), (Status::Ok, 1, false), "{}", reply.detail);
    assert_eq!(floats(&reply.tensors[0].data), [-1.0, 2.0, -0.5]);
    let png = daemon.ask("negation", Input::Media(digits::samples().remove(0).png));
    assert_eq!(png.status, Status::UnsupportedType);
}

#[test]
fn models_that_do_not_load_are_listed_with_the_reason_and_hurt_nobody() {
    let home = Home::new().with_config(
        "[mqtt]\nenabled = false\n[update]\nenabled = false\n\
         [proof]\nwall_ms = 6000\naddress_space_bytes = 1073741824\n",
    );
    home.put_model(&digits::dir(1), "digits", 1);
    put(&home, "broken", b"\x08\x08 this is no protobuf of a model");
    put(&home, "empty", b"");
    put(&home, "unknown", &Graph::new().node("FlyToTheMoon", &["x"], "y").file(&[1, 3]));
    put(&home, "greedy", &greedy());
    put(&home, "endless", &endless());
    let daemon = home.start();

    let sample = digits::samples().remove(1);
    let reply = daemon.ask("digits", Input::Media(sample.png.clone()));
    assert_eq!(Expected::of(&digits::dir(1)).check(&sample.name, &reply), Ok(()));
    for name in ["broken", "empty", "unknown", "greedy", "endless"] {
        let why = reason(&daemon, name);
        assert!(!why.is_empty(), "{name}");
        println!("{name}: {why}");
        let reply = daemon.ask(name, Input::Media(sample.png.clone()));
        // Other tests may have the processors; then it is tried again.
        let starved = name == "endless" && reply.status == Status::Busy;
        assert!(starved || reply.status == Status::ModelNotFound, "{name}: {:?}", reply.status);
    }
    assert!(reason(&daemon, "unknown").contains("FlyToTheMoon"));
    // The allocator's own words where tract turns its failure into a panic.
    let greedy = reason(&daemon, "greedy");
    assert!(
        greedy.contains("more than 1024 MiB of memory") || greedy.contains("failed to allocate"),
        "{greedy}"
    );
    let endless = reason(&daemon, "endless");
    assert!(
        endless == "the model's trial did not end within 6s" || endless.contains("too busy"),
        "{endless}"
    );
}

#[test]
fn a_model_that_answers_otherwise_than_its_golden_vectors_is_refused() {
    let home = Home::new();
    home.put_model(&digits::dir(1), "digits", 1);
    let golden = home.models().join("digits/1/golden");
    std::fs::copy(golden.join("3-0045.logits.bin"), golden.join("7-0017.logits.bin")).unwrap();
    let daemon = home.start();
    let why = reason(&daemon, "digits");
    assert!(why.contains("self-test failed: golden vector 7"), "{why}");
}

#[test]
fn int8_agrees_with_float_on_the_held_out_digits() {
    let home = Home::new();
    home.put_model(&digits::dir(1), "digits", 1);
    home.put_model(&digits::float_dir(), "digits-float", 1);
    let daemon = home.start();
    let mut socket = daemon.connect();
    let mut answer = |model: &str, pixels: &[u8]| {
        let data = pixels.iter().flat_map(|&pixel| (f32::from(pixel) / 255.0).to_le_bytes()).collect();
        let image = Tensor { name: "image".into(), dtype: DType::F32, shape: vec![1, 1, 8, 8], data };
        let request = tractd_tests::daemon::request(model, Input::Tensors(vec![image]));
        let reply = socket.infer(&request).unwrap();
        assert_eq!(reply.status, Status::Ok, "{}", reply.detail);
        best(&floats(&reply.tensors[0].data))
    };
    let held_out = digits::held_out();
    assert_eq!(held_out.len(), 450);
    let (mut agree, mut right) = (0, 0);
    for (class, pixels) in &held_out {
        let (int8, float) = (answer("digits", pixels), answer("digits-float", pixels));
        agree += usize::from(int8 == float);
        right += usize::from(int8 == *class as usize);
    }
    assert!(agree * 100 >= held_out.len() * 98, "they agree on {agree} of {}", held_out.len());
    assert!(right * 100 >= held_out.len() * 97, "int8 is right on {right} of {}", held_out.len());
}

/// Asks for 8 GiB while it is being loaded: a constant, so every optimiser wants to compute it.
fn greedy() -> Vec<u8> {
    Graph::new()
        .constant("size", &[1 << 16, 1 << 15])
        .node("ConstantOfShape", &["size"], "all")
        .node("ReduceSum", &["all"], "sum")
        .node("Add", &["x", "sum"], "y")
        .file(&[1, 3])
}

/// Wants hours of arithmetic before its first answer: a chain of products of large constant matrices.
fn endless() -> Vec<u8> {
    const SIDE: i64 = 1536;
    const LINKS: usize = 20_000;
    let mut graph = Graph::new().constant("size", &[SIDE, SIDE]).node("ConstantOfShape", &["size"], "m0");
    for link in 0..LINKS {
        let (from, to) = (format!("m{link}"), format!("m{}", link + 1));
        graph = graph.node("MatMul", &[&from, "m0"], &to);
    }
    graph.node("ReduceSum", &[&format!("m{LINKS}")], "sum").node("Add", &["x", "sum"], "y").file(&[1, 3])
}
