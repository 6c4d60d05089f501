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
//! With static tables see [`super::tables`]. With adaptive ones a bit that tells a magnitude's half, up to the third such bit of a number, has an adaptive model for: the class (half
//! octaves) of the mean magnitude expected from the first layer's codes, `mean_j * f_i`; the magnitude 0, 1, 2 or more;
//! the bits before. Signs and later bits are stored as they are. `mean_j` is the mean magnitude of the column's codes;
//! `f_i = (S_i + 8 m) / ((columns + 8) m)`, `S_i` the row's sum of magnitudes, `m` the mean of all.

use lamella_entropy::range::{AdaptiveBit, RangeDecoder, RangeEncoder};
use lamella_math::low_rank::Recursion;
use lamella_math::prefetch::prefetch;
use lamella_quant::feedback::ROWS_PER_CHUNK;
use lamella_quant::refine::{GroupOffsets, MAX_DEPTH};
use lamella_quant::sweep::rates::{CLASSES, class_of};
use rayon::prelude::*;

use super::form::{self, Bits, Header, Structure, Wrong, append_framed, take_framed};
use super::levels::Levels;
use super::tables::{Classes, Unit, first_of, order};

/// Bits of a number that have contexts.
const MODELLED: u32 = 3;
/// Classes of expected magnitudes, half octaves.
const BIT_CLASSES: usize = CLASSES / 2;

/// Numbers from which levels are looked up: tables take some thousands to make.
const TABLES_FROM: usize = 1 << 15;

/// Columns between a number and the one whose memory is asked for: a chunk's numbers lie a whole column apart.
const AHEAD: usize = 6;
/// Columns that are turned into rows at a time: a cache line of numbers.
const TILE_COLUMNS: usize = 16;

/// An array on its way from coarse to fine.
#[derive(Debug, Clone)]
pub struct State {
    rows: usize,
    columns: usize,
    parts: usize,
    threshold: f32,
    steps: Vec<f32>,
    row_factors: Vec<f32>,
    /// Place of every row: a part's rows lie side by side.
    places: Vec<usize>,
    groups: Vec<u8>,
    offsets: Vec<GroupOffsets>,
    /// `[columns, rows]`, rows in order; the bits, too.
    codes: Vec<i32>,
    bits: Vec<u16>,
    /// Where tables are static.
    classes: Option<Classes>,
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

