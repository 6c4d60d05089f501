//! Levels of small codes, looked up.

use lamella_quant::refine::{GroupOffsets, level};

/// Largest magnitude in a table.
const LARGEST: i32 = 7;
/// Most bits in a table.
const DEEPEST: u32 = 6;
/// Depths that have tables, from none on.
const DEPTHS: usize = DEEPEST as usize + 1;

/// [`level`] with tables of its results.
#[derive(Debug)]
pub struct Levels<'a> {
    threshold: f32,
    offsets: &'a [GroupOffsets],
    /// `[groups, DEPTHS]`, each `[codes, 1 << depth]`, or empty.
    tables: Vec<Vec<f32>>,
}

impl<'a> Levels<'a> {
    /// Computes the tables of some depths.
    pub fn new(threshold: f32, offsets: &'a [GroupOffsets], depths: &[u32]) -> Self {
        let mut tables = vec![Vec::new(); offsets.len() * DEPTHS];
        for (offsets, tables) in offsets.iter().zip(tables.chunks_exact_mut(DEPTHS)) {
            for (depth, table) in (0u32..).zip(tables).filter(|(depth, _)| depths.contains(depth)) {
                for code in -LARGEST..=LARGEST {
                    table.extend((0..1u32 << depth).map(|bits| level(code, bits, depth, threshold, offsets)));
                }
            }
        }
        Self { threshold, offsets, tables }
    }

    /// What is known of a group at one depth.
    pub fn at(&self, group: usize, depth: u32) -> AtDepth<'_> {
        let table = self.tables.get(group * DEPTHS + depth as usize).filter(|_| depth <= DEEPEST);
        let (threshold, offsets) = (self.threshold, &self.offsets[group]);
        AtDepth { table: table.map_or(&[], |table| &table[..]), depth, threshold, offsets }
    }
}

/// Levels of a group at one depth.
#[derive(Debug, Clone, Copy)]
pub struct AtDepth<'a> {
    /// `[codes, 1 << depth]`, or empty.
    table: &'a [f32],
    depth: u32,
    threshold: f32,
    offsets: &'a GroupOffsets,
}

impl AtDepth<'_> {
    /// The level of a code with as many bits.
    #[inline]
    pub fn get(&self, code: i32, bits: u32) -> f32 {
        let place = u64::from(code.wrapping_add(LARGEST).cast_unsigned()) << self.depth;
        match self.table.get((place + u64::from(bits)) as usize) {
            Some(&level) => level,
            None => level(code, bits, self.depth, self.threshold, self.offsets),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_hold_what_is_computed() {
        let offsets = [[1, 5, -3, 15], [0, -15, 2, 7]];
        let levels = Levels::new(0.55, &offsets, &[0, 2, 3, 6, 8]);
        for (group, offsets) in offsets.iter().enumerate() {
            for depth in 0..9u32 {
                for code in -9..=9 {
                    for bits in 0..1u32 << depth {
                        let exact = level(code, bits, depth, 0.55, offsets);
                        assert_eq!(levels.at(group, depth).get(code, bits).to_bits(), exact.to_bits());
                    }
                }
            }
        }
    }
}
