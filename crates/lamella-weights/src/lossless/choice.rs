//! How an array is cut and coded, by measured size.
//!
//! A sample of words decides what is worth counting: how many mantissa bits the symbols keep, and which low planes are
//! anything but noise. Then one pass over the array counts, and sums the symbols of each row and column. Where the
//! means of rows or columns differ by more than chance, a second pass counts by class, and the cheapest coding wins.

use lamella_codec::ArraySpec;
use rayon::prelude::*;

use super::StreamError;
use super::fields::{Fields, FloatFields, NARROW_WINDOW, WINDOW, float_format};
use super::planes::{BLOCK_ELEMENTS, fill_plane, rows_and_columns};
use super::stream::{Classes, Coding, Counts, MAX_CLASSES, count};
use super::vector::wide;

/// How an array is cut, and how each of its streams is coded.
pub(crate) struct Choice {
    pub(crate) fields: Fields,
    pub(crate) codings: Vec<Coding>,
}

/// Words of the sample, in runs.
const SAMPLE_WORDS: usize = 1 << 16;
const SAMPLE_RUN: usize = 1 << 10;
/// More kept bits must save this share of the whole: they cost time.
const WORTHWHILE: f64 = 0.0015;
/// A low plane with fewer bits per byte than this in the sample is counted.
const NOISE_BITS: f64 = 7.97;
/// Bits per symbol that classes must promise before they are tried.
const PROMISING_BITS: f64 = 0.004;
/// Bits that a table and a class at least take.
const LEAST_TABLE_BITS: f64 = 80.0;
const LEAST_CLASS_BITS: f64 = 1.0;
/// The same of columns, which cost time: a table per symbol has to be gathered from memory.
const PROMISING_COLUMNS_BITS: f64 = 0.05;
/// Classes of columns must bring a stream down to this share of what it takes without.
const COLUMNS_MUST_PAY: f64 = 0.98;
/// A wide window must save this share of the whole: its tables are looked up in memory, those of a narrow one searched
/// in registers, at less than half the time.
const WIDE_MUST_PAY: f64 = 0.004;
/// Octaves above the sample's greatest magnitude that the window leaves room for.
const HEADROOM: u16 = 2;

pub(crate) fn choose(spec: &ArraySpec, bytes: &[u8]) -> Result<Choice, StreamError> {
    let width = spec.dtype.size_bytes();
    let elements = bytes.len() / width;
    let sample = sample(bytes, width);
    let fields = choose_fields(spec, &sample);
    let n_symbols = usize::from(fields.has_symbols());
    let counted: Vec<bool> = (0..fields.low_planes())
        .map(|plane| {
            let mut bytes = vec![0; sample.len() / width];
            fill_plane(&fields, &sample, plane, &mut bytes);
            let mut counts = [0; 256];
            count(&bytes, &mut counts);
            // A small sample of noise looks skewed: about 255 / (2 ln 2) bits in all.
            entropy_bits(&counts) < NOISE_BITS * bytes.len() as f64 - 184.0 || elements <= SAMPLE_WORDS
        })
        .collect();
    let (rows, columns) = rows_and_columns(&spec.shape, elements);
    // Classes are for the stream that says how large an element is: the symbols, or the one byte of a narrow type.
    let has_classes =
        (fields.has_symbols() || width == 1) && rows > 1 && columns > 1 && rows * columns == elements;
    let has_sums = has_classes && elements >= 1 << 12;
    let blocks: Vec<Census> = bytes
        .par_chunks(BLOCK_ELEMENTS * width)
        .enumerate()
        .map_init(Vec::new, |scratch, (block, bytes)| {
            let start = block * BLOCK_ELEMENTS;
            Census::take(&fields, &counted, bytes, has_sums.then_some((start, columns)), scratch)
        })
        .collect();
    let mut census = Census::merge(blocks, rows, columns, has_sums);
    // An empty array has streams, too.
    census.counts.resize(n_symbols + counted.len(), None);
    let mut codings = Vec::with_capacity(n_symbols + counted.len());
    for (stream, counts) in census.counts.iter().enumerate() {
        let coding = match counts {
            None => Coding::Raw,
            Some(counts) => {
                let (coding, bits) = Coding::choose(std::slice::from_ref(counts), Classes::One)?;
                match &coding {
                    Coding::Tables(..) if stream == 0 && has_sums => {
                        with_classes(&fields, bytes, &census, counts, (rows, columns), (coding, bits))?
                    }
                    _ => coding,
                }
            }
        };
        codings.push(coding);
    }
    Ok(Choice { fields, codings })
}

