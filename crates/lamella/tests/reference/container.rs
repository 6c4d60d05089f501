//! Section 3 of docs/format.md: header, manifest, description, side files, layers, the prefix rule.
//!
//! Errors begin with the kind that names the files in `tests/golden-errors`.

use crate::{codecs, texts};

pub(crate) type Result<T> = std::result::Result<T, String>;

const VERSION: u64 = 1;
const DTYPE_BYTES: [u64; 15] = [8, 4, 2, 2, 1, 1, 8, 4, 2, 1, 8, 4, 2, 1, 1];

pub(crate) fn refuse<T>(kind: &str, message: impl std::fmt::Display) -> Result<T> {
    Err(format!("{kind}: {message}"))
}

pub(crate) fn check(holds: bool, kind: &str, message: &str) -> Result<()> {
    if holds { Ok(()) } else { refuse(kind, message) }
}

/// Section 1: numbers and texts, front to back.
pub(crate) struct Reader<'a>(pub(crate) &'a [u8]);

impl<'a> Reader<'a> {
    pub(crate) fn take(&mut self, count: u64) -> Result<&'a [u8]> {
        check(count <= self.0.len() as u64, "truncated", "the bytes end inside something")?;
        let (taken, rest) = self.0.split_at(count as usize);
        self.0 = rest;
        Ok(taken)
    }

    pub(crate) fn fixed(&mut self, width: u64) -> Result<u64> {
        Ok(self.take(width)?.iter().rev().fold(0, |sum, &byte| sum << 8 | u64::from(byte)))
    }

    /// In payloads the shortest form is not demanded.
    pub(crate) fn any_varint(&mut self) -> Result<u64> {
        let (mut value, mut shift) = (0u64, 0);
        loop {
            let byte = self.fixed(1)?;
            check(shift < 63 || byte < 2, "invalid", "a varint exceeds 64 bits")?;
            value |= (byte & 127) << shift;
            if byte < 128 {
                return Ok(value);
            }
            shift += 7;
        }
    }

    fn varint(&mut self) -> Result<u64> {
        let before = self.0;
        let value = self.any_varint()?;
        let last = before[before.len() - self.0.len() - 1];
        check(last > 0 || value == 0 && before[0] == 0, "invalid", "a varint is not in its shortest form")?;
        Ok(value)
    }

    fn most(&mut self, limit: u64) -> Result<u64> {
        let value = self.varint()?;
        if value > limit { refuse("limit", format!("{value}, at most {limit}")) } else { Ok(value) }
    }

    fn zigzag(&mut self) -> Result<i64> {
        let value = self.varint()?;
        Ok((value >> 1) as i64 ^ -((value & 1) as i64))
    }

    fn text(&mut self, limit: u64) -> Result<String> {
        let length = self.most(limit)?;
        String::from_utf8(self.take(length)?.to_vec()).map_err(|_| "invalid: not UTF-8".to_owned())
    }

    fn pairs(&mut self) -> Result<Vec<(String, String)>> {
        (0..self.most(1 << 16)?).map(|_| Ok((self.text(1 << 24)?, self.text(1 << 24)?))).collect()
    }

    fn column(&mut self, count: u64) -> Result<Vec<u64>> {
        (0..count).map(|_| self.varint()).collect()
    }
}

pub(crate) struct Array {
    pub(crate) name: String,
    pub(crate) dtype: usize,
    pub(crate) shape: Vec<u64>,
    recipe: usize,
    storage: u64,
}

pub(crate) struct File<'a> {
    pub(crate) recipes: Vec<String>,
    pub(crate) arrays: Vec<Array>,
    pub(crate) side_files: Vec<(String, Vec<u8>)>,
    /// Arrays of each target, and the payloads of its layers that are there.
    targets: Vec<Vec<usize>>,
    payloads: Vec<Vec<&'a [u8]>>,
}

