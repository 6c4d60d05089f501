//! What packed integers cannot hold: a few codes kept apart, two bytes each.
//!
//! # Idea
//! Codes beyond the width of [`Packed`](super::Packed) are cut there, and what is missing is kept here and added in
//! floats. At the rates of 4-bit models that is one code in thirty to a thousand, so they must cost little memory and
//! little time: a row is a list of entries, each a distance to the column of the one before and a signed byte.
//!
//! # Definition
//! An entry is a 16-bit number: its low byte is added to the column (0 before the first), its high byte is the code,
//! signed. A gap above 255 is bridged by entries of code 0, a code beyond a byte is several entries of one column.
//! A row's entries are taken [`LANES`] at a time, the last ones filled up with zeros: `sum_k = (0 + code x) + …` over
//! the `k`-th entries of all turns, with `x` the input times its column's step; then `sum_k + sum_{k+8}` for `k < 8`,
//! and so on by halves. The plain functions at the end are this text; the vector kernels give the same bits.

use rayon::prelude::*;

use super::kernels;

/// Sums of a row that run side by side, and tokens that share a pass over the entries.
pub(super) const LANES: usize = 16;
/// Entries of a row that are not worth a vector.
pub(super) const FEW: usize = 8;
/// Rows of a task.
const ROWS: usize = 256;
/// Entries below which all stays on the calling thread.
const SERIAL: usize = 1 << 13;

/// Sums of one row for one token, whose folded inputs are given.
pub(super) type One = fn(&[u16], &[f32]) -> f32;
/// Sums of one row for [`LANES`] tokens, whose folded inputs are given by columns.
pub(super) type Many = fn(&[u16], &[[f32; LANES]]) -> [f32; LANES];

/// A sparse matrix of small integers, `[rows, columns]`.
#[derive(Clone)]
pub struct Sparse {
    columns: usize,
    /// First entry of each row, and their number at the end.
    starts: Vec<u32>,
    /// The columns they lead to are all below `columns`.
    entries: Vec<u16>,
}

impl std::fmt::Debug for Sparse {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Sparse({} x {}, {} entries)", self.starts.len() - 1, self.columns, self.entries.len())
    }
}

impl Sparse {
    /// Collects codes `(row, column, code)`, whose rows do not fall, and whose columns rise within a row.
    ///
    /// `None` where more than `most` entries would be needed.
    ///
    /// # Panics
    /// Where a code lies outside the matrix or the order is another.
    pub fn new(
        rows: usize,
        columns: usize,
        codes: impl IntoIterator<Item = (usize, usize, i32)>,
        most: usize,
    ) -> Option<Self> {
        let mut new = Self { columns, starts: vec![0; rows + 1], entries: Vec::new() };
        let (mut here, mut at, mut is_first) = (0, 0, true);
        for (row, column, code) in codes {
            assert!(row < rows && column < columns, "a code outside the matrix");
            if row != here {
                assert!(row > here, "rows fall");
                new.starts[here + 1..=row].fill(new.entries.len() as u32);
                (here, at, is_first) = (row, 0, true);
            }
            assert!(column > at || is_first, "columns do not rise");
            let mut gap = column - at;
            while gap > 255 {
                new.entries.push(255);
                gap -= 255;
            }
            let mut left = code;
            loop {
                let part = left.clamp(-127, 127);
                new.entries.push(gap as u16 | u16::from((part as i8).cast_unsigned()) << 8);
                (gap, left) = (0, left - part);
                if left == 0 {
                    break;
                }
                if new.entries.len() > most {
                    return None;
                }
            }
            if new.entries.len() > most.min(u32::MAX as usize) {
                return None;
            }
            (at, is_first) = (column, false);
        }
        new.starts[here + 1..].fill(new.entries.len() as u32);
        new.entries.shrink_to_fit();
        Some(new)
    }

    /// Whether there is nothing in it.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }
    /// Entries.
    pub fn len(&self) -> usize {
        self.entries.len()
    }
    /// Bytes in memory.
    pub fn size_bytes(&self) -> usize {
        size_of_val(&self.entries[..]) + size_of_val(&self.starts[..])
    }

    fn entries_of(&self, row: usize) -> &[u16] {
        &self.entries[self.starts[row] as usize..self.starts[row + 1] as usize]
    }