/// Runs of words from all over the array.
fn sample(bytes: &[u8], width: usize) -> Vec<u8> {
    let words = bytes.len() / width;
    if words <= SAMPLE_WORDS {
        return bytes.to_vec();
    }
    let n_runs = SAMPLE_WORDS / SAMPLE_RUN;
    let stride = (words - SAMPLE_RUN) / (n_runs - 1);
    let mut sample = Vec::with_capacity(SAMPLE_WORDS * width);
    for run in 0..n_runs {
        sample.extend_from_slice(&bytes[run * stride * width..(run * stride + SAMPLE_RUN) * width]);
    }
    sample
}

fn choose_fields(spec: &ArraySpec, sample: &[u8]) -> Fields {
    let width = spec.dtype.size_bytes();
    let Some((mantissa_bits, kept)) = float_format(spec.dtype) else { return Fields::Bytes { width } };
    // A part of the sample is enough for this, from all over the array again.
    let mut part = Vec::with_capacity(sample.len() / 4 + SAMPLE_RUN * width);
    sample.chunks(SAMPLE_RUN * width / 4).step_by(4).for_each(|run| part.extend_from_slice(run));
    let sample = &part[..];
    let n = sample.len() / width;
    let (mut best, mut best_bits) = (None, f64::INFINITY);
    let mut values = vec![0u16; n];
    for kept_bits in kept {
        let mut fields = FloatFields { width, mantissa_bits, kept_bits, window_start: 1, window: WINDOW };
        fields.values(sample, &mut values);
        let greatest = values.iter().max().map_or(0, |&value| usize::from(value));
        let mut counts = vec![0u32; greatest + 1];
        values.iter().for_each(|&value| counts[usize::from(value)] += 1);
        // All of the rest is paid: trailing zeros of numbers that were rounded once do not depend on the kept bits.
        let rest = (fields.rest_bits() as usize * n) as f64;
        let wide = (greatest + (usize::from(HEADROOM) << kept_bits)).saturating_sub(253).max(1);
        let last = (greatest + 1).saturating_sub(NARROW_WINDOW.into()).max(1);
        // From the narrow window that ends with the greatest value down to where the great ones begin to count.
        let narrow = (last.saturating_sub(2 << kept_bits).max(1)..=last)
            .map(|start| (start, window_bits(&counts, start, NARROW_WINDOW, n)))
            .fold((last, f64::INFINITY), |best, found| if found.1 <= best.1 { found } else { best });
        let wide = (wide, window_bits(&counts, wide, WINDOW, n));
        for ((start, bits), window, share) in
            [(narrow, NARROW_WINDOW, 1.0), (wide, WINDOW, 1.0 + WIDE_MUST_PAY)]
        {
            (fields.window_start, fields.window) = (start as u16, window);
            let bits = (bits + rest) * share;
            if bits < best_bits * (1.0 - WORTHWHILE) {
                (best, best_bits) = (Some(fields), bits);
            }
        }
    }
    best.map_or(Fields::Bytes { width }, Fields::Float)
}

/// Ideal size of `n` symbols with this window, escapes included, in bits.
fn window_bits(counts: &[u32], start: usize, window: u16, n: usize) -> f64 {
    let mut symbols = [0; 256];
    symbols[1] = u64::from(counts[0]);
    let inside = counts.iter().skip(start).take(window.into());
    symbols[2..].iter_mut().zip(inside).for_each(|(symbol, &count)| *symbol = u64::from(count));
    symbols[0] = n as u64 - symbols.iter().sum::<u64>();
    entropy_bits(&symbols) + 16.0 * symbols[0] as f64
}

/// Ideal size of what was counted, in bits.
pub(crate) fn entropy_bits(counts: &Counts) -> f64 {
    let total: u64 = counts.iter().sum();
    counts
        .iter()
        .filter(|&&count| count > 0)
        .map(|&count| count as f64 * (total as f64 / count as f64).log2())
        .sum()
}

/// What one pass over some elements counts.
struct Census {
    /// Counts of each stream, `None` where it is not counted.
    counts: Vec<Option<Counts>>,
    /// Sums of the first stream by row, from this row on.
    first_row: usize,
    rows: Vec<u64>,
    /// Sums of the first stream by column.
    columns: Vec<u64>,
}

