//! docs/format.md as a plain decoder, section by section, that uses nothing of ours.

use std::{array::from_fn, iter};

/// An error is the kind that names the files in `tests/golden-errors`.
pub(crate) type Result<T> = std::result::Result<T, &'static str>;

pub(crate) fn check(holds: bool, kind: &'static str) -> Result<()> {
    if holds { Ok(()) } else { Err(kind) }
}

// 1. Scope and conventions: bytes and numbers, front to back.
pub(crate) struct Reader<'a>(pub(crate) &'a [u8]);
pub(crate) const ANY: i128 = u64::MAX as i128;
impl<'a> Reader<'a> {
    pub(crate) fn take(&mut self, count: usize) -> Result<&'a [u8]> {
        self.0.split_off(..count).ok_or("truncated")
    }
    pub(crate) fn fixed(&mut self, width: usize) -> Result<usize> {
        Ok(self.take(width)?.iter().rev().fold(0, |sum, &byte| sum << 8 | usize::from(byte)))
    }
    pub(crate) fn varint(&mut self, most: i128) -> Result<usize> {
        let length = 1 + self.0.iter().position(|&byte| byte < 128).ok_or("truncated")?;
        let value = self.take(length)?.iter().rev().fold(0, |sum, &byte| sum << 7 | i128::from(byte & 127));
        if length > 10 || value > most { Err("limit") } else { Ok(value as usize) }
    }
    pub(crate) fn sized(&mut self) -> Result<&'a [u8]> {
        let length = self.varint(ANY)?;
        self.take(length)
    }
    /// Packed numbers, 4.4.
    pub(crate) fn packed(&mut self, count: usize, bits: usize) -> Result<Vec<usize>> {
        let bytes = self.take((count * bits).div_ceil(8))?;
        let bit = |index: usize| usize::from(bytes[index / 8] >> (index % 8) & 1);
        Ok((0..count).map(|i| (0..bits).fold(0, |code, j| code | bit(i * bits + j) << j)).collect())
    }
    pub(crate) fn list<T>(
        &mut self,
        count: usize,
        mut read: impl FnMut(&mut Self) -> Result<T>,
    ) -> Result<Vec<T>> {
        (0..count).map(|_| read(self)).collect()
    }
    pub(crate) fn counted<T>(
        &mut self,
        most: i128,
        read: impl FnMut(&mut Self) -> Result<T>,
    ) -> Result<Vec<T>> {
        let count = self.varint(most)?;
        self.list(count, read)
    }
}

pub(crate) fn crc32(bytes: &[u8]) -> usize {
    let step = |crc: usize, _| (crc >> 1) ^ (crc % 2 * 0xedb8_8320);
    bytes.iter().fold(0xffff_ffff, |crc, &byte| (0..8).fold(crc ^ usize::from(byte), step)) ^ 0xffff_ffff
}

// 3. Layout.
pub(crate) const DTYPE_BYTES: [usize; 15] = [8, 4, 2, 2, 1, 1, 8, 4, 2, 1, 8, 4, 2, 1, 1];
/// Name, dtype, shape, recipe and bytes.
pub(crate) type Array = (String, usize, Vec<usize>, String, Result<Vec<u8>>);
pub(crate) type SideFile = (String, Vec<u8>);

