//! The trellis: which of two interleaved quantisers each number is rounded with, and the best path through it.
//!
//! A scalar quantiser with an ideal entropy coder loses 0.25 bit to the theoretical limit, because its cells are
//! cubes. A trellis makes the cells rounder without making them harder to decode: two quantisers of the same step,
//! shifted by half of it, and a state machine of `2^memory_bits` states that says which one is in use. Even states
//! use quantiser 0 (levels `0, ±1, ±2, …` steps), odd states quantiser 1 (`0, ±1/2, ±3/2, …`). The parity of the
//! code moves the state. The encoder (Viterbi's algorithm) picks the cheapest of all paths; the decoder only
//! follows one.
//!
//! # State machine
//! Ungerboeck's systematic feedback codes for amplitude modulation: with `h0`, `h1` in [`GENERATORS`] and parity `z`
//! of the code's magnitude, `next = (state >> 1) ^ (state odd ? h0 >> 1 : 0) ^ (z odd ? h1 >> 1 : 0)`.
//!
//! Source: M. W. Marcellin, T. R. Fischer, "Trellis coded quantization of memoryless and Gauss-Markov sources",
//! 1990; G. Ungerboeck, "Trellis-coded modulation with redundant signal sets, part II", 1987, table I; the zero in
//! both quantisers as in the dependent quantisation of current video coders.

/// `(h0, h1)` for memories of 2 to 8 bits.
pub const GENERATORS: [(u32, u32); 7] =
    [(0o5, 0o2), (0o13, 0o4), (0o23, 0o4), (0o45, 0o10), (0o103, 0o24), (0o235, 0o126), (0o515, 0o362)];

/// A state machine of `2^memory_bits` states; with 0 bits there is one quantiser and no state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Trellis {
    memory_bits: u32,
    feedback: u32,
    forward: u32,
}

impl Trellis {
    /// No trellis: one quantiser and no state.
    pub const NONE: Self = Self { memory_bits: 0, feedback: 0, forward: 0 };

    /// The trellis with this memory: 0 (plain scalar quantisation) or 2 to 8 bits.
    pub fn new(memory_bits: u32) -> Option<Self> {
        if memory_bits == 0 {
            return Some(Self { memory_bits, feedback: 0, forward: 0 });
        }
        let (h0, h1) = *GENERATORS.get(memory_bits.checked_sub(2)? as usize)?;
        Some(Self { memory_bits, feedback: h0 >> 1, forward: h1 >> 1 })
    }

    /// Bits of state.
    pub fn memory_bits(self) -> u32 {
        self.memory_bits
    }

    /// Number of states.
    pub fn states(self) -> usize {
        1 << self.memory_bits
    }

    /// The quantiser a state uses, 0 or 1.
    #[inline]
    pub fn quantizer(self, state: u32) -> u32 {
        state & 1
    }

    /// The state after a code of this magnitude.
    #[inline]
    pub fn next(self, state: u32, magnitude: u32) -> u32 {
        (state >> 1)
            ^ ((state & 1).wrapping_neg() & self.feedback)
            ^ ((magnitude & 1).wrapping_neg() & self.forward)
    }
}

/// One number's four ways on: for each quantiser and parity the best magnitude and its cost.
#[derive(Debug, Clone, Copy, Default)]
pub struct Branches {
    /// `cost[quantizer][parity]`.
    pub cost: [[f32; 2]; 2],
    /// `magnitude[quantizer][parity]`.
    pub magnitude: [[u32; 2]; 2],
}

/// Scratch of the search, reused from column to column.
#[derive(Debug, Clone, Default)]
pub struct Search {
    metrics: Vec<f32>,
    next_metrics: Vec<f32>,
    decisions: Vec<u8>,
}

impl Search {
    /// The cheapest path through `branches` from `state`: writes one magnitude per number, returns the last state.
    pub fn run(
        &mut self,
        trellis: Trellis,
        state: u32,
        branches: &[Branches],
        magnitudes: &mut [u32],
    ) -> u32 {
        if trellis.memory_bits == 0 {
            for (branch, magnitude) in branches.iter().zip(magnitudes) {
                let parity = usize::from(branch.cost[0][1] < branch.cost[0][0]);
                *magnitude = branch.magnitude[0][parity];
            }
            return 0;
        }
        match trellis.memory_bits {
            2 => self.viterbi::<2, { 0o2 >> 1 }, { (0o5 >> 1) % 2 }>(state, branches, magnitudes),
            3 => self.viterbi::<4, { 0o4 >> 1 }, { (0o13 >> 1) % 4 }>(state, branches, magnitudes),
            4 => self.viterbi::<8, { 0o4 >> 1 }, { (0o23 >> 1) % 8 }>(state, branches, magnitudes),
            5 => self.viterbi::<16, { 0o10 >> 1 }, { (0o45 >> 1) % 16 }>(state, branches, magnitudes),
            6 => self.viterbi::<32, { 0o24 >> 1 }, { (0o103 >> 1) % 32 }>(state, branches, magnitudes),
            7 => self.viterbi::<64, { 0o126 >> 1 }, { (0o235 >> 1) % 64 }>(state, branches, magnitudes),
            _ => self.viterbi::<128, { 0o362 >> 1 }, { (0o515 >> 1) % 128 }>(state, branches, magnitudes),
        }
    }