/// Reads a file or a prefix of one, and checks every byte of it.
pub(crate) fn read(bytes: &[u8]) -> Result<File<'_>> {
    // 3.1 Header.
    let magic = b"\x8bLAM";
    check(magic.starts_with(&bytes[..bytes.len().min(4)]), "magic", "not a .lam file")?;
    let mut file = Reader(bytes);
    file.take(4)?;
    check(file.fixed(1)? == VERSION, "version", "not known")?;
    let manifest_bytes = file.fixed(4)?;
    check(manifest_bytes <= 64 << 20, "limit", "bytes of manifest")?;
    let checksum = file.fixed(4)?;
    let stored = file.take(manifest_bytes)?;
    let found = crc32(bytes[..9].iter().chain(stored));
    check(found == checksum, "manifest-checksum", "the manifest changed")?;

    // 3.2 Manifest.
    let mut manifest = Reader(stored);
    let coding = manifest.fixed(1)?;
    let description_bytes = manifest.most(64 << 20)?;
    let stored_bytes = manifest.varint()?;
    let description = texts::decode(coding, manifest.take(stored_bytes)?, description_bytes)?;

    // 3.3 Description.
    let mut reader = Reader(&description);
    let (_budget, _metadata) = (reader.text(1 << 24)?, reader.pairs()?);
    let n_recipes = reader.most(1 << 16)?;
    let recipes = (0..n_recipes).map(|_| reader.text(1 << 24)).collect::<Result<Vec<_>>>()?;
    let n_shards = reader.most(1 << 16)?;
    for _ in 0..n_shards {
        let (_name, _metadata) = (reader.text(4096)?, reader.pairs()?);
    }
    let n_side_files = reader.most(1 << 16)?;
    let (mut side_coding, mut side_bytes, mut side_checksum) = (0, 0, 0);
    if n_side_files > 0 {
        (side_coding, side_bytes, side_checksum) =
            (reader.fixed(1)?, reader.most(1 << 30)?, reader.fixed(4)?);
    }
    let side_names = (0..n_side_files).map(|_| reader.text(4096)).collect::<Result<Vec<_>>>()?;
    let side_lengths = (0..n_side_files).map(|_| reader.most(1 << 30)).collect::<Result<Vec<_>>>()?;
    let side_checksums = (0..n_side_files).map(|_| reader.fixed(4)).collect::<Result<Vec<_>>>()?;
    let (arrays, targets) = read_arrays(&mut reader, n_recipes, n_shards)?;
    let n_layers = reader.most(1 << 22)?;
    let (mut of_layer, mut expected) = (Vec::new(), 0i64);
    for _ in 0..n_layers {
        let target = expected.saturating_add(reader.zigzag()?);
        check((0..targets.len() as i64).contains(&target), "invalid", "a layer without a target")?;
        of_layer.push(target as usize);
        expected = target + 1;
    }
    let has_layer = |target: usize| of_layer.contains(&target);
    check((0..targets.len()).all(has_layer), "invalid", "an array without a layer")?;
    let mut is_mapped = Vec::new();
    while (is_mapped.len() as u64) < n_layers {
        for mapped in [false, true] {
            let (first, left) = (is_mapped.is_empty() && !mapped, n_layers - is_mapped.len() as u64);
            let run = if left == 0 { 0 } else { reader.varint()? };
            check(run <= left && (run > 0 || first || left == 0), "invalid", "a run of layers")?;
            is_mapped.extend((0..run).map(|_| mapped));
        }
    }
    check(reader.0.is_empty(), "invalid", "bytes after the description")?;

    // 3.2 again: the layer table.
    let lengths = (0..n_layers).map(|_| manifest.most(1 << 44)).collect::<Result<Vec<_>>>()?;
    let checksums = (0..n_layers).map(|_| manifest.fixed(4)).collect::<Result<Vec<_>>>()?;
    for _ in 0..n_layers {
        let distortion = f32::from_bits((manifest.fixed(3)? as u32) << 7);
        check(distortion.is_finite() && distortion.is_sign_positive(), "invalid", "a distortion")?;
    }
    check(manifest.0.is_empty(), "invalid", "bytes after the layer table")?;

    // 3.5 Layers, 3.6 the prefix rule.
    let mut end = 13 + manifest_bytes + side_bytes;
    let (mut payloads, mut first_missing) = (vec![Vec::new(); targets.len()], None);
    let found = bytes.len() as u64;
    check(end <= found, "incomplete", "the side files")?;
    for (layer, (&target, &length)) in of_layer.iter().zip(&lengths).enumerate() {
        let start = if is_mapped[layer] { end.next_multiple_of(64) } else { end };
        if start + length <= found && first_missing.is_none() {
            let padding = &bytes[end as usize..start as usize];
            check(padding.iter().all(|&byte| byte == 0), "padding", "not zero")?;
            let payload = &bytes[start as usize..(start + length) as usize];
            check(crc32(payload) == checksums[layer], "layer-checksum", "the payload changed")?;
            payloads[target].push(payload);
        } else {
            first_missing = first_missing.or(Some(target));
            let name = &arrays[targets[target][0]].name;
            check(!payloads[target].is_empty(), "incomplete", name)?;
        }
        end = start + length;
    }
    check(found <= end, "trailing", "bytes after the last layer")?;

    // 3.4 Side files.
    let stored = file.take(side_bytes)?;
    check(crc32(stored) == side_checksum, "side-files", "they changed")?;
    let text = texts::decode(side_coding, stored, side_lengths.iter().sum())?;
    let (mut text, mut side_files) = (Reader(&text), Vec::new());
    for ((name, &length), &checksum) in side_names.into_iter().zip(&side_lengths).zip(&side_checksums) {
        let is_plain = |part: &str| !["", ".", ".."].contains(&part) && !part.contains(['\\', ':', '\0']);
        check(name.split('/').all(is_plain), "invalid", "the name of a side file")?;
        let content = text.take(length)?;
        check(crc32(content) == checksum, "side-files", &name)?;
        side_files.push((name, content.to_vec()));
    }
    Ok(File { recipes, arrays, side_files, targets, payloads })
}

