//! Sections 4.4 to 4.7 of docs/format.md: what each recipe stores.

use crate::coders::{AdaptiveGolomb, NEW_GOLOMB, RangeDecoder};
use crate::container::{Reader, Result, check, refuse};
use crate::exact;

/// 4.4: a payload of `recipe` to the bytes of an array.
pub(crate) fn decode(recipe: &str, dtype: usize, shape: &[u64], layers: &[&[u8]]) -> Result<Vec<u8>> {
    let [payload] = layers else { return refuse("damaged", "not one layer") };
    let name = recipe.split('(').next().unwrap_or_default();
    if name == "exact" {
        return exact::decode(recipe, dtype, shape, payload);
    }
    check(shape.len() > 1 && dtype < 6, "damaged", "no matrix of floats")?;
    let (rows, columns) = (shape[0] as usize, shape[1..].iter().product::<u64>() as usize);
    let (values, limit) = match name {
        "rtn" | "gptq" => (grouped(recipe, rows, columns, payload)?, largest(dtype)),
        "house" => (house(rows, columns, payload)?, largest(dtype)),
        _ => return refuse("recipe", name),
    };
    Ok(values.into_iter().flat_map(|value| stored(value.clamp(-limit, limit), dtype)).collect())
}

/// The value of an argument in a recipe's text.
fn argument<'r>(recipe: &'r str, name: &str, default: &'r str) -> &'r str {
    let arguments = recipe.split_once('(').map_or("", |(_, rest)| rest.trim_end_matches(')'));
    let mut pairs = arguments.split(", ").filter_map(|argument| argument.split_once('='));
    pairs.find(|(found, _)| *found == name).map_or(default, |(_, value)| value)
}

/// Exponent and mantissa bits of the narrow float types.
fn format(dtype: usize) -> (i32, i32) {
    [(11, 52), (8, 23), (5, 10), (8, 7), (4, 3), (5, 2)][dtype]
}

fn largest(dtype: usize) -> f32 {
    [f32::MAX, f32::MAX, 65_504.0, f32::from_bits(0x7f7f_0000), 448.0, 57_344.0][dtype]
}

/// A number in the array's type, rounded to nearest, ties to even.
fn stored(value: f32, dtype: usize) -> Vec<u8> {
    if dtype == 0 {
        return f64::from(value).to_le_bytes().to_vec();
    }
    if dtype == 1 {
        return value.to_le_bytes().to_vec();
    }
    let (exponent_bits, mantissa_bits) = format(dtype);
    let bias = (1 << (exponent_bits - 1)) - 1;
    let exponent = ((value.to_bits() >> 23 & 255) as i32 - 127).max(1 - bias);
    let quanta = f64::from(value.abs()) * 2f64.powi(mantissa_bits - exponent);
    let magnitude = ((exponent + bias - 1) << mantissa_bits) + quanta.round_ties_even() as i32;
    let width = 1 + exponent_bits + mantissa_bits;
    let sign = i32::from(value.is_sign_negative()) << (width - 1);
    (magnitude | sign).to_le_bytes()[..width as usize / 8].to_vec()
}

