//! Sections 4.8 and 4.9 of docs/format.md: rANS with its tables, and `exact`.

use crate::codecs::packed;
use crate::coders::{AdaptiveBit, AdaptiveGolomb, NEW_BIT, NEW_GOLOMB, RangeDecoder};
use crate::container::{Reader, Result, check, refuse};

const BAD: &str = "damaged";

/// 4.9: an array in blocks of streams.
pub(crate) fn decode(recipe: &str, dtype: usize, shape: &[u64], payload: &[u8]) -> Result<Vec<u8>> {
    check(recipe == "exact", BAD, "the base is not at hand")?;
    let mut reader = Reader(payload);
    check(reader.fixed(1)? == 0, BAD, "an unknown form")?;
    let elements = shape.iter().product::<u64>();
    check(reader.any_varint()? == elements, BAD, "another number of elements")?;
    let elements = elements as usize;
    let columns = shape.last().map_or(1, |&columns| columns.max(1)) as usize;
    let n_blocks = elements.div_ceil(1 << 18);
    check(n_blocks <= reader.0.len(), BAD, "more blocks than bytes")?;

    // Fields: `low` planes of whole bytes, and for floats a symbol and `head` bits.
    let width = [8, 4, 2, 2, 1, 1, 8, 4, 2, 1, 8, 4, 2, 1, 1][dtype];
    let fields = reader.fixed(1)? as u32;
    let formats = [(52, 0, 3), (23, 0, 3), (10, 3, 4), (7, 0, 3)];
    let (mut rest_bits, mut window_start) = (8 * width as u32, 0);
    if fields > 0 {
        let (mantissa_bits, least, most) = formats.get(dtype).copied().ok_or("damaged: no float")?;
        check((least..=most).contains(&(fields - 1)), BAD, "kept bits")?;
        rest_bits = mantissa_bits - (fields - 1) + 1;
        window_start = reader.fixed(2)?;
    }
    let (low, head_bits, is_float) = ((rest_bits / 8) as usize, rest_bits as usize % 8, fields > 0);
    let streams: Vec<Stream> = (0..low + usize::from(is_float))
        .map(|_| Stream::read(&mut reader, elements / columns, columns))
        .collect::<Result<_>>()?;

    // Index.
    let n_coded = streams.iter().filter(|stream| matches!(stream, Stream::Coded(..))).count();
    let lengths: Vec<Vec<u64>> =
        (0..n_blocks).map(|_| (0..=n_coded).map(|_| reader.any_varint()).collect()).collect::<Result<_>>()?;

    // Blocks.
    let mut out = Vec::new();
    for (block, lengths) in lengths.iter().enumerate() {
        let start = block << 18;
        let count = (elements - start).min(1 << 18);
        check(is_float || lengths[0] == 0, BAD, "escapes without symbols")?;
        let (mut coded, mut planes) = (lengths[1..].iter(), Vec::new());
        let (mut escapes, mut head): (&[u8], Vec<u64>) = (&[], vec![0; count]);
        for (index, stream) in streams.iter().enumerate() {
            planes.push(match stream {
                Stream::Raw => reader.take(count as u64)?.to_vec(),
                Stream::Constant(byte) => vec![*byte; count],
                Stream::Coded(bits, tables, classes) => {
                    let data = reader.take(*coded.next().unwrap_or(&0))?;
                    let table_of = |place: usize| classes.table_of(start + place, columns);
                    let (&lanes, data) = data.split_first().ok_or("damaged: no lanes")?;
                    rans(data, lanes, *bits, tables, table_of, count)?
                }
            });
            if index == 0 && is_float {
                escapes = reader.take(lengths[0])?;
                let mut bytes = Reader(reader.take((count.div_ceil(8) * head_bits) as u64)?);
                head = packed(&mut bytes, count, head_bits)?;
            }
        }
        let mut escapes = Reader(escapes);
        for place in 0..count {
            let of_low = planes[usize::from(is_float)..].iter().enumerate();
            let low_bits =
                of_low.fold(0u64, |sum, (index, plane)| sum | u64::from(plane[place]) << (8 * index));
            let mut word = low_bits;
            if is_float {
                let (mantissa, word_bits) = (rest_bits - 1, 8 * width as u32);
                let rest = low_bits | head[place] << (8 * low);
                let value = match u64::from(planes[0][place]) {
                    0 => escapes.fixed(2)?,
                    1 => 0,
                    symbol => symbol - 2 + window_start,
                };
                let is_escape = planes[0][place] == 0;
                let kept = u64::MAX >> (64 - word_bits + u32::from(is_escape));
                word = (rest >> mantissa) << (word_bits - 1)
                    | value << mantissa & kept
                    | rest & ((1 << mantissa) - 1);
            }
            out.extend_from_slice(&word.to_le_bytes()[..width]);
        }
        check(escapes.0.is_empty(), BAD, "escapes are left over")?;
    }
    check(reader.0.is_empty(), BAD, "bytes are left over")?;
    Ok(out)
}

