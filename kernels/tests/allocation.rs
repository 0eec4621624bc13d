//! A run allocates nothing, on any tier.

#[allow(dead_code, reason = "the other test binary uses all of it")]
mod generate;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use generate::Rng;
use tractd_kernels::{Program, Tier};

struct Counting;

thread_local! {
    static ALLOCATIONS: Cell<usize> = const { Cell::new(0) };
}

// SAFETY: passes everything on to the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.with(|count| count.set(count.get() + 1));
        // SAFETY: the caller's contract.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller's contract.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

#[test]
fn a_run_allocates_nothing() {
    let makers = [
        generate::conv,
        generate::depthwise,
        generate::extreme,
        generate::grouped,
        generate::max_pool,
        generate::average_pool,
        generate::add,
        generate::mul,
        generate::table,
        generate::copy,
        generate::softmax,
        generate::quantize,
        generate::chain,
    ];
    for tier in Tier::available() {
        for (seed, make) in (0..130).zip(makers.iter().cycle()) {
            let case = make(&mut Rng::new(seed));
            let program = Program::new(&case.spec, tier).expect("the generator only makes valid programs");
            let mut arena = program.session();
            let inputs: Vec<&[u8]> = case.inputs.iter().map(Vec::as_slice).collect();
            let mut outputs: Vec<Vec<u8>> = program.outputs().iter().map(|o| vec![0; o.bytes()]).collect();
            let mut outputs: Vec<&mut [u8]> = outputs.iter_mut().map(Vec::as_mut_slice).collect();
            let before = ALLOCATIONS.with(Cell::get);
            program.run(&mut arena, &inputs, &mut outputs).expect("the sizes are the program's");
            assert_eq!(ALLOCATIONS.with(Cell::get), before, "on {tier}, seed {seed}: {}", case.describe);
        }
    }
}

#[test]
fn programs_are_shared_between_threads() {
    fn shared<T: Send + Sync>() {}
    shared::<Program>();
}