/// Arrays and side files of a file or a prefix of one, every byte of which is checked.
pub(crate) fn read(bytes: &[u8]) -> Result<(Vec<Array>, Vec<SideFile>)> {
    // 3.1 Header.
    check(b"\x8bLAM".starts_with(&bytes[..bytes.len().min(4)]), "magic")?;
    let mut file = Reader(bytes.get(4..).ok_or("truncated")?);
    let (version, manifest_bytes, checksum) = (file.fixed(1)?, file.fixed(4)?, file.fixed(4)?);
    check(version == 1, "version")?;
    check(manifest_bytes <= 64 << 20, "limit")?;
    let mut manifest = Reader(file.take(manifest_bytes)?);
    check(crc32(&[&bytes[..9], manifest.0].concat()) == checksum, "manifest-checksum")?;
    // 3.2 Manifest.
    let (coding, description_bytes) = (manifest.fixed(1)?, manifest.varint(64 << 20)?);
    let description = decode_text(coding, manifest.sized()?, description_bytes)?;
    // 3.3 Description.
    let mut reader = Reader(&description);
    let text = |reader: &mut Reader<'_>| String::from_utf8(reader.sized()?.to_vec()).or(Err("invalid"));
    let pairs = |reader: &mut Reader<'_>| reader.counted(1 << 16, |pair| Ok((text(pair)?, text(pair)?)));
    let (_budget, _metadata) = (text(&mut reader)?, pairs(&mut reader)?);
    let recipes = reader.counted(1 << 16, text)?;
    let shards = reader.counted(1 << 16, |shard| Ok((text(shard)?, pairs(shard)?)))?;
    let n_files = reader.varint(1 << 16)?;
    let head = |side: &mut Reader<'_>| Ok((side.fixed(1)?, side.varint(1 << 30)?, side.fixed(4)?));
    let heads = reader.list(n_files.min(1), head)?;
    let (side_coding, side_bytes, side_checksum) = heads.first().copied().unwrap_or_default();
    let side_names = reader.list(n_files, text)?;
    let side_lengths = reader.list(n_files, |side| side.varint(1 << 30))?;
    let side_checksums = reader.list(n_files, |side| side.fixed(4))?;
    let n_arrays = reader.varint(1 << 20)?;
    let column = |reader: &mut Reader<'_>, n: usize| reader.list(n_arrays, |row| row.varint(n as i128 - 1));
    let most = 16 * reader.0.len() + 65_536;
    let templates = reader.counted(ANY, |template| {
        let length = template.0.iter().position(|&byte| byte == 0xfe).ok_or("invalid")?;
        Ok((template.take(length)?, template.take(1)?).0)
    })?;
    let signed = |value: usize| (value >> 1) as i128 ^ -((value & 1) as i128);
    let (mut previous, mut names, mut total) = ([0; 8], Vec::new(), 0);
    for template in column(&mut reader, templates.len())? {
        let mut pieces = templates[template].split(|&byte| byte == 0xff);
        let mut name = pieces.next().unwrap_or_default().to_vec();
        for (place, piece) in pieces.enumerate() {
            let number = previous.get_mut(place).ok_or("invalid")?;
            *number += signed(reader.varint(ANY)?);
            check((0..1_000_000_000).contains(number), "invalid")?;
            name.extend([number.to_string().as_bytes(), piece].concat());
        }
        total += name.len();
        check(total <= most && (1..=4096).contains(&name.len()), "limit")?;
        let name = String::from_utf8(name).or(Err("invalid"))?;
        check(!names.contains(&name), "invalid")?;
        names.push(name);
    }
    let shapes = reader.counted(ANY, |reader| {
        let (dtype, shape) = (reader.fixed(1)?, reader.counted(16, |shape| shape.varint(ANY))?);
        let width = DTYPE_BYTES.get(dtype).copied();
        let size = shape.iter().fold(width, |size, &extent| size?.checked_mul(extent));
        check(size.is_some_and(|size| size <= 1 << 44), "invalid").and(Ok((dtype, shape)))
    })?;
    let (shape_of, recipe_of) = (column(&mut reader, shapes.len())?, column(&mut reader, recipes.len())?);
    let (_shard_of, storage_of) = (column(&mut reader, shards.len())?, column(&mut reader, usize::MAX)?);
    let key = |index: usize| (storage_of[index], if storage_of[index] > 0 { 0 } else { index });
    let members = |index: usize| (0..n_arrays).filter(move |&other| key(other) == key(index));
    let is_first = |&index: &usize| storage_of[index] % 2 == 0 && members(index).next() == Some(index);
    // A target goes by the index of its first array.
    let targets: Vec<usize> = (0..n_arrays).filter(is_first).collect();
    let mut next = 0;
    let target_of = reader.counted(1 << 22, |reader| {
        next += signed(reader.varint(ANY)?) + 1;
        usize::try_from(next - 1).ok().and_then(|target| targets.get(target).copied()).ok_or("invalid")
    })?;
    check(targets.iter().all(|target| target_of.contains(target)), "invalid")?;
    let (mut is_mapped, mut mapped) = (Vec::new(), false);
    while is_mapped.len() < target_of.len() {
        let run = reader.varint((target_of.len() - is_mapped.len()) as i128)?;
        check(run > 0 || is_mapped.is_empty() && !mapped, "invalid")?;
        is_mapped.resize(is_mapped.len() + run, mapped);
        mapped = !mapped;
    }
    // 3.2, the layer table.
    let lengths = manifest.list(target_of.len(), |layer| layer.varint(1 << 44))?;
    let checksums = manifest.list(target_of.len(), |layer| layer.fixed(4))?;
    let distortions = manifest.list(target_of.len(), |layer| layer.fixed(3))?;
    check(distortions.iter().all(|&distortion| distortion < 0xff_0000), "invalid")?;
    check(manifest.0.is_empty() && reader.0.is_empty(), "invalid")?;
    // 3.4 Side files.
    let stored = file.take(side_bytes).or(Err("incomplete"))?;
    check(crc32(stored) == side_checksum, "side-files")?;
    let content = decode_text(side_coding, stored, side_lengths.iter().sum())?;
    let (mut content, mut side_files) = (Reader(&content), Vec::new());
    for ((name, length), checksum) in side_names.into_iter().zip(side_lengths).zip(side_checksums) {
        let is_plain = |part: &str| !["", ".", ".."].contains(&part) && !part.contains(['\\', ':', '\0']);
        check(name.split('/').all(is_plain), "invalid")?;
        side_files.push((name, content.take(length)?.to_vec()));
        check(crc32(&side_files[side_files.len() - 1].1) == checksum, "side-files")?;
    }
    // 3.5 Layers, 3.6 The prefix rule.
    let (mut payloads, mut is_cut) = (vec![Vec::new(); n_arrays], false);
    for (layer, target) in target_of.into_iter().enumerate() {
        let end = bytes.len() - file.0.len();
        let padding = if is_mapped[layer] { end.next_multiple_of(64) - end } else { 0 };
        is_cut |= padding + lengths[layer] > file.0.len();
        check(!is_cut || !payloads[target].is_empty(), "incomplete")?;
        if !is_cut {
            check(file.take(padding)?.iter().all(|&byte| byte == 0), "padding")?;
            let payload = file.take(lengths[layer])?;
            check(crc32(payload) == checksums[layer], "layer-checksum")?;
            payloads[target].push(payload);
        }
    }
    check(is_cut || file.0.is_empty(), "trailing")?;
    let size = |index: usize| shapes[shape_of[index]].1.iter().product::<usize>();
    let array = |(index, name): (usize, String)| {
        let original = if storage_of[index] % 2 == 1 { storage_of[index] / 2 } else { index };
        let is_its = |&&first: &&usize| members(first).any(|member| member == original);
        let target = *targets.iter().find(is_its).ok_or("invalid")?;
        let (dtype, shape) = shapes[shape_of[index]].clone();
        check(shapes[shape_of[original]] == shapes[shape_of[index]], "invalid")?;
        check(recipe_of[target] == recipe_of[original] && shapes[shape_of[target]].0 == dtype, "invalid")?;
        let recipe = recipes[recipe_of[original]].clone();
        let columns = |index: usize| {
            Some(&shapes[shape_of[index]].1).filter(|shape| shape.len() == 2).map(|shape| shape[1])
        };
        let elements: usize = members(original).map(size).sum();
        let bundle = match columns(original)
            .filter(|&columns| columns > 0 && recipe.split('(').next() != Some("exact"))
        {
            Some(width) if members(original).all(|member| columns(member) == Some(width)) => {
                vec![elements / width, width]
            }
            _ => vec![elements],
        };
        let whole = if storage_of[original] > 0 { &bundle } else { &shape };
        let before: usize = members(original).take_while(|&member| member < original).map(size).sum();
        let range = before * DTYPE_BYTES[dtype]..(before + size(index)) * DTYPE_BYTES[dtype];
        let bytes = super::codecs::decode(&recipe, dtype, whole, &payloads[target])
            .map(|whole| whole[range].to_vec());
        Ok((name, dtype, shape, recipe, bytes))
    };
    Ok((names.into_iter().enumerate().map(array).collect::<Result<_>>()?, side_files))
}

