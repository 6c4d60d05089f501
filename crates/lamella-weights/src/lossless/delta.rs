//! An array as its difference to the same array of a base model.
//!
//! # Idea
//! Fine-tuning moves weights by little. The base's value, rounded to the array's own type, predicts it; what is coded
//! is the difference of *ordered bit patterns* (neighbouring floats differ by 1), turned so that positive means away
//! from zero. How large it is depends on how coarse the grid is there, so the table is chosen by the base's exponent;
//! and a base that lies just under a rounding border is more likely to have crossed it, so also by the first bits that
//! rounding took away (the *fraction*).
//!
//! # Stored form
//! ```text
//! u8       form: 1 delta, 2 the rounded base itself (then only the next field follows)
//! varint   elements
//! u8       log2 of the number of fractions: 0 or 3
//! u8       lowest exponent, u8 number of exponents: others count as the nearest of these
//! bits     for each context (fraction, then exponent rising), lowest bit first: whether a new table begins
//! u8       probability bits
//! tables   as in planes
//! index    for each block: varint bytes of symbols, varint bytes of extra bits
//! blocks   symbols (rANS, a table per symbol), extra bits
//! ```
//! Differences up to ±94 are the symbols 0 to 188. A larger one has `m = |d| - 94`, `b = floor(log2 m)`, the symbol
//! `189 + 2 b` (one more where negative) and the `b` extra bits `m - 2^b`, lowest first.

use lamella_codec::{Array, ArraySpec, Dtype};
use lamella_entropy::bits::{BitReader, BitWriter};
use lamella_entropy::models::header::{self, FittedTable};
use lamella_entropy::rans::{self, Assignment, DecodeTables};
use lamella_entropy::varint::{read_varint, write_varint};
use rayon::prelude::*;

use super::StreamError;
use super::planes::BLOCK_ELEMENTS;
use super::stream::{Counts, encode_tables, read_tables, reserve, take, write_tables};

/// First bytes of payloads.
pub(crate) const FORM_DELTA: u8 = 1;
pub(crate) const FORM_SAME: u8 = 2;

/// Greatest difference with a symbol of its own.
const DIRECT: i64 = 94;
const FRACTION_BITS: u32 = 3;
const MAX_EXPONENTS: usize = 32;

/// Mantissa bits of the types whose differences are coded.
fn mantissa_bits(dtype: Dtype) -> Option<u32> {
    match dtype {
        Dtype::F32 => Some(23),
        Dtype::F16 => Some(10),
        Dtype::BF16 => Some(7),
        Dtype::F8E4M3 => Some(3),
        Dtype::F8E5M2 => Some(2),
        _ => None,
    }
}

/// What the base says of a block: a predicted bit pattern, its exponent and its fraction for each element.
struct Prediction {
    words: Vec<u32>,
    exponents: Vec<u8>,
    fractions: Vec<u8>,
}

fn predict(spec: &ArraySpec, base: &Array<'_>, block: usize) -> Result<Prediction, StreamError> {
    let unfit = |error: lamella_codec::ArrayError| StreamError::Damaged(error.to_string());
    let mantissa = mantissa_bits(spec.dtype)
        .ok_or_else(|| StreamError::Damaged(format!("{} has no deltas", spec.dtype.name())))?;
    let width = base.spec.dtype.size_bytes();
    let start = block * BLOCK_ELEMENTS * width;
    let part = &base.bytes[start..(start + BLOCK_ELEMENTS * width).min(base.bytes.len())];
    let length = part.len() / width;
    let values = Array::new(ArraySpec::new("", vec![length], base.spec.dtype), part).map_err(unfit)?;
    let values = values.to_f32().map_err(unfit)?;
    let words = if spec.dtype == base.spec.dtype {
        read_words(part, width)
    } else {
        let rounded =
            Array::from_f32(ArraySpec::new("", vec![length], spec.dtype), &values).map_err(unfit)?;
        read_words(&rounded.bytes, spec.dtype.size_bytes())
    };
    let magnitude = magnitude_mask(spec.dtype);
    let exponents = words.iter().map(|word| ((word & magnitude) >> mantissa).min(255) as u8).collect();
    let lost = 23 - mantissa;
    let fractions = values
        .iter()
        .map(|value| {
            let below = value.to_bits() & ((1 << lost) - 1);
            if lost < FRACTION_BITS { 0 } else { (below >> (lost - FRACTION_BITS)) as u8 }
        })
        .collect();
    Ok(Prediction { words, exponents, fractions })
}

fn magnitude_mask(dtype: Dtype) -> u32 {
    u32::MAX >> (33 - 8 * dtype.size_bytes() as u32)
}

