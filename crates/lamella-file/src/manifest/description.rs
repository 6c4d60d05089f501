//! The description: everything of a manifest that is known before a payload is coded, column by column.
//!
//! The order of the fields is that of docs/format.md. Columns of equal things stand together because the text coder
//! then finds them repeated.
#![warn(clippy::indexing_slicing, clippy::arithmetic_side_effects, clippy::cast_possible_truncation)]

use std::collections::BTreeMap;

use lamella_codec::{ArraySpec, Dtype};

use super::{ArrayEntry, LayerEntry, Manifest, Shard, SideFile, SideTable, Storage};
use crate::limits::{
    MAX_ARRAYS, MAX_AXES, MAX_ENTRIES, MAX_LAYERS, MAX_NAME_BYTES, MAX_SIDE_BYTES, MAX_TEXT_BYTES,
};
use crate::wire::{Reader, put_text, put_varint, unzigzag, zigzag};
use crate::{ManifestError, TextCoding, names};

/// Writes the description of a manifest that has been validated.
pub(crate) fn encode(manifest: &Manifest) -> Vec<u8> {
    let mut out = Vec::new();
    put_text(&mut out, &manifest.budget);
    put_pairs(&mut out, &manifest.metadata);
    put_varint(&mut out, manifest.recipes.len() as u64);
    manifest.recipes.iter().for_each(|recipe| put_text(&mut out, recipe));
    put_varint(&mut out, manifest.shards.len() as u64);
    for shard in &manifest.shards {
        put_text(&mut out, &shard.name);
        put_pairs(&mut out, &shard.metadata);
    }
    put_side(&mut out, &manifest.side);
    put_arrays(&mut out, &manifest.arrays);
    put_layers(&mut out, &manifest.layers);
    out
}

/// Reads a description. The layers it returns have targets and `is_mapped`; their lengths, checksums and distortions
/// are zero until the layer table is read.
pub(crate) fn decode(bytes: &[u8]) -> Result<Manifest, ManifestError> {
    let mut reader = Reader::new(bytes, "description");
    let reader = &mut reader;
    let budget = reader.text("bytes of budget", MAX_TEXT_BYTES)?;
    let metadata = pairs(reader)?;
    let n_recipes = reader.count("recipes", MAX_ENTRIES, 1)?;
    let recipes = (0..n_recipes)
        .map(|_| reader.text("bytes of a recipe", MAX_TEXT_BYTES))
        .collect::<Result<Vec<_>, _>>()?;
    let n_shards = reader.count("shards", MAX_ENTRIES, 2)?;
    let shards = (0..n_shards)
        .map(|_| {
            Ok(Shard { name: reader.text("bytes of a name", MAX_NAME_BYTES)?, metadata: pairs(reader)? })
        })
        .collect::<Result<Vec<_>, ManifestError>>()?;
    let side = side(reader)?;
    let arrays = arrays(reader)?;
    let layers = layers(reader)?;
    reader.clone().finish()?;
    Ok(Manifest { recipes, arrays, shards, side, budget, metadata, layers })
}

fn put_pairs(out: &mut Vec<u8>, pairs: &[(String, String)]) {
    put_varint(out, pairs.len() as u64);
    for (key, value) in pairs {
        put_text(out, key);
        put_text(out, value);
    }
}

fn pairs(reader: &mut Reader<'_>) -> Result<Vec<(String, String)>, ManifestError> {
    let count = reader.count("metadata entries", MAX_ENTRIES, 2)?;
    let mut text = || reader.text("bytes of metadata", MAX_TEXT_BYTES);
    (0..count).map(|_| Ok((text()?, text()?))).collect()
}

fn put_side(out: &mut Vec<u8>, side: &SideTable) {
    put_varint(out, side.files.len() as u64);
    if side.files.is_empty() {
        return;
    }
    out.push(side.coding.code());
    put_varint(out, side.stored_bytes);
    out.extend_from_slice(&side.crc32.to_le_bytes());
    side.files.iter().for_each(|file| put_text(out, &file.name));
    side.files.iter().for_each(|file| put_varint(out, file.length_bytes));
    side.files.iter().for_each(|file| out.extend_from_slice(&file.crc32.to_le_bytes()));
}

fn side(reader: &mut Reader<'_>) -> Result<SideTable, ManifestError> {
    let count = reader.count("side files", MAX_ENTRIES, 6)?;
    if count == 0 {
        return Ok(SideTable::default());
    }
    let code = reader.u8()?;
    let coding = TextCoding::from_code(code).ok_or_else(|| {
        ManifestError::invalid(format!("side files are stored by unknown text coding {code}"))
    })?;
    let stored_bytes = reader.bounded("stored bytes of side files", MAX_SIDE_BYTES)?;
    let crc32 = reader.u32()?;
    let mut files = Vec::with_capacity(count);
    for _ in 0..count {
        let name = reader.text("bytes of a name", MAX_NAME_BYTES)?;
        files.push(SideFile { name, length_bytes: 0, crc32: 0 });
    }
    for file in &mut files {
        file.length_bytes = reader.bounded("bytes of a side file", MAX_SIDE_BYTES)?;
    }
    for file in &mut files {
        file.crc32 = reader.u32()?;
    }
    Ok(SideTable { files, coding, stored_bytes, crc32 })
}

