//! docs/format.md, 4.4 to 4.9: what arrays are decoded by.

use std::array::from_fn;
use std::iter;

use super::decoder::*;

// 4.4 Recipes and arrays.
const MANTISSA_BITS: [usize; 6] = [52, 23, 10, 7, 3, 2];
pub(crate) fn decode(recipe: &str, dtype: usize, shape: &[usize], layers: &[&[u8]]) -> Result<Vec<u8>> {
    let [payload] = layers else { return Err("damaged") };
    let (name, arguments) = recipe.trim_end_matches(')').split_once('(').unwrap_or((recipe, ""));
    let values = match name {
        "exact" if arguments.is_empty() => return exact(dtype, shape, payload),
        "exact" | "rtn" | "gptq" | "house" if shape.len() < 2 || dtype > 5 => return Err("damaged"),
        "rtn" | "gptq" => grouped(arguments, shape, payload)?,
        "house" => house(shape, payload)?,
        _ => return Err("recipe"),
    };
    let largest = [f32::MAX, f32::MAX, 65_504.0, f32::from_bits(0x7f7f_0000), 448.0, 57_344.0][dtype];
    let (width, mantissa_bits) = (DTYPE_BYTES[dtype], MANTISSA_BITS[dtype] as i32);
    let bias = (1 << (8 * width as i32 - 2 - mantissa_bits)) - 1;
    let stored = |value: f32| {
        let value = f64::from(value.clamp(-largest, largest));
        let exponent = ((value.to_bits() >> 52 & 2047) as i32 - 1023).max(1 - bias);
        let quanta = (value.abs() / 2f64.powi(exponent) * 2f64.powi(mantissa_bits)).round_ties_even() as i64;
        let magnitude = (i64::from(exponent + bias - 1) << mantissa_bits) + quanta;
        let sign = i64::from(value.is_sign_negative()) << (8 * width - 1);
        (magnitude | sign).to_le_bytes().into_iter().take(width)
    };
    Ok(values.into_iter().flat_map(stored).collect())
}

/// 4.5 `rtn` and 4.6 `gptq`.
fn grouped(arguments: &str, shape: &[usize], payload: &[u8]) -> Result<Vec<f32>> {
    let (rows, columns, mut reader) = (shape[0], shape[1..].iter().product::<usize>(), Reader(payload));
    let value = |name: &str| arguments.split(", ").find_map(|argument| argument.strip_prefix(name));
    let number = |name, default| value(name).map_or(default, |text| text.parse().unwrap_or(0));
    let (bits, size) = (number("bits=", 4), number("group_size=", 128));
    check((2..=8).contains(&bits) && size > 0, "recipe")?;
    let half = |reader: &mut Reader<'_>| {
        let half = reader.fixed(2)? as u32;
        let number = f32::from_bits(half >> 15 << 31 | (half & 0x7fff) << 13) * 2f32.powi(112);
        check(half >> 10 & 31 < 31, "damaged").and(Ok(number))
    };
    let (is_integer, groups) = (value("zero=") == Some("integer"), rows * columns.div_ceil(size));
    let scales = reader.list(groups, half)?;
    let minima = reader.list(if is_integer { 0 } else { groups }, half)?;
    let points = reader.packed(if is_integer { groups } else { 0 }, bits)?;
    let n_places = if value("order=") == Some("activation") { columns } else { 0 };
    let order = reader.list(n_places, |reader| reader.fixed(if columns > 65_536 { 4 } else { 2 }))?;
    check((0..n_places).all(|column| order.contains(&column)), "damaged")?;
    let codes = reader.packed(rows * columns, bits)?;
    let mut values = vec![0.0; rows * columns];
    for (index, code) in codes.into_iter().enumerate() {
        let (row, place) = (index / columns, index % columns);
        let column = *order.get(place).unwrap_or(&place);
        let in_row = if value("groups=") == Some("dynamic") { place } else { column } / size;
        let group = row * columns.div_ceil(size) + in_row;
        let minimum = if is_integer { -(scales[group] * points[group] as f32) } else { minima[group] };
        values[row * columns + column] = scales[group] * code as f32 + minimum;
    }
    check(reader.0.is_empty(), "damaged").and(Ok(values))
}