fn read_words(bytes: &[u8], width: usize) -> Vec<u32> {
    let word = |bytes: &[u8]| bytes.iter().rev().fold(0u32, |word, &byte| word << 8 | u32::from(byte));
    bytes.chunks_exact(width).map(word).collect()
}

/// Bit patterns in the order of the numbers: neighbours differ by 1, and the two zeros are two.
fn ordered(word: u32, magnitude: u32) -> i64 {
    let absolute = i64::from(word & magnitude);
    if word & !magnitude == 0 { absolute } else { -1 - absolute }
}

/// The difference away from zero, as symbol and extra bits.
fn symbol_of(difference: i64, extra: &mut BitWriter) -> u8 {
    if difference.abs() <= DIRECT {
        return (difference + DIRECT) as u8;
    }
    let above = (difference.abs() - DIRECT) as u64;
    let bits = above.ilog2();
    extra.write((above - (1 << bits)) as u32, bits);
    (2 * DIRECT + 1) as u8 + 2 * bits as u8 + u8::from(difference < 0)
}

fn difference_of(symbol: u8, extra: &mut BitReader<'_>) -> Option<i64> {
    let symbol = i64::from(symbol);
    if symbol <= 2 * DIRECT {
        return Some(symbol - DIRECT);
    }
    let (bits, is_negative) = ((symbol - 2 * DIRECT - 1) / 2, (symbol - 2 * DIRECT - 1) % 2 == 1);
    let above = (1i64 << bits) + i64::from(extra.read(bits as u32).ok().filter(|_| bits <= 32)?);
    Some(if is_negative { -DIRECT - above } else { DIRECT + above })
}

/// Codes an array as its difference to `base`; `None` where the types have no deltas or the shapes differ.
///
/// # Errors
/// None for arrays whose bytes fill their shapes; the type leaves room.
pub fn encode_delta(array: &Array<'_>, base: &Array<'_>) -> Result<Option<Vec<u8>>, StreamError> {
    let (spec, width) = (&array.spec, array.spec.dtype.size_bytes());
    if mantissa_bits(spec.dtype).is_none() || !base.spec.dtype.is_float() || spec.shape != base.spec.shape {
        return Ok(None);
    }
    let magnitude = magnitude_mask(spec.dtype);
    let n = spec.len();
    let blocks: Vec<(Vec<u8>, Vec<u8>, Prediction, bool)> = array
        .bytes
        .par_chunks(BLOCK_ELEMENTS * width)
        .enumerate()
        .map(|(block, bytes)| {
            let prediction = predict(spec, base, block)?;
            let mut extra = BitWriter::new();
            let words = read_words(bytes, width);
            let is_same = words == prediction.words;
            let symbols = words
                .iter()
                .zip(&prediction.words)
                .map(|(&word, &predicted)| {
                    let (word, predicted) = (ordered(word, magnitude), ordered(predicted, magnitude));
                    symbol_of(if predicted < 0 { predicted - word } else { word - predicted }, &mut extra)
                })
                .collect();
            Ok((symbols, extra.finish(), prediction, is_same))
        })
        .collect::<Result<_, StreamError>>()?;
    if blocks.iter().all(|block| block.3) {
        let mut payload = vec![FORM_SAME];
        write_varint(&mut payload, n as u64);
        return Ok(Some(payload));
    }
    let greatest = blocks.iter().flat_map(|block| &block.2.exponents).copied().max().unwrap_or(0);
    let lowest = greatest.saturating_sub(MAX_EXPONENTS as u8 - 1);
    let n_exponents = usize::from(greatest - lowest) + 1;
    let bits = if n < 1024 { 10 } else { 12 };
    let mut best: Option<(Contexts, f64)> = None;
    for fraction_bits in [0, FRACTION_BITS] {
        let mut contexts = Contexts { fraction_bits, lowest, n_exponents, starts: Vec::new() };
        let mut counts: Vec<Counts> = vec![[0; 256]; n_exponents << fraction_bits];
        for (symbols, _, prediction, _) in &blocks {
            for (element, &symbol) in symbols.iter().enumerate() {
                counts[contexts.of(prediction, element)][usize::from(symbol)] += 1;
            }
        }
        let cost = contexts.group(&counts, bits)?;
        if best.as_ref().is_none_or(|best| cost < best.1) {
            best = Some((contexts, cost));
        }
    }
    let Some((contexts, _)) = best else { return Ok(None) };
    let tables = contexts.tables(&blocks, bits)?;
    let mut payload = vec![FORM_DELTA];
    write_varint(&mut payload, n as u64);
    contexts.write(&mut payload);
    payload.push(bits as u8);
    write_tables(&tables, &mut payload);
    let (map, tables) = (contexts.map(), encode_tables(&tables)?);
    let coded: Vec<Vec<u8>> = blocks
        .par_iter()
        .map(|(symbols, _, prediction, _)| {
            let indexes: Vec<u8> =
                (0..symbols.len()).map(|element| map[contexts.of(prediction, element)]).collect();
            Ok(rans::encode_payload(symbols, &tables, &Assignment::PerSymbol(&indexes))?)
        })
        .collect::<Result<_, StreamError>>()?;
    for (symbols, block) in coded.iter().zip(&blocks) {
        write_varint(&mut payload, symbols.len() as u64);
        write_varint(&mut payload, block.1.len() as u64);
    }
    for (symbols, block) in coded.iter().zip(&blocks) {
        payload.extend_from_slice(symbols);
        payload.extend_from_slice(&block.1);
    }
    Ok(Some(payload))
}

