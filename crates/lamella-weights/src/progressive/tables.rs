//! Codes and bits of large arrays under static tables, read ten times as fast as adaptive ones.
//!
//! Numbers are sorted by what a decoder knows of them, and what falls together is coded together under one table: the
//! first layer's codes by their class, bits by class, magnitude and the bits before. Every such *list* is then one plain
//! array for [`lamella_entropy::rans`], and a decoder deals numbers out again from the lists' heads. Eight bits are one
//! symbol, whose table follows from the share of ones. Bits that no table helps are packed as they are.
//!
//! # Classes
//! Columns and rows store half octaves of their mean magnitude; a number's class is the sum of the two, kept within 0
//! and 15. On small arrays these numbers cost more than adaptive coding does, which learns them.
//!
//! # Order
//! Columns one after the other; in each the rows of the first part, then those of the second, and so on. Row `i` belongs
//! to part `i mod parts`.

use std::collections::BTreeMap;
use std::sync::OnceLock;

use lamella_entropy::models::Frequencies;
use lamella_entropy::rans::{self, Assignment, DecodeTables, EncodeTables};
use lamella_entropy::varint::{read_varint, write_varint};

use super::bits::{BitList, Head};
use super::form::Wrong;

/// Classes of numbers.
pub const CLASSES: usize = 16;
/// Bits below a number's magnitude that have tables: later ones are nearly even.
const MODELLED: u32 = 2;
/// Classes that share tables of bits.
const CLASSES_PER_TABLE: usize = 2;
/// Lists of bits under tables; one more takes the others.
const LISTS: usize = (CLASSES / CLASSES_PER_TABLE * 4) << MODELLED;
/// The byte that stands for a code outside 127 on both sides.
const ESCAPE: u8 = 255;
/// Bits of the tables' frequencies.
const TABLE_BITS: u32 = 12;
/// Longest list that symbols of a table are worth their length for, in bytes.
const SHORT_LIST: usize = 16;

/// Half octaves of the mean magnitudes.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Classes {
    /// One per column.
    pub columns: Vec<i32>,
    /// One per row in [order], or none where rows are alike.
    pub rows: Vec<i32>,
}

impl Classes {
    /// Of codes `[columns, rows]`, rows in order; `exponents` are those of the rows' steps.
    ///
    /// Rows with the same step are told apart where their means differ, but not for the noise of a mean that lies
    /// between two classes: their classes are differences from that of all rows with this step.
    pub fn of(codes: &[i32], exponents: &[i32]) -> Self {
        let rows = exponents.len();
        let columns = codes.len() / rows.max(1);
        let mut sums = vec![0u64; rows];
        let mut by_column = Vec::with_capacity(columns);
        for column in codes.chunks_exact(rows.max(1)) {
            let mut sum = 0u64;
            for (&code, row) in column.iter().zip(&mut sums) {
                *row += u64::from(code.unsigned_abs());
                sum += u64::from(code.unsigned_abs());
            }
            by_column.push(sum as f64 / rows as f64);
        }
        let mean = by_column.iter().sum::<f64>() / columns.max(1) as f64;
        // Class 8 has the mean magnitude of the whole array.
        let half_octaves = |of: f64, mean: f64, rounding: f64| {
            let found = 2.0 * (of / mean).log2() + rounding;
            if of > 0.0 { found.round().clamp(-8.0, 8.0) as i32 } else { -8 }
        };
        let mut by_exponent: BTreeMap<i32, (u64, u64)> = BTreeMap::new();
        for (&exponent, &sum) in exponents.iter().zip(&sums) {
            let (total, count) = by_exponent.entry(exponent).or_default();
            *total += sum;
            *count += columns as u64;
        }
        let by_row: Vec<i32> = exponents
            .iter()
            .zip(&sums)
            .map(|(exponent, &sum)| {
                let (total, count) = by_exponent[exponent];
                let alike = total as f64 / count as f64;
                // Two steps half an octave apart lie as far from the mean; the same side is rounded to for both.
                let own = half_octaves(sum as f64 / columns as f64, alike.max(f64::MIN_POSITIVE), 0.0);
                own + half_octaves(alike, mean, 0.25)
            })
            .collect();
        let are_alike = by_row.iter().all(|&row| row == by_row[0]);
        Self {
            columns: by_column.into_iter().map(|of| 8 + half_octaves(of, mean, 0.0)).collect(),
            rows: if are_alike { Vec::new() } else { by_row },
        }
    }

