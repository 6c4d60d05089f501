//! What a file holds: arrays, recipes, layers in stack order, shards and side files.

mod description;
mod stored;
mod targets;

use std::collections::BTreeSet;

use lamella_codec::ArraySpec;
use serde::Serialize;

use crate::ManifestError;
use crate::TextCoding;
use crate::limits::{
    MAX_ARRAY_BYTES, MAX_ARRAYS, MAX_AXES, MAX_ENTRIES, MAX_LAYER_BYTES, MAX_LAYERS, MAX_NAME_BYTES,
    MAX_SIDE_BYTES, MAX_TEXT_BYTES,
};

#[cfg(any(test, feature = "fuzzing"))]
pub(crate) use description::{decode as decode_description, encode as encode_description};
pub(crate) use stored::{Header, decode, description_bytes, encode, manifest_bytes, table_bytes};
pub use targets::Targets;

/// How an array's numbers are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Storage {
    /// In layers of its own.
    Own,
    /// In layers shared by all arrays with this bundle number: they are coded as one array of one axis, the members'
    /// elements one after the other in array order. Members have the same recipe and dtype.
    Bundle(usize),
    /// Not at all: its numbers are those of the array with this index (tied weights).
    AliasOf(usize),
}

/// One named array.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ArrayEntry {
    /// Name, shape, dtype.
    pub spec: ArraySpec,
    /// Index into [`Manifest::recipes`].
    pub recipe: usize,
    /// Index into [`Manifest::shards`]: the source file it came from.
    pub shard: usize,
    /// Where its numbers are.
    pub storage: Storage,
}

/// A file that arrays came from.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct Shard {
    /// Its name within the source directory, `model-00001-of-00002.safetensors`.
    pub name: String,
    /// Its own key/value texts (safetensors `__metadata__`) in their order.
    pub metadata: Vec<(String, String)>,
}

/// One layer: the payload that refines one target.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct LayerEntry {
    /// Index of the [target](Targets): an array stored by itself, or a bundle.
    pub target: usize,
    /// Bytes of the payload.
    pub length_bytes: u64,
    /// CRC-32 (IEEE) of the payload.
    pub crc32: u32,
    /// Distortion once this layer is applied, rounded to 17 significant bits (see [`stored_distortion`]).
    pub distortion: f32,
    /// Whether the payload starts on a 64-byte boundary, to be used memory-mapped.
    pub is_mapped: bool,
}

/// One copied file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct SideFile {
    /// Path within the source directory, `/` between its parts.
    pub name: String,
    /// Its bytes, decompressed.
    pub length_bytes: u64,
    /// CRC-32 (IEEE) of these bytes.
    pub crc32: u32,
}

/// The copied files and how they are stored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct SideTable {
    /// Every file, in the order their bytes follow each other.
    pub files: Vec<SideFile>,
    /// How the bytes of all files, one after the other, are coded.
    pub coding: TextCoding,
    /// Bytes stored.
    pub stored_bytes: u64,
    /// CRC-32 (IEEE) of the bytes stored.
    pub crc32: u32,
}

impl Default for SideTable {
    fn default() -> Self {
        Self { files: Vec::new(), coding: TextCoding::Stored, stored_bytes: 0, crc32: 0 }
    }
}

/// Everything a file says about itself.
///
/// `layers` may be empty while arrays are still being coded; a written manifest has at least one layer for each
/// [target](Targets).
#[derive(Debug, Clone, PartialEq, Default, Serialize)]
pub struct Manifest {
    /// The recipe texts.
    pub recipes: Vec<String>,
    /// The arrays, in source order.
    pub arrays: Vec<ArrayEntry>,
    /// The files arrays came from, at least one where there are arrays.
    pub shards: Vec<Shard>,
    /// The copied files.
    pub side: SideTable,
    /// The budget the file was made for, as the user wrote it: `--size 60MB`.
    pub budget: String,
    /// Free key/value texts: tool version, hash of the calibration text, seeds.
    pub metadata: Vec<(String, String)>,
    /// The layers from the first byte on.
    pub layers: Vec<LayerEntry>,
}

impl Manifest {
    /// Checks everything except that each target has a layer.
    ///
    /// # Errors
    /// The first number beyond a limit, or the first contradiction.
    pub fn validate(&self) -> Result<Targets, ManifestError> {
        within("recipes", self.recipes.len(), MAX_ENTRIES)?;
        within("shards", self.shards.len(), MAX_ENTRIES)?;
        within("metadata entries", self.metadata.len(), MAX_ENTRIES)?;
        within("side files", self.side.files.len(), MAX_ENTRIES)?;
        within("arrays", self.arrays.len(), MAX_ARRAYS)?;
        within("layers", self.layers.len(), MAX_LAYERS)?;
        let pairs = self.shards.iter().flat_map(|shard| &shard.metadata).chain(&self.metadata);
        let texts = pairs.flat_map(|(key, value)| [key, value]).chain(&self.recipes);
        for text in texts.chain(self.shards.iter().map(|shard| &shard.name)).chain([&self.budget]) {
            within("bytes of a text", text.len(), MAX_TEXT_BYTES)?;
        }
        self.validate_side()?;
        let mut names = BTreeSet::new();
        for array in &self.arrays {
            self.validate_array(array)?;
            if !names.insert(array.spec.name.as_str()) {
                return Err(ManifestError::invalid(format!("two arrays are named `{}`", array.spec.name)));
            }
        }
        let targets = Targets::new(&self.arrays, &self.recipes)?;
        self.validate_bundles(&targets)?;
        for (index, layer) in self.layers.iter().enumerate() {
            if layer.target >= targets.len() {
                return Err(ManifestError::invalid(format!(
                    "layer {index} refines target {} of {}",
                    layer.target,
                    targets.len()
                )));
            }
            within("bytes of a layer", layer.length_bytes, MAX_LAYER_BYTES)?;
            if !layer.distortion.is_finite() || layer.distortion.is_sign_negative() {
                return Err(ManifestError::invalid(format!(
                    "layer {index} states the distortion {}",
                    layer.distortion
                )));
            }
        }
        Ok(targets)
    }

