//! Where buffers lie in the arena.

use crate::BufferSpec;

/// Bytes that kernels may read past the last byte of a buffer: one widest vector and a rest of taps.
pub(crate) const SLACK: usize = 256;

/// Bytes from one pixel to the next. Few channels stay dense, so that a stem's taps of one row form one run of bytes; the
/// rest is rounded to the narrowest vector that stores.
pub(crate) const fn pixel_stride(channels: usize) -> usize {
    match channels {
        1..=4 => channels,
        _ => channels.next_multiple_of(16),
    }
}

/// Pixels around a buffer, filled with its zero point, so that a padded convolution reads at affine addresses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Border {
    pub(crate) top: usize,
    pub(crate) left: usize,
    pub(crate) bottom: usize,
    pub(crate) right: usize,
}

impl Border {
    pub(crate) fn union(self, other: Border) -> Border {
        Border {
            top: self.top.max(other.top),
            left: self.left.max(other.left),
            bottom: self.bottom.max(other.bottom),
            right: self.right.max(other.right),
        }
    }
}

/// A placed buffer: pixel `(y, x)` starts at `origin + y * row + x * pixel`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct View {
    pub(crate) origin: usize,
    pub(crate) row: usize,
    pub(crate) pixel: usize,
    pub(crate) height: usize,
    pub(crate) width: usize,
    pub(crate) channels: usize,
    pub(crate) zero_point: u8,
    pub(crate) border: Border,
}

impl View {
    /// Places a buffer of these sizes, border included, at `start`.
    pub(crate) fn new(spec: &BufferSpec, border: Border, start: usize) -> View {
        let pixel = pixel_stride(spec.channels);
        let row = (border.left + spec.width + border.right) * pixel;
        View {
            origin: start + border.top * row + border.left * pixel,
            row,
            pixel,
            height: spec.height,
            width: spec.width,
            channels: spec.channels,
            zero_point: spec.zero_point,
            border,
        }
    }

    /// Bytes a buffer takes with its border, or `None` when that overflows.
    pub(crate) fn bytes(spec: &BufferSpec, border: Border) -> Option<usize> {
        let height = spec.height.checked_add(border.top)?.checked_add(border.bottom)?;
        let width = spec.width.checked_add(border.left)?.checked_add(border.right)?;
        height.checked_mul(width)?.checked_mul(pixel_stride(spec.channels))
    }

    pub(crate) fn offset(&self, y: usize, x: usize) -> usize {
        self.origin + y * self.row + x * self.pixel
    }

    /// Fills the border with the zero point.
    pub(crate) fn fill_border(&self, arena: &mut [u8]) {
        let Border { top, left, bottom, right } = self.border;
        let start = self.origin - top * self.row - left * self.pixel;
        let (left, right) = (left * self.pixel, right * self.pixel);
        arena[start..start + top * self.row + left].fill(self.zero_point);
        if left + right > 0 {
            for y in 1..self.height {
                let end = self.origin + y * self.row;
                arena[end - left - right..end].fill(self.zero_point);
            }
        }
        let end = self.offset(self.height - 1, self.width);
        arena[end..end + right + bottom * self.row].fill(self.zero_point);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_border_is_filled_and_nothing_else() {
        let spec = BufferSpec { height: 2, width: 2, channels: 1, zero_point: 9 };
        let border = Border { top: 1, left: 2, bottom: 1, right: 1 };
        let view = View::new(&spec, border, 3);
        assert_eq!((view.origin, view.row, View::bytes(&spec, border)), (3 + 5 + 2, 5, Some(20)));
        let mut arena = vec![0; 3 + 20 + 2];
        view.fill_border(&mut arena);
        #[rustfmt::skip]
        assert_eq!(arena, [0, 0, 0,
            9, 9, 9, 9, 9,
            9, 9, 0, 0, 9,
            9, 9, 0, 0, 9,
            9, 9, 9, 9, 9,
            0, 0]);
    }
}
