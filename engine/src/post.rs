//! Classes read off an output.

use std::sync::Arc;

use crate::Class;

/// The `top_k` largest elements, best first; of equals, the first. NaN counts as smallest.
pub(crate) fn classes(scores: &[f32], top_k: usize, softmax: bool, labels: &[Arc<str>]) -> Vec<Class> {
    let best = largest(scores, top_k);
    let softmax = softmax.then(|| Softmax::over(scores));
    let score = |value| softmax.as_ref().map_or(value, |softmax| softmax.of(value));
    let nameless: Arc<str> = Arc::from("");
    let class = |&index: &usize| Class {
        index: index as u32,
        score: score(scores[index]),
        label: labels.get(index).unwrap_or(&nameless).clone(),
    };
    best.iter().map(class).collect()
}

fn largest(values: &[f32], count: usize) -> Vec<usize> {
    let rank = |index: usize| if values[index].is_nan() { f32::NEG_INFINITY } else { values[index] };
    let mut best: Vec<usize> = Vec::with_capacity(count + 1);
    for index in 0..values.len() {
        // Most elements end here: below the last of the best.
        if best.len() == count && best.last().is_none_or(|&last| rank(index) <= rank(last)) {
            continue;
        }
        let at = best.partition_point(|&other| rank(other) >= rank(index));
        best.insert(at, index);
        best.truncate(count);
    }
    best
}

struct Softmax {
    max: f32,
    sum: f64,
}

impl Softmax {
    /// Summed in f64, so that a thousand small classes do not get lost beside a large one.
    fn over(values: &[f32]) -> Softmax {
        let max = values.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        Softmax { max, sum: values.iter().map(|&value| f64::from(value - max).exp()).sum() }
    }

    fn of(&self, value: f32) -> f32 {
        (f64::from(value - self.max).exp() / self.sum) as f32
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn best_first_and_of_equals_the_first() {
        assert_eq!(largest(&[1.0, 5.0, 3.0, 5.0, 4.0], 3), [1, 3, 4]);
        assert_eq!(largest(&[1.0, 2.0], 3), [1, 0]);
        assert_eq!(largest(&[f32::NAN, -1.0, f32::NAN, 7.0], 2), [3, 1]);
        assert_eq!(largest(&[], 3), [0usize; 0]);
    }

    #[test]
    fn softmax_does_not_overflow() {
        let softmax = Softmax::over(&[1000.0, 1000.0]);
        assert_eq!(softmax.of(1000.0), 0.5);
        let softmax = Softmax::over(&[0.0, 0.0, f32::NEG_INFINITY]);
        assert_eq!(softmax.of(f32::NEG_INFINITY), 0.0);
    }
}
