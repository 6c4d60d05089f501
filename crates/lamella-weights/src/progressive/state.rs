//! A progressive array as integers: layers refine it, and values are made from what has come so far.
//!
//! An upgrade adds integer codes, then reconstructs: whatever the steps in which layers arrived, equal layers give
//! equal bits.
//!
//! # Order of arithmetic
//! All `f32`. Row `i` with `d` bits, step `s_ij = step_j * factor_i`, levels as in [`lamella_quant::refine::level`]:
//! `base_ij = level(code, no bits) * s_ij`; `white_ij = (level(code, d bits) - level(code, no bits)) * s_ij`;
//! [`Recursion::shape`] over the columns of the row; value `base_ij + shaped_ij`, clamped to the type's finite numbers.
//! Where there is no structure the value is `level(code, d bits) * s_ij`.
//!
//! # Contexts of bits
//! A bit that tells a magnitude's half, up to the third such bit of a number, has an adaptive model for: the class (half
//! octaves) of the mean magnitude expected from the first layer's codes, `mean_j * f_i`; the magnitude 0, 1, 2 or more;
//! the bits before. Signs and later bits are stored as they are. `mean_j` is the mean magnitude of the column's codes;
//! `f_i = (S_i + 8 m) / ((columns + 8) m)`, `S_i` the row's sum of magnitudes, `m` the mean of all.

use lamella_entropy::range::{AdaptiveBit, RangeEncoder};
use lamella_math::low_rank::Recursion;
use lamella_quant::feedback::{ROWS_PER_CHUNK, transpose};
use lamella_quant::refine::{GroupOffsets, MAX_DEPTH, level};
use lamella_quant::sweep::rates::{CLASSES, class_of};
use rayon::prelude::*;

use super::form::{self, Bits, Header, Structure, Wrong};

/// Bits of a number that have contexts.
const MODELLED: u32 = 3;
/// Classes of expected magnitudes, half octaves.
const BIT_CLASSES: usize = CLASSES / 2;

/// An array on its way from coarse to fine.
#[derive(Debug, Clone)]
pub struct State {
    rows: usize,
    columns: usize,
    parts: usize,
    threshold: f32,
    steps: Vec<f32>,
    row_factors: Vec<f32>,
    groups: Vec<u8>,
    offsets: Vec<GroupOffsets>,
    /// `[columns, rows]`.
    codes: Vec<i32>,
    bits: Vec<u16>,
    /// Bits of the rows of each part.
    depths: Vec<u32>,
    /// Units applied.
    units: usize,
    /// Known from the second layer on.
    recursion: Option<Recursion>,
    column_means: Vec<f32>,
    row_spreads: Vec<f32>,
    models: Vec<AdaptiveBit>,
}

impl State {
    /// From a first layer.
    ///
    /// # Errors
    /// A sentence that says what does not fit.
    pub fn read(payload: &[u8], rows: usize, columns: usize) -> Result<Self, Wrong> {
        let (header, codes) = form::read_first(payload, rows, columns)?;
        Ok(Self::new(&header, rows, codes))
    }

    /// From what a first layer holds.
    pub(super) fn new(header: &Header, rows: usize, codes: Vec<i32>) -> Self {
        let columns = header.columns.len();
        let parts = form::parts(rows, columns);
        let (column_means, row_spreads) = spreads(&codes, rows, columns);
        Self {
            rows,
            columns,
            parts,
            threshold: f32::from(header.threshold) / 128.0,
            steps: header.steps(),
            row_factors: header.row_factors(),
            groups: header.groups(),
            offsets: header.offsets.clone(),
            bits: vec![0; codes.len()],
            codes,
            depths: vec![0; parts],
            units: 0,
            recursion: None,
            column_means,
            row_spreads,
            models: vec![AdaptiveBit::new(); (BIT_CLASSES * 4) << MODELLED],
        }
    }

    /// Units per bit.
    pub fn parts(&self) -> usize {
        self.parts
    }
    /// Units applied so far.
    pub fn units(&self) -> usize {
        self.units
    }

    /// Applies the next refinement.
    ///
    /// # Errors
    /// A sentence that says what does not fit; the state is then of no more use.
    pub fn apply(&mut self, payload: &[u8]) -> Result<(), Wrong> {
        let (units, mut decoder) = form::read_refinement(payload, self.rows, self.columns, self.units)?;
        if self.units + units > self.parts * MAX_DEPTH as usize {
            return Err(format!("{units} more units are more than {MAX_DEPTH} bits a weight"));
        }
        if self.recursion.is_none() {
            let mut structure = Structure::default();
            structure.code(&mut decoder, self.columns)?;
            self.set_structure(&structure);
        }
        for _ in 0..units {
            self.unit(&mut decoder, None);
        }
        form::finish(&decoder, payload)
    }

    /// Starts a refinement's stream; the first one begins with the structure.
    pub(super) fn begin(&mut self, encoder: &mut RangeEncoder, structure: &Structure) -> Result<(), Wrong> {
        if self.recursion.is_none() {
            structure.clone().code(encoder, self.columns)?;
            self.set_structure(structure);
        }
        Ok(())
    }

