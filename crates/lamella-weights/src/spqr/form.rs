//! SpQR's stored form: codes on grids whose scales and zeros are codes themselves, and sparse rows.
//!
//! ```text
//! [4 bytes]                  the shape, mixed: a payload of another matrix is refused
//! scale_bits < 16, per tile of 16 rows x one group of columns, bands of rows outermost:
//!   [4 x 2 bytes]            step and minimum of the scales, step and minimum of the zeros (16-bit floats)
//! then [scale_bits per row and group] scale codes, and the same for zeros, row-major, each padded to a byte
//! scale_bits = 16: [2 bytes per row and group] scales, then minima
//! [bits of the last column per column] original column at each position of the sweep, padded to a byte
//! [bits per weight]          codes in the order of the sweep, padded to a byte
//! the rest                   the outliers ([`crate::sparse`]), columns counted in the order of the sweep
//! ```

use half::f16;
use lamella_entropy::bits::{pack, packed_bytes, unpack};
use lamella_quant::gptq::{Direction, reorder};
use lamella_quant::grid::{Group, groups_per_row};

use crate::sparse::{SparseRows, read_f16, take};

/// Rows whose scales share a second-level grid (the paper's beta2).
pub const ROWS_PER_TILE: usize = 16;
/// `scale_bits` of plain 16-bit scales and minima.
pub const PLAIN_SCALES: u32 = 16;

/// Shape and widths: all that a decoder knows beside the payload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SpqrForm {
    /// Rows of the matrix.
    pub rows: usize,
    /// Columns of the matrix, at most 65,536.
    pub columns: usize,
    /// Bits of a code.
    pub bits: u32,
    /// Columns that share a grid (the paper's beta1).
    pub group_size: usize,
    /// Bits of a scale's and of a zero's code, or [`PLAIN_SCALES`].
    pub scale_bits: u32,
}

/// A uniform grid of the second level: code `c` stands for `step * c + minimum`, both 16-bit floats.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Level {
    step: f32,
    minimum: f32,
}

impl Level {
    /// The smallest grid of `2^bits` levels that covers the values.
    pub fn covering(values: impl Iterator<Item = f32>, bits: u32) -> Self {
        let (low, high) =
            values.fold((f32::INFINITY, f32::NEG_INFINITY), |(low, high), v| (low.min(v), high.max(v)));
        let step = f16::from_f32((high - low) / ((1u32 << bits) - 1) as f32).to_f32();
        Self { step, minimum: f16::from_f32(low).to_f32() }
    }
    /// The code of the nearest level.
    pub fn quantize(&self, value: f32, bits: u32) -> u32 {
        let top = ((1u32 << bits) - 1) as f32;
        if self.step > 0.0 { ((value - self.minimum) / self.step).round().clamp(0.0, top) as u32 } else { 0 }
    }
    /// The level of a code.
    pub fn dequantize(&self, code: u32) -> f32 {
        self.step * code as f32 + self.minimum
    }
    fn is_finite(&self) -> bool {
        self.step.is_finite() && self.minimum.is_finite()
    }
}

/// Second-level grids of one tile, with the codes of its rows.
#[derive(Debug, Clone, PartialEq)]
pub struct Tile {
    /// Grid of the scales.
    pub scales: Level,
    /// Grid of the zeros.
    pub zeros: Level,
    /// Codes of scale and zero, one pair a row.
    pub codes: Vec<(u16, u16)>,
}

impl Tile {
    /// Quantises the scales and zeros of up to 16 rows.
    pub fn quantize(scales: &[f32], zeros: &[f32], bits: u32) -> Self {
        let by_scale = Level::covering(scales.iter().copied(), bits);
        let by_zero = Level::covering(zeros.iter().copied(), bits);
        let pairs = scales.iter().zip(zeros);
        let codes =
            pairs.map(|(&s, &z)| (by_scale.quantize(s, bits) as u16, by_zero.quantize(z, bits) as u16));
        Self { codes: codes.collect(), scales: by_scale, zeros: by_zero }
    }
    /// The grid of one of its rows: `w = s (q - z)`.
    pub fn group(&self, row: usize) -> Group {
        let (scale, zero) = self.codes[row];
        grid(self.scales.dequantize(u32::from(scale)), self.zeros.dequantize(u32::from(zero)))
    }
}

