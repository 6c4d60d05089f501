//! Where everything stands in a file. Offsets are never stored: they follow from lengths and order.

use std::ops::Range;

use crate::limits::MAPPED_ALIGNMENT;
use crate::manifest::{self, LayerEntry, Manifest, Targets};
use crate::{FileError, ManifestError};

/// Byte ranges of a file's parts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    /// Header and manifest end here; the side files begin.
    pub manifest_bytes: u64,
    /// The stored side files.
    pub side: Range<u64>,
    /// Payload of each layer, in stack order. Bytes between two payloads are zero padding.
    pub extents: Vec<Range<u64>>,
    /// Ordinal of each layer within its target: 0 makes it decodable, the others refine it.
    pub ordinals: Vec<u32>,
    /// Length of the shortest valid prefix: the end of the last layer with ordinal 0.
    pub smallest_complete_bytes: u64,
    /// Length of the whole file.
    pub file_bytes: u64,
}

impl Layout {
    pub(crate) fn new(
        manifest_bytes: u64,
        manifest: &Manifest,
        targets: &Targets,
    ) -> Result<Self, ManifestError> {
        Self::of_layers(manifest_bytes, manifest.side.stored_bytes, &manifest.layers, targets.len())
    }

    pub(crate) fn of_layers(
        manifest_bytes: u64,
        side_bytes: u64,
        layers: &[LayerEntry],
        n_targets: usize,
    ) -> Result<Self, ManifestError> {
        let too_long = || ManifestError::invalid("the extents exceed 64 bits");
        let side_end = manifest_bytes.checked_add(side_bytes).ok_or_else(too_long)?;
        let mut next_ordinal = vec![0u32; n_targets];
        let mut layout = Self {
            manifest_bytes,
            side: manifest_bytes..side_end,
            extents: Vec::with_capacity(layers.len()),
            ordinals: Vec::with_capacity(layers.len()),
            smallest_complete_bytes: side_end,
            file_bytes: side_end,
        };
        for layer in layers {
            let mut start = layout.file_bytes;
            if layer.is_mapped {
                start = start.checked_next_multiple_of(MAPPED_ALIGNMENT).ok_or_else(too_long)?;
            }
            let end = start.checked_add(layer.length_bytes).ok_or_else(too_long)?;
            let ordinal = next_ordinal
                .get_mut(layer.target)
                .ok_or_else(|| ManifestError::invalid(format!("a layer refines target {}", layer.target)))?;
            if *ordinal == 0 {
                layout.smallest_complete_bytes = end;
            }
            layout.ordinals.push(*ordinal);
            layout.extents.push(start..end);
            layout.file_bytes = end;
            *ordinal += 1;
        }
        Ok(layout)
    }

    /// Layers that lie wholly within the first `bytes` of the file.
    pub fn whole_layers(&self, bytes: u64) -> usize {
        self.extents.partition_point(|extent| extent.end <= bytes)
    }

    /// Bytes of a file that ends after `layers` whole layers.
    pub fn end_of(&self, layers: usize) -> u64 {
        layers
            .checked_sub(1)
            .and_then(|last| self.extents.get(last))
            .map_or(self.side.end, |extent| extent.end)
    }
}

/// Exact size in bytes of the file that `manifest` describes. Only the layers' order, lengths and `is_mapped` matter;
/// checksums and distortions may still be unknown.
///
/// ```
/// use lamella_file::{Manifest, size_of};
/// assert!(size_of(&Manifest::default()).unwrap() < 40);
/// ```
///
/// # Errors
/// A manifest that cannot be written.
pub fn size_of(manifest: &Manifest) -> Result<u64, FileError> {
    let targets = manifest.validate()?;
    Ok(Layout::new(manifest::manifest_bytes(manifest)?, manifest, &targets)?.file_bytes)
}
