//! The linker script of cortex-m-rt, and the memory of the board for it.

fn main() {
    println!("cargo:rustc-link-search={}/..", std::env::var("CARGO_MANIFEST_DIR").expect("set by cargo"));
    println!("cargo:rustc-link-arg=-Tlink.x");
    println!("cargo:rerun-if-changed=../memory.x");
}