/// 4.5 and 4.6: codes on a grid per group.
fn grouped(recipe: &str, rows: usize, columns: usize, payload: &[u8]) -> Result<Vec<f32>> {
    let number = |name: &str, default| argument(recipe, name, default).parse::<usize>();
    let (Ok(bits), Ok(size)) = (number("bits", "4"), number("group_size", "128")) else {
        return refuse("recipe", recipe);
    };
    let has_order = argument(recipe, "order", "natural") == "activation";
    let is_dynamic = argument(recipe, "groups", "static") == "dynamic";
    let is_integer = argument(recipe, "zero", "float") == "integer";
    let per_row = columns.div_ceil(size);
    let mut reader = Reader(payload);
    let scales = halves(&mut reader, rows * per_row)?;
    let minima = if is_integer {
        let points = packed(&mut reader, rows * per_row, bits)?;
        scales.iter().zip(points).map(|(scale, point)| -(scale * point as f32)).collect()
    } else {
        halves(&mut reader, rows * per_row)?
    };
    let mut order: Vec<usize> = (0..columns).collect();
    if has_order {
        let width = if columns <= 65_536 { 2 } else { 4 };
        for place in &mut order {
            *place = reader.fixed(width)? as usize;
        }
        let mut sorted = order.clone();
        sorted.sort_unstable();
        check(sorted.into_iter().eq(0..columns), "damaged", "not an order of the columns")?;
    }
    let codes = packed(&mut reader, rows * columns, bits)?;
    check(reader.0.is_empty(), "damaged", "bytes are left over")?;
    let mut values = vec![0.0; rows * columns];
    for (index, code) in codes.into_iter().enumerate() {
        let (row, position) = (index / columns, index % columns);
        let column = order[position];
        let group = row * per_row + if is_dynamic { position } else { column } / size;
        values[row * columns + column] = scales[group] * code as f32 + minima[group];
    }
    Ok(values)
}

fn halves(reader: &mut Reader<'_>, count: usize) -> Result<Vec<f32>> {
    let half = |bits: u64| {
        let (exponent, mantissa) = ((bits >> 10 & 31) as i32, (bits & 1023) as f32);
        check(exponent < 31, "damaged", "a scale or minimum is not finite")?;
        let hidden = if exponent > 0 { 1024.0 } else { 0.0 };
        let magnitude = (hidden + mantissa) * 2f32.powi(exponent.max(1) - 25);
        Ok(if bits >> 15 == 1 { -magnitude } else { magnitude })
    };
    (0..count).map(|_| half(reader.fixed(2)?)).collect()
}

pub(crate) fn packed(reader: &mut Reader<'_>, count: usize, bits: usize) -> Result<Vec<u64>> {
    let bytes = reader.take((count * bits).div_ceil(8) as u64)?;
    let bit = |index: usize| u64::from(bytes[index / 8] >> (index % 8) & 1);
    Ok((0..count).map(|i| (0..bits).fold(0, |code, b| code | bit(i * bits + b) << b)).collect())
}

