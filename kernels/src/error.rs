//! Why a program is refused, and why a run is.

use std::fmt;

/// Why [`crate::Program::new`] refused a description.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ProgramError {
    /// A step is wrong in itself; `step` counts from 0.
    Step {
        /// Index into the steps.
        step: usize,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// A buffer or external tensor is empty or larger than the limits.
    Shape(&'static str),
    /// The buffers alive at once exceed [`crate::ARENA_BYTES_MAX`].
    ArenaTooLarge {
        /// Bytes needed, as far as counted.
        bytes: usize,
    },
    /// More steps than [`crate::STEPS_MAX`].
    TooManySteps,
    /// An external output that no step writes, or that two do.
    Output(usize),
    /// This machine cannot run the tier.
    TierUnavailable(crate::Tier),
}

impl fmt::Display for ProgramError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ProgramError::Step { step, reason } => write!(f, "step {step}: {reason}"),
            ProgramError::Shape(reason) => f.write_str(reason),
            ProgramError::ArenaTooLarge { bytes } => {
                write!(f, "the arena needs {bytes} bytes, above the limit")
            }
            ProgramError::TooManySteps => f.write_str("more steps than the limit"),
            ProgramError::Output(index) => write!(f, "output {index} must be written by exactly one step"),
            ProgramError::TierUnavailable(tier) => write!(f, "this machine has no {tier}"),
        }
    }
}

impl std::error::Error for ProgramError {}

/// Why [`crate::Program::run`] refused to start. Nothing was computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RunError {
    /// The arena is another program's.
    Arena,
    /// The number of inputs, or the length of the one named, is wrong.
    Input(usize),
    /// The number of outputs, or the length of the one named, is wrong.
    Output(usize),
}

impl fmt::Display for RunError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            RunError::Arena => f.write_str("the arena belongs to another program"),
            RunError::Input(index) => write!(f, "input {index} is missing or has the wrong number of bytes"),
            RunError::Output(index) => {
                write!(f, "output {index} is missing or has the wrong number of bytes")
            }
        }
    }
}

impl std::error::Error for RunError {}