fn read_arrays(
    reader: &mut Reader<'_>,
    n_recipes: u64,
    n_shards: u64,
) -> Result<(Vec<Array>, Vec<Vec<usize>>)> {
    let n_arrays = reader.most(1 << 20)?;
    check(5 * n_arrays <= reader.0.len() as u64, "truncated", "five columns")?;
    let bound = 16 * reader.0.len() as u64 + 65_536;
    let mut templates = Vec::new();
    for _ in 0..reader.varint()? {
        let length =
            reader.0.iter().position(|&byte| byte == 0xfe).ok_or("invalid: a template without end")?;
        templates.push(reader.take(length as u64)?);
        reader.take(1)?;
    }
    let (mut places, mut names, mut total) = ([0i64; 8], Vec::new(), 0);
    for template in reader.column(n_arrays)? {
        let template = templates.get(template as usize).ok_or("invalid: no such template")?;
        let (mut name, mut place) = (Vec::new(), 0);
        for &byte in *template {
            if byte == 0xff {
                check(place < 8, "invalid", "a ninth number")?;
                places[place] = places[place].saturating_add(reader.zigzag()?);
                check((0..1_000_000_000).contains(&places[place]), "invalid", "a number in a name")?;
                name.extend_from_slice(places[place].to_string().as_bytes());
                place += 1;
            } else {
                name.push(byte);
            }
        }
        total += name.len() as u64;
        check(total <= bound, "limit", "bytes of names")?;
        let name = String::from_utf8(name).map_err(|_| "invalid: a name is not UTF-8")?;
        check((1..=4096).contains(&name.len()), "invalid", "the length of a name")?;
        check(!names.contains(&name), "invalid", "two equal names")?;
        names.push(name);
    }
    let mut shapes = Vec::new();
    for _ in 0..reader.varint()? {
        let (dtype, n_axes) = (reader.fixed(1)? as usize, reader.most(16)?);
        check(dtype < DTYPE_BYTES.len(), "invalid", "unknown dtype")?;
        shapes.push((dtype, reader.column(n_axes)?));
    }
    let shape_of = reader.column(n_arrays)?;
    let recipe_of = reader.column(n_arrays)?;
    check(recipe_of.iter().all(|&recipe| recipe < n_recipes), "invalid", "no such recipe")?;
    let shard_of = reader.column(n_arrays)?;
    check(shard_of.iter().all(|&shard| shard < n_shards), "invalid", "no such shard")?;
    let mut arrays: Vec<Array> = Vec::new();
    for (((name, shape), recipe), storage) in
        names.into_iter().zip(shape_of).zip(recipe_of).zip(reader.column(n_arrays)?)
    {
        let (dtype, shape) = shapes.get(shape as usize).cloned().ok_or("invalid: no such shape")?;
        let bytes = shape.iter().try_fold(DTYPE_BYTES[dtype], |size, &extent| size.checked_mul(extent));
        check(bytes.is_some_and(|bytes| bytes <= 1 << 44), "invalid", "the size of an array")?;
        arrays.push(Array { name, dtype, shape, recipe: recipe as usize, storage });
    }
    let (mut targets, mut bundles): (Vec<Vec<usize>>, Vec<usize>) = (Vec::new(), Vec::new());
    for (index, array) in arrays.iter().enumerate() {
        let number = (array.storage / 2) as usize;
        if array.storage % 2 == 1 {
            let original = arrays.get(number).filter(|original| original.storage % 2 == 0);
            let is_same = |original: &Array| original.shape == array.shape && original.dtype == array.dtype;
            check(original.is_some_and(is_same), "invalid", "an alias of nothing, or of another shape")?;
        } else if array.storage > 0 && number <= bundles.len() {
            let members = &mut targets[bundles[number - 1]];
            let first = &arrays[members[0]];
            let is_same = first.recipe == array.recipe && first.dtype == array.dtype;
            check(is_same, "invalid", "a bundle of several recipes or dtypes")?;
            members.push(index);
        } else {
            check(array.storage == 0 || number == bundles.len() + 1, "invalid", "bundles out of order")?;
            bundles.extend((array.storage > 0).then_some(targets.len()));
            targets.push(vec![index]);
        }
    }
    Ok((arrays, targets))
}

