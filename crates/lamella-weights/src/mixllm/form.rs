//! The stored form of MixLLM: a mask of rows, then the coarse rows on integer grids, then the fine ones.
//!
//! ```text
//! [4 + 4 bytes]            rows and columns: how many rows are fine does not follow from the shape
//! [1 bit per row]          1 for 8-bit rows, first row in the lowest bit, padded with zeros to a byte
//! [2 bytes per group]      scales of the 4-bit rows, 16-bit floats
//! [4 bits per group]       their zero points
//! [4 bits per weight]      their codes
//! [2 bytes per group]      scales of the 8-bit rows
//! [1 byte per weight]      their codes plus 128
//! ```

use half::f16;
use lamella_entropy::bits::{pack, packed_bytes, unpack};
use lamella_quant::grid::{Group, groups_per_row};

/// What a decoder must know beside the payload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MixForm {
    /// Rows of the matrix.
    pub rows: usize,
    /// Columns of the matrix.
    pub columns: usize,
    /// Columns that share a grid.
    pub group_size: usize,
}

/// A matrix on its grids.
#[derive(Debug, Clone, PartialEq)]
pub struct Mixed {
    /// Rows with 8 bits.
    pub is_fine: Vec<bool>,
    /// `[rows, groups_per_row]`; the zero point of an 8-bit row's groups is 128.
    pub groups: Vec<Group>,
    /// `[rows, columns]`, unsigned.
    pub codes: Vec<u8>,
}

/// Bytes of the shape.
const SHAPE: usize = 8;
/// Zero point of symmetric 8-bit grids.
pub const MIDDLE: u32 = 128;

impl MixForm {
    /// Groups of a row.
    pub fn per_row(&self) -> usize {
        groups_per_row(self.columns, self.group_size)
    }

    /// Lengths of the parts in bytes, with so many 8-bit rows; `None` where they cannot be counted.
    fn extents(&self, n_fine: usize) -> Option<[usize; 6]> {
        let coarse = self.rows.checked_sub(n_fine)?;
        let (groups, fine_groups) =
            (coarse.checked_mul(self.per_row())?, n_fine.checked_mul(self.per_row())?);
        let codes = self.rows.checked_mul(self.columns)?;
        codes.checked_mul(16)?;
        Some([
            self.rows.div_ceil(8),
            groups.checked_mul(2)?,
            packed_bytes(groups, 4),
            packed_bytes(coarse * self.columns, 4),
            fine_groups.checked_mul(2)?,
            n_fine * self.columns,
        ])
    }

    fn shape(&self) -> Option<[[u8; 4]; 2]> {
        let number = |number: usize| Some(u32::try_from(number).ok()?.to_le_bytes());
        Some([number(self.rows)?, number(self.columns)?])
    }

    /// Bytes of the payload with so many 8-bit rows; `None` where they cannot be counted.
    pub fn stored_bytes(&self, n_fine: usize) -> Option<usize> {
        self.extents(n_fine)?.iter().try_fold(SHAPE, |sum, &part| sum.checked_add(part))
    }

    /// Writes mask, grids and codes.
    ///
    /// # Errors
    /// A scale beyond 16-bit floats, by row; a code that does not fit, which is a solver's mistake.
    pub fn encode(&self, mixed: &Mixed) -> Result<Vec<u8>, String> {
        let per_row = self.per_row();
        if let Some(index) = mixed.groups.iter().position(|group| !group.is_finite()) {
            let (row, group) = (index / per_row.max(1), index % per_row.max(1));
            return Err(format!("group {group} of row {row} spans more than 16-bit scales can hold"));
        }
        let [rows, columns] = self.shape().ok_or("it has more than 2^32 rows or columns")?;
        let mut payload = [rows, columns].concat();
        payload.resize(SHAPE + self.rows.div_ceil(8), 0);
        for (row, _) in mixed.is_fine.iter().enumerate().filter(|(_, is_fine)| **is_fine) {
            payload[SHAPE + row / 8] |= 1 << (row % 8);
        }
        for fine in [false, true] {
            let rows: Vec<usize> = (0..self.rows).filter(|&row| mixed.is_fine[row] == fine).collect();
            let groups = || rows.iter().flat_map(|&row| &mixed.groups[row * per_row..(row + 1) * per_row]);
            let codes =
                || rows.iter().flat_map(|&row| &mixed.codes[row * self.columns..(row + 1) * self.columns]);
            groups().for_each(|group| payload.extend_from_slice(&f16::from_f32(group.scale).to_le_bytes()));
            if fine {
                payload.extend(codes());
            } else {
                let zeros: Vec<u16> = groups().map(|group| group.zero_point as u16).collect();
                payload.extend(pack(&zeros, 4).map_err(|error| error.to_string())?);
                let codes: Vec<u16> = codes().map(|&code| u16::from(code)).collect();
                payload.extend(pack(&codes, 4).map_err(|error| error.to_string())?);
            }
        }
        Ok(payload)
    }