    /// Runs of rows of one class among `height` rows from `first` on: lengths and what they add to their column's.
    fn runs(&self, first: usize, height: usize) -> Vec<(usize, i32)> {
        match self.rows.get(first..first + height) {
            Some(rows) => rows.chunk_by(|a, b| a == b).map(|run| (run.len(), run[0])).collect(),
            None => vec![(height, 0)],
        }
    }

    /// Class of a column's numbers in rows that add so much.
    #[inline]
    fn class(&self, column: usize, row: i32) -> usize {
        (self.columns[column] + row).clamp(0, CLASSES as i32 - 1) as usize
    }
}

/// The rows in the order in which they are coded: place to row.
pub fn order(rows: usize, parts: usize) -> Vec<usize> {
    (0..parts).flat_map(|part| (part..rows).step_by(parts)).collect()
}

/// Where a part's rows begin in the [order].
pub fn first_of(part: usize, rows: usize, parts: usize) -> usize {
    part * (rows / parts) + part.min(rows % parts)
}

fn text(error: lamella_entropy::Error) -> Wrong {
    error.to_string()
}

fn take<'a>(bytes: &mut &'a [u8], count: usize) -> Result<&'a [u8], Wrong> {
    let (front, rest) = bytes.split_at_checked(count).ok_or("a list is cut off")?;
    *bytes = rest;
    Ok(front)
}

fn read_number(bytes: &mut &[u8]) -> Result<usize, Wrong> {
    let number = read_varint(bytes).map_err(text)?;
    Ok(usize::try_from(number).unwrap_or(usize::MAX))
}

fn to_byte(code: i32) -> u8 {
    let folded = (code << 1) ^ (code >> 31);
    if (0..i32::from(ESCAPE)).contains(&folded) { folded as u8 } else { ESCAPE }
}

#[inline]
fn from_byte(byte: u8) -> i32 {
    let folded = i32::from(byte);
    (folded >> 1) ^ -(folded & 1)
}

/// Codes `[columns, rows]` of at most 22 bits, rows in order: for every class that occurs the length of its list and the
/// list; then three bytes for each code that no byte holds.
///
/// # Errors
/// None for codes of so many bits; the type leaves room.
pub fn write_codes(classes: &Classes, rows: usize, codes: &[i32]) -> Result<Vec<u8>, Wrong> {
    let mut lists = vec![Vec::new(); CLASSES];
    let mut escapes = Vec::new();
    let runs = classes.runs(0, rows);
    for (column, mut codes) in codes.chunks_exact(rows.max(1)).enumerate() {
        for &(length, row) in &runs {
            let list = &mut lists[classes.class(column, row)];
            let (own, rest) = codes.split_at(length);
            codes = rest;
            for &code in own {
                let byte = to_byte(code);
                list.push(byte);
                if byte == ESCAPE {
                    escapes.extend_from_slice(&code.to_le_bytes()[..3]);
                }
            }
        }
    }
    let mut bytes = Vec::new();
    for list in lists.iter().filter(|list| !list.is_empty()) {
        let coded = rans::encode(list).map_err(text)?;
        write_varint(&mut bytes, coded.len() as u64);
        bytes.extend_from_slice(&coded);
    }
    bytes.extend_from_slice(&escapes);
    Ok(bytes)
}

