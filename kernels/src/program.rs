//! Compiled programs: checked once, shared, run without allocating.

use crate::arena::Aligned;
use crate::kernel::{Memory, kernels};
use crate::lower::{Lowered, lower};
use crate::{Arena, External, ProgramError, ProgramSpec, RunError, Tier};

/// A network packed for one tier. Immutable: share it, and give each session an [`Arena`].
pub struct Program {
    tier: Tier,
    arena_bytes: usize,
    inputs: Vec<External>,
    outputs: Vec<External>,
    steps: Vec<Lowered>,
    /// For each step the next one whose weights may be brought near; none at all in a program that stays near.
    ahead: Vec<Option<usize>>,
}

/// From this many bytes of weights on, a core's own cache does not hold them from one run to the next.
const NEAR_BYTES: usize = 1 << 20;

/// What a step is and what it costs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StepReport {
    /// `"conv"`, `"depthwise"`, `"add"`, …
    pub kind: &'static str,
    /// Multiply-accumulates of the network's own, without what packing adds.
    pub macs: u64,
    /// Bytes of packed weights and tables.
    pub bytes: usize,
}

impl Program {
    /// Checks a description and packs it for a tier.
    ///
    /// # Errors
    /// [`ProgramError`] when a size, an order of steps or a scale is wrong, a layer's sums could overflow 32 bits, a limit is
    /// exceeded, or this machine cannot run the tier.
    pub fn new(spec: &ProgramSpec<'_>, tier: Tier) -> Result<Program, ProgramError> {
        let kernels = kernels(tier).ok_or(ProgramError::TierUnavailable(tier))?;
        let (arena_bytes, steps) = lower(spec, kernels)?;
        let (inputs, outputs) = (spec.inputs.clone(), spec.outputs.clone());
        let mut program = Program { tier, arena_bytes, inputs, outputs, steps, ahead: Vec::new() };
        if program.packed_bytes() > NEAR_BYTES {
            let weighty = |next: &usize| !program.steps[*next].kernel.first_weights().is_empty();
            let steps = program.steps.len();
            program.ahead = (0..steps).map(|index| (index + 1..steps).find(weighty)).collect();
        }
        Ok(program)
    }

    /// The tier it was packed for.
    pub fn tier(&self) -> Tier {
        self.tier
    }

    /// The tensors a run reads.
    pub fn inputs(&self) -> &[External] {
        &self.inputs
    }

    /// The tensors a run writes.
    pub fn outputs(&self) -> &[External] {
        &self.outputs
    }

    /// Bytes of each session's arena.
    pub fn arena_bytes(&self) -> usize {
        self.arena_bytes
    }

    /// Bytes of packed weights and tables, shared by all sessions.
    pub fn packed_bytes(&self) -> usize {
        self.steps.iter().map(|step| step.kernel.bytes()).sum()
    }

    /// Multiply-accumulates of one run.
    pub fn macs(&self) -> u64 {
        self.steps.iter().map(|step| step.macs).sum()
    }

    /// The steps, in the order of the description.
    pub fn steps(&self) -> impl ExactSizeIterator<Item = StepReport> {
        self.steps.iter().map(|step| StepReport {
            kind: step.kind,
            macs: step.macs,
            bytes: step.kernel.bytes(),
        })
    }

    /// A new session's memory.
    pub fn session(&self) -> Arena {
        Arena { memory: Aligned::zeroed(self.arena_bytes) }
    }

    /// Runs once. `inputs` and `outputs` are dense little-endian tensors as [`Program::inputs`] and [`Program::outputs`] say.
    /// Allocates nothing.
    ///
    /// # Errors
    /// [`RunError`] when the arena is another program's or a tensor has the wrong number of bytes.
    pub fn run(
        &self,
        arena: &mut Arena,
        inputs: &[&[u8]],
        outputs: &mut [&mut [u8]],
    ) -> Result<(), RunError> {
        self.run_observed(arena, inputs, outputs, |_| ())
    }

    /// As [`Program::run`], calling `after` with the index of each step that has ended: for measuring.
    ///
    /// # Errors
    /// As [`Program::run`].
    pub fn run_observed(
        &self,
        arena: &mut Arena,
        inputs: &[&[u8]],
        outputs: &mut [&mut [u8]],
        mut after: impl FnMut(usize),
    ) -> Result<(), RunError> {
        self.check(arena, inputs, outputs)?;
        let mut memory = Memory { arena: &mut arena.memory, inputs, outputs, ahead: &[] };
        for (index, step) in self.steps.iter().enumerate() {
            if let Some(view) = &step.border {
                view.fill_border(memory.arena);
            }
            let next = self.ahead.get(index).copied().flatten();
            memory.ahead = next.map_or(&[], |next| self.steps[next].kernel.first_weights());
            step.kernel.run(&mut memory, 0..step.rows);
            after(index);
        }
        Ok(())
    }

    fn check(&self, arena: &Arena, inputs: &[&[u8]], outputs: &[&mut [u8]]) -> Result<(), RunError> {
        if arena.len() != self.arena_bytes {
            return Err(RunError::Arena);
        }
        for (index, external) in self.inputs.iter().enumerate() {
            if inputs.get(index).is_none_or(|bytes| bytes.len() != external.bytes()) {
                return Err(RunError::Input(index));
            }
        }
        for (index, external) in self.outputs.iter().enumerate() {
            if outputs.get(index).is_none_or(|bytes| bytes.len() != external.bytes()) {
                return Err(RunError::Output(index));
            }
        }
        Ok(())
    }
}

impl std::fmt::Debug for Program {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (tier, steps, macs) = (self.tier, self.steps.len(), self.macs());
        write!(f, "Program({tier}, {steps} steps, {macs} MACs, arena {} bytes)", self.arena_bytes)
    }
}