enum Classes {
    One,
    Rows(Vec<u8>),
    Columns(Vec<u8>),
}

impl Classes {
    fn table_of(&self, element: usize, columns: usize) -> usize {
        match self {
            Self::One => 0,
            Self::Rows(classes) => usize::from(classes[element / columns]),
            Self::Columns(classes) => usize::from(classes[element % columns]),
        }
    }
}

enum Stream {
    Raw,
    Constant(u8),
    Coded(u32, Vec<Vec<u32>>, Classes),
}

impl Stream {
    fn read(reader: &mut Reader<'_>, rows: usize, columns: usize) -> Result<Self> {
        let first = reader.fixed(1)?;
        let (mode, bits) = (first & 15, 8 + (first >> 4) as u32);
        check(bits <= if mode < 2 { 8 } else { 12 }, BAD, "probability bits")?;
        let (mut n_tables, mut classes) = (1, Vec::new());
        match mode {
            0 => return Ok(Self::Raw),
            1 => return Ok(Self::Constant(reader.fixed(1)? as u8)),
            2 => {}
            3 | 4 => {
                n_tables = reader.fixed(1)? as usize;
                let length = reader.any_varint()?;
                classes = rans_array(reader.take(length)?, if mode == 3 { rows } else { columns })?;
                let is_known = classes.iter().all(|&class| usize::from(class) < n_tables);
                check(is_known && n_tables <= 16, BAD, "a class without a table")?;
            }
            _ => return refuse(BAD, "unknown coding of a stream"),
        }
        check(n_tables > 0, BAD, "no tables")?;
        let length = reader.any_varint()?;
        let mut decoder = RangeDecoder::new(reader.take(length)?);
        let mut model = TableModel::new();
        let tables = (0..n_tables).map(|_| model.read(&mut decoder, bits)).collect::<Result<_>>()?;
        let classes = match mode {
            2 => Classes::One,
            3 => Classes::Rows(classes),
            _ => Classes::Columns(classes),
        };
        Ok(Self::Coded(bits, tables, classes))
    }
}

/// 4.8: symbols with a table of their own.
fn rans_array(bytes: &[u8], count: usize) -> Result<Vec<u8>> {
    if count == 0 {
        check(bytes.is_empty(), BAD, "bytes are left over")?;
        return Ok(Vec::new());
    }
    let mut reader = Reader(bytes);
    let first = reader.fixed(1)?;
    match (first & 3, first >> 2, reader.0.len()) {
        (1, 0, 1) => Ok(vec![reader.0[0]; count]),
        (2, 0, length) if length == count => Ok(reader.0.to_vec()),
        (0, ..) => {
            let bits = 8 + (first >> 4) as u32;
            check(bits <= 12, BAD, "probability bits")?;
            let length = reader.any_varint()?;
            let mut decoder = RangeDecoder::new(reader.take(length)?);
            let table = TableModel::new().read(&mut decoder, bits)?;
            rans(reader.0, (first >> 2 & 3) as u8, bits, &[table], |_| 0, count)
        }
        _ => refuse(BAD, "kind of symbols"),
    }
}

/// 4.8: chunks of 2^20 symbols; `tables` hold cumulative frequencies.
fn rans(
    bytes: &[u8],
    lanes: u8,
    bits: u32,
    tables: &[Vec<u32>],
    table_of: impl Fn(usize) -> usize,
    count: usize,
) -> Result<Vec<u8>> {
    let n_lanes = *[1, 4, 8, 32].get(usize::from(lanes)).ok_or("damaged: lanes")?;
    let (mut reader, mut chunks, mut out) = (Reader(bytes), Vec::new(), Vec::new());
    for _ in 1..count.div_ceil(1 << 20) {
        let length = reader.any_varint()?;
        chunks.push(reader.take(length)?);
    }
    chunks.push(reader.0);
    for (index, chunk) in chunks.into_iter().enumerate() {
        let mut words = Reader(chunk);
        let states_bytes = if n_lanes == 1 { chunk.len().min(4) as u64 } else { 4 };
        let mut states: Vec<u64> = (0..n_lanes).map(|_| words.fixed(states_bytes)).collect::<Result<_>>()?;
        let start = index << 20;
        for place in start..count.min(start + (1 << 20)) {
            let state = &mut states[(place - start) % n_lanes];
            let (table, slot) = (&tables[table_of(place)], (*state & ((1 << bits) - 1)) as u32);
            let symbol = table.partition_point(|&cumulative| cumulative <= slot) - 1;
            let frequency = table[symbol + 1] - table[symbol];
            *state = (u64::from(frequency) * (*state >> bits)) + u64::from(slot - table[symbol]);
            if *state < 1 << 16 && !(n_lanes == 1 && words.0.len() < 2) {
                *state = *state << 16 | words.fixed(2)?;
            }
            out.push(symbol as u8);
        }
        let last = if n_lanes == 1 { 0 } else { 1 << 16 };
        check(words.0.is_empty() && states.iter().all(|&state| state == last), BAD, "the last states")?;
    }
    Ok(out)
}

