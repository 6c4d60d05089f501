//! The few weights that are kept beside a coarse matrix: compressed sparse rows.
//!
//! ```text
//! [1 byte]            width of a count
//! [width per row]     entries of each row, packed, padded to a byte
//! [bits of the last column per entry]   columns, packed, padded to a byte
//! [2 bytes per entry] values, 16-bit floats
//! ```
//! Papers write 32 bits a row and 16 bits a column; counts and columns are packed here because on narrow matrices those
//! would outweigh the values.

use half::f16;
use lamella_entropy::bits::{pack, packed_bytes, unpack};

/// Widest matrix whose columns fit 16 bits.
pub const MAX_COLUMNS: usize = 1 << 16;

/// Sparse rows; values are 16-bit floats widened.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct SparseRows {
    /// Entries before each row, and behind the last: `[rows + 1]`.
    pub starts: Vec<u32>,
    /// Column of each entry, rising within a row.
    pub columns: Vec<u16>,
    /// Value of each entry.
    pub values: Vec<f32>,
}

fn column_width(columns: usize) -> u32 {
    usize::BITS - columns.saturating_sub(1).leading_zeros()
}

fn checked_unpack(bytes: &[u8], width: u32, count: usize) -> Result<Vec<u16>, String> {
    if width == 0 {
        Ok(vec![0; count])
    } else {
        unpack(bytes, width, count).map_err(|error| error.to_string())
    }
}

fn checked_pack(values: &[u16], width: u32) -> Result<Vec<u8>, String> {
    if width == 0 { Ok(Vec::new()) } else { pack(values, width).map_err(|error| error.to_string()) }
}

/// Cuts `n` bytes off the front.
pub(crate) fn take<'a>(bytes: &mut &'a [u8], n: usize, what: &str) -> Result<&'a [u8], String> {
    let (front, rest) =
        bytes.split_at_checked(n).ok_or_else(|| format!("{what} need {n} bytes, found {}", bytes.len()))?;
    *bytes = rest;
    Ok(front)
}

/// 16-bit floats, all finite.
pub(crate) fn read_f16(bytes: &[u8], what: &str) -> Result<Vec<f32>, String> {
    let numbers = bytes.as_chunks::<2>().0.iter().map(|&bytes| f16::from_le_bytes(bytes).to_f32());
    let numbers: Vec<f32> = numbers.collect();
    match numbers.iter().position(|number| !number.is_finite()) {
        Some(index) => Err(format!("number {index} of the {what} is not finite")),
        None => Ok(numbers),
    }
}

impl SparseRows {
    /// From entries `(row, column, value)` in any order.
    pub fn from_entries(rows: usize, mut entries: Vec<(u32, u16, f32)>) -> Self {
        entries.sort_unstable_by_key(|&(row, column, _)| (row, column));
        let mut starts = vec![0u32; rows + 1];
        for &(row, _, _) in &entries {
            starts[row as usize + 1] += 1;
        }
        for row in 0..rows {
            starts[row + 1] += starts[row];
        }
        let columns = entries.iter().map(|entry| entry.1).collect();
        Self { starts, columns, values: entries.into_iter().map(|entry| entry.2).collect() }
    }

    /// Adds the entries to a row-major matrix.
    pub fn add_to(&self, values: &mut [f32], columns: usize) {
        for (row, range) in self.starts.windows(2).enumerate() {
            for entry in range[0] as usize..range[1] as usize {
                values[row * columns + usize::from(self.columns[entry])] += self.values[entry];
            }
        }
    }

    /// Adds the product with a vector to `out`, one number a row.
    pub fn multiply_add(&self, input: &[f32], out: &mut [f32]) {
        for (range, out) in self.starts.windows(2).zip(out) {
            let entries = range[0] as usize..range[1] as usize;
            let pairs = self.columns[entries.clone()].iter().zip(&self.values[entries]);
            *out += pairs.map(|(&column, &value)| input[usize::from(column)] * value).sum::<f32>();
        }
    }

