//! Tables that are searched in registers instead of looked up in memory.
//!
//! Sixteen entries gathered from memory cost a vector decoder more than all its arithmetic: processors with the
//! microcode of 2023 take about 25 cycles for one gather. A table of at most [`SEARCHED`] coded symbols needs none. The
//! symbol that owns a slot is found by halving: five comparisons with borders that a permutation picks out of one
//! register, for 32 lanes at a time.

use crate::models::Frequencies;

/// Most coded symbols of a table that is searched: words of one 512-bit register.
pub(super) const SEARCHED: usize = 32;

/// Beyond every slot.
const NEVER: u16 = u16::MAX;

/// A table of at most [`SEARCHED`] coded symbols, numbered from 0 in the order of their intervals.
#[derive(Debug, Clone, Copy)]
#[repr(C, align(64))]
#[cfg_attr(not(target_arch = "x86_64"), allow(dead_code, reason = "only vector kernels search"))]
pub(super) struct SearchTable {
    /// Entry `i`: where the interval of coded symbol `i + 4` begins.
    pub(super) four_on: [u16; SEARCHED],
    /// Entry `i`: where that of `i + 2` begins.
    pub(super) two_on: [u16; SEARCHED],
    /// Entry `i`: where that of `i + 1` begins.
    pub(super) one_on: [u16; SEARCHED],
    /// Entry `i`: where that of `i` begins.
    pub(super) start: [u16; SEARCHED],
    /// Frequencies.
    pub(super) frequency: [u16; SEARCHED],
    /// Symbols.
    pub(super) symbol: [u16; SEARCHED],
}

impl SearchTable {
    /// The table, where it is small enough.
    pub(super) fn new(frequencies: &Frequencies) -> Option<Self> {
        let (mut symbol, mut frequency, mut start) = ([0; SEARCHED], [0; SEARCHED], [NEVER; SEARCHED]);
        let (mut count, mut cumulative) = (0, 0);
        for (index, &value) in frequencies.as_slice().iter().enumerate().filter(|(_, value)| **value > 0) {
            *symbol.get_mut(count)? = index as u16;
            frequency[count] = value;
            start[count] = cumulative;
            cumulative += value;
            count += 1;
        }
        let later = |by: usize| std::array::from_fn(|i| start.get(i + by).copied().unwrap_or(NEVER));
        Some(Self { four_on: later(4), two_on: later(2), one_on: later(1), start, frequency, symbol })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::models::normalize;

    /// The search as the kernels do it, for one lane.
    fn find(table: &SearchTable, slot: u16) -> u16 {
        let mut index = 0;
        if slot >= table.start[16] {
            index = 16;
        }
        if slot >= table.start[index + 8] {
            index += 8;
        }
        for (step, borders) in [(4, &table.four_on), (2, &table.two_on), (1, &table.one_on)] {
            if slot >= borders[index] {
                index += step;
            }
        }
        table.symbol[index]
    }

    #[test]
    fn every_slot_finds_its_symbol() {
        for count in [1usize, 2, 3, 15, 16, 17, 31, 32] {
            let counts: Vec<u64> =
                (0..2 * count).map(|i| if i % 2 == 0 { 0 } else { (i * i) as u64 % 97 + 1 }).collect();
            let frequencies = normalize(&counts, 12).unwrap();
            let table = SearchTable::new(&frequencies).unwrap();
            let mut slot = 0;
            for (symbol, &frequency) in frequencies.as_slice().iter().enumerate() {
                for _ in 0..frequency {
                    assert_eq!(usize::from(find(&table, slot)), symbol, "{count} {slot}");
                    slot += 1;
                }
            }
        }
        assert!(SearchTable::new(&normalize(&[1; 33], 12).unwrap()).is_none());
    }
}
