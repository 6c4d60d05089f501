//! ELUTQ's stored form: bit planes with a scale per plane and group.
//!
//! ```text
//! [2 bytes per plane, row and group]  scales, 16-bit floats: planes outermost, then row-major
//! [2 bytes per row and group]         offsets
//! [1 bit per plane and weight]        planes: planes outermost, then rows, 8 inputs a byte, the first input in the
//!                                     lowest bit; each row of a plane is padded to a byte
//! ```

use half::f16;
use lamella_quant::grid::groups_per_row;

use super::fit::{Levels, MAX_BITS};
use crate::sparse::{read_f16, take};

/// Shape and widths: all that a decoder knows beside the payload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PlaneForm {
    /// Rows of the matrix.
    pub rows: usize,
    /// Columns of the matrix.
    pub columns: usize,
    /// Planes, 1 to 6.
    pub bits: usize,
    /// Columns that share scales, a multiple of 8.
    pub group_size: usize,
}

/// A matrix as it is stored, ready to be expanded or multiplied.
#[derive(Debug, Clone, PartialEq)]
pub struct PlaneMatrix {
    /// Shape and widths.
    pub form: PlaneForm,
    /// `[rows, groups_per_row]`.
    pub levels: Vec<Levels>,
    /// `[bits, rows, row_bytes]`.
    pub planes: Vec<u8>,
}

impl PlaneForm {
    /// Groups of a row.
    pub fn per_row(&self) -> usize {
        groups_per_row(self.columns, self.group_size)
    }
    /// Bytes of a row of a plane.
    pub fn row_bytes(&self) -> usize {
        self.columns.div_ceil(8)
    }
    /// Bytes of the payload; `None` where they cannot be counted.
    pub fn stored_bytes(&self) -> Option<usize> {
        let scales = self.rows.checked_mul(self.per_row())?.checked_mul(2 * (self.bits + 1))?;
        scales.checked_add(self.rows.checked_mul(self.row_bytes())?.checked_mul(self.bits)?)
    }

    /// Writes levels, `[rows, groups_per_row]`, and codes, `[rows, columns]`.
    ///
    /// # Errors
    /// A scale or offset beyond 16-bit floats, by row and group.
    pub fn encode(&self, levels: &[Levels], codes: &[u8]) -> Result<Vec<u8>, String> {
        if let Some(index) = levels.iter().position(|levels| !levels.is_finite()) {
            let (group, row) = (index % self.per_row(), index / self.per_row());
            return Err(format!("group {group} of row {row} spans more than 16-bit scales can hold"));
        }
        let mut payload = Vec::with_capacity(self.stored_bytes().unwrap_or(0));
        let mut number = |value: f32| payload.extend_from_slice(&f16::from_f32(value).to_le_bytes());
        for plane in 0..self.bits {
            levels.iter().for_each(|levels| number(levels.scales[plane]));
        }
        levels.iter().for_each(|levels| number(levels.offset));
        for plane in 0..self.bits {
            for row in codes.chunks_exact(self.columns) {
                payload.extend(row.chunks(8).map(|codes| {
                    let bits = codes.iter().enumerate();
                    bits.fold(0u8, |byte, (place, code)| byte | (code >> plane & 1) << place)
                }));
            }
        }
        Ok(payload)
    }

    /// Reads a matrix.
    ///
    /// # Errors
    /// A sentence with the numbers that do not fit.
    pub fn decode(self, mut payload: &[u8]) -> Result<PlaneMatrix, String> {
        let needed = self.stored_bytes();
        if needed != Some(payload.len()) {
            let needed =
                needed.map_or("more than can be counted".to_owned(), |bytes| format!("{bytes} bytes"));
            return Err(format!("needs {needed}, found {} bytes", payload.len()));
        }
        let n_groups = self.rows * self.per_row();
        let mut levels = vec![Levels { offset: 0.0, scales: [0.0; MAX_BITS] }; n_groups];
        for plane in 0..self.bits {
            let scales = read_f16(take(&mut payload, 2 * n_groups, "scales")?, "scales")?;
            levels.iter_mut().zip(scales).for_each(|(levels, scale)| levels.scales[plane] = scale);
        }
        let offsets = read_f16(take(&mut payload, 2 * n_groups, "offsets")?, "offsets")?;
        levels.iter_mut().zip(offsets).for_each(|(levels, offset)| levels.offset = offset);
        Ok(PlaneMatrix { form: self, levels, planes: payload.to_vec() })
    }
}

impl PlaneMatrix {
    /// One row of one plane.
    pub fn plane(&self, plane: usize, row: usize) -> &[u8] {
        let bytes = self.form.row_bytes();
        let start = (plane * self.form.rows + row) * bytes;
        &self.planes[start..start + bytes]
    }

    /// Appends one row of the matrix.
    pub fn expand_row(&self, row: usize, values: &mut Vec<f32>) {
        let PlaneForm { columns, bits, group_size, .. } = self.form;
        let per_row = self.form.per_row();
        for group in 0..per_row {
            let table = self.levels[row * per_row + group].table(bits);
            let last = ((group + 1) * group_size).min(columns);
            for first in (group * group_size..last).step_by(8) {
                let mut bytes = [0u8; MAX_BITS];
                for (plane, byte) in bytes[..bits].iter_mut().enumerate() {
                    *byte = self.plane(plane, row)[first / 8];
                }
                for place in 0..(last - first).min(8) {
                    let code = (0..bits).map(|plane| usize::from(bytes[plane] >> place & 1) << plane);
                    values.push(table[code.sum::<usize>()]);
                }
            }
        }
    }

    /// The whole matrix, `[rows, columns]`.
    pub fn expand(&self) -> Vec<f32> {
        let mut values = Vec::with_capacity(self.form.rows * self.form.columns);
        (0..self.form.rows).for_each(|row| self.expand_row(row, &mut values));
        values
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn planes_by_hand() {
        let form = PlaneForm { rows: 2, columns: 9, bits: 2, group_size: 8 };
        let mut levels = [Levels { offset: -1.0, scales: [0.0; MAX_BITS] }; 4];
        levels
            .iter_mut()
            .enumerate()
            .for_each(|(i, levels)| levels.scales[..2].copy_from_slice(&[1.0, i as f32]));
        let codes = [0, 1, 2, 0, 0, 0, 0, 0, 2, 3, 3, 1, 0, 0, 0, 0, 0, 1];
        let payload = form.encode(&levels, &codes).unwrap();
        assert_eq!(payload.len(), form.stored_bytes().unwrap());
        // Plane 0 of rows 0 and 1, then plane 1; the ninth input in a byte of its own.
        assert_eq!(payload[24..], [0b010, 0, 0b111, 1, 0b100, 1, 0b011, 0]);
        let matrix = form.decode(&payload).unwrap();
        let o = -1.0;
        assert_eq!(matrix.expand(), [o, 0.0, o, o, o, o, o, o, 0.0, 2.0, 2.0, 0.0, o, o, o, o, o, 0.0]);
        assert!(form.decode(&payload[1..]).unwrap_err().contains("needs 32 bytes"));
        assert!(PlaneForm { rows: usize::MAX, ..form }.decode(&payload).is_err());
    }
}