/// 4.7: steps, offsets and codes under the adaptive coder.
fn house(rows: usize, columns: usize, payload: &[u8]) -> Result<Vec<f32>> {
    let mut reader = Reader(payload);
    let (flags, sum, base) = (reader.fixed(1)?, reader.fixed(2)?, reader.fixed(3)?);
    let stream = reader.0;
    let memory = flags as usize & 15;
    check(flags < 32 && memory != 1 && memory < 9, "damaged", "unknown flags")?;
    let part = |count: usize, factor| count as u64 % 65_521 * factor;
    let expected = (part(stream.len(), 1) + part(rows, 31) + part(columns, 1009)) % 65_521;
    check(sum == expected, "damaged", "the payload belongs to another shape")?;
    let base = f32::from_bits((base as u32) << 8);
    check((2f32.powi(-96)..=2f32.powi(96)).contains(&base), "damaged", "the base step")?;

    let first = Models::new();
    let mut decoder = RangeDecoder::new(stream);
    let exponents = first.clone().sequence(&mut decoder, columns, 88);
    let row_exponents = first.clone().sequence(&mut decoder, if flags & 16 != 0 { rows } else { 0 }, 16);
    let group_of = |exponent: i32| ((exponent + 16) >> 2).clamp(0, 7) as usize;
    let groups = exponents.iter().map(|&exponent| group_of(exponent));
    let (low, high) = groups.fold((8, 0), |(low, high), group| (low.min(group), high.max(group)));
    let n_quantizers = if memory == 0 { 1 } else { 2 };
    let n_offsets = (high + 1).saturating_sub(low) * n_quantizers * 3;
    let offsets = first.clone().sequence(&mut decoder, n_offsets, 127);
    let steps: Vec<f32> = exponents.iter().map(|&exponent| base * power(exponent)).collect();

    let (feedback, forward) =
        [(0, 0), (0, 0), (5, 2), (11, 4), (19, 4), (37, 8), (67, 20), (157, 86), (333, 242)][memory];
    let (mut models, mut states) = (first, vec![0u32; rows.div_ceil(64)]);
    let (mut seen, mut total) = (vec![0f32; rows], 0f32);
    let (mut spread, mut weight_of_spread) = (0f32, 0f32);
    let mut values = vec![0f32; rows * columns];
    for (column, &step) in steps.iter().enumerate() {
        let inverse = 1.0 / (8.0 + total);
        let factors: Vec<f32> = seen.iter().map(|seen| (8.0 + seen) * inverse).collect();
        let expected = if weight_of_spread > 0.0 { spread / weight_of_spread / step } else { 1.0 };
        let (mut sum, mut weight, mut estimate) = (24.0 * expected, 24f32, 0f32);
        let mut positions = Vec::with_capacity(rows);
        for row in 0..rows {
            if row % 8 == 0 {
                estimate = sum / weight;
            }
            let state = &mut states[row / 64];
            let quantizer = *state as usize & 1;
            let code = models.code(&mut decoder, class_of(estimate * factors[row]), quantizer);
            let odd = |number: u32, mask: u32| if number & 1 == 1 { mask >> 1 } else { 0 };
            *state = *state >> 1 ^ odd(*state, feedback) ^ odd(code.unsigned_abs(), forward);
            let magnitude = code.unsigned_abs() as f32;
            positions.push(if code == 0 { 0.0 } else { magnitude - 0.5 * quantizer as f32 });
            sum += positions[row];
            weight += factors[row];
            if code != 0 {
                let cell = (code.unsigned_abs() as usize - 1).min(2);
                let place = ((group_of(exponents[column]) - low) * n_quantizers + quantizer) * 3 + cell;
                let level = positions[row] - offsets[place] as f32 / 64.0;
                let level = if code < 0 { -level } else { level };
                let factor = row_exponents.get(row).map_or(1.0, |&exponent| power(2 * exponent));
                values[row * columns + column] = level * (step * factor);
            }
        }
        let mean = (sum - 24.0 * expected).max(0.0) / (weight - 24.0).max(0.001);
        let information = 1.0 / (mean + 0.5);
        for (seen, position) in seen.iter_mut().zip(positions) {
            *seen += position * information;
        }
        total += mean * information;
        spread = spread * (63.0 / 64.0) + mean * information * (mean * step);
        weight_of_spread = weight_of_spread * (63.0 / 64.0) + mean * information;
    }
    check(decoder.overrun() <= 4, "damaged", "the stream ends early")?;
    Ok(values)
}

/// `2^(exponent / 4)`.
fn power(exponent: i32) -> f32 {
    let quarters = [0x3f80_0000, 0x3f98_37f0, 0x3fb5_04f3, 0x3fd7_44fd].map(f32::from_bits);
    2f32.powi(exponent.div_euclid(4)) * quarters[exponent.rem_euclid(4) as usize]
}

fn class_of(expected: f32) -> usize {
    ((expected.max(0.0).to_bits() >> 21).saturating_sub(476) as usize).min(63)
}

fn shift_of(class: usize) -> u32 {
    (class as u32 / 4).saturating_sub(11)
}

#[derive(Clone)]
struct Table {
    counts: Vec<u32>,
    total: u32,
    rebuild_at: u32,
    cumulative: Vec<u32>,
}