impl File<'_> {
    /// The bytes of an array, in its own dtype.
    pub(crate) fn decode(&self, index: usize) -> Result<Vec<u8>> {
        let array = &self.arrays[index];
        let original = if array.storage % 2 == 1 { (array.storage / 2) as usize } else { index };
        let of_original = |members: &Vec<usize>| members.contains(&original);
        let target = self.targets.iter().position(of_original).ok_or("invalid: no target")?;
        let size = |member: usize| self.arrays[member].shape.iter().product::<u64>();
        let members = &self.targets[target];
        let is_bundle = self.arrays[original].storage > 0;
        let shape =
            if is_bundle { vec![members.iter().map(|&m| size(m)).sum()] } else { array.shape.clone() };
        let recipe = &self.recipes[self.arrays[original].recipe];
        let whole = codecs::decode(recipe, array.dtype, &shape, &self.payloads[target])?;
        let before: u64 = members.iter().take_while(|&&member| member != original).map(|&m| size(m)).sum();
        let mut reader = Reader(&whole);
        reader.take(before * DTYPE_BYTES[array.dtype])?;
        Ok(reader.take(size(original) * DTYPE_BYTES[array.dtype])?.to_vec())
    }
}

/// CRC-32 of section 1.
pub(crate) fn crc32<'a>(bytes: impl IntoIterator<Item = &'a u8>) -> u64 {
    let step = |crc: u32, _| if crc & 1 == 1 { crc >> 1 ^ 0xedb8_8320 } else { crc >> 1 };
    let next = |crc: u32, &byte: &u8| (0..8).fold(crc ^ u32::from(byte), step);
    u64::from(!bytes.into_iter().fold(!0u32, next))
}
