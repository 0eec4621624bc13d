//! Places buffers that live at different times in the same bytes.

use crate::ProgramError;
use crate::spec::ARENA_BYTES_MAX;

/// Alignment of each buffer: a cache line, and the widest vector.
const ALIGNMENT: usize = 64;

/// A buffer to place: its bytes, and the first and last step that touches it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Interval {
    pub(crate) bytes: usize,
    pub(crate) first: usize,
    pub(crate) last: usize,
}

/// Offsets of the buffers, and the bytes they need together. Largest first, each at the lowest gap between those alive with it.
pub(crate) fn place(intervals: &[Interval]) -> Result<(Vec<usize>, usize), ProgramError> {
    let mut order: Vec<usize> = (0..intervals.len()).collect();
    order.sort_by_key(|&i| std::cmp::Reverse(intervals[i].bytes));
    let mut offsets = vec![0; intervals.len()];
    // Sorted by offset, so that gaps are found in one pass.
    let mut placed: Vec<usize> = Vec::with_capacity(intervals.len());
    let mut total = 0;
    for i in order {
        let interval = intervals[i];
        if interval.bytes > ARENA_BYTES_MAX {
            return Err(ProgramError::ArenaTooLarge { bytes: interval.bytes });
        }
        let mut offset = 0;
        for &j in &placed {
            let other = intervals[j];
            if other.last < interval.first || interval.last < other.first {
                continue;
            }
            if offset + interval.bytes <= offsets[j] {
                break;
            }
            offset = offset.max((offsets[j] + other.bytes).next_multiple_of(ALIGNMENT));
        }
        total = total.max(offset + interval.bytes);
        if total > ARENA_BYTES_MAX {
            return Err(ProgramError::ArenaTooLarge { bytes: total });
        }
        offsets[i] = offset;
        let at = placed.partition_point(|&j| offsets[j] <= offset);
        placed.insert(at, i);
    }
    Ok((offsets, total))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_that_never_live_together_share_bytes() {
        let interval = |bytes, first, last| Interval { bytes, first, last };
        let (offsets, total) =
            place(&[interval(100, 0, 1), interval(60, 1, 2), interval(100, 2, 3)]).unwrap();
        assert_eq!((offsets, total), (vec![0, 128, 0], 188));
    }

    #[test]
    fn a_gap_is_used_only_when_it_is_wide_enough() {
        let interval = |bytes, first, last| Interval { bytes, first, last };
        let all = [
            interval(256, 0, 9),
            interval(128, 0, 3),
            interval(64, 0, 9),
            interval(64, 4, 9),
            interval(65, 4, 9),
        ];
        let (offsets, total) = place(&all).unwrap();
        assert_eq!((offsets, total), (vec![0, 256, 384, 448, 256], 512));
    }

    #[test]
    fn an_arena_above_the_limit_is_refused() {
        let interval = Interval { bytes: ARENA_BYTES_MAX - 64, first: 0, last: 1 };
        let bytes = 2 * (ARENA_BYTES_MAX - 64);
        assert_eq!(place(&[interval, interval]), Err(ProgramError::ArenaTooLarge { bytes }));
    }
}