    /// `HALF` is half the number of states: even states lead to the lower half, odd ones to the upper. `FORWARD` is
    /// `h1 >> 1`, `FEEDBACK` the part of `h0 >> 1` below the half. All constant, so that the exchange is unrolled.
    fn viterbi<const HALF: usize, const FORWARD: usize, const FEEDBACK: usize>(
        &mut self,
        state: u32,
        branches: &[Branches],
        magnitudes: &mut [u32],
    ) -> u32 {
        let states = 2 * HALF;
        self.metrics.clear();
        self.metrics.resize(states, f32::INFINITY);
        self.metrics[state as usize % states] = 0.0;
        self.next_metrics.resize(states, 0.0);
        self.decisions.resize(branches.len() * states, 0);
        let (mut even, mut odd) = ([0.0f32; HALF], [0.0f32; HALF]);
        for (branch, decisions) in branches.iter().zip(self.decisions.chunks_exact_mut(states)) {
            for (pair, (e, o)) in self.metrics.chunks_exact(2).zip(even.iter_mut().zip(odd.iter_mut())) {
                (*e, *o) = (pair[0], pair[1]);
            }
            let (lower, upper) = self.next_metrics.split_at_mut(HALF);
            let (lower_decisions, upper_decisions) = decisions.split_at_mut(HALF);
            let [[e0, e1], [o0, o1]] = branch.cost;
            for target in 0..HALF {
                let stay = even[target] + e0;
                let flip = even[target ^ FORWARD] + e1;
                lower_decisions[target] = u8::from(flip < stay);
                lower[target] = stay.min(flip);
                let stay = odd[target ^ FEEDBACK] + o0;
                let flip = odd[target ^ FEEDBACK ^ FORWARD] + o1;
                upper_decisions[target] = u8::from(flip < stay);
                upper[target] = stay.min(flip);
            }
            std::mem::swap(&mut self.metrics, &mut self.next_metrics);
        }
        let mut best = 0;
        for (candidate, &metric) in self.metrics[..states].iter().enumerate() {
            if metric < self.metrics[best] {
                best = candidate;
            }
        }
        let mut current = best;
        for (index, branch) in branches.iter().enumerate().rev() {
            let parity = usize::from(self.decisions[index * states + current]);
            let quantizer = usize::from(current >= HALF);
            magnitudes[index] = branch.magnitude[quantizer][parity];
            let shifted = (current % HALF) ^ (if quantizer == 1 { FEEDBACK } else { 0 });
            current = 2 * ((shifted ^ if parity == 1 { FORWARD } else { 0 }) % HALF) + quantizer;
        }
        best as u32
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_search_follows_the_state_machine() {
        // With all cost on the wrong parity the path is forced, so its end must be what `next` says.
        for memory_bits in 2..=8 {
            let trellis = Trellis::new(memory_bits).unwrap();
            let mut seed = 12345u32;
            let parities: Vec<u32> = (0..200)
                .map(|_| {
                    seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                    seed >> 31
                })
                .collect();
            let branches: Vec<Branches> = parities
                .iter()
                .map(|&parity| {
                    let mut branch = Branches { cost: [[1.0; 2]; 2], magnitude: [[2, 3], [4, 5]] };
                    branch.cost.iter_mut().for_each(|costs| costs[parity as usize] = 0.0);
                    branch
                })
                .collect();
            let mut magnitudes = vec![0; parities.len()];
            let end = Search::default().run(trellis, 3, &branches, &mut magnitudes);
            let mut state = 3;
            for (&parity, &magnitude) in parities.iter().zip(&magnitudes) {
                assert_eq!(magnitude, 2 + 2 * trellis.quantizer(state) + parity);
                state = trellis.next(state, magnitude);
                assert!((state as usize) < trellis.states());
            }
            assert_eq!(state, end);
        }
        assert_eq!(Trellis::new(1), None);
        assert_eq!(Trellis::new(9), None);
    }
}