/// What [`write_codes`] wrote, for as many columns as the classes have.
///
/// # Errors
/// A sentence that says what does not fit.
pub fn read_codes(mut bytes: &[u8], classes: &Classes, rows: usize) -> Result<Vec<i32>, Wrong> {
    let mut counts = [0usize; CLASSES];
    let runs = classes.runs(0, rows);
    for column in 0..classes.columns.len() {
        runs.iter().for_each(|&(length, row)| counts[classes.class(column, row)] += length);
    }
    let mut lists = Vec::with_capacity(CLASSES);
    for &count in &counts {
        let mut list = Vec::new();
        if count > 0 {
            let length = read_number(&mut bytes)?;
            list = rans::decode(take(&mut bytes, length)?, count).map_err(text)?;
        }
        lists.push(list);
    }
    let mut heads = lists.iter().map(|list| &list[..]).collect::<Vec<&[u8]>>();
    let mut codes = vec![0i32; rows * classes.columns.len()];
    for (column, codes) in codes.chunks_exact_mut(rows).enumerate() {
        let (mut largest, mut first) = (0, 0);
        for &(length, row) in &runs {
            let head = &mut heads[classes.class(column, row)];
            // Lists hold as many numbers as were counted above.
            let (own, rest) = head.split_at(length);
            *head = rest;
            for (code, &byte) in codes[first..first + length].iter_mut().zip(own) {
                *code = from_byte(byte);
                largest = largest.max(byte);
            }
            first += length;
        }
        if largest < ESCAPE {
            continue;
        }
        for code in codes.iter_mut().filter(|code| **code == from_byte(ESCAPE)) {
            let (&[a, b, c], rest) = bytes.split_first_chunk::<3>().ok_or("a large code is cut off")?;
            bytes = rest;
            *code = i32::from_le_bytes([0, a, b, c]) >> 8;
        }
    }
    if bytes.is_empty() { Ok(codes) } else { Err(format!("{} bytes are left over", bytes.len())) }
}

/// A part's numbers at one more bit.
#[derive(Debug)]
pub struct Unit<'a> {
    /// Half octaves.
    pub classes: &'a Classes,
    /// Rows in all, and those of the part in the [order].
    pub rows: usize,
    /// First of the part's rows.
    pub first: usize,
    /// Number of the part's rows.
    pub height: usize,
    /// Bits of every number with this one.
    pub depth: u32,
    /// Codes `[columns, rows]`, rows in order.
    pub codes: &'a [i32],
}