fn grid(scale: f32, zero: f32) -> Group {
    Group::with_minimum(scale, -(scale * zero))
}

/// Second-level grids and codes as they are stored.
#[derive(Debug, Clone, PartialEq)]
pub struct SecondLevel {
    /// Step and minimum of the scales, then of the zeros, of each tile: `[n_tiles, 4]`.
    pub levels: Vec<f32>,
    /// Codes of the scales, `[rows, groups_per_row]`.
    pub scales: Vec<u16>,
    /// Codes of the zeros.
    pub zeros: Vec<u16>,
}

/// A matrix as it is stored, ready to be expanded or multiplied.
#[derive(Debug, Clone, PartialEq)]
pub struct SpqrMatrix {
    /// Shape and widths.
    pub form: SpqrForm,
    /// Grids, `[rows, groups_per_row]`.
    pub groups: Vec<Group>,
    /// What the grids come from; `None` with plain scales.
    pub second: Option<SecondLevel>,
    /// Original column at each position of the sweep.
    pub order: Vec<u32>,
    /// Codes, `[rows, columns]` in the order of the sweep.
    pub codes: Vec<u8>,
    /// What is added to the grids' values, in the order of the sweep.
    pub outliers: SparseRows,
}

impl SpqrForm {
    fn per_row(&self) -> usize {
        groups_per_row(self.columns, self.group_size)
    }
    /// Padding hides small differences of shape; this does not.
    fn shape_mark(&self) -> u32 {
        (self.rows as u32).wrapping_mul(0x9e37_79b1) ^ self.columns as u32
    }
    fn order_width(&self) -> u32 {
        (usize::BITS - self.columns.saturating_sub(1).leading_zeros()).max(1)
    }
    /// Tiles, bands of rows outermost.
    pub fn n_tiles(&self) -> usize {
        self.rows.div_ceil(ROWS_PER_TILE) * self.per_row()
    }

    /// Writes a matrix. `tiles` is `[bands of rows, groups_per_row]`, empty with plain scales; `groups` is
    /// `[rows, groups_per_row]`.
    ///
    /// # Errors
    /// A scale or zero beyond 16-bit floats; a code that does not fit, which is a solver's mistake.
    pub fn encode(
        &self,
        tiles: &[Tile],
        groups: &[Group],
        order: &[u32],
        codes: &[u8],
        outliers: &SparseRows,
    ) -> Result<Vec<u8>, String> {
        let (per_row, too_wide) = (self.per_row(), "spans more than 16-bit scales and zeros can hold");
        let packed = |values: &[u16], bits: u32| pack(values, bits).map_err(|error| error.to_string());
        let mut payload = self.shape_mark().to_le_bytes().to_vec();
        let mut number = |value: f32| payload.extend_from_slice(&f16::from_f32(value).to_le_bytes());
        if self.scale_bits == PLAIN_SCALES {
            if let Some(index) = groups.iter().position(|group| !group.is_finite()) {
                return Err(format!("group {} of row {} {too_wide}", index % per_row, index / per_row));
            }
            groups.iter().for_each(|group| number(group.scale));
            groups.iter().for_each(|group| number(group.minimum));
        } else {
            for (index, tile) in tiles.iter().enumerate() {
                if !tile.scales.is_finite() || !tile.zeros.is_finite() {
                    let row = index / per_row * ROWS_PER_TILE;
                    return Err(format!("group {} of the rows from {row} on {too_wide}", index % per_row));
                }
                let Tile { scales, zeros, .. } = tile;
                for value in [scales.step, scales.minimum, zeros.step, zeros.minimum] {
                    number(value);
                }
            }
            let place = |row: usize, group: usize| &tiles[row / ROWS_PER_TILE * per_row + group];
            let pairs = (0..self.rows)
                .flat_map(|row| (0..per_row).map(move |group| place(row, group).codes[row % ROWS_PER_TILE]));
            let (scales, zeros): (Vec<u16>, Vec<u16>) = pairs.unzip();
            payload.extend(packed(&scales, self.scale_bits)?);
            payload.extend(packed(&zeros, self.scale_bits)?);
        }
        let order: Vec<u16> = order.iter().map(|&column| column as u16).collect();
        payload.extend(packed(&order, self.order_width())?);
        let codes: Vec<u16> = codes.iter().map(|&code| u16::from(code)).collect();
        payload.extend(packed(&codes, self.bits)?);
        payload.extend(outliers.encode(self.columns)?);
        Ok(payload)
    }