    /// Columns and codes of a row, columns in order.
    ///
    /// # Panics
    /// Where there is no such row.
    pub fn row(&self, row: usize) -> impl Iterator<Item = (usize, i32)> {
        self.entries_of(row).iter().scan(0usize, |column, &entry| {
            *column += usize::from(entry as u8);
            Some((*column, code_of(entry)))
        })
    }

    /// `outputs[t, column + i] += sum_j code[i, j] * steps[j] * inputs[t, j]`, rows of `outputs` `stride` apart.
    ///
    /// # Panics
    /// Where `inputs` are not whole rows of as many columns, or the outputs are too short.
    pub fn add(&self, inputs: &[f32], steps: &[f32], outputs: &mut [f32], stride: usize, column: usize) {
        self.add_with((kernels().sparse_one, kernels().sparse_many), inputs, steps, outputs, stride, column);
    }

    pub(super) fn add_with(
        &self,
        (one, many): (One, Many),
        inputs: &[f32],
        steps: &[f32],
        outputs: &mut [f32],
        stride: usize,
        column: usize,
    ) {
        let rows = self.starts.len() - 1;
        if self.is_empty() || inputs.is_empty() {
            return;
        }
        assert!(steps.len() == self.columns && inputs.len().is_multiple_of(self.columns), "whole rows");
        if inputs.len() <= 2 * self.columns {
            for (input, outputs) in inputs.chunks_exact(self.columns).zip(outputs.chunks_mut(stride)) {
                let folded: Vec<f32> = input.iter().zip(steps).map(|(x, step)| x * step).collect();
                let task = |first: usize, outputs: &mut [f32]| {
                    for (row, output) in outputs.iter_mut().enumerate() {
                        let entries = self.entries_of(first + row);
                        *output +=
                            if entries.len() <= FEW { few(entries, &folded) } else { one(entries, &folded) };
                    }
                };
                let outputs = &mut outputs[column..column + rows];
                if self.len() < SERIAL {
                    task(0, outputs);
                } else {
                    let tasks = outputs.par_chunks_mut(ROWS).enumerate();
                    tasks.for_each(|(index, outputs)| task(index * ROWS, outputs));
                }
            }
            return;
        }
        let groups = outputs.par_chunks_mut(LANES * stride).zip(inputs.par_chunks(LANES * self.columns));
        groups.for_each(|(outputs, inputs)| {
            let mut folded = vec![[0.0f32; LANES]; self.columns];
            for (token, input) in inputs.chunks_exact(self.columns).enumerate() {
                for (folded, (x, step)) in folded.iter_mut().zip(input.iter().zip(steps)) {
                    folded[token] = x * step;
                }
            }
            let mut sums = vec![[0.0f32; LANES]; rows];
            sums.par_chunks_mut(ROWS).enumerate().for_each(|(index, sums)| {
                for (row, sums) in sums.iter_mut().enumerate() {
                    *sums = many(self.entries_of(index * ROWS + row), &folded);
                }
            });
            for (token, outputs) in outputs.chunks_mut(stride).enumerate() {
                for (output, sums) in outputs[column..column + rows].iter_mut().zip(&sums) {
                    *output += sums[token];
                }
            }
        });
    }
}

#[inline]
pub(super) fn code_of(entry: u16) -> i32 {
    i32::from((entry >> 8) as u8 as i8)
}

/// The definition for one token.
pub(super) fn one(entries: &[u16], folded: &[f32]) -> f32 {
    let (mut sums, mut column) = ([0.0f32; LANES], 0);
    for turn in entries.chunks(LANES) {
        let mut filled = [0u16; LANES];
        filled[..turn.len()].copy_from_slice(turn);
        for (sum, entry) in sums.iter_mut().zip(filled) {
            column += usize::from(entry as u8);
            *sum += code_of(entry) as f32 * folded[column];
        }
    }
    halved(sums.map(|sum| [sum]))[0]
}

/// The same for at most [`FEW`] entries, whose other sums are 0.
#[inline]
fn few(entries: &[u16], folded: &[f32]) -> f32 {
    let (mut sums, mut column) = ([0.0f32; FEW], 0);
    for (sum, &entry) in sums.iter_mut().zip(entries) {
        column += usize::from(entry as u8);
        *sum += code_of(entry) as f32 * folded[column];
    }
    ((sums[0] + sums[4]) + (sums[2] + sums[6])) + ((sums[1] + sums[5]) + (sums[3] + sums[7]))
}

