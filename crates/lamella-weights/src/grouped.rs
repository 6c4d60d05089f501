//! The stored form of codes on a grid per group: shared by `rtn`, `gptq` and what follows them.
//!
//! ```text
//! [2 bytes per group]   scale, 16-bit float, row-major over [rows, groups_per_row]
//! zero = float:   [2 bytes per group]     minimum, 16-bit float
//! zero = integer: [bits per group]        zero point, packed, padded to a byte
//! order = activation: [2 or 4 bytes per column]   original column at each position of the sweep
//! [bits per weight]     codes, packed in the order of the sweep, padded to a byte
//! ```
//! Bits per weight: `bits + 32 / group_size` (float zero) or `bits + (16 + bits) / group_size` (integer zero).

//!
//! # Range
//! Scales and minima are 16-bit floats. A group whose values need more (a step or a minimum beyond 65,504) cannot be
//! stored: encoding refuses it by row and group instead of writing an infinity. Decoders clamp to the largest finite
//! number of the array's type, since a level may lie half a step beyond the largest value it stands for.

use half::f16;
use lamella_entropy::bits::{pack, unpack};
use lamella_quant::gptq::{Direction, reorder};
use lamella_quant::grid::{Group, Zero, groups_per_row};

/// What a decoder must know beside the payload.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct GroupedForm {
    /// Rows of the matrix.
    pub rows: usize,
    /// Columns of the matrix.
    pub columns: usize,
    /// Bits of a code, 1 to 8.
    pub bits: u32,
    /// Columns that share a grid.
    pub group_size: usize,
    /// How zeros are stored.
    pub zero: Zero,
    /// Whether a column order is stored.
    pub has_order: bool,
    /// Whether groups are of consecutive positions of the sweep (else of original columns).
    pub groups_follow_order: bool,
}

impl GroupedForm {
    /// Groups of the whole matrix; `None` where they cannot be counted.
    fn groups(&self) -> Option<usize> {
        self.rows.checked_mul(groups_per_row(self.columns, self.group_size))
    }
    fn order_width(&self) -> usize {
        if self.columns <= 1 << 16 { 2 } else { 4 }
    }
    /// Lengths of the payload's parts in bytes: scales, zeros, order, codes; `None` where they cannot be counted.
    fn extents(&self) -> Option<[usize; 4]> {
        let groups = self.groups()?;
        let bits = self.bits as usize;
        let packed = |count: usize| Some(count.checked_mul(bits)?.div_ceil(8));
        let zeros = match self.zero {
            Zero::Float => groups.checked_mul(2)?,
            Zero::Integer => packed(groups)?,
        };
        let order = if self.has_order { self.columns.checked_mul(self.order_width())? } else { 0 };
        Some([groups.checked_mul(2)?, zeros, order, packed(self.rows.checked_mul(self.columns)?)?])
    }

    /// Bytes of the payload; `None` where they cannot be counted.
    pub fn stored_bytes(&self) -> Option<usize> {
        self.extents()?.iter().try_fold(0usize, |sum, &part| sum.checked_add(part))
    }

    /// Writes grids, order and codes.
    ///
    /// # Errors
    /// A group whose scale or minimum is beyond 16-bit floats, by row and group; a code or zero point that does not fit
    /// its width, which is a solver's mistake, never the data's.
    pub fn encode(&self, groups: &[Group], order: &[u32], codes: &[u8]) -> Result<Vec<u8>, String> {
        if let Some(index) = groups.iter().position(|group| !group.is_finite()) {
            let per_row = groups_per_row(self.columns, self.group_size).max(1);
            return Err(format!(
                "group {} of row {} spans more than grids with 16-bit scales and zeros can hold",
                index % per_row,
                index / per_row
            ));
        }
        let mut payload = Vec::with_capacity(self.stored_bytes().unwrap_or(0));
        groups.iter().for_each(|group| payload.extend_from_slice(&f16::from_f32(group.scale).to_le_bytes()));
        match self.zero {
            Zero::Float => groups
                .iter()
                .for_each(|group| payload.extend_from_slice(&f16::from_f32(group.minimum).to_le_bytes())),
            Zero::Integer => {
                let zeros: Vec<u16> = groups.iter().map(|group| group.zero_point as u16).collect();
                payload.extend(pack(&zeros, self.bits).map_err(|error| error.to_string())?);
            }
        }
        if self.has_order {
            let width = self.order_width();
            order.iter().for_each(|column| payload.extend_from_slice(&column.to_le_bytes()[..width]));
        }
        let codes: Vec<u16> = codes.iter().map(|&code| u16::from(code)).collect();
        payload.extend(pack(&codes, self.bits).map_err(|error| error.to_string())?);
        Ok(payload)
    }