    /// From what a first layer holds; codes with rows in order.
    pub(super) fn new(header: &Header, rows: usize, codes: Vec<i32>) -> Self {
        let columns = header.columns.len();
        let parts = form::parts(rows, columns);
        // Adaptive contexts only.
        let (column_means, row_spreads) =
            if header.classes.is_some() { Default::default() } else { spreads(&codes, rows, columns) };
        Self {
            rows,
            columns,
            parts,
            threshold: f32::from(header.threshold) / 128.0,
            steps: header.steps(),
            row_factors: header.row_factors(),
            places: form::inverse(&order(rows, parts)),
            groups: header.groups(),
            offsets: header.offsets.clone(),
            bits: vec![0; codes.len()],
            codes,
            classes: header.classes.clone(),
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
        let (units, mut stream) = form::read_refinement(payload, self.rows, self.columns, self.units)?;
        if self.units + units > self.parts * MAX_DEPTH as usize {
            return Err(format!("{units} more units are more than {MAX_DEPTH} bits a weight"));
        }
        if self.classes.is_some() {
            if self.recursion.is_none() {
                let structure = take_framed(&mut stream)?;
                let mut decoder = RangeDecoder::new(structure);
                self.read_structure(&mut decoder)?;
                form::ended(&decoder, structure.len())?;
            }
            for _ in 0..units {
                self.read_unit(take_framed(&mut stream)?)?;
            }
            return if stream.is_empty() {
                Ok(())
            } else {
                Err(format!("{} bytes are left over", stream.len()))
            };
        }
        let mut decoder = RangeDecoder::new(stream);
        if self.recursion.is_none() {
            self.read_structure(&mut decoder)?;
        }
        for _ in 0..units {
            self.unit(&mut decoder, None);
        }
        form::ended(&decoder, stream.len())
    }

    fn read_structure(&mut self, decoder: &mut RangeDecoder<'_>) -> Result<(), Wrong> {
        let mut structure = Structure::default();
        structure.code(decoder, self.columns)?;
        self.set_structure(&structure);
        Ok(())
    }

    /// Starts a refinement; the first one begins with the structure.
    pub(super) fn begin(&mut self, structure: &Structure) -> Result<Refinement, Wrong> {
        let mut begun = Refinement { first: self.units, encoder: RangeEncoder::new(), bytes: Vec::new() };
        if self.recursion.is_none() {
            structure.clone().code(&mut begun.encoder, self.columns)?;
            self.set_structure(structure);
            if self.classes.is_some() {
                let encoder = std::mem::take(&mut begun.encoder);
                append_framed(&mut begun.bytes, &encoder.finish());
            }
        }
        Ok(begun)
    }

    /// Adds the next unit to a refinement, from all bits an encoder has (rows in order).
    pub(super) fn extend(&mut self, refinement: &mut Refinement, fine: &[u16]) -> Result<(), Wrong> {
        let Some(unit) = self.next_unit() else {
            self.unit(&mut refinement.encoder, Some(fine));
            return Ok(());
        };
        let (shift, part) = (MAX_DEPTH - unit.depth, unit.first..unit.first + unit.height);
        append_framed(&mut refinement.bytes, &unit.write(&self.bits, fine, shift)?);
        for (bits, fine) in self.bits.chunks_exact_mut(self.rows).zip(fine.chunks_exact(self.rows)) {
            for (bits, fine) in bits[part.clone()].iter_mut().zip(&fine[part.clone()]) {
                *bits = fine >> shift;
            }
        }
        self.count_unit();
        Ok(())
    }

    /// The payload of a refinement that ends here.
    pub(super) fn finished(&self, refinement: Refinement) -> Vec<u8> {
        let Refinement { first, encoder, bytes } = refinement;
        let stream = if self.classes.is_some() { bytes } else { encoder.finish() };
        form::write_refinement(&stream, self.rows, self.columns, first, self.units - first)
    }

    /// What the next unit is, where tables are static.
    fn next_unit(&self) -> Option<Unit<'_>> {
        let (part, depth) = (self.units % self.parts, (self.units / self.parts) as u32 + 1);
        let first = first_of(part, self.rows, self.parts);
        let height = first_of(part + 1, self.rows, self.parts) - first;
        let classes = self.classes.as_ref()?;
        Some(Unit { classes, rows: self.rows, first, height, depth, codes: &self.codes })
    }

    fn read_unit(&mut self, lists: &[u8]) -> Result<(), Wrong> {
        let mut bits = std::mem::take(&mut self.bits);
        let read = self.next_unit().map_or(Ok(()), |unit| unit.read(lists, &mut bits));
        self.bits = bits;
        self.count_unit();
        read
    }

    fn count_unit(&mut self) {
        self.depths[self.units % self.parts] = (self.units / self.parts) as u32 + 1;
        self.units += 1;
    }

    pub(super) fn set_structure(&mut self, structure: &Structure) {
        self.recursion = Some(Recursion::new(&structure.loadings(), self.columns).scaled(&self.steps));
    }

