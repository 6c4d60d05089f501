//! Windows of the calibration text and the order they are learned in.

use lamella_lm::Family;
use lamella_nn::Reference;

/// Tokens of a window at most, and how many windows a short text is cut into at least.
const WINDOW: std::ops::RangeInclusive<usize> = 32..=512;
const LEAST_WINDOWS: usize = 16;
/// Tokens of a batch.
pub(super) const BATCH_TOKENS: usize = 2048;

/// Windows of the calibration text with what the original makes of them.
pub(super) struct Windows {
    pub(super) tokens: Vec<Vec<u32>>,
    pub(super) references: Vec<Reference>,
}

impl Windows {
    pub(super) fn batch(&self, indices: &[usize]) -> Vec<(&[u32], &Reference)> {
        indices.iter().map(|&index| (&self.tokens[index][..], &self.references[index])).collect()
    }
    pub(super) fn count(&self, indices: &[usize]) -> usize {
        indices.iter().map(|&index| self.tokens[index].len()).sum()
    }
}

/// Sequences cut into windows: decoders' into equal ones, encoders' texts as they are.
pub(super) fn windows(sequences: &[Vec<u32>], family: Family) -> Vec<Vec<u32>> {
    let total: usize = sequences.iter().map(Vec::len).sum();
    let length = match family {
        Family::Decoder => (total / LEAST_WINDOWS).clamp(*WINDOW.start(), *WINDOW.end()),
        Family::Encoder => *WINDOW.end(),
    };
    // A last piece of a few tokens teaches nothing and would count as much as a whole window of an encoder.
    let least = if family == Family::Decoder { *WINDOW.start() / 2 } else { 1 };
    sequences
        .iter()
        .flat_map(|sequence| sequence.chunks(length))
        .filter(|w| w.len() >= least)
        .map(<[u32]>::to_vec)
        .collect()
}

/// Windows in an order that a fixed generator shuffles anew for every pass.
pub(super) struct Batches<'w> {
    windows: &'w Windows,
    order: Vec<usize>,
    next: usize,
    state: u64,
}

impl<'w> Batches<'w> {
    pub(super) fn new(windows: &'w Windows, order: Vec<usize>) -> Self {
        let next = order.len();
        Self { windows, order, next, state: 0x9e37_79b9_7f4a_7c15 }
    }

    pub(super) fn next(&mut self) -> Vec<usize> {
        let (mut batch, mut tokens) = (Vec::new(), 0);
        while tokens < BATCH_TOKENS && batch.len() < self.order.len() {
            if self.next == self.order.len() {
                self.shuffle();
                self.next = 0;
            }
            let window = self.order[self.next];
            self.next += 1;
            tokens += self.windows.tokens[window].len();
            batch.push(window);
        }
        batch
    }

    fn shuffle(&mut self) {
        for last in (1..self.order.len()).rev() {
            self.state =
                self.state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            self.order.swap(last, ((self.state >> 33) % (last as u64 + 1)) as usize);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_are_equal_and_of_the_whole_text() {
        let found = windows(&[vec![1; 2000], vec![2; 100]], Family::Decoder);
        assert!(found.iter().all(|window| window.len() <= 131));
        assert_eq!(found.iter().map(Vec::len).sum::<usize>(), 2100);
        assert_eq!(windows(&[vec![1; 3], vec![2; 7]], Family::Encoder).len(), 2);
    }

    #[test]
    fn every_window_comes_once_in_a_pass() {
        let tokens: Vec<Vec<u32>> = (0..24).map(|_| vec![0; 512]).collect();
        let references = tokens.iter().map(|_| Reference::Embedding(Vec::new())).collect();
        let windows = Windows { tokens, references };
        let mut batches = Batches::new(&windows, (0..24).collect());
        for _ in 0..3 {
            let mut seen: Vec<usize> = (0..6).flat_map(|_| batches.next()).collect();
            seen.sort_unstable();
            assert_eq!(seen, (0..24).collect::<Vec<_>>());
        }
    }
}