    fn validate_side(&self) -> Result<(), ManifestError> {
        let mut total = 0u64;
        for (index, file) in self.side.files.iter().enumerate() {
            within("bytes of a name", file.name.len(), MAX_NAME_BYTES)?;
            let is_plain = |part: &str| !matches!(part, "" | "." | "..") && !part.contains(['\\', '\0', ':']);
            if !file.name.split('/').all(is_plain) {
                return Err(ManifestError::invalid(format!(
                    "side file {index} is named {:?}, which is not a plain relative path",
                    file.name
                )));
            }
            total = total.saturating_add(file.length_bytes);
        }
        let mut names: Vec<&str> = self.side.files.iter().map(|file| file.name.as_str()).collect();
        names.sort_unstable();
        if let Some(pair) = names.array_windows::<2>().find(|[left, right]| left == right) {
            return Err(ManifestError::invalid(format!("two side files are named `{}`", pair[0])));
        }
        if self.side.files.is_empty() && self.side != SideTable::default() {
            return Err(ManifestError::invalid("side files are stored but none is named"));
        }
        within("bytes of side files", total, MAX_SIDE_BYTES)?;
        within("stored bytes of side files", self.side.stored_bytes, MAX_SIDE_BYTES)
    }

    fn validate_bundles(&self, targets: &Targets) -> Result<(), ManifestError> {
        for target in 0..targets.len() {
            let sizes = targets.members(target).iter().map(|&member| &self.arrays[member as usize].spec);
            let total = sizes.fold(0u64, |sum, spec| {
                sum.saturating_add(spec.checked_size_bytes().map_or(u64::MAX, |size| size as u64))
            });
            within("bytes of a bundle", total, MAX_ARRAY_BYTES)?;
        }
        Ok(())
    }

    fn validate_array(&self, array: &ArrayEntry) -> Result<(), ManifestError> {
        let spec = &array.spec;
        if spec.name.is_empty() {
            return Err(ManifestError::invalid("an array has no name"));
        }
        within("bytes of a name", spec.name.len(), MAX_NAME_BYTES)?;
        within("axes", spec.shape.len(), MAX_AXES)?;
        match spec.checked_size_bytes() {
            Some(size) if size as u64 <= MAX_ARRAY_BYTES => {}
            _ => {
                return Err(ManifestError::invalid(format!(
                    "array `{}` of shape {:?} exceeds {MAX_ARRAY_BYTES} bytes",
                    spec.name, spec.shape
                )));
            }
        }
        if array.recipe >= self.recipes.len() {
            return Err(ManifestError::invalid(format!(
                "array `{}` uses recipe {} of {}",
                spec.name,
                array.recipe,
                self.recipes.len()
            )));
        }
        if array.shard >= self.shards.len() {
            return Err(ManifestError::invalid(format!(
                "array `{}` is of shard {} of {}",
                spec.name,
                array.shard,
                self.shards.len()
            )));
        }
        Ok(())
    }
}

/// The distortion that a file states for `distortion`: nearest 17 significant bits, capped at the largest finite
/// number. A negative or NaN distortion becomes 0, which is what rounding errors of an exact codec give.
///
/// ```
/// assert_eq!(lamella_file::stored_distortion(0.25), 0.25);
/// let stored = lamella_file::stored_distortion(1.0 / 3.0);
/// assert!((f64::from(stored) - 1.0 / 3.0).abs() < 1e-5);
/// ```
pub fn stored_distortion(distortion: f64) -> f32 {
    if distortion.is_nan() || distortion <= 0.0 {
        return 0.0;
    }
    let bits = (distortion as f32).min(f32::MAX).to_bits();
    // Rounding the mantissa up may carry into the exponent, which is the next number up, as it should be.
    let rounded = (bits + (1 << (DROPPED_BITS - 1))) >> DROPPED_BITS;
    f32::from_bits(rounded.min(f32::MAX.to_bits() >> DROPPED_BITS) << DROPPED_BITS)
}

/// Low mantissa bits of a distortion that are not stored.
pub(crate) const DROPPED_BITS: u32 = 7;

fn within(what: &'static str, found: impl TryInto<u64>, allowed: u64) -> Result<(), ManifestError> {
    let found = found.try_into().unwrap_or(u64::MAX);
    if found > allowed { Err(ManifestError::Limit { what, found, allowed }) } else { Ok(()) }
}
