//! Cutting a file: fewer layers, a manifest that says so.
//!
//! `head -c` of a file opens too and holds the same layers as a cut to the same size, or one fewer: its manifest still
//! lists what is gone. A cut file verifies as a whole file of its own.

use std::borrow::Cow;
use std::ops::Range;
use std::path::Path;

use serde::Serialize;

use crate::layout::Layout;
use crate::manifest::{self, Manifest};
use crate::{File, FileError, write_atomically, write_to};

/// What a cut left.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct CutReport {
    /// Version of this report.
    pub schema: u32,
    /// Bytes before.
    pub bytes_before: u64,
    /// Bytes written.
    pub bytes: u64,
    /// Bytes allowed.
    pub target_bytes: u64,
    /// Layers before.
    pub layers_before: usize,
    /// Layers kept.
    pub layers: usize,
    /// Bits per element after the cut, side files left out.
    pub bits_per_element: f64,
    /// How much larger the loss is than the uncut file's, as predicted from the layers' distortions: the mean over the
    /// elements of arrays in several layers, each array's last distortion counting as 1. 1 where there are none.
    pub predicted_loss: f64,
}

/// A cut that has been decided but not written.
#[derive(Debug, Clone)]
pub struct Cut<'f> {
    file: &'f File,
    manifest: Manifest,
    report: CutReport,
}

impl File {
    /// Decides what a cut to at most `bytes` keeps: the longest run of layers that fits, with its smaller manifest.
    ///
    /// # Errors
    /// [`FileError::NothingToCut`] where the file is no larger than that or every layer is needed,
    /// [`FileError::CutTooSmall`] where an array would be lost.
    pub fn cut(&self, bytes: u64) -> Result<Cut<'_>, FileError> {
        let found = self.whole_layers();
        let nothing = |reason| FileError::NothingToCut { file: self.name().to_owned(), reason };
        if self.length_bytes() <= bytes {
            return Err(nothing(format!("it has {} bytes, {bytes} are allowed", self.length_bytes())));
        }
        // The last layer with ordinal 0 and everything before it must stay.
        let least =
            self.layout().ordinals[..found].iter().rposition(|&ordinal| ordinal == 0).map_or(0, |at| at + 1);
        if least == found {
            return Err(nothing(format!("each of its {found} layers is needed to have every array once")));
        }
        let smallest = self.size_with(least)?;
        if smallest > bytes {
            return Err(self.too_small(bytes, smallest));
        }
        // What fits depends on the manifest, whose text part depends, a little, on what is kept. A few rounds settle
        // it; where they circle, the last loop makes sure that the result fits.
        let mut keep = self.layout().whole_layers(bytes).clamp(least, found);
        for _ in 0..8 {
            let description_bytes = manifest::description_bytes(&self.manifest_with(keep))?;
            let settled = self.layers_that_fit(bytes, description_bytes, least..found)?;
            if settled == keep {
                break;
            }
            keep = settled;
        }
        let mut size = self.size_with(keep)?;
        while keep > least && size > bytes {
            keep -= 1;
            size = self.size_with(keep)?;
        }
        let manifest = self.manifest_with(keep);
        let report = CutReport {
            schema: 1,
            bytes_before: self.length_bytes(),
            bytes: size,
            target_bytes: bytes,
            layers_before: found,
            layers: keep,
            bits_per_element: self.bits_per_element(size),
            predicted_loss: self.predicted_loss(keep),
        };
        Ok(Cut { file: self, manifest, report })
    }

    /// Loss with the first `layers` layers over the loss with all that are there. Layers were ordered by what they gain
    /// at equal slopes at the end, so a final distortion of every element is worth the same.
    fn predicted_loss(&self, layers: usize) -> f64 {
        let (mut kept, mut elements) = (0.0, 0.0);
        for target in 0..self.targets().len() {
            let all = self.layer_indices(target);
            let known = &all[..all.partition_point(|&layer| (layer as usize) < layers)];
            let distortion = |layer: Option<&u32>| {
                layer.map_or(0.0, |&layer| f64::from(self.layers()[layer as usize].distortion))
            };
            let last = distortion(all.last());
            if all.len() > 1 && last > 0.0 {
                let len = self.targets().spec(target, self.arrays()).map_or(0, |spec| spec.len()) as f64;
                kept += len * distortion(known.last()) / last;
                elements += len;
            }
        }
        if elements > 0.0 { kept / elements } else { 1.0 }
    }

    fn manifest_with(&self, layers: usize) -> Manifest {
        let mut manifest = self.manifest().clone();
        manifest.layers.truncate(layers);
        manifest
    }

    fn size_with(&self, layers: usize) -> Result<u64, FileError> {
        let manifest = self.manifest_with(layers);
        let manifest_bytes = manifest::manifest_bytes(&manifest)?;
        Ok(Layout::new(manifest_bytes, &manifest, self.targets())?.file_bytes)
    }

    /// The most layers of a range that fit beside a description of this size.
    fn layers_that_fit(
        &self,
        bytes: u64,
        description_bytes: u64,
        range: Range<usize>,
    ) -> Result<usize, FileError> {
        let (mut fits, mut most) = (range.start, range.end);
        while fits < most {
            let middle = fits + (most - fits).div_ceil(2);
            let manifest_bytes = description_bytes + manifest::table_bytes(&self.layers()[..middle]);
            let layout = Layout::of_layers(
                manifest_bytes,
                self.manifest().side.stored_bytes,
                &self.layers()[..middle],
                self.targets().len(),
            )?;
            if layout.file_bytes <= bytes { fits = middle } else { most = middle - 1 }
        }
        Ok(fits)
    }

    fn too_small(&self, asked: u64, smallest: u64) -> FileError {
        let first = (0..self.layers().len())
            .find(|&layer| self.layout().ordinals[layer] == 0 && self.layout().extents[layer].end > asked)
            .or_else(|| self.layout().ordinals.iter().rposition(|&ordinal| ordinal == 0));
        let array = first.map_or("", |layer| self.targets().name(self.layers()[layer].target, self.arrays()));
        FileError::CutTooSmall { file: self.name().to_owned(), asked, array: array.to_owned(), smallest }
    }
}

