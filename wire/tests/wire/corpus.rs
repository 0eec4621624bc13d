//! What fuzzing kept, on the stable compiler.

#[path = "../../fuzz/checks/frame.rs"]
mod frame;
#[path = "../../fuzz/checks/line.rs"]
mod line;
#[path = "../../fuzz/checks/topics.rs"]
mod topics;

#[test]
fn what_fuzzing_kept_holds() {
    for (name, check) in
        [("frame", frame::check as fn(&[u8])), ("line", line::check), ("topics", topics::check)]
    {
        let corpus = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(name);
        let mut count = 0;
        for entry in std::fs::read_dir(corpus).unwrap() {
            check(&std::fs::read(entry.unwrap().path()).unwrap());
            count += 1;
        }
        assert!(count >= 4, "the corpus of {name} is there");
    }
}