impl Unit<'_> {
    /// What [`Chooser::list`] needs.
    fn chooser(&self) -> Chooser {
        let mut chooser = Chooser { first: [[LISTS as u16; 4]; CLASSES], known: [0; 4] };
        for magnitude in 0..4 {
            let halvings = self.depth - u32::from(magnitude == 0);
            if halvings == 0 || halvings > MODELLED {
                continue;
            }
            chooser.known[magnitude] = (1 << (halvings - 1)) - 1;
            for (class, first) in chooser.first.iter_mut().enumerate() {
                let of_class = class / CLASSES_PER_TABLE * 4 + magnitude;
                first[magnitude] = ((of_class << MODELLED) + (1 << (halvings - 1))) as u16;
            }
        }
        chooser
    }

    /// Whether all numbers are in the list without a table.
    fn is_plain(&self) -> bool {
        self.depth > MODELLED + 1
    }

    /// The next bits of numbers whose bits before are `before` and whose wanted bits are `fine`'s at `shift`: for every
    /// list that occurs its number and count (varints), the share of ones in 1/64 (0: no table) and the bits.
    ///
    /// # Errors
    /// None for lists that a part has; the type leaves room.
    pub fn write(&self, before: &[u16], fine: &[u16], shift: u32) -> Result<Vec<u8>, Wrong> {
        let mut lists = vec![BitList::default(); LISTS + 1];
        let chooser = self.chooser();
        let runs = self.classes.runs(self.first, self.height);
        for column in 0..self.codes.len() / self.rows {
            let mut at = column * self.rows + self.first;
            for &(length, row) in &runs {
                let class = self.classes.class(column, row);
                for at in at..at + length {
                    let list = chooser.list(class, self.codes[at], before[at]);
                    lists[list].push(fine[at] >> shift & 1 == 1);
                }
                at += length;
            }
        }
        let mut bytes = Vec::new();
        for (number, list) in lists.iter().enumerate().filter(|(_, list)| list.count > 0) {
            write_varint(&mut bytes, number as u64);
            write_varint(&mut bytes, list.count as u64);
            let share = (64 * list.ones + list.count / 2) / list.count;
            let share = share.clamp(1, 63) as u8;
            let coded = match number < LISTS && list.bytes.len() > SHORT_LIST {
                false => None,
                true => {
                    let tables = EncodeTables::new(&[table(share)?]).map_err(text)?;
                    Some(rans::encode_payload(&list.bytes, &tables, &Assignment::One(0)).map_err(text)?)
                }
            };
            match coded.filter(|coded| coded.len() + 3 < list.bytes.len()) {
                Some(coded) => {
                    bytes.push(share);
                    write_varint(&mut bytes, coded.len() as u64);
                    bytes.extend_from_slice(&coded);
                }
                None => {
                    bytes.push(0);
                    bytes.extend_from_slice(&list.bytes);
                }
            }
        }
        Ok(bytes)
    }

    /// Adds the next bit to the part's numbers in `bits` (`[columns, rows]`).
    ///
    /// # Errors
    /// A sentence that says what does not fit.
    pub fn read(&self, bytes: &[u8], bits: &mut [u16]) -> Result<(), Wrong> {
        let mut heads = self.heads(bytes)?;
        if self.is_plain() {
            let head = &mut heads[LISTS];
            for bits in bits.chunks_exact_mut(self.rows) {
                let (sixteens, rest) = bits[self.first..][..self.height].as_chunks_mut::<16>();
                for sixteen in sixteens {
                    let word = head.next(16);
                    *sixteen = std::array::from_fn(|k| sixteen[k] << 1 | u16::from(word & (1 << k) != 0));
                }
                let word = head.next(rest.len());
                for (place, bits) in rest.iter_mut().enumerate() {
                    *bits = *bits << 1 | (word >> place & 1);
                }
            }
        } else {
            let chooser = self.chooser();
            let runs = self.classes.runs(self.first, self.height);
            let all = self.codes.chunks_exact(self.rows).zip(bits.chunks_exact_mut(self.rows));
            for (column, (codes, bits)) in all.enumerate() {
                let mut first = self.first;
                for &(length, row) in &runs {
                    let class = self.classes.class(column, row);
                    let run = first..first + length;
                    for (&code, bits) in codes[run.clone()].iter().zip(&mut bits[run]) {
                        *bits = *bits << 1 | heads[chooser.list(class, code, *bits)].one();
                    }
                    first += length;
                }
            }
        }
        match heads.iter().position(|head| !head.is_at_end()) {
            None => Ok(()),
            Some(list) => Err(format!("list {list} has another length")),
        }
    }

    fn heads(&self, mut bytes: &[u8]) -> Result<Vec<Head>, Wrong> {
        let mut heads: Vec<Head> = (0..=LISTS).map(|_| Head::default()).collect();
        let mut left = self.height * (self.codes.len() / self.rows);
        while !bytes.is_empty() {
            let number = read_number(&mut bytes)?;
            let count = read_number(&mut bytes)?;
            let head = heads.get_mut(number).filter(|head| head.count == 0);
            let head = head.ok_or_else(|| format!("there is no list {number}, or there are two"))?;
            if count == 0 || count > left {
                return Err(format!("list {number} claims {count} of {left} numbers"));
            }
            left -= count;
            head.count = count;
            let share = take(&mut bytes, 1)?[0];
            let length = count.div_ceil(8);
            head.bytes = if share == 0 {
                take(&mut bytes, length)?.to_vec()
            } else {
                let coded = read_number(&mut bytes)?;
                let coded = take(&mut bytes, coded)?;
                let tables = reading_table(share)?;
                let mut list = vec![0u8; length];
                rans::decode_payload(coded, tables, &Assignment::One(0), &mut list).map_err(text)?;
                list
            };
        }
        if left > 0 { Err(format!("{left} numbers are in no list")) } else { Ok(heads) }
    }
}

/// Chooses lists at one depth.
struct Chooser {
    /// By class and magnitude: the list of numbers whose bits before are 0.
    first: [[u16; 4]; CLASSES],
    /// By magnitude: the bits before that count.
    known: [u16; 4],
}

impl Chooser {
    /// The list of a number of this class and code with these bits before; the last list is that without a table.
    #[inline]
    fn list(&self, class: usize, code: i32, before: u16) -> usize {
        let magnitude = code.unsigned_abs().min(3) as usize;
        usize::from(self.first[class % CLASSES][magnitude] + (before & self.known[magnitude]))
    }
}