    /// Reads a matrix.
    ///
    /// # Errors
    /// A sentence with the numbers that do not fit.
    pub fn decode(self, mut payload: &[u8]) -> Result<SpqrMatrix, String> {
        let bytes = &mut payload;
        // The codes alone bound everything that is allocated here.
        let weights = self.rows.checked_mul(self.columns).and_then(|n| n.checked_mul(self.bits as usize));
        if weights.is_none_or(|bits| bits.div_ceil(8) > bytes.len()) {
            return Err(format!(
                "{} x {} weights do not fit in {} bytes",
                self.rows,
                self.columns,
                bytes.len()
            ));
        }
        if take(bytes, 4, "the shape")? != self.shape_mark().to_le_bytes() {
            return Err(format!("it holds no matrix of {} x {}", self.rows, self.columns));
        }
        let n_groups = self.rows * self.per_row();
        let (groups, second) = if self.scale_bits == PLAIN_SCALES {
            let scales = read_f16(take(bytes, 2 * n_groups, "scales")?, "scales")?;
            let minima = read_f16(take(bytes, 2 * n_groups, "minima")?, "minima")?;
            let pairs = scales.iter().zip(minima);
            (pairs.map(|(&scale, minimum)| Group::with_minimum(scale, minimum)).collect(), None)
        } else {
            let levels =
                read_f16(take(bytes, 8 * self.n_tiles(), "second-level grids")?, "second-level grids")?;
            let mut codes = || -> Result<Vec<u16>, String> {
                let packed = take(bytes, packed_bytes(n_groups, self.scale_bits), "codes of scales")?;
                unpack(packed, self.scale_bits, n_groups).map_err(|error| error.to_string())
            };
            let (scales, zeros) = (codes()?, codes()?);
            (self.second_level(&levels, &scales, &zeros), Some(SecondLevel { levels, scales, zeros }))
        };
        let width = self.order_width();
        let order = take(bytes, packed_bytes(self.columns, width), "the order of columns")?;
        let order =
            self.read_order(unpack(order, width, self.columns).map_err(|error| error.to_string())?)?;
        let n_weights = self.rows * self.columns;
        let codes = take(bytes, packed_bytes(n_weights, self.bits), "codes")?;
        let codes = unpack(codes, self.bits, n_weights).map_err(|error| error.to_string())?;
        let outliers = SparseRows::decode(bytes, self.rows, self.columns)?;
        let codes = codes.into_iter().map(|code| code as u8).collect();
        Ok(SpqrMatrix { form: self, groups, second, order, codes, outliers })
    }

    fn second_level(&self, levels: &[f32], scales: &[u16], zeros: &[u16]) -> Vec<Group> {
        let per_row = self.per_row();
        let read = |index: usize| {
            let place = index / per_row / ROWS_PER_TILE * per_row + index % per_row;
            let levels = &levels[4 * place..4 * place + 4];
            let level = |at: usize| Level { step: levels[at], minimum: levels[at + 1] };
            grid(level(0).dequantize(u32::from(scales[index])), level(2).dequantize(u32::from(zeros[index])))
        };
        (0..scales.len()).map(read).collect()
    }