    /// Reads everything.
    ///
    /// # Errors
    /// A sentence with the numbers that do not fit.
    pub fn decode(&self, payload: &[u8]) -> Result<Mixed, String> {
        let shape = self.shape().ok_or("its weights are too many to count")?;
        let body = payload.strip_prefix(&shape.concat()[..]).ok_or("it holds a matrix of another shape")?;
        let mask = body.get(..self.rows.div_ceil(8)).ok_or("it ends inside the mask of its rows")?;
        if mask.last().is_some_and(|&last| !self.rows.is_multiple_of(8) && last >> (self.rows % 8) != 0) {
            return Err(format!("its mask names rows beyond {}", self.rows));
        }
        let n_fine = mask.iter().map(|byte| byte.count_ones() as usize).sum();
        let extents = self.extents(n_fine).ok_or("its weights are too many to count")?;
        let needed = self.stored_bytes(n_fine).ok_or("its weights are too many to count")?;
        if needed != payload.len() {
            return Err(format!(
                "needs {needed} bytes with {n_fine} rows of 8 bits, found {}",
                payload.len()
            ));
        }
        let is_fine: Vec<bool> = (0..self.rows).map(|row| mask[row / 8] >> (row % 8) & 1 == 1).collect();
        let mut rest = &body[mask.len()..];
        let mut take = |bytes: usize| {
            let (taken, left) = rest.split_at(bytes);
            rest = left;
            taken
        };
        let scales = |bytes: &[u8]| -> Result<Vec<f32>, String> {
            let read: Vec<f32> =
                bytes.as_chunks::<2>().0.iter().map(|&pair| f16::from_le_bytes(pair).to_f32()).collect();
            match read.iter().position(|scale| !scale.is_finite()) {
                Some(index) => Err(format!("the scale of group {index} is not finite")),
                None => Ok(read),
            }
        };
        let per_row = self.per_row();
        let coarse = self.rows - n_fine;
        let coarse_scales = scales(take(extents[1]))?;
        let zeros = unpack(take(extents[2]), 4, coarse * per_row).map_err(|error| error.to_string())?;
        let coarse_codes =
            unpack(take(extents[3]), 4, coarse * self.columns).map_err(|error| error.to_string())?;
        let fine_scales = scales(take(extents[4]))?;
        let fine_codes = take(extents[5]);
        let (mut groups, mut codes) =
            (Vec::with_capacity(self.rows * per_row), Vec::with_capacity(self.rows * self.columns));
        let mut at = [0usize; 2];
        for &fine in &is_fine {
            let row = at[usize::from(fine)];
            at[usize::from(fine)] += 1;
            let (own_groups, own) =
                (row * per_row..(row + 1) * per_row, row * self.columns..(row + 1) * self.columns);
            if fine {
                groups.extend(
                    fine_scales[own_groups].iter().map(|&scale| Group::with_zero_point(scale, MIDDLE)),
                );
                codes.extend_from_slice(&fine_codes[own]);
            } else {
                let pairs = coarse_scales[own_groups.clone()].iter().zip(&zeros[own_groups]);
                groups.extend(pairs.map(|(&scale, &zero)| Group::with_zero_point(scale, u32::from(zero))));
                codes.extend(coarse_codes[own].iter().map(|&code| code as u8));
            }
        }
        Ok(Mixed { is_fine, groups, codes })
    }

    /// The matrix, `[rows, columns]`.
    pub fn values(&self, mixed: &Mixed) -> Vec<f32> {
        let per_row = self.per_row();
        let mut values = Vec::with_capacity(mixed.codes.len());
        if self.columns == 0 {
            return values;
        }
        for (row, codes) in mixed.codes.chunks_exact(self.columns).enumerate() {
            for (column, &code) in codes.iter().enumerate() {
                let group = &mixed.groups[row * per_row + column / self.group_size];
                values.push(group.scale * (i32::from(code) - group.zero_point as i32) as f32);
            }
        }
        values
    }
}