/// 4.1 Codings of texts. Zstd frames are for texts beyond 2 MiB, which no golden file has.
fn decode_text(coding: usize, stored: &[u8], length: usize) -> Result<Vec<u8>> {
    match coding {
        0 if length == stored.len() => Ok(stored.to_vec()),
        2 if length > (64 * stored.len() + 65_536).min(2 << 20) => Err("limit"),
        2 => Ok(mixed(stored, PRIMING.len() + length)),
        _ => Err("invalid"),
    }
}
const PRIMING: &[u8] = include_bytes!("../../../lamella-file/src/mixing/priming.bin");

/// 4.2 Mixed texts.
fn mixed(stored: &[u8], length: usize) -> Vec<u8> {
    // Arithmetic decoding.
    let push = |bound: usize, byte: usize| (bound << 8 | byte) % (1 << 32);
    let mut coded = stored.iter().map(|&byte| usize::from(byte)).chain(iter::repeat(0));
    let (mut low, mut high, mut code) = (0, (1 << 32) - 1, coded.by_ref().take(4).fold(0, push));
    // Tables.
    let one = 1i128 << 62;
    let (step, _) = (1..10).fold((0, one), |(sum, term), n| (sum + term, term / (-256 * n)));
    let powers = iter::successors(Some(one), |power| Some((power * step) >> 62)).take(2048);
    let upper: Vec<i64> = powers.map(|power| ((one << 16) / (one + power)).min(65_520) as i64).collect();
    let squash = |sum: i64| if sum < 0 { 65_536 - upper[-sum as usize] } else { upper[sum as usize] };
    let least = |place: i64| (-2047..2047).find(|&sum| squash(sum) >= 16 * place + 8).unwrap_or(2047);
    let stretch: Vec<i64> = (0..4096).map(least).collect();
    let salted = |value: usize, salt: usize| value ^ salt.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let finish = |mixed: usize| (mixed ^ mixed >> 29) >> 16 & 0xffff_ffff;
    let hash = |value: usize, salt: usize| finish(salted(value, salt).wrapping_mul(0xd6e8_feb8_6659_fd93));
    // Counters of each context, then of the match model, then of the counting model.
    let bits = length.min(131_072).next_power_of_two().ilog2() + 2;
    let (mut counters, mut weights) = (vec![NEW; 10 << bits], vec![[16_384; 11]; 72 + 256]);
    weights.iter_mut().for_each(|row| row[8] = 32_768);
    let (mut expected, mut confidence, mut positions) = ([0; 2], [0; 2], vec![None; 1 << bits.min(16)]);
    let (mut text, mut past, mut word, mut line, mut above) = (Vec::new(), 0, 0usize, 0, 0);
    let (mut number, mut successor) = (None, Vec::new());
    while text.len() < length {
        // Contexts.
        let last = |count: usize| past % (1 << (8 * count));
        let over = text[..line].get(above + text.len() - line).map_or(0, |&byte| usize::from(byte) << 8);
        let contexts = [0, last(1), last(2), last(3), last(4), last(6), word ^ past << 56, over | last(1)];
        let mut partial = 1usize;
        while partial < 256 {
            let (known, half) = (partial.ilog2(), partial.ilog2() % 4);
            // The counter of each model, and what the model says: 1 or -1, 0 for nothing.
            let said: [(usize, i64); 10] = from_fn(|model| {
                if model > 7 {
                    let (byte, counter) = (expected[model - 8], model << bits | confidence[model - 8]);
                    let bit = if byte >> (7 - known) & 1 == 1 { 1 } else { -1 };
                    return (counter, if byte >> (8 - known) == partial { bit } else { 0 });
                }
                let base = (hash(contexts[model], model + 1) + (partial >> half) * 0x9e37_79b1) % (1 << 32);
                let place = (base ^ base >> 15) & ((1 << bits) - 16) | 1 << half | (partial % (1 << half));
                (model << bits | place, 1)
            });
            // Mixing.
            let input = |&(counter, says): &(usize, i64)| says * stretch[counters[counter].0 as usize / 16];
            let inputs: [i64; 11] = from_fn(|model| said.get(model).map_or(256, input));
            let used = said[..8].iter().filter(|said| counters[said.0].1 > 0).count();
            let strength = if said[8].1 == 0 { 0 } else { 1 + (confidence[0] / 16).min(2) };
            let rows = [(used * 4 + strength) * 2 + usize::from(said[9].1 != 0), 72 + partial];
            let products = |row: usize| iter::zip(weights[row], inputs).map(|(weight, input)| weight * input);
            let sums = rows.map(|row| (products(row).sum::<i64>() >> 16).clamp(-2047, 2047));
            let middle = low + (((high - low) * squash((sums[0] + sums[1]) / 2) as usize) >> 16);
            let bit = PRIMING.get(text.len()).map_or(code <= middle, |byte| byte >> (7 - known) & 1 == 1);
            let bounds = if bit { (low, middle) } else { (middle + 1, high) };
            (low, high) = if text.len() < PRIMING.len() { (low, high) } else { bounds };
            while low >> 24 == high >> 24 {
                (low, high, code) = (push(low, 0), push(high, 255), coded.by_ref().take(1).fold(code, push));
            }
            // Learning.
            for (row, sum) in iter::zip(rows, sums) {
                let error = i64::from(bit) * 65_535 - squash(sum);
                let change = |i: usize| (inputs[i] * error * 14 + 131_072) >> 18;
                weights[row] = from_fn(|i| (weights[row][i] + change(i)).clamp(-4_194_304, 4_194_304));
            }
            for (counter, says) in said.into_iter().filter(|said| said.1 != 0) {
                learn(&mut counters[counter], bit == (says > 0), 2048);
                counters[counter].0 = counters[counter].0.clamp(32, 65_503);
            }
            partial = partial << 1 | usize::from(bit);
        }
        let (byte, n) = (partial as u8, text.len() + 1);
        text.push(byte);
        past = (past << 8) | (partial % 256);
        word = (word ^ (partial % 256)).wrapping_mul(0x2545_f491_4f6c_dd1d);
        word *= usize::from(byte.is_ascii_alphabetic() || byte >= 128);
        (above, line) = if byte == 10 { (line, n) } else { (above, line) };
        // Match model.
        confidence[0] = if expected[0] == partial { 63.min(confidence[0] + 1) } else { 0 };
        let entry = hash(past % (1 << 32), 99) % positions.len();
        let found: Option<usize> = if n < 4 { None } else { positions[entry].replace(n) };
        if let (Some(at), 0) = (found, confidence[0]) {
            confidence[0] = (1..=at.min(32)).take_while(|back| text[at - back] == text[n - back]).count();
        }
        expected[0] = found.filter(|_| confidence[0] > 0).map_or(0, |found| 256 | usize::from(text[found]));
        // Counting model.
        if byte.is_ascii_digit() {
            number = Some(number.unwrap_or(0u64).wrapping_mul(10).wrapping_add(u64::from(byte - b'0')));
        } else if let Some(number) = number.take() {
            let is_right = successor == number.to_string().as_bytes();
            confidence[1] = if is_right { 63.min(confidence[1] + 1) } else { confidence[1] / 2 };
            successor = number.wrapping_add(1).to_string().into_bytes();
        }
        let digits = text.iter().rev().take(20).take_while(|byte| byte.is_ascii_digit()).count();
        let rest = successor.strip_prefix(&text[n - digits..]).and_then(<[u8]>::first);
        let rest = rest.filter(|_| digits > 0 || b" :[,".contains(&byte));
        expected[1] = rest.map_or(0, |&byte| 256 | usize::from(byte));
    }
    text.split_off(PRIMING.len())
}