    fn read_order(&self, order: Vec<u16>) -> Result<Vec<u32>, String> {
        let mut seen = vec![false; self.columns];
        for &column in &order {
            match seen.get_mut(usize::from(column)) {
                Some(slot) if !*slot => *slot = true,
                _ => {
                    return Err(format!(
                        "column {column} of {} stands twice or not at all in the order",
                        self.columns
                    ));
                }
            }
        }
        Ok(order.into_iter().map(u32::from).collect())
    }
}

impl SpqrMatrix {
    /// The whole matrix, `[rows, columns]` in original column order.
    pub fn expand(&self) -> Vec<f32> {
        let SpqrForm { columns, group_size, .. } = self.form;
        if columns == 0 {
            return Vec::new();
        }
        let per_row = self.form.per_row();
        let mut values = Vec::with_capacity(self.codes.len());
        for (codes, groups) in self.codes.chunks_exact(columns).zip(self.groups.chunks_exact(per_row)) {
            for (codes, group) in codes.chunks(group_size).zip(groups) {
                values.extend(codes.iter().map(|&code| group.dequantize(u32::from(code))));
            }
        }
        self.outliers.add_to(&mut values, columns);
        reorder(&values, columns, &self.order, Direction::ToOriginal)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn small() -> (SpqrForm, Vec<u8>, SpqrMatrix) {
        let form = SpqrForm { rows: 2, columns: 3, bits: 2, group_size: 2, scale_bits: 3 };
        let tiles =
            [Tile::quantize(&[1.0, 8.0], &[0.0, 1.75], 3), Tile::quantize(&[2.0, 2.0], &[1.0, 1.0], 3)];
        let groups: Vec<Group> =
            [(0, 0), (1, 0), (0, 1), (1, 1)].map(|(tile, row)| tiles[tile].group(row)).into();
        let outliers = SparseRows::from_entries(2, vec![(1, 2, 0.5)]);
        let payload = form.encode(&tiles, &groups, &[2, 0, 1], &[0, 1, 2, 3, 0, 1], &outliers).unwrap();
        let matrix = form.decode(&payload).unwrap();
        assert_eq!(matrix.groups, groups);
        (form, payload, matrix)
    }

    #[test]
    fn two_levels_by_hand() {
        let (_, payload, matrix) = small();
        // The shape, 2 tiles of 8 bytes, 2 x 4 codes of 3 bits, 3 columns of 2 bits, 6 codes of 2 bits, then
        // width, 2 counts of 1 bit, 1 column of 2 bits, 1 value.
        assert_eq!(payload.len(), 4 + 16 + 2 * 2 + 1 + 2 + 1 + 1 + 1 + 2);
        // Row 0: scale 1, zero 0 | scale 2, zero 1: codes 0 1 | 2. Row 1: scale 8, zero 1.75 | 2, 1: codes 3 0 | 1.
        assert_eq!(matrix.expand(), [1.0, 2.0, 0.0, -14.0, 0.5, 10.0]);
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let (form, payload, _) = small();
        assert!(SpqrForm { rows: 3, ..form }.decode(&payload).is_err());
        assert!(SpqrForm { rows: usize::MAX, ..form }.decode(&payload).unwrap_err().contains("do not fit"));
        let mut doubled = payload;
        doubled[24] = 0;
        assert!(form.decode(&doubled).unwrap_err().contains("twice"));
        let wide = [Tile::quantize(&[1e9, 0.0], &[0.0; 2], 3), Tile::quantize(&[1.0; 2], &[0.0; 2], 3)];
        let none = SparseRows::from_entries(2, Vec::new());
        assert!(form.encode(&wide, &[], &[0, 1, 2], &[0; 6], &none).unwrap_err().contains("group 0"));
    }
}