/// Frequencies of bytes whose bits are ones with a chance of `share / 64`.
fn table(share: u8) -> Result<Frequencies, Wrong> {
    let (one, zero) = (u64::from(share), 64u64.saturating_sub(u64::from(share)));
    let counts: Vec<u64> =
        (0..=255u8).map(|byte| one.pow(byte.count_ones()) * zero.pow(byte.count_zeros())).collect();
    Frequencies::from_counts(&counts, TABLE_BITS).map_err(text)
}

/// The same for decoders; made once, since a layer has hundreds of lists and they share 63 tables.
fn reading_table(share: u8) -> Result<&'static DecodeTables, Wrong> {
    static TABLES: [OnceLock<DecodeTables>; 64] = [const { OnceLock::new() }; 64];
    let place = TABLES.get(usize::from(share)).filter(|_| share > 0);
    let place = place.ok_or_else(|| format!("a share of {share} / 64 is none"))?;
    match place.get() {
        Some(tables) => Ok(tables),
        None => {
            let tables = DecodeTables::new(&[table(share)?]).map_err(text)?;
            Ok(place.get_or_init(|| tables))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbers(n: usize, spread: u64) -> Vec<i32> {
        let mut state = 3u64;
        (0..n)
            .map(|i| {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                let spread = spread * (1 + (i / 40) as u64 % 3);
                ((state >> 33) % (2 * spread + 1)) as i32 - spread as i32
            })
            .collect()
    }

    #[test]
    fn codes_come_back_whether_rows_differ_or_not() {
        for (rows, spread) in [(1, 3), (40, 2), (37, 5), (40, 400), (7, 1_300_000)] {
            let codes = numbers(rows * 60, spread);
            let mut classes = Classes::of(&codes, &vec![0; rows]);
            for rows_too in [false, true] {
                classes.rows =
                    if rows_too { (0..rows as i32).map(|row| row % 3 - 1).collect() } else { Vec::new() };
                let bytes = write_codes(&classes, rows, &codes).unwrap();
                assert!(read_codes(&bytes, &classes, rows).unwrap() == codes, "{rows} rows, {spread}");
                for cut in 0..bytes.len() {
                    assert!(read_codes(&bytes[..cut], &classes, rows).is_err(), "{cut} of {}", bytes.len());
                }
                let longer = [&bytes[..], &[0]].concat();
                assert!(read_codes(&longer, &classes, rows).is_err());
            }
        }
    }

    #[test]
    fn units_come_back_bit_for_bit_and_cuts_are_refused() {
        let (rows, parts) = (37, 4);
        let codes = numbers(rows * 80, 2);
        let classes = Classes::of(&codes, &vec![0; rows]);
        // Bits that lean to 0, so that tables help.
        let leaning = numbers(codes.len(), 2700).into_iter().zip(numbers(codes.len(), 3));
        let fine: Vec<u16> = leaning.map(|(a, b)| a.min(b << 11).max(0) as u16).collect();
        assert!(fine.iter().all(|&fine| fine < 1 << 14));
        let mut bits = vec![0u16; codes.len()];
        for depth in 1..=5u32 {
            for part in 0..parts {
                let first = first_of(part, rows, parts);
                let height = first_of(part + 1, rows, parts) - first;
                let unit = Unit { classes: &classes, rows, first, height, depth, codes: &codes };
                let bytes = unit.write(&bits, &fine, 14 - depth).unwrap();
                for cut in (0..bytes.len()).step_by(7) {
                    assert!(unit.read(&bytes[..cut], &mut bits.clone()).is_err(), "{cut} of {}", bytes.len());
                }
                unit.read(&bytes, &mut bits).unwrap();
            }
            let wanted: Vec<u16> = fine.iter().map(|fine| fine >> (14 - depth)).collect();
            assert!(bits == wanted, "depth {depth}");
        }
    }

    #[test]
    fn parts_share_the_rows() {
        for (rows, parts) in [(1, 1), (7, 4), (8, 4), (5, 2)] {
            let order = order(rows, parts);
            for part in 0..parts {
                let own = &order[first_of(part, rows, parts)..first_of(part + 1, rows, parts)];
                assert!(own.iter().all(|row| row % parts == part), "{rows} {part}");
            }
            assert_eq!(first_of(parts, rows, parts), rows);
        }
    }
}
