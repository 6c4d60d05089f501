//! The models of a stream in few bytes: adaptive range coding, each field under what was seen before.

use super::fit::{CodedModel, MAX_RADIUS, Model, PROBABILITY_BITS};
use crate::error::{Result, corrupt};
use crate::models::header::{HeaderModel, rounded};
use crate::models::{Parametric, Shape};
use crate::range::{AdaptiveBit, AdaptiveGolomb, RangeDecoder, RangeEncoder};

/// What header fields learn from one model to the next.
#[derive(Default)]
pub(super) struct Fields {
    is_zero: AdaptiveBit,
    shift: AdaptiveGolomb,
    radius: AdaptiveGolomb,
    has_escape: AdaptiveBit,
    shape: Tree<8>,
    dead_zone: Tree<8>,
    scale: AdaptiveGolomb,
    scale_sign: AdaptiveBit,
    is_learned: AdaptiveBit,
    table: HeaderModel,
    is_new: AdaptiveBit,
    last: Option<(u32, u8)>,
}

/// A number below `N` (a power of two) as adaptive bits, most significant first.
struct Tree<const N: usize>([AdaptiveBit; N]);

impl<const N: usize> Default for Tree<N> {
    fn default() -> Self {
        Self([AdaptiveBit::new(); N])
    }
}

impl<const N: usize> Tree<N> {
    fn write(&mut self, encoder: &mut RangeEncoder, value: usize) {
        let mut node = 1;
        for index in (0..N.ilog2()).rev() {
            let bit = value >> index & 1;
            encoder.encode_adaptive(&mut self.0[node], bit == 1);
            node = node << 1 | bit;
        }
    }

    fn read(&mut self, decoder: &mut RangeDecoder<'_>) -> usize {
        let mut node = 1;
        for _ in 0..N.ilog2() {
            node = node << 1 | usize::from(decoder.decode_adaptive(&mut self.0[node]));
        }
        node - N
    }
}

impl Fields {
    pub(super) fn write_model(&mut self, encoder: &mut RangeEncoder, model: &Model) {
        encoder.encode_adaptive(&mut self.is_zero, *model == Model::Zero);
        let Model::Coded(model) = model else { return };
        self.shift.encode(encoder, model.shift);
        match self.last {
            None => {
                encoder.encode_raw(model.radius, 7);
                encoder.encode_raw(u32::from(model.base.scale_index), 8);
            }
            Some((radius, scale)) => {
                self.radius.encode(encoder, crate::bits::golomb::zigzag(model.radius as i32 - radius as i32));
                let difference = i32::from(model.base.scale_index) - i32::from(scale);
                self.scale.encode(encoder, difference.unsigned_abs());
                if difference != 0 {
                    encoder.encode_adaptive(&mut self.scale_sign, difference < 0);
                }
            }
        }
        self.last = Some((model.radius, model.base.scale_index));
        encoder.encode_adaptive(&mut self.has_escape, model.has_escape);
        self.shape.write(encoder, model.base.shape.index());
        self.dead_zone.write(encoder, usize::from(model.base.dead_zone & 7));
        encoder.encode_adaptive(&mut self.is_learned, model.learned.is_some());
        if let Some((exact, precision)) = &model.learned {
            let cells = CodedModel::cells(model.shift, model.radius);
            let base = model.base.frequencies(cells, model.has_escape, PROBABILITY_BITS).ok();
            self.table.write(encoder, exact, base.as_ref(), *precision);
        }
    }

    pub(super) fn read_model(&mut self, decoder: &mut RangeDecoder<'_>) -> Result<Model> {
        if decoder.decode_adaptive(&mut self.is_zero) {
            return Ok(Model::Zero);
        }
        let shift = self.shift.decode(decoder);
        let (radius, scale) = match self.last {
            None => (decoder.decode_raw(7) as i32, decoder.decode_raw(8) as i32),
            Some((radius, scale)) => {
                let change = crate::bits::golomb::unzigzag(self.radius.decode(decoder).min(1 << 10));
                let magnitude = self.scale.decode(decoder).min(1 << 10) as i32;
                let negative = magnitude != 0 && decoder.decode_adaptive(&mut self.scale_sign);
                (radius as i32 + change, i32::from(scale) + if negative { -magnitude } else { magnitude })
            }
        };
        let (Ok(radius), Ok(scale_index)) = (u32::try_from(radius), u8::try_from(scale)) else {
            return Err(corrupt("model of a column class"));
        };
        if shift > 25 || radius == 0 || radius > MAX_RADIUS {
            return Err(corrupt("model of a column class"));
        }
        self.last = Some((radius, scale_index));
        let has_escape = decoder.decode_adaptive(&mut self.has_escape);
        let shape = Shape::ALL[self.shape.read(decoder) & 7];
        let dead_zone = self.dead_zone.read(decoder) as u8;
        let base = Parametric { shape, scale_index, dead_zone, location: 0 };
        let cells = CodedModel::cells(shift, radius);
        let mut frequencies = base.frequencies(cells, has_escape, PROBABILITY_BITS)?;
        if decoder.decode_adaptive(&mut self.is_learned) {
            frequencies = self.table.read(
                decoder,
                frequencies.alphabet_size(),
                PROBABILITY_BITS,
                Some(&frequencies),
            )?;
        }
        Ok(Model::Coded(CodedModel { shift, radius, has_escape, base, learned: None, frequencies }))
    }

    /// Which model a class uses: a new one, or the index of an earlier one.
    pub(super) fn write_index(&mut self, encoder: &mut RangeEncoder, index: usize, known: usize) {
        encoder.encode_adaptive(&mut self.is_new, index == known);
        if index < known && known > 1 {
            // The latest model is the likeliest: classes come in order.
            write_uniform(encoder, (known - 1 - index) as u32, known as u32);
        }
    }

    pub(super) fn read_index(&mut self, decoder: &mut RangeDecoder<'_>, known: usize) -> Result<usize> {
        if decoder.decode_adaptive(&mut self.is_new) {
            return Ok(known);
        }
        if known == 0 {
            return Err(corrupt("model index"));
        }
        if known == 1 {
            return Ok(0);
        }
        Ok(known - 1 - (read_uniform(decoder, known as u32) as usize).min(known - 1))
    }
}

fn write_uniform(encoder: &mut RangeEncoder, value: u32, count: u32) {
    encoder.encode_raw(value, 32 - (count - 1).leading_zeros());
}

fn read_uniform(decoder: &mut RangeDecoder<'_>, count: u32) -> u32 {
    decoder.decode_raw(32 - (count - 1).leading_zeros())
}

/// The table a decoder will use for a model, for checking the encoder against it.
pub(super) fn table_of(model: &CodedModel) -> Result<crate::models::Frequencies> {
    match &model.learned {
        Some((exact, precision)) => rounded(exact, *precision),
        None => {
            let cells = CodedModel::cells(model.shift, model.radius);
            model.base.frequencies(cells, model.has_escape, PROBABILITY_BITS)
        }
    }
}
