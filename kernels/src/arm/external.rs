//! The caller's floats to buffers: what goes round each architecture's loops.

use std::ops::Range;

use super::arch::external::Quantizer;
use super::rows::Packed;
use crate::Layout;
use crate::kernel::{Kernel, Memory, Run};
use crate::layout::View;
use crate::portable;
use crate::step::Quantize;

pub(super) fn quantize(step: Quantize) -> Kernel {
    let View { height, width, channels, pixel, .. } = step.output;
    let runs = step.layout == Layout::Nhwc || height * width == 1 || channels == 1;
    if runs || pixel <= 4 { Box::new(Packed(step)) } else { portable::packed(step) }
}

impl Run for Packed<Quantize> {
    fn run(&self, memory: &mut Memory<'_, '_>, rows: Range<usize>) {
        let Quantize { input, layout, output, .. } = &self.0;
        let input = memory.inputs[*input].as_ptr();
        let View { height, width, channels, pixel, .. } = *output;
        let quantizer = Quantizer::new(&self.0);
        for y in rows {
            let to = memory.arena[output.offset(y, 0)..].as_mut_ptr();
            // SAFETY: the module's contract; the input was checked to have as many floats as the view has elements, and
            // the offsets stay within the row of each pixel, channel or plane.
            unsafe {
                if *layout == Layout::Nchw && (2..=4).contains(&channels) && height * width > 1 {
                    let (from, plane) = (input.add(y * width * 4), height * width * 4);
                    match channels {
                        2 => quantizer.planes::<2>(from, plane, to, width),
                        3 => quantizer.planes::<3>(from, plane, to, width),
                        _ => quantizer.planes::<4>(from, plane, to, width),
                    }
                } else if channels == pixel {
                    quantizer.run(input.add(y * width * channels * 4), to, width * channels);
                } else {
                    for x in 0..width {
                        let from = input.add((y * width + x) * channels * 4);
                        quantizer.run(from, to.add(x * pixel), channels);
                    }
                }
            }
        }
    }
}