/// What a table is chosen by.
struct Contexts {
    fraction_bits: u32,
    lowest: u8,
    n_exponents: usize,
    /// Whether a new table begins at each context.
    starts: Vec<bool>,
}

impl Contexts {
    fn of(&self, prediction: &Prediction, element: usize) -> usize {
        let exponent = usize::from(prediction.exponents[element].saturating_sub(self.lowest));
        let fraction = usize::from(prediction.fractions[element] >> (FRACTION_BITS - self.fraction_bits));
        fraction * self.n_exponents + exponent.min(self.n_exponents - 1)
    }

    /// Joins neighbouring contexts where one table is cheaper than two; returns the bits of all.
    fn group(&mut self, counts: &[Counts], bits: u32) -> Result<f64, StreamError> {
        let fit = |counts: &Counts| -> Result<f64, StreamError> {
            let is_empty = counts.iter().all(|&count| count == 0);
            Ok(if is_empty { 0.0 } else { header::fit(counts, bits, None)?.total_bits })
        };
        let (mut current, mut current_bits, mut total) = ([0u64; 256], 0.0, 0.0);
        self.starts = vec![false; counts.len()];
        for (context, counts) in counts.iter().enumerate() {
            let mut joined = current;
            joined.iter_mut().zip(counts).for_each(|(sum, &count)| *sum += count);
            let (alone, together) = (fit(counts)?, fit(&joined)?);
            if context > 0 && together > current_bits + alone {
                self.starts[context] = true;
                total += current_bits;
                (current, current_bits) = (*counts, alone);
            } else {
                (current, current_bits) = (joined, together);
            }
        }
        Ok(total + current_bits + counts.len() as f64)
    }

    fn tables(
        &self,
        blocks: &[(Vec<u8>, Vec<u8>, Prediction, bool)],
        bits: u32,
    ) -> Result<Vec<FittedTable>, StreamError> {
        let map = self.map();
        let mut counts: Vec<Counts> = vec![[0; 256]; map.last().map_or(1, |&last| usize::from(last) + 1)];
        for (symbols, _, prediction, _) in blocks {
            for (element, &symbol) in symbols.iter().enumerate() {
                counts[usize::from(map[self.of(prediction, element)])][usize::from(symbol)] += 1;
            }
        }
        counts
            .iter_mut()
            .map(|counts| {
                if counts.iter().all(|&count| count == 0) {
                    counts[DIRECT as usize] = 1;
                }
                Ok(header::fit(counts, bits, None)?)
            })
            .collect()
    }

    /// The table of each context.
    fn map(&self) -> Vec<u8> {
        let mut table = 0u8;
        self.starts
            .iter()
            .map(|&starts| {
                table += u8::from(starts);
                table
            })
            .collect()
    }

    fn write(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&[self.fraction_bits as u8, self.lowest, self.n_exponents as u8]);
        let mut bits = BitWriter::new();
        self.starts.iter().for_each(|&starts| bits.write(u32::from(starts), 1));
        out.extend_from_slice(&bits.finish());
    }

    fn read(input: &mut &[u8]) -> Result<Self, StreamError> {
        let head = take(input, 3)?;
        let (fraction_bits, n_exponents) = (u32::from(head[0]), usize::from(head[2]));
        let is_valid =
            matches!(fraction_bits, 0 | FRACTION_BITS) && (1..=MAX_EXPONENTS).contains(&n_exponents);
        if !is_valid {
            return Err(StreamError::Damaged("contexts out of range".to_owned()));
        }
        let n_contexts = n_exponents << fraction_bits;
        let mut bits = BitReader::new(take(input, n_contexts.div_ceil(8) as u64)?);
        let starts: Vec<bool> = (0..n_contexts).map(|_| bits.read(1) == Ok(1)).collect();
        // The first context always has the first table.
        if starts[0] {
            return Err(StreamError::Damaged("a table without contexts".to_owned()));
        }
        Ok(Self { fraction_bits, lowest: head[1], n_exponents, starts })
    }
}