impl Census {
    fn take(
        fields: &Fields,
        counted: &[bool],
        bytes: &[u8],
        place: Option<(usize, usize)>,
        scratch: &mut Vec<u8>,
    ) -> Self {
        let length = bytes.len() / fields.width();
        scratch.resize(length, 0);
        let mut census = Self { counts: Vec::new(), first_row: 0, rows: Vec::new(), columns: Vec::new() };
        let counts_of = |symbols: &[u8], census: &mut Self| {
            let mut counts = [0; 256];
            count(symbols, &mut counts);
            if let (Some((start, columns)), true) = (place, census.counts.is_empty()) {
                census.sum(symbols, start, columns);
            }
            census.counts.push(Some(counts));
        };
        if let Fields::Float(fields) = fields {
            fields.symbols(bytes, scratch);
            counts_of(scratch, &mut census);
        }
        for (plane, &is_counted) in counted.iter().enumerate() {
            if is_counted {
                fill_plane(fields, bytes, plane, scratch);
                counts_of(scratch, &mut census);
            } else {
                census.counts.push(None);
            }
        }
        census
    }

    fn sum(&mut self, symbols: &[u8], start: usize, columns: usize) {
        self.first_row = start / columns;
        // A column has at most as many elements as a block, so 32 bits hold its sum.
        let mut sums = vec![0u32; columns];
        let mut position = 0;
        while position < symbols.len() {
            let column = (start + position) % columns;
            let row = &symbols[position..(position + columns - column).min(symbols.len())];
            wide(|| {
                for (sum, &symbol) in sums[column..].iter_mut().zip(row) {
                    *sum = sum.wrapping_add(u32::from(symbol));
                }
            });
            let sum = |part: &[u8]| {
                wide(|| part.iter().fold(0u32, |sum, &symbol| sum.wrapping_add(u32::from(symbol))))
            };
            self.rows.push(row.chunks(1 << 16).map(|part| u64::from(sum(part))).sum());
            position += row.len();
        }
        self.columns = sums.into_iter().map(u64::from).collect();
    }

    fn merge(blocks: Vec<Self>, rows: usize, columns: usize, has_sums: bool) -> Self {
        let mut merged = Self { counts: Vec::new(), first_row: 0, rows: Vec::new(), columns: Vec::new() };
        if has_sums {
            merged.rows = vec![0; rows];
            merged.columns = vec![0; columns];
        }
        for block in blocks {
            if merged.counts.is_empty() {
                merged.counts = block.counts;
            } else {
                for (sum, counts) in merged.counts.iter_mut().zip(&block.counts) {
                    if let (Some(sum), Some(counts)) = (sum, counts) {
                        sum.iter_mut().zip(counts).for_each(|(sum, &count)| *sum += count);
                    }
                }
            }
            for (sum, row) in merged.rows.iter_mut().skip(block.first_row).zip(&block.rows) {
                *sum += row;
            }
            for (sum, column) in merged.columns.iter_mut().zip(&block.columns) {
                *sum += column;
            }
        }
        merged
    }
}

/// The best of one table, classes of rows and classes of columns, for the first stream.
fn with_classes(
    fields: &Fields,
    bytes: &[u8],
    census: &Census,
    counts: &Counts,
    (rows, columns): (usize, usize),
    one: (Coding, f64),
) -> Result<Coding, StreamError> {
    let mut best = one;
    let mut promising = Vec::new();
    for (sums, per_sum, is_rows) in [(&census.rows, columns, true), (&census.columns, rows, false)] {
        let least = if is_rows { PROMISING_BITS } else { PROMISING_COLUMNS_BITS };
        if promised_bits(sums, per_sum, counts) < least {
            continue;
        }
        let classes = classes_of(sums, rows * columns);
        let by_class = count_classes(fields, bytes, columns, &classes, is_rows);
        // Fitting tables is slow: only what promises most is tried, and only where it can pay for tables and lists.
        let ideal = by_class.iter().map(entropy_bits).sum::<f64>();
        let expected =
            ideal + LEAST_TABLE_BITS * by_class.len() as f64 + LEAST_CLASS_BITS * classes.len() as f64;
        // A table per symbol is coded by the slower encoder: columns must pay.
        let expected = if is_rows { expected } else { expected / COLUMNS_MUST_PAY };
        if expected < best.1 {
            promising.push((expected, is_rows, classes, by_class));
        }
    }
    promising.sort_by(|left, right| left.0.total_cmp(&right.0));
    if let Some((_, is_rows, classes, by_class)) = promising.into_iter().next() {
        let classes = if is_rows { Classes::Rows(classes) } else { Classes::Columns(classes) };
        let found = Coding::choose(&by_class, classes)?;
        if found.1 < best.1 * if is_rows { 1.0 } else { COLUMNS_MUST_PAY } {
            best = found;
        }
    }
    Ok(best.0)
}