impl Cut<'_> {
    /// What will be left.
    pub fn report(&self) -> &CutReport {
        &self.report
    }

    /// Writes the cut file to `path`, which may be the file that is cut. Every layer is checked on the way.
    ///
    /// # Errors
    /// A damaged layer, or what the system says.
    pub fn write(&self, path: impl AsRef<Path>) -> Result<CutReport, FileError> {
        let bytes = write_atomically(path.as_ref(), |out| {
            let side = self.file.stored_side_files()?;
            if crc32fast::hash(&side) != self.file.manifest().side.crc32 {
                return Err(self.file.side_damaged("they fail their checksum".to_owned()));
            }
            write_to(out, &self.manifest, &side, |layer| self.file.layer(layer))
        })?;
        Ok(CutReport { bytes, ..self.report.clone() })
    }

    /// The bytes of the cut file.
    ///
    /// # Errors
    /// A damaged layer.
    pub fn to_bytes(&self) -> Result<Vec<u8>, FileError> {
        let mut out = Vec::new();
        let side: Cow<'_, [u8]> = self.file.stored_side_files()?;
        write_to(&mut out, &self.manifest, &side, |layer| self.file.layer(layer))?;
        Ok(out)
    }
}

/// Cuts the file at `input` to at most `bytes` and writes it to `output` (which may be `input`).
///
/// # Errors
/// As [`File::open`], [`File::cut`] and [`Cut::write`].
pub fn cut(input: impl AsRef<Path>, bytes: u64, output: impl AsRef<Path>) -> Result<CutReport, FileError> {
    File::open(input)?.cut(bytes)?.write(output)
}