/// 4.7 `house`.
fn house(shape: &[usize], payload: &[u8]) -> Result<Vec<f32>> {
    let (rows, columns, mut reader) = (shape[0], shape[1..].iter().product::<usize>(), Reader(payload));
    let (flags, sum, base) = (reader.fixed(1)?, reader.fixed(2)?, reader.fixed(3)? as u32);
    let (memory, base, decoder) = (flags % 16, f32::from_bits(base << 8), &mut RangeDecoder::new(reader.0));
    let is_base = (2f32.powi(-96)..=2f32.powi(96)).contains(&base);
    check(flags < 32 && memory != 1 && memory < 9 && is_base, "damaged")?;
    check(sum == (reader.0.len() + rows % 65_521 * 31 + columns % 65_521 * 1009) % 65_521, "damaged")?;
    let mut sequence = |count: usize, most: i32| {
        let (mut next, mut sum, mut weight) = (numbers(), 2f32, 2f32);
        let mut number = || {
            let number = next(decoder, sum / weight, 0);
            (sum, weight) = (sum + number.unsigned_abs() as f32, weight + 1.0);
            number.clamp(-most, most)
        };
        (0..count).map(|_| number()).collect::<Vec<i32>>()
    };
    let exponents = sequence(columns, 88);
    let row_exponents = sequence(if flags & 16 != 0 { rows } else { 0 }, 16);
    // Steps and offsets.
    let quarters = [0x3f80_0000, 0x3f98_37f0, 0x3fb5_04f3, 0x3fd7_44fd].map(f32::from_bits);
    let power = |n: i32| 2f32.powi(n.div_euclid(4)) * quarters[n.rem_euclid(4) as usize];
    let groups: Vec<usize> = exponents.iter().map(|n| ((n + 16) >> 2).clamp(0, 7) as usize).collect();
    let lowest = groups.iter().min().map_or(0, |&lowest| lowest);
    let n_groups = groups.iter().max().map_or(0, |highest| highest + 1 - lowest);
    let n_quantizers = if memory == 0 { 1 } else { 2 };
    let offsets = sequence(n_groups * n_quantizers * 3, 127);
    // Codes.
    let taps = [(0, 0), (0, 0), (5, 2), (11, 4), (19, 4), (37, 8), (67, 20), (157, 86), (333, 242)][memory];
    let (mut next, mut states) = (numbers(), vec![0; rows.div_ceil(64)]);
    let (mut values, mut sums) = (vec![0.0; rows * columns], vec![0f32; rows]);
    let (mut total, mut spread, mut spread_weight) = (0f32, 0f32, 0f32);
    for column in 0..columns {
        let (step, inverse) = (base * power(exponents[column]), 1.0 / (8.0 + total));
        let factors: Vec<f32> = sums.iter().map(|sum| (8.0 + sum) * inverse).collect();
        let expected = if spread_weight > 0.0 { spread / spread_weight / step } else { 1.0 };
        let (mut sum, mut weight, mut estimate, mut positions) = (24.0 * expected, 24f32, 0f32, Vec::new());
        for row in 0..rows {
            estimate = if row % 8 == 0 { sum / weight } else { estimate };
            let state = &mut states[row / 64];
            let quantizer = *state % 2;
            let code = next(decoder, estimate * factors[row], quantizer);
            let magnitude = code.unsigned_abs() as usize;
            *state = (*state >> 1) ^ (*state % 2 * (taps.0 >> 1)) ^ (magnitude % 2 * (taps.1 >> 1));
            positions.push((magnitude as f32 - 0.5 * quantizer as f32).max(0.0));
            (sum, weight) = (sum + positions[row], weight + factors[row]);
            if code != 0 {
                let place = 3 * ((groups[column] - lowest) * n_quantizers + quantizer) + magnitude.min(3) - 1;
                let level = code.signum() as f32 * (positions[row] - offsets[place] as f32 / 64.0);
                let factor = row_exponents.get(row).map_or(1.0, |exponent| power(2 * exponent));
                values[row * columns + column] = level * (step * factor);
            }
        }
        let mean = (sum - 24.0 * expected).max(0.0) / (weight - 24.0).max(0.001);
        let inverse = 1.0 / (mean + 0.5);
        iter::zip(&mut sums, positions).for_each(|(sum, position)| *sum += position * inverse);
        total += mean * inverse;
        spread = spread * (63.0 / 64.0) + mean * inverse * (mean * step);
        spread_weight = spread_weight * (63.0 / 64.0) + mean * inverse;
    }
    check(decoder.position <= decoder.stream.len() + 4, "damaged").and(Ok(values))
}
/// 4.7, numbers: reads them with new tables, under an expected magnitude and a quantiser.
fn numbers() -> impl FnMut(&mut RangeDecoder<'_>, f32, usize) -> i32 {
    let mut tables: Vec<_> = (0..128).map(|index| build(&start(index / 2, index % 2))).collect();
    let mut escape = [[NEW; 2]; 65];
    move |decoder, expected, quantizer| {
        let class = ((expected.max(0.0).to_bits() >> 21).saturating_sub(476) as usize).min(63);
        let (shift, table) = ((class / 4).saturating_sub(11), &mut tables[2 * class + quantizer]);
        let mut magnitude = decoder.symbol(&table.1);
        table.0[magnitude] += 16;
        if table.0.iter().sum::<usize>() >= table.2 {
            *table = build(&table.0);
        }
        magnitude = (magnitude + if magnitude == 39 { decoder.number(&mut escape) } else { 0 }).min(1 << 22);
        magnitude = (magnitude << shift | decoder.raw(shift)).min(1 << 22);
        magnitude as i32 * if magnitude > 0 && decoder.raw(1) == 1 { -1 } else { 1 }
    }
}
/// 4.7, tables: the counts that one starts with.
fn start(class: usize, quantizer: usize) -> Vec<usize> {
    let mean = (1.0 + ((class % 4) as f64 + 0.5) / 4.0) * 2f64.powi(((class / 4) as i32 - 8).min(3));
    let position = |symbol: usize| if symbol == 0 { 0.0 } else { symbol as f64 - 0.5 * quantizer as f64 };
    let square = |number: f64| number * number;
    let (mut low, mut high, mut shares) = (0.0625, 64.0, [0f64; 40]);
    for _ in 0..=40 {
        let width = 0.5 * (low + high);
        let base = |symbol| 1.0 / (1.0 + square(position(symbol) / width) / 16.0);
        let weight = |i| square(square(square(base(i)))) * if i == 0 { 1.0 } else { 2.0 };
        let total: f64 = (0..40).map(weight).sum();
        let moment: f64 = (0..40).map(|i| weight(i) * position(i)).sum();
        shares = from_fn(|i| weight(i) / total);
        (low, high) = if moment / total < mean { (width, high) } else { (low, width) };
    }
    shares.map(|share| (1536.0 * share) as usize + usize::from(share > 1e-4)).to_vec()
}
/// 4.7, building: counts, cumulative frequencies, and the sum of counts at which to build anew.
fn build(counts: &[usize]) -> (Vec<usize>, Vec<usize>, usize) {
    let is_large = counts.iter().sum::<usize>() > 1 << 20;
    let counts: Vec<_> = counts.iter().map(|n| if is_large { n.div_ceil(2) } else { *n }).collect();
    let sum: usize = counts.iter().sum();
    let mut frequencies: Vec<usize> = counts.iter().map(|count| 1 + count * 32_728 / sum).collect();
    frequencies[0] += 32_768 - frequencies.iter().sum::<usize>();
    (counts, cumulative(&frequencies), sum + (sum / 8).max(256))
}