/// 4.8: what is learned while tables are read.
struct TableModel {
    precision: [AdaptiveBit; 8],
    size: AdaptiveGolomb,
    is_zero: [AdaptiveBit; 4],
    is_same: [AdaptiveBit; 5],
    is_negative: [AdaptiveBit; 5],
    magnitude: AdaptiveGolomb,
}

impl TableModel {
    fn new() -> Self {
        Self {
            precision: [NEW_BIT; 8],
            size: NEW_GOLOMB,
            is_zero: [NEW_BIT; 4],
            is_same: [NEW_BIT; 5],
            is_negative: [NEW_BIT; 5],
            magnitude: NEW_GOLOMB,
        }
    }

    /// Cumulative frequencies of 256 symbols.
    fn read(&mut self, decoder: &mut RangeDecoder<'_>, bits: u32) -> Result<Vec<u32>> {
        let mut node = 1;
        for _ in 0..3 {
            node = node << 1 | usize::from(decoder.adaptive(&mut self.precision[node]));
        }
        let precision = node as u32 & 7;
        let size = decoder.golomb(&mut self.size) as usize;
        check(size <= 256, BAD, "the size of a table")?;
        let greatest = level_of((1 << bits) - 1, precision);
        let (mut weights, mut last, mut context, mut zeros) = ([0u64; 256], 0i64, 0, 0);
        for weight in &mut weights[..size] {
            let is_zero = decoder.adaptive(&mut self.is_zero[zeros]);
            zeros = (zeros << 1 | usize::from(is_zero)) & 3;
            if is_zero {
                continue;
            }
            let mut difference = 0;
            if !decoder.adaptive(&mut self.is_same[context]) {
                let is_negative = decoder.adaptive(&mut self.is_negative[context]);
                difference = i64::from(decoder.golomb(&mut self.magnitude).min(1 << 16)) + 1;
                difference = if is_negative { -difference } else { difference };
            }
            context = [1, 2, 0, 3, 4][(difference.clamp(-2, 2) + 2) as usize];
            last += difference;
            check((0..=greatest).contains(&last), BAD, "a level of a table")?;
            let level = last as u64;
            *weight = match level >> precision {
                0 | 1 => level,
                octave => ((level & ((1 << precision) - 1)) + (1 << precision)) << (octave - 1),
            };
        }
        cumulative(&mut weights, 1 << bits)
    }
}

fn level_of(frequency: u32, precision: u32) -> i64 {
    let shift = frequency.ilog2().saturating_sub(precision);
    let rounded = if shift > 0 { (frequency + (1 << (shift - 1))) >> shift } else { frequency };
    i64::from((shift << precision) + rounded)
}

/// Weights to frequencies that sum to `units`, and these to their sums.
fn cumulative(weights: &mut [u64; 256], units: u64) -> Result<Vec<u32>> {
    let n_used = weights.iter().filter(|&&weight| weight > 0).count();
    check(n_used > 0 && n_used as u64 <= units, BAD, "the symbols of a table")?;
    if n_used == 1 {
        let only = weights.iter().position(|&weight| weight > 0).unwrap_or(0);
        weights[only] = units - 1;
        weights[if only < 255 { only + 1 } else { only - 1 }] = 1;
    }
    let total: u64 = weights.iter().sum();
    let share = |weight: u64| ((weight * units + total / 2) / total).clamp(1, units - 1);
    let mut frequencies = weights.map(|weight| if weight > 0 { share(weight) } else { 0 });
    loop {
        let sum: u64 = frequencies.iter().sum();
        let gain = |symbol: usize, f: u64| weights[symbol] * (log2(f + 1) - log2(f));
        let used = (0..256).filter(|&symbol| weights[symbol] > 0);
        if sum < units {
            let grown = used.filter(|&symbol| frequencies[symbol] < units - 1);
            let best = grown.rev().max_by_key(|&symbol| gain(symbol, frequencies[symbol]));
            frequencies[best.ok_or("damaged: a table")?] += 1;
        } else if sum > units {
            let shrunk = used.filter(|&symbol| frequencies[symbol] > 1);
            let best = shrunk.min_by_key(|&symbol| gain(symbol, frequencies[symbol] - 1));
            frequencies[best.ok_or("damaged: a table")?] -= 1;
        } else {
            break;
        }
    }
    let mut sums = vec![0];
    for (symbol, frequency) in frequencies.into_iter().enumerate() {
        sums.push(sums[symbol] + frequency as u32);
    }
    Ok(sums)
}

/// Binary logarithm with 16 fractional bits, rounded down.
fn log2(value: u64) -> u64 {
    let whole = u64::from(value.max(1).ilog2());
    let (mut mantissa, mut fraction) = (value << (31 - whole), 0);
    for _ in 0..16 {
        mantissa = (mantissa * mantissa) >> 31;
        let digit = mantissa >> 32;
        (mantissa, fraction) = (mantissa >> digit, fraction << 1 | digit);
    }
    whole << 16 | fraction
}
