//! What fitting needs to know of one class: how often each cell occurs.

use super::Columns;

/// Cells from `-HALF` to `HALF - 1` are counted; others are listed.
pub(super) const HALF: i64 = 128;

/// Occurrences of the codes of one class, in cells of `1 << shift` codes.
#[derive(Debug, Clone)]
pub(super) struct CellCounts {
    pub(super) shift: u32,
    pub(super) total: u64,
    counts: Vec<u64>,
    /// Magnitudes of cells outside the counted range.
    pub(super) outside: Vec<u32>,
}

impl CellCounts {
    fn new(shift: u32) -> Self {
        Self { shift, total: 0, counts: vec![0; 2 * HALF as usize], outside: Vec::new() }
    }

    fn add(&mut self, codes: &[i32]) {
        self.total += codes.len() as u64;
        for &code in codes {
            let cell = i64::from(code >> self.shift);
            match self.counts.get_mut((cell + HALF) as usize) {
                Some(count) => *count += 1,
                None => self.outside.push(cell.unsigned_abs() as u32),
            }
        }
    }

    /// The same for two classes of equal shift together.
    pub(super) fn merged(&self, other: &Self) -> Self {
        let mut sum = self.clone();
        sum.total += other.total;
        sum.counts.iter_mut().zip(&other.counts).for_each(|(a, b)| *a += b);
        sum.outside.extend_from_slice(&other.outside);
        sum
    }

    /// Occurrences of one cell of the counted range, else 0.
    pub(super) fn of(&self, cell: i64) -> u64 {
        usize::try_from(cell + HALF).ok().and_then(|index| self.counts.get(index)).copied().unwrap_or(0)
    }

    /// Greatest magnitude of a counted cell that occurs.
    pub(super) fn radius(&self) -> u32 {
        (0..=HALF).rev().find(|&cell| self.of(cell) > 0 || self.of(-cell) > 0).unwrap_or(0) as u32
    }

    pub(super) fn is_zero(&self) -> bool {
        self.shift == 0 && self.of(0) == self.total
    }

    /// Symbol counts for cells `-radius..=radius`, then the escape.
    pub(super) fn symbols(&self, radius: u32) -> (Vec<u64>, u64) {
        let radius = i64::from(radius);
        let inside: Vec<u64> = (-radius..=radius).map(|cell| self.of(cell)).collect();
        let escapes = self.total - inside.iter().sum::<u64>();
        (inside, escapes)
    }

    /// Magnitudes beyond `radius`, with how often each occurs.
    pub(super) fn beyond(&self, radius: u32) -> impl Iterator<Item = (u32, u64)> + '_ {
        let counted = (radius + 1..=HALF as u32)
            .map(|cell| (cell, self.of(i64::from(cell)) + self.of(-i64::from(cell))))
            .filter(|&(_, count)| count > 0);
        counted.chain(self.outside.iter().map(|&magnitude| (magnitude, 1)))
    }
}

/// Counts of each class that occurs, in the order of classes.
pub(super) fn count(columns: &Columns<'_>) -> Vec<(u8, CellCounts)> {
    // First the lengths of the codes in bits, which decide how wide a cell must be.
    let mut lengths = vec![[0u64; 33]; 256];
    let mut present = [false; 256];
    for (class, codes) in columns.iter() {
        present[usize::from(class)] = true;
        let histogram = &mut lengths[usize::from(class)];
        for &code in codes {
            histogram[(32 - code.unsigned_abs().leading_zeros()) as usize] += 1;
        }
    }
    let mut slots = vec![usize::MAX; 256];
    let mut counts: Vec<(u8, CellCounts)> = Vec::new();
    for class in (0..=255u8).filter(|&class| present[usize::from(class)]) {
        slots[usize::from(class)] = counts.len();
        counts.push((class, CellCounts::new(shift_for(&lengths[usize::from(class)]))));
    }
    for (class, codes) in columns.iter() {
        counts[slots[usize::from(class)]].1.add(codes);
    }
    counts
}

/// The least shift that leaves at most one code in 1,024 outside of 127 cells to each side.
fn shift_for(lengths: &[u64; 33]) -> u32 {
    let total: u64 = lengths.iter().sum();
    let mut above = 0;
    for bits in (1..=32).rev() {
        above += lengths[bits];
        if above * 1024 > total {
            return (bits as u32).saturating_sub(7);
        }
    }
    0
}