/// The same for [`LANES`] tokens at a time.
pub(super) fn many(entries: &[u16], folded: &[[f32; LANES]]) -> [f32; LANES] {
    let (mut sums, mut column) = ([[0.0f32; LANES]; LANES], 0);
    for turn in entries.chunks(LANES) {
        let mut filled = [0u16; LANES];
        filled[..turn.len()].copy_from_slice(turn);
        for (sums, entry) in sums.iter_mut().zip(filled) {
            column += usize::from(entry as u8);
            let code = code_of(entry) as f32;
            for (sum, x) in sums.iter_mut().zip(folded[column]) {
                *sum += code * x;
            }
        }
    }
    halved(sums)
}

/// Adds sums by halves.
fn halved<const N: usize>(mut sums: [[f32; N]; LANES]) -> [f32; N] {
    for half in [8, 4, 2, 1] {
        let (first, second) = sums.split_at_mut(half);
        for (first, second) in first.iter_mut().zip(second.iter()) {
            first.iter_mut().zip(second).for_each(|(first, second)| *first += second);
        }
    }
    sums[0]
}

#[cfg(test)]
mod tests {
    use super::super::all_kernels;
    use super::*;

    /// Gaps from 1 to beyond two bytes, codes of several bytes, empty rows.
    fn example() -> (Vec<Vec<(usize, i32)>>, usize, usize) {
        let (rows, columns) = (300, 1500);
        let mut state = 1u64;
        let mut next = move || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) as usize
        };
        let lists = (0..rows)
            .map(|row| {
                let mut column = next() % 700;
                let mut list = Vec::new();
                while column < columns && row % 7 != 3 {
                    list.push((column, (next() % 700) as i32 - 350));
                    column += 1 + next() % [3, 60, 900][row % 3];
                }
                list
            })
            .collect();
        (lists, rows, columns)
    }

    #[test]
    fn every_kernel_gives_the_same_bits_near_exact_sums() {
        let (lists, rows, columns) = example();
        let codes =
            lists.iter().enumerate().flat_map(|(row, list)| list.iter().map(move |&(j, c)| (row, j, c)));
        let sparse = Sparse::new(rows, columns, codes.clone(), usize::MAX).unwrap();
        assert!(Sparse::new(rows, columns, codes, 100).is_none());
        for (row, list) in lists.iter().enumerate() {
            let mut read: Vec<(usize, i32)> = Vec::new();
            for (column, code) in sparse.row(row).filter(|&(_, code)| code != 0) {
                match read.last_mut().filter(|last| last.0 == column) {
                    Some(last) => last.1 += code,
                    None => read.push((column, code)),
                }
            }
            assert_eq!(read, list.iter().copied().filter(|&(_, code)| code != 0).collect::<Vec<_>>());
        }
        let steps: Vec<f32> = (0..columns).map(|j| 0.5 + (j % 5) as f32).collect();
        let tokens = 21;
        let inputs: Vec<f32> = (0..tokens * columns).map(|i| (i * 37 % 101) as f32 / 50.0 - 1.0).collect();
        let run = |(one, many): (One, Many), tokens: usize| {
            let (stride, column) = (rows + 3, 2);
            let mut outputs = vec![1.0f32; tokens * stride];
            let inputs = &inputs[..tokens * columns];
            sparse.add_with((one, many), inputs, &steps, &mut outputs, stride, column);
            outputs
        };
        for tokens in [1, 2, 3, tokens] {
            let plain = run((one, many), tokens);
            for kernels in all_kernels() {
                let found = run((kernels.sparse_one, kernels.sparse_many), tokens);
                assert!(
                    found.iter().zip(&plain).all(|(a, b)| a.to_bits() == b.to_bits()),
                    "{}",
                    kernels.name
                );
            }
            for (token, outputs) in plain.chunks(rows + 3).enumerate() {
                assert_eq!((outputs[1], outputs[rows + 2]), (1.0, 1.0), "columns outside stay");
                for (row, list) in lists.iter().enumerate() {
                    let term = |&(j, code): &(usize, i32)| {
                        f64::from(code) * f64::from(steps[j] * inputs[token * columns + j])
                    };
                    let (exact, size) =
                        list.iter().map(term).fold((1.0, 1.0), |(s, a), t| (s + t, a + t.abs()));
                    assert!((f64::from(outputs[row + 2]) - exact).abs() < 1e-5 * size, "row {row}");
                }
            }
        }
        // One token gives the same bits by itself as among others.
        let (alone, among) = (run((one, many), 1), run((one, many), 3));
        assert_eq!(alone[..rows + 2], among[..rows + 2]);
    }
}
