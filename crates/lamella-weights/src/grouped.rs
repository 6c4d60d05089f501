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

use half::f16;
use lamella_entropy::bits::{pack, packed_bytes, unpack};
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
    fn groups(&self) -> usize {
        self.rows * groups_per_row(self.columns, self.group_size)
    }
    fn order_width(&self) -> usize {
        if self.columns <= 1 << 16 { 2 } else { 4 }
    }
    /// Lengths of the payload's parts in bytes: scales, zeros, order, codes.
    fn extents(&self) -> [usize; 4] {
        let groups = self.groups();
        let zeros = match self.zero {
            Zero::Float => groups * 2,
            Zero::Integer => packed_bytes(groups, self.bits),
        };
        let order = if self.has_order { self.columns * self.order_width() } else { 0 };
        [groups * 2, zeros, order, packed_bytes(self.rows * self.columns, self.bits)]
    }

    /// Bytes of the payload.
    pub fn stored_bytes(&self) -> usize {
        self.extents().iter().sum()
    }

    /// Writes grids, order and codes.
    ///
    /// # Errors
    /// A code or zero point that does not fit its width: a solver's mistake, never the data's.
    pub fn encode(&self, groups: &[Group], order: &[u32], codes: &[u8]) -> Result<Vec<u8>, String> {
        let mut payload = Vec::with_capacity(self.extents().iter().sum());
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
    /// A sentence with the numbers that do not fit.
    pub fn decode(&self, payload: &[u8]) -> Result<Vec<f32>, String> {
        let extents = self.extents();
        let needed: usize = extents.iter().sum();
        if payload.len() != needed {
            return Err(format!("needs {needed} bytes, found {}", payload.len()));
        }
        let (scales, rest) = payload.split_at(extents[0]);
        let (zeros, rest) = rest.split_at(extents[1]);
        let (order, codes) = rest.split_at(extents[2]);
        let scales = scales.as_chunks::<2>().0.iter().map(|&bytes| f16::from_le_bytes(bytes).to_f32());
        let groups: Vec<Group> = match self.zero {
            Zero::Float => {
                let minima = zeros.as_chunks::<2>().0.iter().map(|&bytes| f16::from_le_bytes(bytes).to_f32());
                scales.zip(minima).map(|(scale, minimum)| Group::with_minimum(scale, minimum)).collect()
            }
            Zero::Integer => {
                let points = unpack(zeros, self.bits, self.groups()).map_err(|error| error.to_string())?;
                scales.zip(points).map(|(scale, point)| Group::with_zero_point(scale, u32::from(point))).collect()
            }
        };
        let order = self.read_order(order)?;
        let codes = unpack(codes, self.bits, self.rows * self.columns).map_err(|error| error.to_string())?;
        let per_row = groups_per_row(self.columns, self.group_size);
        let mut values = Vec::with_capacity(codes.len());
        for (row, codes) in codes.chunks_exact(self.columns.max(1)).enumerate() {
            let groups = &groups[row * per_row..(row + 1) * per_row];
            for (position, &code) in codes.iter().enumerate() {
                let place = if self.groups_follow_order { position } else { order[position] as usize };
                values.push(groups[place / self.group_size].dequantize(u32::from(code)));
            }
        }
        Ok(if self.has_order { reorder(&values, self.columns, &order, Direction::ToOriginal) } else { values })
    }

    fn read_order(&self, bytes: &[u8]) -> Result<Vec<u32>, String> {
        if !self.has_order {
            return Ok((0..self.columns as u32).collect());
        }
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
                    _ => Err(format!("column {column} of {} stands twice or not at all in the order", self.columns)),
                }
            })
            .collect()
    }
}