impl Table {
    fn new(mean: f64, quantizer: usize) -> Self {
        let position = |symbol: usize| if symbol == 0 { 0.0 } else { symbol as f64 - 0.5 * quantizer as f64 };
        let bell = |width: f64| {
            let weight = |symbol: usize| {
                let x = position(symbol) / width;
                let base = 1.0 / (1.0 + x * x / 16.0);
                let (square, sides) = (base * base, if symbol == 0 { 1.0 } else { 2.0 });
                sides * (square * square) * (square * square)
            };
            let weights: Vec<f64> = (0..40).map(weight).collect();
            let total = weights.iter().fold(0.0, |sum, weight| sum + weight);
            let moment = (0..40).fold(0.0, |sum, symbol| sum + weights[symbol] * position(symbol));
            (weights.into_iter().map(move |weight| weight / total), moment / total)
        };
        let (mut low, mut high) = (0.0625, 64.0);
        for _ in 0..40 {
            let middle = 0.5 * (low + high);
            if bell(middle).1 < mean { low = middle } else { high = middle }
        }
        let count = |weight: f64| (weight * 1536.0) as u32 + u32::from(weight > 1e-4);
        let counts: Vec<u32> = bell(0.5 * (low + high)).0.map(count).collect();
        let mut table = Self { total: counts.iter().sum(), counts, rebuild_at: 0, cumulative: Vec::new() };
        table.rebuild();
        table
    }

    fn learn(&mut self, symbol: usize) {
        self.counts[symbol] += 16;
        self.total += 16;
        if self.total >= self.rebuild_at {
            self.rebuild();
        }
    }

    fn rebuild(&mut self) {
        if self.total > 1 << 20 {
            self.counts.iter_mut().for_each(|count| *count = count.div_ceil(2));
            self.total = self.counts.iter().sum();
        }
        let share = |&count: &u32| 1 + (u64::from(count) * 32_728 / u64::from(self.total)) as u32;
        let mut frequencies: Vec<u32> = self.counts.iter().map(share).collect();
        frequencies[0] += 32_768 - frequencies.iter().sum::<u32>();
        self.cumulative = vec![0];
        for (symbol, frequency) in frequencies.into_iter().enumerate() {
            self.cumulative.push(self.cumulative[symbol] + frequency);
        }
        self.rebuild_at = self.total + (self.total / 8).max(256);
    }
}

#[derive(Clone)]
struct Models {
    tables: Vec<[Table; 2]>,
    escapes: AdaptiveGolomb,
}

impl Models {
    fn new() -> Self {
        let mean = |class: usize| {
            let octave = 2f64.powi(class as i32 / 4 - 8 - shift_of(class) as i32);
            (1.0 + ((class % 4) as f64 + 0.5) / 4.0) * octave
        };
        let tables = (0..64).map(|class| [0, 1].map(|quantizer| Table::new(mean(class), quantizer)));
        Self { tables: tables.collect(), escapes: NEW_GOLOMB }
    }

    fn code(&mut self, decoder: &mut RangeDecoder<'_>, class: usize, quantizer: usize) -> i32 {
        let (shift, most) = (shift_of(class), 1 << 22);
        let table = &mut self.tables[class][quantizer];
        let mut magnitude = decoder.symbol(&table.cumulative, 15) as u32;
        table.learn(magnitude as usize);
        if magnitude == 39 {
            magnitude = 39u32.saturating_add(decoder.golomb(&mut self.escapes)).min(most);
        }
        if shift > 0 {
            magnitude = (magnitude << shift | decoder.raw(shift)).min(most);
        }
        let is_negative = magnitude > 0 && decoder.raw(1) == 1;
        if is_negative { -(magnitude as i32) } else { magnitude as i32 }
    }

    fn sequence(mut self, decoder: &mut RangeDecoder<'_>, count: usize, most: i32) -> Vec<i32> {
        let (mut sum, mut weight) = (2f32, 2f32);
        let mut next = || {
            let number = self.code(decoder, class_of(sum / weight), 0);
            sum += number.unsigned_abs() as f32;
            weight += 1.0;
            number.clamp(-most, most)
        };
        (0..count).map(|_| next()).collect()
    }
}