    /// Codes the next unit under adaptive contexts; an encoder brings every number's bits.
    fn unit<D: Bits>(&mut self, coder: &mut D, fine: Option<&[u16]>) {
        let (part, depth) = (self.units % self.parts, (self.units / self.parts) as u32 + 1);
        let places = first_of(part, self.rows, self.parts)..first_of(part + 1, self.rows, self.parts);
        for column in 0..self.columns {
            let mean = self.column_means[column];
            for row in places.clone() {
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
        self.count_unit();
    }

    /// Values of what has come so far, `[rows, columns]` row-major, none beyond `limit`.
    pub fn values(&self, limit: f32) -> Vec<f32> {
        self.values_at(limit, &self.bits, 0, &self.depths)
    }

    /// Values at `depth` bits of every row, from all bits an encoder has.
    pub(super) fn values_of(&self, limit: f32, fine: &[u16], depth: u32) -> Vec<f32> {
        self.values_at(limit, fine, MAX_DEPTH - depth, &vec![depth; self.parts])
    }

    /// Values at some depth of each part; `bits`, shifted down by `shift`, holds them.
    fn values_at(&self, limit: f32, bits: &[u16], shift: u32, depths: &[u32]) -> Vec<f32> {
        let mut values = vec![0.0f32; self.codes.len()];
        let columns = self.columns;
        let tables = if values.len() < TABLES_FROM { Vec::new() } else { [&[0], depths].concat() };
        let levels = Levels::new(self.threshold, &self.offsets, &tables);
        let recursion = self.recursion.as_ref().filter(|recursion| recursion.rank() > 0);
        let chunks = values.par_chunks_mut(ROWS_PER_CHUNK * columns).enumerate();
        chunks.for_each_init(Default::default, |(base, white): &mut (Vec<f32>, Vec<f32>), (index, chunk)| {
            let height = chunk.len() / columns;
            let rows = index * ROWS_PER_CHUNK..index * ROWS_PER_CHUNK + height;
            // Rows of a part lie side by side: part by part here, too.
            let segments: Vec<(u32, Vec<usize>)> = (0..self.parts)
                .map(|part| (depths[part], rows.clone().filter(|row| row % self.parts == part).collect()))
                .filter(|(_, rows): &(u32, Vec<usize>)| !rows.is_empty())
                .collect();
            base.resize(chunk.len(), 0.0);
            white.resize(chunk.len(), 0.0);
            let mut here = 0;
            for column in 0..columns {
                let group = usize::from(self.groups[column]);
                let coarse_levels = levels.at(group, 0);
                for (depth, rows) in &segments {
                    let fine_levels = levels.at(group, *depth);
                    let at = column * self.rows + self.places[rows[0]];
                    prefetch(&self.codes, at + AHEAD * self.rows);
                    prefetch(bits, at + AHEAD * self.rows);
                    let numbers = self.codes[at..at + rows.len()].iter().zip(&bits[at..at + rows.len()]);
                    let to = here..here + rows.len();
                    let targets = base[to.clone()].iter_mut().zip(&mut white[to.clone()]);
                    for (((&code, &bits), &row), (base, white)) in numbers.zip(rows).zip(targets) {
                        let step = self.steps[column] * self.row_factors.get(row).copied().unwrap_or(1.0);
                        let fine = fine_levels.get(code, u32::from(bits >> shift));
                        if recursion.is_some() {
                            let coarse = coarse_levels.get(code, 0);
                            (*base, *white) = (coarse * step, (fine - coarse) * step);
                        } else {
                            *base = fine * step;
                        }
                    }
                    here = to.end;
                }
            }
            if let Some(recursion) = recursion {
                recursion.shape(white, height);
                base.iter_mut().zip(&*white).for_each(|(value, shaped)| *value += shaped);
            }
            base.iter_mut().for_each(|value| *value = value.clamp(-limit, limit));
            let order = segments.iter().flat_map(|(_, rows)| rows).map(|row| row % ROWS_PER_CHUNK);
            let order: Vec<usize> = order.collect();
            for first in (0..columns).step_by(TILE_COLUMNS) {
                for (place, row) in order.iter().enumerate() {
                    let last = columns.min(first + TILE_COLUMNS);
                    let target = &mut chunk[row * columns + first..row * columns + last];
                    let column = base[first * height + place..].iter().step_by(height);
                    target.iter_mut().zip(column).for_each(|(target, value)| *target = *value);
                }
            }
        });
        values
    }
}

/// A refinement on its way into bytes.
#[derive(Debug)]
pub(super) struct Refinement {
    /// Number of its first unit.
    first: usize,
    encoder: RangeEncoder,
    /// Where tables are static: what is finished.
    bytes: Vec<u8>,
}

/// Mean magnitude of each column's codes, and what each row adds to that, rows in order.
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