/// 4.8 rANS: tables of cumulative frequencies, coded in one stream.
fn tables(stream: &[u8], n_tables: usize, bits: usize) -> Result<Vec<Vec<usize>>> {
    check(bits <= 12, "damaged")?;
    let (mut decoder, units) = (RangeDecoder::new(stream), 1 << bits);
    let [mut precisions, mut zero, mut same, mut negative] = [[[NEW; 2]; 8]; 4];
    let (mut sizes, mut differences) = ([[NEW; 2]; 65], [[NEW; 2]; 65]);
    let square = |(n, log): (u64, u64), _| ((n * n) >> (31 + ((n * n) >> 63)), log << 1 | (n * n) >> 63);
    let log = |n: i64| (0..16).fold(((n as u64) << (31 - n.ilog2()), n.ilog2().into()), square).1 as i64;
    let table = |_| {
        let node = (0..3).fold(1, |node, _| 2 * node + decoder.bit(&mut precisions[node]));
        let (precision, size) = (node as i64 - 8, decoder.number(&mut sizes));
        check(size <= 256, "damaged")?;
        let shift = (bits as i64 - 1 - precision).max(0);
        let greatest = (shift << precision) + ((units - 1 + (1 << shift >> 1)) >> shift);
        let (mut weights, mut last, mut context, mut zeros) = ([0i64; 256], 0i64, 0, 0);
        for weight in &mut weights[..size] {
            zeros = (2 * zeros + decoder.bit(&mut zero[zeros])) % 4;
            if zeros % 2 == 1 {
                continue;
            }
            let is_same = decoder.bit(&mut same[context]) == 1;
            let sign = if is_same { 0 } else { 1 - 2 * decoder.bit(&mut negative[context]) as i64 };
            let size = if is_same { 0 } else { 1 + decoder.number(&mut differences).min(1 << 16) as i64 };
            context = [1, 2, 0, 3, 4][((sign * size).clamp(-2, 2) + 2) as usize];
            last += sign * size;
            check((0..=greatest).contains(&last), "damaged")?;
            let octave = ((last >> precision) - 1).max(0);
            *weight = (last - (octave << precision)) << octave;
        }
        // Weights to frequencies.
        let used: Vec<usize> = (0..256).filter(|&symbol| weights[symbol] > 0).collect();
        check(!used.is_empty(), "damaged")?;
        if let [only] = used[..] {
            weights[only] = units - 1;
            weights[if only < 255 { only + 1 } else { only - 1 }] = 1;
        }
        let total: i64 = weights.iter().sum();
        let share = |weight: i64| ((weight * units + total / 2) / total).clamp(weight.min(1), units - 1);
        let mut frequencies = weights.map(share);
        while let step @ (-1 | 1) = (units - frequencies.iter().sum::<i64>()).signum() {
            let moved = |symbol: usize| frequencies[symbol] + step;
            let may = |&symbol: &usize| weights[symbol] > 0 && (1..units).contains(&moved(symbol));
            let loss = |&symbol: &usize| weights[symbol] * (log(frequencies[symbol]) - log(moved(symbol)));
            frequencies[(0..256).filter(may).min_by_key(loss).ok_or("damaged")?] += step;
        }
        Ok(cumulative(&frequencies.map(|frequency| frequency as usize)))
    };
    (0..n_tables).map(table).collect()
}
/// 4.8, payload of n symbols after the number of lanes.
fn rans<'t>(data: &[u8], bits: usize, n: usize, table: impl Fn(usize) -> &'t [usize]) -> Result<Vec<u8>> {
    let (mut reader, mut symbols) = (Reader(data), Vec::new());
    let n_lanes = *[1, 4, 8, 32].get(reader.fixed(1)?).ok_or("damaged")?;
    while symbols.len() < n {
        let left = n - symbols.len();
        let length = if left > 1 << 20 { reader.varint(ANY)? } else { reader.0.len() };
        let mut words = Reader(reader.take(length)?);
        let (width, end) = if n_lanes == 1 { (length.min(4), 0) } else { (4, 1 << 16) };
        let mut states = words.list(n_lanes, |words| words.fixed(width))?;
        for i in 0..left.min(1 << 20) {
            let (cumulative, state) = (table(symbols.len()), &mut states[i % n_lanes]);
            let slot = *state % (1 << bits);
            let symbol = cumulative.partition_point(|&start| start <= slot) - 1;
            let (start, end) = (cumulative[symbol], cumulative[symbol + 1]);
            *state = (end - start) * (*state >> bits) + slot - start;
            let is_low = *state < 1 << 16 && (n_lanes > 1 || words.0.len() > 1);
            *state = if is_low { *state << 16 | words.fixed(2)? } else { *state };
            symbols.push(symbol as u8);
        }
        check(words.0.is_empty() && states.iter().all(|&state| state == end), "damaged")?;
    }
    Ok(symbols)
}
/// 4.8, self-contained symbols.
fn symbols(bytes: &[u8], n: usize) -> Result<Vec<u8>> {
    match (n, bytes) {
        (0, []) => Ok(Vec::new()),
        (1.., [1, symbol]) => Ok(vec![*symbol; n]),
        (1.., [2, symbols @ ..]) if symbols.len() == n => Ok(symbols.to_vec()),
        (1.., [head, rest @ ..]) if head % 4 == 0 => {
            let (mut reader, bits) = (Reader(rest), 8 + usize::from(head / 16));
            let tables = tables(reader.sized()?, 1, bits)?;
            rans(&[&[head / 4 % 4], reader.0].concat(), bits, n, |_| &tables[0])
        }
        _ => Err("damaged"),
    }
}

