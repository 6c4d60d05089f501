//! A manifest as it stands in a file: header, compressed description, plain layer table.
//!
//! The layer table is not compressed: checksums do not compress, and with them apart the size of a file follows from
//! the payloads' lengths alone, before a single checksum is known.
#![warn(clippy::indexing_slicing, clippy::arithmetic_side_effects, clippy::cast_possible_truncation)]

use super::{DROPPED_BITS, LayerEntry, Manifest, Targets, description};
use crate::limits::{
    FORMAT_VERSION, HEADER_BYTES, MAGIC, MAX_DESCRIPTION_BYTES, MAX_LAYER_BYTES, MAX_MANIFEST_BYTES,
};
use crate::wire::{Reader, put_varint};
use crate::{ManifestError, TextCoding, text_coding};

/// The first [`HEADER_BYTES`] of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Header {
    /// Bytes of the manifest, which follows.
    pub(crate) manifest_bytes: u32,
    /// CRC-32 of magic, version, manifest length and manifest.
    pub(crate) crc32: u32,
}

impl Header {
    /// Reads the first bytes of a file.
    pub(crate) fn read(bytes: &[u8]) -> Result<Self, ManifestError> {
        let start = bytes.get(..bytes.len().min(MAGIC.len())).unwrap_or_default();
        if !MAGIC.starts_with(start) {
            let found = start.iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().join(" ");
            return Err(ManifestError::Magic { found });
        }
        let mut reader = Reader::new(bytes, "header");
        reader.bytes(MAGIC.len() as u64)?;
        let found = reader.u8()?;
        if found != FORMAT_VERSION {
            return Err(ManifestError::Version { found, known: FORMAT_VERSION });
        }
        let header = Self { manifest_bytes: reader.u32()?, crc32: reader.u32()? };
        let found = u64::from(header.manifest_bytes);
        if found > MAX_MANIFEST_BYTES {
            return Err(ManifestError::Limit {
                what: "bytes of manifest",
                found,
                allowed: MAX_MANIFEST_BYTES,
            });
        }
        Ok(header)
    }

    fn start(manifest_bytes: u32) -> Vec<u8> {
        let mut start = MAGIC.to_vec();
        start.push(FORMAT_VERSION);
        start.extend_from_slice(&manifest_bytes.to_le_bytes());
        start
    }

    pub(crate) fn checksum(manifest: &[u8]) -> u32 {
        let mut hasher = crc32fast::Hasher::new();
        hasher.update(&Self::start(u32::try_from(manifest.len()).unwrap_or(u32::MAX)));
        hasher.update(manifest);
        hasher.finalize()
    }
}

fn stored_description(manifest: &Manifest) -> Result<Vec<u8>, ManifestError> {
    let description = description::encode(manifest);
    let length = description.len() as u64;
    if length > MAX_DESCRIPTION_BYTES {
        return Err(ManifestError::Limit {
            what: "bytes of description",
            found: length,
            allowed: MAX_DESCRIPTION_BYTES,
        });
    }
    let (coding, stored) = text_coding::encode(&description);
    let mut out = vec![coding.code()];
    put_varint(&mut out, length);
    put_varint(&mut out, stored.len() as u64);
    out.extend_from_slice(&stored);
    Ok(out)
}

fn put_table(out: &mut Vec<u8>, manifest: &Manifest) {
    manifest.layers.iter().for_each(|layer| put_varint(out, layer.length_bytes));
    manifest.layers.iter().for_each(|layer| out.extend_from_slice(&layer.crc32.to_le_bytes()));
    for layer in &manifest.layers {
        let bits = (layer.distortion.to_bits() >> DROPPED_BITS).to_le_bytes();
        out.extend_from_slice(bits.first_chunk::<3>().unwrap_or(&[0; 3]));
    }
}

/// Bytes of header and stored description. Checksums, lengths and distortions do not change it.
pub(crate) fn description_bytes(manifest: &Manifest) -> Result<u64, ManifestError> {
    Ok((stored_description(manifest)?.len() as u64).saturating_add(HEADER_BYTES as u64))
}

/// Bytes of the layer table.
pub(crate) fn table_bytes(layers: &[LayerEntry]) -> u64 {
    let varint = |value: u64| u64::from(value.checked_ilog2().unwrap_or(0) / 7).saturating_add(1);
    layers.iter().fold(0, |sum: u64, layer| sum.saturating_add(varint(layer.length_bytes)).saturating_add(7))
}

/// Bytes of header and manifest. Checksums and distortions do not change it.
pub(crate) fn manifest_bytes(manifest: &Manifest) -> Result<u64, ManifestError> {
    Ok(description_bytes(manifest)?.saturating_add(table_bytes(&manifest.layers)))
}

/// Header and manifest of a file whose layers are final.
pub(crate) fn encode(manifest: &Manifest) -> Result<Vec<u8>, ManifestError> {
    let targets = manifest.validate()?;
    each_target_has_a_layer(manifest, &targets)?;
    let mut bytes = stored_description(manifest)?;
    put_table(&mut bytes, manifest);
    let length = u32::try_from(bytes.len())
        .ok()
        .filter(|&length| u64::from(length) <= MAX_MANIFEST_BYTES)
        .ok_or(ManifestError::Limit {
            what: "bytes of manifest",
            found: bytes.len() as u64,
            allowed: MAX_MANIFEST_BYTES,
        })?;
    let mut out = Header::start(length);
    out.extend_from_slice(&Header::checksum(&bytes).to_le_bytes());
    out.append(&mut bytes);
    Ok(out)
}

/// Reads the manifest whose header was `header`, and checks all of it.
pub(crate) fn decode(header: Header, bytes: &[u8]) -> Result<(Manifest, Targets), ManifestError> {
    let found = Header::checksum(bytes);
    if found != header.crc32 {
        return Err(ManifestError::Checksum { stated: header.crc32, found });
    }
    let mut reader = Reader::new(bytes, "manifest");
    let code = reader.u8()?;
    let coding = TextCoding::from_code(code)
        .ok_or_else(|| ManifestError::invalid(format!("it is stored by unknown text coding {code}")))?;
    let length = reader.bounded("bytes of description", MAX_DESCRIPTION_BYTES)?;
    let stored_length = reader.varint()?;
    let stored = reader.bytes(stored_length)?;
    let text = text_coding::decode(coding, stored, length).map_err(ManifestError::invalid)?;
    let mut manifest = description::decode(&text)?;
    for layer in &mut manifest.layers {
        layer.length_bytes = reader.bounded("bytes of a layer", MAX_LAYER_BYTES)?;
    }
    for layer in &mut manifest.layers {
        layer.crc32 = reader.u32()?;
    }
    for layer in &mut manifest.layers {
        let [low, middle, high] = reader.array::<3>()?;
        layer.distortion = f32::from_bits(u32::from_le_bytes([low, middle, high, 0]) << DROPPED_BITS);
    }
    reader.finish()?;
    let targets = manifest.validate()?;
    each_target_has_a_layer(&manifest, &targets)?;
    Ok((manifest, targets))
}

fn each_target_has_a_layer(manifest: &Manifest, targets: &Targets) -> Result<(), ManifestError> {
    let mut has_layer = vec![false; targets.len()];
    for layer in &manifest.layers {
        if let Some(has_layer) = has_layer.get_mut(layer.target) {
            *has_layer = true;
        }
    }
    match has_layer.iter().position(|&has_layer| !has_layer) {
        None => Ok(()),
        Some(target) => Err(ManifestError::invalid(format!(
            "array `{}` has no layer",
            targets.name(target, &manifest.arrays)
        ))),
    }
}
