//! Softmax by a table of exponentials.

use std::ops::Range;

use super::Portable;
use crate::kernel::Memory;
use crate::step::{Softmax, SoftmaxOutput};

impl Portable for Softmax {
    fn run(&self, memory: &mut Memory<'_, '_>, rows: Range<usize>) {
        let channels = self.input.channels;
        for y in rows {
            for x in 0..self.input.width {
                let from = self.input.offset(y, x);
                let greatest = memory.arena[from..from + channels].iter().fold(0, |a, &b| a.max(b));
                let exp = |byte: u8| self.exp[usize::from(greatest - byte)];
                // A sum of at most 2^20 terms not above 1: f64 loses nothing that f32 could show.
                let sum: f64 =
                    memory.arena[from..from + channels].iter().map(|&byte| f64::from(exp(byte))).sum();
                let sum = sum as f32;
                match &self.output {
                    SoftmaxOutput::Buffer { view, scale, requant } => {
                        let to = view.offset(y, x);
                        for c in 0..channels {
                            memory.arena[to + c] =
                                requant.apply_f32(exp(memory.arena[from + c]) / sum / scale);
                        }
                    }
                    SoftmaxOutput::External(index) => {
                        let to = (y * self.input.width + x) * channels * 4;
                        let output = &mut memory.outputs[*index][to..to + channels * 4];
                        let bytes = &memory.arena[from..from + channels];
                        for (to, &byte) in output.chunks_exact_mut(4).zip(bytes) {
                            to.copy_from_slice(&(exp(byte) / sum).to_le_bytes());
                        }
                    }
                }
            }
        }
    }

    fn bytes(&self) -> usize {
        1024
    }
}