    pub(super) fn set_structure(&mut self, structure: &Structure) {
        self.recursion = Some(Recursion::new(&structure.loadings(), self.columns).scaled(&self.steps));
    }

    /// Codes the next unit; an encoder brings every number's bits.
    pub(super) fn unit<D: Bits>(&mut self, coder: &mut D, fine: Option<&[u16]>) {
        let (part, depth) = (self.units % self.parts, (self.units / self.parts) as u32 + 1);
        for column in 0..self.columns {
            let mean = self.column_means[column];
            for row in (part..self.rows).step_by(self.parts) {
                let at = column * self.rows + row;
                let magnitude = self.codes[at].unsigned_abs();
                let wanted = fine.is_some_and(|fine| (fine[at] >> (MAX_DEPTH - depth)) & 1 == 1);
                // A zero's first bit is its sign.
                let halvings = depth - u32::from(magnitude == 0);
                let bit = if halvings == 0 || halvings > MODELLED {
                    coder.raw(u32::from(wanted), 1) == 1
                } else {
                    let class = class_of(mean * self.row_spreads[row]) / 2;
                    let before = u32::from(self.bits[at]) & ((1 << (halvings - 1)) - 1);
                    let place = ((1 << (halvings - 1)) | before) as usize;
                    let context = ((class * 4 + (magnitude as usize).min(3)) << MODELLED) + place;
                    coder.bit(&mut self.models[context], wanted)
                };
                self.bits[at] = (self.bits[at] << 1) | u16::from(bit);
            }
        }
        self.depths[part] = depth;
        self.units += 1;
    }

    /// Values of what has come so far, `[rows, columns]` row-major, none beyond `limit`.
    pub fn values(&self, limit: f32) -> Vec<f32> {
        self.values_at(limit, |at, row| (u32::from(self.bits[at]), self.depths[row % self.parts]))
    }

    /// Values at `depth` bits of every row, from all bits an encoder has.
    pub(super) fn values_of(&self, limit: f32, fine: &[u16], depth: u32) -> Vec<f32> {
        self.values_at(limit, |at, _| (u32::from(fine[at]) >> (MAX_DEPTH - depth), depth))
    }

    fn values_at(&self, limit: f32, bits: impl Fn(usize, usize) -> (u32, u32) + Sync) -> Vec<f32> {
        let mut values = vec![0.0f32; self.codes.len()];
        let columns = self.columns;
        values.par_chunks_mut(ROWS_PER_CHUNK * columns).enumerate().for_each(|(index, chunk)| {
            let (first, height) = (index * ROWS_PER_CHUNK, chunk.len() / columns);
            let recursion = self.recursion.as_ref().filter(|recursion| recursion.rank() > 0);
            let mut base = vec![0.0f32; chunk.len()];
            let mut white = vec![0.0f32; if recursion.is_some() { chunk.len() } else { 0 }];
            for column in 0..columns {
                let offsets = &self.offsets[usize::from(self.groups[column])];
                for local in 0..height {
                    let row = first + local;
                    let at = column * self.rows + row;
                    let step = self.steps[column] * self.row_factors.get(row).copied().unwrap_or(1.0);
                    let (bits, depth) = bits(at, row);
                    let fine = level(self.codes[at], bits, depth, self.threshold, offsets);
                    let here = column * height + local;
                    match white.get_mut(here) {
                        None => base[here] = fine * step,
                        Some(white) => {
                            let coarse = level(self.codes[at], 0, 0, self.threshold, offsets);
                            base[here] = coarse * step;
                            *white = (fine - coarse) * step;
                        }
                    }
                }
            }
            if let Some(recursion) = recursion {
                recursion.shape(&mut white, height);
                base.iter_mut().zip(&white).for_each(|(value, shaped)| *value += shaped);
            }
            base.iter_mut().for_each(|value| *value = value.clamp(-limit, limit));
            chunk.copy_from_slice(&transpose(&base, columns, height));
        });
        values
    }
}

/// Mean magnitude of each column's codes, and what each row adds to that.
fn spreads(codes: &[i32], rows: usize, columns: usize) -> (Vec<f32>, Vec<f32>) {
    let mut by_row = vec![0u64; rows];
    let mut total = 0u64;
    let means = codes
        .chunks_exact(rows.max(1))
        .map(|column| {
            let mut sum = 0u64;
            for (&code, row) in column.iter().zip(&mut by_row) {
                *row += u64::from(code.unsigned_abs());
                sum += u64::from(code.unsigned_abs());
            }
            total += sum;
            sum as f32 / rows as f32
        })
        .collect();
    let mean = total as f32 / codes.len().max(1) as f32;
    let spread = |&sum: &u64| (sum as f32 + 8.0 * mean) / ((columns + 8) as f32 * mean);
    let spreads = if total == 0 { vec![1.0; rows] } else { by_row.iter().map(spread).collect() };
    (means, spreads)
}