    /// Writes the rows of a matrix of so many columns.
    ///
    /// # Errors
    /// A column or count beyond 16 bits: a solver's mistake.
    pub fn encode(&self, columns: usize) -> Result<Vec<u8>, String> {
        let counts: Vec<u16> = self.starts.windows(2).map(|range| (range[1] - range[0]) as u16).collect();
        let most = counts.iter().copied().max().unwrap_or(0);
        let width = u16::BITS - most.leading_zeros();
        let mut payload = vec![width as u8];
        payload.extend(checked_pack(&counts, width)?);
        payload.extend(checked_pack(&self.columns, column_width(columns))?);
        self.values.iter().for_each(|&value| payload.extend_from_slice(&f16::from_f32(value).to_le_bytes()));
        Ok(payload)
    }

    /// Reads rows that end where `bytes` end.
    ///
    /// # Errors
    /// A sentence with the numbers that do not fit.
    pub fn decode(mut bytes: &[u8], rows: usize, columns: usize) -> Result<Self, String> {
        let width = u32::from(take(&mut bytes, 1, "sparse rows")?[0]);
        if width > u16::BITS {
            return Err(format!("counts of sparse rows have {width} bits, at most 16 are allowed"));
        }
        let counts = take(&mut bytes, packed_bytes(rows, width), "counts of sparse rows")?;
        let counts = checked_unpack(counts, width, rows)?;
        let total: usize = counts.iter().map(|&count| usize::from(count)).sum();
        if let Some(row) = counts.iter().position(|&count| usize::from(count) > columns) {
            return Err(format!("row {row} has {} entries in {columns} columns", counts[row]));
        }
        let width = column_width(columns);
        let places = take(&mut bytes, packed_bytes(total, width), "columns of sparse rows")?;
        let values = take(&mut bytes, 2 * total, "values of sparse rows")?;
        if !bytes.is_empty() {
            return Err(format!("{} bytes follow the last value", bytes.len()));
        }
        let places = checked_unpack(places, width, total)?;
        if let Some(&column) = places.iter().find(|&&column| usize::from(column) >= columns) {
            return Err(format!("column {column} of {columns} in the sparse rows"));
        }
        let mut starts = Vec::with_capacity(rows + 1);
        starts.push(0);
        let mut sum = 0u32;
        for count in counts {
            sum += u32::from(count);
            starts.push(sum);
        }
        Ok(Self { starts, columns: places, values: read_f16(values, "sparse values")? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_come_back_and_multiply() {
        let rows = SparseRows::from_entries(3, vec![(2, 4, -1.5), (0, 1, 2.0), (2, 0, 0.25)]);
        // Width, 3 counts of 2 bits, 3 columns of 3 bits, 3 values.
        let bytes = rows.encode(5).unwrap();
        assert_eq!(bytes.len(), 1 + 1 + 2 + 6);
        assert_eq!(SparseRows::decode(&bytes, 3, 5).unwrap(), rows);
        let mut out = [1.0; 3];
        rows.multiply_add(&[1.0, 2.0, 3.0, 4.0, 5.0], &mut out);
        assert_eq!(out, [5.0, 1.0, 1.0 + 0.25 - 7.5]);
        let none = SparseRows::from_entries(4, Vec::new());
        assert_eq!(none.encode(5).unwrap(), [0]);
        assert_eq!(SparseRows::decode(&[0], 4, 5).unwrap(), none);
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        // Columns of 5 and of 6 have the same width, so that only the number itself is out of range.
        let bytes = SparseRows::from_entries(2, vec![(1, 5, 1.0)]).encode(6).unwrap();
        assert!(SparseRows::decode(&bytes, 2, 5).unwrap_err().contains("column 5"));
        assert!(SparseRows::decode(&[17, 0, 0], 1, 4).unwrap_err().contains("17 bits"));
        assert!(SparseRows::decode(&[3, 7], 1, 4).unwrap_err().contains("7 entries"));
    }
}