fn put_arrays(out: &mut Vec<u8>, arrays: &[ArrayEntry]) {
    put_varint(out, arrays.len() as u64);
    names::put_names(out, arrays.iter().map(|array| array.spec.name.as_str()));
    let mut kinds: BTreeMap<(u8, &[usize]), u64> = BTreeMap::new();
    let (mut table, mut column) = (Vec::new(), Vec::new());
    for array in arrays {
        let kind = (array.spec.dtype.code(), array.spec.shape.as_slice());
        let next = kinds.len() as u64;
        let index = *kinds.entry(kind).or_insert_with(|| {
            table.push(kind.0);
            put_varint(&mut table, kind.1.len() as u64);
            kind.1.iter().for_each(|&extent| put_varint(&mut table, extent as u64));
            next
        });
        put_varint(&mut column, index);
    }
    put_varint(out, kinds.len() as u64);
    out.extend_from_slice(&table);
    out.extend_from_slice(&column);
    arrays.iter().for_each(|array| put_varint(out, array.recipe as u64));
    arrays.iter().for_each(|array| put_varint(out, array.shard as u64));
    for array in arrays {
        // Even numbers are bundles (0: no bundle), odd numbers aliases.
        let storage = match array.storage {
            Storage::Own => 0,
            Storage::Bundle(bundle) => (bundle as u64).saturating_add(1).saturating_mul(2),
            Storage::AliasOf(original) => (original as u64).saturating_mul(2).saturating_add(1),
        };
        put_varint(out, storage);
    }
}

fn arrays(reader: &mut Reader<'_>) -> Result<Vec<ArrayEntry>, ManifestError> {
    // Five columns, a byte each at least.
    let count = reader.count("arrays", MAX_ARRAYS, 5)?;
    let names = names::names(reader, count)?;
    let n_kinds = reader.count("shapes", MAX_ARRAYS, 2)?;
    let mut kinds: Vec<(Dtype, Vec<usize>)> = Vec::with_capacity(n_kinds.min(count));
    for _ in 0..n_kinds {
        let code = reader.u8()?;
        let dtype =
            Dtype::from_code(code).ok_or_else(|| ManifestError::invalid(format!("unknown dtype {code}")))?;
        let n_axes = reader.count("axes", MAX_AXES, 1)?;
        let extent = |extent: u64| {
            usize::try_from(extent)
                .map_err(|_| ManifestError::invalid(format!("the extent {extent} is too large")))
        };
        let shape = (0..n_axes).map(|_| extent(reader.varint()?)).collect::<Result<Vec<_>, _>>()?;
        kinds.push((dtype, shape));
    }
    let mut arrays = Vec::with_capacity(count);
    for name in names {
        let index = reader.index("shape", kinds.len())?;
        let (dtype, shape) = kinds.get(index).cloned().unwrap_or((Dtype::F32, Vec::new()));
        let spec = ArraySpec::new(name, shape, dtype);
        arrays.push(ArrayEntry { spec, recipe: 0, shard: 0, storage: Storage::Own });
    }
    let below = usize::try_from(MAX_ENTRIES).unwrap_or(usize::MAX);
    for array in &mut arrays {
        array.recipe = reader.index("recipe", below)?;
    }
    for array in &mut arrays {
        array.shard = reader.index("shard", below)?;
    }
    for array in &mut arrays {
        let storage = reader.bounded("arrays", MAX_ARRAYS.saturating_mul(2).saturating_add(2))?;
        let index = usize::try_from(storage / 2).unwrap_or(usize::MAX);
        array.storage = match (storage % 2, index.checked_sub(1)) {
            (1, _) => Storage::AliasOf(index),
            (_, Some(bundle)) => Storage::Bundle(bundle),
            (_, None) => Storage::Own,
        };
    }
    Ok(arrays)
}

fn put_layers(out: &mut Vec<u8>, layers: &[LayerEntry]) {
    put_varint(out, layers.len() as u64);
    let mut expected = 0i64;
    for layer in layers {
        let target = i64::try_from(layer.target).unwrap_or(i64::MAX);
        put_varint(out, zigzag(target.wrapping_sub(expected)));
        expected = target.wrapping_add(1);
    }
    for run in layers.chunk_by(|left, right| left.is_mapped == right.is_mapped).enumerate() {
        // Runs alternate and begin with unmapped layers, so a mapped first run follows an empty one.
        if run.0 == 0 && run.1.first().is_some_and(|layer| layer.is_mapped) {
            put_varint(out, 0);
        }
        put_varint(out, run.1.len() as u64);
    }
}

fn layers(reader: &mut Reader<'_>) -> Result<Vec<LayerEntry>, ManifestError> {
    let count = reader.count("layers", MAX_LAYERS, 1)?;
    let mut layers = Vec::with_capacity(count);
    let mut expected = 0i64;
    for index in 0..count {
        let target = expected
            .checked_add(unzigzag(reader.varint()?))
            .filter(|&target| target >= 0)
            .ok_or_else(|| ManifestError::invalid(format!("layer {index} refines no array")))?;
        expected = target.saturating_add(1);
        let target = usize::try_from(target).unwrap_or(usize::MAX);
        layers.push(LayerEntry { target, length_bytes: 0, crc32: 0, distortion: 0.0, is_mapped: false });
    }
    let mut rest = layers.as_mut_slice();
    let (mut is_mapped, mut is_first) = (false, true);
    while !rest.is_empty() {
        let run = reader.index("layer", rest.len().saturating_add(1))?;
        if run == 0 && !is_first {
            return Err(ManifestError::invalid("a run of layers is empty"));
        }
        let (these, after) = rest.split_at_mut(run);
        these.iter_mut().for_each(|layer| layer.is_mapped = is_mapped);
        rest = after;
        (is_mapped, is_first) = (!is_mapped, false);
    }
    Ok(layers)
}