/// The probability of a 1, of 65,536, and how often it was learnt.
pub(crate) type Estimate = (i64, i64);
pub(crate) const NEW: Estimate = (32_768, 0);
pub(crate) fn learn((probability, uses): &mut Estimate, bit: bool, slowest: i64) {
    *probability += ((i64::from(bit) * 65_535 - *probability) * slowest.max(131_072 / (2 * *uses + 3))) >> 16;
    *uses += 1;
}

/// 4.3 Range coder.
pub(crate) struct RangeDecoder<'a> {
    pub(crate) stream: &'a [u8],
    pub(crate) position: usize,
    range: usize,
    code: usize,
}
impl<'a> RangeDecoder<'a> {
    pub(crate) fn new(stream: &'a [u8]) -> Self {
        let code = stream.iter().chain(&[0; 4]).take(4).fold(0, |code, &byte| code << 8 | usize::from(byte));
        Self { stream, position: 4, range: (1 << 32) - 1, code }
    }
    pub(crate) fn take(&mut self, start: usize, width: usize) {
        (self.code, self.range) = (self.code - start, width);
        while self.range < 1 << 24 {
            let byte = self.stream.get(self.position).map_or(0, |&byte| usize::from(byte));
            (self.code, self.range) = ((self.code << 8 | byte) % (1 << 32), self.range << 8);
            self.position += 1;
        }
    }
    /// An adaptive bit. A new one has the probability of a raw bit.
    pub(crate) fn bit(&mut self, [fast, slow]: &mut [Estimate; 2]) -> usize {
        let bound = (self.range * ((fast.0 + slow.0) >> 1).clamp(32, 65_504) as usize) >> 16;
        let bit = self.code < bound;
        self.take(if bit { 0 } else { bound }, if bit { bound } else { self.range - bound });
        learn(fast, bit, 4096);
        learn(slow, bit, 512);
        bit.into()
    }
    pub(crate) fn raw(&mut self, width: usize) -> usize {
        (0..width).fold(0, |value, _| value << 1 | self.bit(&mut [NEW; 2]))
    }
    pub(crate) fn symbol(&mut self, cumulative: &[usize]) -> usize {
        let unit = self.range >> 15;
        let symbol = cumulative.partition_point(|&start| start <= (self.code / unit).min(32_767)) - 1;
        let (start, end) = (unit * cumulative[symbol], unit * cumulative[symbol + 1]);
        self.take(start, if symbol == cumulative.len() - 2 { self.range } else { end } - start);
        symbol
    }
    /// An adaptive number: bits `length`, then bits `second`.
    pub(crate) fn number(&mut self, bits: &mut [[Estimate; 2]; 65]) -> usize {
        let ones = (0..32).take_while(|&place| self.bit(&mut bits[place]) == 1).count();
        let second = if ones > 0 { 2 | self.bit(&mut bits[32 + ones]) } else { 2 };
        ((second << ones >> 1 | self.raw(ones.saturating_sub(1))) - 1).min((1 << 32) - 1)
    }
}
/// The sums of frequencies before each symbol and of all.
pub(crate) fn cumulative(frequencies: &[usize]) -> Vec<usize> {
    (0..=frequencies.len()).map(|n| frequencies[..n].iter().sum()).collect()
}