    /// Reads the matrix back, `[rows, columns]` in original column order.
    ///
    /// # Errors
    /// A sentence with the numbers that do not fit; a scale or minimum that is not finite.
    pub fn decode(&self, payload: &[u8]) -> Result<Vec<f32>, String> {
        let (Some(extents), Some(needed)) = (self.extents(), self.stored_bytes()) else {
            return Err(format!("{} x {} weights are too many", self.rows, self.columns));
        };
        if payload.len() != needed {
            return Err(format!("needs {needed} bytes, found {}", payload.len()));
        }
        if self.rows == 0 || self.columns == 0 {
            return Ok(Vec::new());
        }
        let (scales, rest) = payload.split_at(extents[0]);
        let (zeros, rest) = rest.split_at(extents[1]);
        let (order, codes) = rest.split_at(extents[2]);
        let groups = self.read_groups(scales, zeros)?;
        let order = if self.has_order { Some(self.read_order(order)?) } else { None };
        let codes = unpack(codes, self.bits, self.rows * self.columns).map_err(|error| error.to_string())?;
        let per_row = groups_per_row(self.columns, self.group_size);
        let mut values = Vec::with_capacity(codes.len());
        for (codes, groups) in codes.chunks_exact(self.columns).zip(groups.chunks_exact(per_row)) {
            for (position, &code) in codes.iter().enumerate() {
                let place = match &order {
                    Some(order) if !self.groups_follow_order => order[position] as usize,
                    _ => position,
                };
                values.push(groups[place / self.group_size].dequantize(u32::from(code)));
            }
        }
        Ok(match order {
            Some(order) => reorder(&values, self.columns, &order, Direction::ToOriginal),
            None => values,
        })
    }

    fn read_groups(&self, scales: &[u8], zeros: &[u8]) -> Result<Vec<Group>, String> {
        let read = |bytes: &[u8]| -> Result<Vec<f32>, String> {
            let numbers = bytes.as_chunks::<2>().0.iter().map(|&bytes| f16::from_le_bytes(bytes).to_f32());
            let numbers: Vec<f32> = numbers.collect();
            match numbers.iter().position(|number| !number.is_finite()) {
                Some(index) => Err(format!("the scale or minimum of group {index} is not finite")),
                None => Ok(numbers),
            }
        };
        let scales = read(scales)?;
        Ok(match self.zero {
            Zero::Float => {
                let minima = read(zeros)?;
                scales
                    .iter()
                    .zip(minima)
                    .map(|(&scale, minimum)| Group::with_minimum(scale, minimum))
                    .collect()
            }
            Zero::Integer => {
                let points = unpack(zeros, self.bits, scales.len()).map_err(|error| error.to_string())?;
                scales
                    .iter()
                    .zip(points)
                    .map(|(&s, point)| Group::with_zero_point(s, u32::from(point)))
                    .collect()
            }
        })
    }

    fn read_order(&self, bytes: &[u8]) -> Result<Vec<u32>, String> {
        let mut seen = vec![false; self.columns];
        bytes
            .chunks_exact(self.order_width())
            .map(|chunk| {
                let column = chunk.iter().rev().fold(0u32, |value, &byte| value << 8 | u32::from(byte));
                match seen.get_mut(column as usize) {
                    Some(slot) if !*slot => {
                        *slot = true;
                        Ok(column)
                    }
                    _ => Err(format!(
                        "column {column} of {} stands twice or not at all in the order",
                        self.columns
                    )),
                }
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn form() -> GroupedForm {
        GroupedForm {
            rows: 2,
            columns: 3,
            bits: 4,
            group_size: 2,
            zero: Zero::Float,
            has_order: true,
            groups_follow_order: false,
        }
    }

    #[test]
    fn sizes_that_cannot_be_counted_are_refused() {
        let huge = GroupedForm { rows: usize::MAX, columns: 2, ..form() };
        assert_eq!(huge.stored_bytes(), None);
        assert!(huge.decode(&[]).unwrap_err().contains("too many"));
        let wide = GroupedForm { rows: 0, columns: 1 << 40, has_order: false, ..form() };
        assert_eq!(wide.decode(&[]), Ok(Vec::new()));
    }

    #[test]
    fn a_scale_or_order_that_cannot_be_is_refused() {
        let groups = [Group::with_minimum(0.5, -1.0); 4];
        let good = form().encode(&groups, &[2, 0, 1], &[0, 1, 2, 3, 4, 5]).unwrap();
        assert_eq!(good.len(), form().stored_bytes().unwrap());
        assert_eq!(form().decode(&good).unwrap(), [-0.5, 0.0, -1.0, 1.0, 1.5, 0.5]);
        let mut infinite = good.clone();
        infinite[2..4].copy_from_slice(&f16::INFINITY.to_le_bytes());
        assert!(form().decode(&infinite).unwrap_err().contains("group 1"));
        let mut doubled = good;
        doubled[16] = 0;
        assert!(form().decode(&doubled).unwrap_err().contains("twice"));
        let wide = [Group::covering([-1e9, 1e9].into_iter(), 4, Zero::Float); 4];
        assert!(form().encode(&wide, &[2, 0, 1], &[0; 6]).unwrap_err().contains("group 0 of row 0"));
    }
}