/// Decodes an array from its difference to `base`.
///
/// # Errors
/// A damaged payload, or a base of another shape.
pub fn decode_delta(spec: &ArraySpec, payload: &[u8], base: &Array<'_>) -> Result<Vec<u8>, StreamError> {
    let damaged = |message: &str| StreamError::Damaged(message.to_owned());
    if mantissa_bits(spec.dtype).is_none() {
        return Err(StreamError::Damaged(format!("{} has no deltas", spec.dtype.name())));
    }
    let mut input = payload;
    let form = take(&mut input, 1)?[0];
    let claimed = read_varint(&mut input)?;
    let width = spec.dtype.size_bytes();
    let n = spec.checked_len().filter(|&n| n as u64 == claimed && spec.checked_size_bytes().is_some());
    let n = n.ok_or_else(|| damaged("it holds another number of elements"))?;
    if base.spec.shape != spec.shape || base.spec.len() != n {
        return Err(StreamError::Damaged(format!(
            "the base has shape {:?}, not {:?}",
            base.spec.shape, spec.shape
        )));
    }
    let magnitude = magnitude_mask(spec.dtype);
    let mut out = Vec::new();
    reserve(&mut out, n * width)?;
    out.resize(n * width, 0);
    let chunks = out.par_chunks_mut(BLOCK_ELEMENTS * width).enumerate();
    if form == FORM_SAME {
        if !input.is_empty() {
            return Err(damaged("bytes are left over"));
        }
        chunks
            .map(|(block, out)| {
                write_words(predict(spec, base, block)?.words.into_iter(), width, out);
                Ok(())
            })
            .collect::<Result<(), StreamError>>()?;
        return Ok(out);
    }
    if form != FORM_DELTA {
        return Err(StreamError::Damaged(format!("form {form} is not known")));
    }
    let contexts = Contexts::read(&mut input)?;
    let map = contexts.map();
    let bits = u32::from(take(&mut input, 1)?[0]);
    if !(8..=12).contains(&bits) {
        return Err(damaged("probability bits out of range"));
    }
    let n_tables = map.last().map_or(1, |&last| usize::from(last) + 1);
    let tables = DecodeTables::new(&read_tables(&mut input, n_tables, bits)?)?;
    let mut lengths = Vec::new();
    for _ in 0..n.div_ceil(BLOCK_ELEMENTS) {
        lengths.push((read_varint(&mut input)?, read_varint(&mut input)?));
    }
    let mut blocks = Vec::with_capacity(lengths.len());
    for (symbols, extra) in lengths {
        blocks.push((take(&mut input, symbols)?, take(&mut input, extra)?));
    }
    if !input.is_empty() {
        return Err(damaged("bytes are left over"));
    }
    chunks
        .zip(&blocks)
        .map(|((block, out), &(coded, extra))| {
            let prediction = predict(spec, base, block)?;
            let length = out.len() / width;
            let indexes: Vec<u8> =
                (0..length).map(|element| map[contexts.of(&prediction, element)]).collect();
            let mut symbols = vec![0; length];
            rans::decode_payload(coded, &tables, &Assignment::PerSymbol(&indexes), &mut symbols)?;
            let mut extra = BitReader::new(extra);
            let words = symbols.iter().zip(&prediction.words).map(|(&symbol, &predicted)| {
                let predicted = ordered(predicted, magnitude);
                let difference = difference_of(symbol, &mut extra)?;
                let word = if predicted < 0 { predicted - difference } else { predicted + difference };
                let absolute = u32::try_from(if word < 0 { -1 - word } else { word }).ok()?;
                (absolute <= magnitude).then_some(absolute | if word < 0 { magnitude + 1 } else { 0 })
            });
            let words: Vec<u32> = words
                .collect::<Option<_>>()
                .ok_or_else(|| damaged("a difference leaves the type's range"))?;
            if extra.remaining_bits() >= 8 {
                return Err(damaged("extra bits are left over"));
            }
            write_words(words.into_iter(), width, out);
            Ok(())
        })
        .collect::<Result<(), StreamError>>()?;
    Ok(out)
}

fn write_words(words: impl Iterator<Item = u32>, width: usize, out: &mut [u8]) {
    for (out, word) in out.chunks_exact_mut(width).zip(words) {
        out.copy_from_slice(&word.to_le_bytes()[..width]);
    }
}