/// 4.9 `exact`.
fn exact(dtype: usize, shape: &[usize], payload: &[u8]) -> Result<Vec<u8>> {
    let (mut reader, elements) = (Reader(payload), shape.iter().product::<usize>());
    let (width, columns) = (DTYPE_BYTES[dtype], shape.last().map_or(1, |&columns| columns.max(1)));
    let is_its = reader.fixed(1)? == 0 && reader.varint(ANY)? == elements;
    check(is_its && elements >> 18 <= reader.0.len(), "damaged")?;
    // Fields.
    let fields = reader.fixed(1)?;
    let is_float = dtype < 4 && if dtype == 2 { 4..=5 } else { 1..=4 }.contains(&fields);
    check(is_float || fields == 0, "damaged")?;
    let window_start = if is_float { reader.fixed(2)? } else { 0 };
    let rest_bits = if is_float { MANTISSA_BITS[dtype] + 2 - fields } else { 8 * width };
    // Streams: mode, bits, tables, classes, the byte of a constant one.
    let streams = reader.list(usize::from(is_float) + rest_bits / 8, |reader| {
        let head = reader.fixed(1)?;
        let (mode, bits, constant) = (head % 16, 8 + head / 16, reader.take(usize::from(head == 1))?);
        let n_classes = *[0, 0, 0, elements / columns, columns].get(mode).ok_or("damaged")?;
        let n_tables = if mode > 2 { reader.fixed(1)? } else { 1 };
        let classes = if mode > 2 { symbols(reader.sized()?, n_classes)? } else { Vec::new() };
        let is_known = n_tables < 17 && classes.iter().all(|&class| usize::from(class) < n_tables);
        check(is_known && n_tables > 0 && (mode > 1 || bits == 8), "damaged")?;
        let tables = if mode > 1 { tables(reader.sized()?, n_tables, bits)? } else { Vec::new() };
        Ok((mode, bits, tables, classes, constant))
    })?;
    // Index.
    let n_lengths = 1 + streams.iter().filter(|stream| stream.0 > 1).count();
    let lengths = |reader: &mut Reader<'_>| reader.list(n_lengths, |length| length.varint(ANY));
    let index = reader.list(elements.div_ceil(1 << 18), lengths)?;
    // Blocks.
    let mut out = Vec::new();
    for (block, lengths) in index.into_iter().enumerate() {
        let (start, n) = (block << 18, (elements - (block << 18)).min(1 << 18));
        let (escape_bytes, mut lengths) = (lengths[0], lengths.into_iter().skip(1));
        check(is_float || escape_bytes == 0, "damaged")?;
        let (mut planes, mut heads, mut escapes) = (Vec::new(), vec![0; n], Reader(&[]));
        for (mode, bits, tables, classes, constant) in &streams {
            let place = |i| if *mode == 3 { (start + i) / columns } else { (start + i) % columns };
            let table = |i: usize| &tables[classes.get(place(i)).map_or(0, |&class| usize::from(class))][..];
            planes.push(match mode {
                0 => reader.take(n)?.to_vec(),
                1 => vec![constant[0]; n],
                _ => rans(reader.take(lengths.next().unwrap_or(0))?, *bits, n, table)?,
            });
            if is_float && planes.len() == 1 {
                escapes = Reader(reader.take(escape_bytes)?);
                heads = reader.packed(n.next_multiple_of(8), rest_bits % 8)?;
            }
        }
        let (mantissa_bits, sign) = (rest_bits - 1, 8 * width - 1);
        for i in 0..n {
            let low = planes[usize::from(is_float)..].iter().rev();
            let rest = low.fold(heads[i], |rest, plane| rest << 8 | usize::from(plane[i]));
            let value = match usize::from(planes[0][i]) {
                0 if is_float => escapes.fixed(2)? << mantissa_bits & ((1 << sign) - 1),
                symbol @ 2.. if is_float => (window_start + symbol - 2) << mantissa_bits,
                _ => 0,
            };
            let word = (rest >> mantissa_bits) << sign | value | rest & ((1 << mantissa_bits) - 1);
            out.extend_from_slice(&word.to_le_bytes()[..width]);
        }
        check(escapes.0.is_empty(), "damaged")?;
    }
    check(reader.0.is_empty(), "damaged").and(Ok(out))
}