/// Bits per symbol that knowing the mean of its row (or column) would save if all were Gaussian.
fn promised_bits(sums: &[u64], per_sum: usize, counts: &Counts) -> f64 {
    let n = (sums.len() * per_sum) as f64;
    let moment = |power: i32| {
        counts
            .iter()
            .enumerate()
            .map(|(symbol, &count)| count as f64 * (symbol as f64).powi(power))
            .sum::<f64>()
    };
    let mean = moment(1) / n;
    let variance = moment(2) / n - mean * mean;
    let between =
        sums.iter().map(|&sum| (sum as f64 / per_sum as f64 - mean).powi(2)).sum::<f64>() / sums.len() as f64;
    // Means of equal rows differ by chance.
    let explained = (between - variance / per_sum as f64).max(0.0);
    if variance <= 0.0 { 0.0 } else { -0.5 * (1.0 - (explained / variance).min(0.999)).log2() }
}

/// Classes of equal size by rising mean.
fn classes_of(sums: &[u64], elements: usize) -> Vec<u8> {
    let n_classes = (elements >> 14).clamp(2, MAX_CLASSES).min(sums.len());
    let mut order: Vec<usize> = (0..sums.len()).collect();
    order.sort_by_key(|&index| (sums[index], index));
    let mut classes = vec![0; sums.len()];
    for (rank, &index) in order.iter().enumerate() {
        classes[index] = (rank * n_classes / sums.len()) as u8;
    }
    classes
}

fn count_classes(
    fields: &Fields,
    bytes: &[u8],
    columns: usize,
    classes: &[u8],
    is_rows: bool,
) -> Vec<Counts> {
    let n_classes = classes.iter().max().map_or(1, |&greatest| usize::from(greatest) + 1);
    let width = fields.width();
    bytes
        .par_chunks(BLOCK_ELEMENTS * width)
        .enumerate()
        .map_init(Vec::new, |scratch: &mut Vec<u8>, (block, bytes)| {
            let start = block * BLOCK_ELEMENTS;
            scratch.resize(bytes.len() / width, 0);
            match fields {
                Fields::Float(fields) => fields.symbols(bytes, scratch),
                Fields::Bytes { .. } => scratch.copy_from_slice(bytes),
            }
            // Two histograms a class: equal neighbours then rarely wait for each other.
            let mut counts = vec![[[0u32; 256]; 2]; n_classes];
            let (mut position, mut rest) = (start, &scratch[..]);
            while !rest.is_empty() {
                let (row, column) = (position / columns, position % columns);
                let (part, after) = rest.split_at((columns - column).min(rest.len()));
                if is_rows {
                    let [even, odd] = &mut counts[usize::from(classes[row])];
                    let (pairs, last) = part.as_chunks::<2>();
                    for [first, second] in pairs {
                        even[usize::from(*first)] = even[usize::from(*first)].wrapping_add(1);
                        odd[usize::from(*second)] = odd[usize::from(*second)].wrapping_add(1);
                    }
                    last.iter().for_each(|&symbol| even[usize::from(symbol)] += 1);
                } else {
                    for (&symbol, &class) in part.iter().zip(&classes[column..]) {
                        counts[usize::from(class)][0][usize::from(symbol)] += 1;
                    }
                }
                position += part.len();
                rest = after;
            }
            let sum = |[even, odd]: &[[u32; 256]; 2]| {
                std::array::from_fn(|symbol| u64::from(even[symbol]) + u64::from(odd[symbol]))
            };
            counts.iter().map(sum).collect::<Vec<Counts>>()
        })
        .reduce(
            || vec![[0; 256]; n_classes],
            |mut sum, block| {
                for (sum, block) in sum.iter_mut().zip(&block) {
                    sum.iter_mut().zip(block).for_each(|(sum, &count)| *sum += count);
                }
                sum
            },
        )
}
