//! Opening a file and reading what is in it.

use std::borrow::Cow;
use std::ops::Range;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use lamella_codec::ArraySpec;

use crate::error::Intact;
use crate::layout::Layout;
use crate::limits::HEADER_BYTES;
use crate::manifest::{self, ArrayEntry, Header, LayerEntry, Manifest, Storage, Targets};
use crate::mapping::MappedFile;
use crate::source::{self, Prefix, ReadAt};
use crate::{FileError, ManifestError, side};

/// Where an array's numbers are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Location {
    /// Index of the array asked for.
    pub array: usize,
    /// The target whose layers hold it.
    pub target: usize,
    /// What the target is decoded as: the array itself, or its whole bundle.
    pub coded_as: ArraySpec,
    /// The array's elements within the decoded target, counted in elements.
    pub elements: Range<usize>,
}

/// An open `.lam` file, or a valid prefix of one.
///
/// Opening reads the manifest only; payloads are read, and checked the first time, when they are asked for. Sharing
/// between threads is free.
pub struct File {
    name: String,
    source: Box<dyn ReadAt>,
    manifest: Manifest,
    targets: Targets,
    layout: Layout,
    whole_layers: usize,
    /// Array indices by name.
    by_name: Vec<u32>,
    /// Layer indices by target and ordinal, and where each target's begin.
    by_target: Vec<u32>,
    target_starts: Vec<u32>,
    is_checked: Vec<AtomicBool>,
}

impl std::fmt::Debug for File {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "File(`{}`, {} arrays, {} layers)", self.name, self.arrays().len(), self.whole_layers)
    }
}

impl File {
    /// Opens and memory-maps a file.
    ///
    /// # Errors
    /// What the system says; a manifest that cannot be read; [`FileError::Incomplete`] for a prefix in which an array
    /// has no layer.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, FileError> {
        let path = path.as_ref();
        let name = path.display().to_string();
        let mapped = MappedFile::open(path).map_err(FileError::io(format!("opening `{name}`")))?;
        Self::from_source(name, Box::new(mapped))
    }

    /// Opens the first `bytes` bytes of a file: the whole layers among them, as if the rest were not there.
    ///
    /// # Errors
    /// As [`File::open`]; [`FileError::Incomplete`] says how many bytes hold every array.
    pub fn open_prefix(path: impl AsRef<Path>, bytes: u64) -> Result<Self, FileError> {
        let name = path.as_ref().display().to_string();
        let mapped = MappedFile::open(path.as_ref()).map_err(FileError::io(format!("opening `{name}`")))?;
        Self::from_source(name, Box::new(Prefix::new(mapped, bytes)))
    }

    /// Opens a file that lies in memory.
    ///
    /// # Errors
    /// As [`File::open`].
    pub fn from_bytes(bytes: impl Into<Vec<u8>>) -> Result<Self, FileError> {
        Self::from_source("memory", Box::new(bytes.into()))
    }

    /// Opens a file behind any source; `name` is what errors call it.
    ///
    /// # Errors
    /// As [`File::open`].
    pub fn from_source(name: impl Into<String>, source: Box<dyn ReadAt>) -> Result<Self, FileError> {
        let file = Self::from_source_incomplete(name, source)?;
        match file.first_missing() {
            None => Ok(file),
            Some(array) => Err(FileError::Incomplete {
                file: file.name.clone(),
                array: array.to_owned(),
                found: file.source.length_bytes(),
                needed: file.layout.smallest_complete_bytes,
            }),
        }
    }

    /// Opens a file of which any part behind the manifest may be missing: enough to inspect it.
    ///
    /// # Errors
    /// A manifest that cannot be read.
    pub fn from_source_incomplete(
        name: impl Into<String>,
        source: Box<dyn ReadAt>,
    ) -> Result<Self, FileError> {
        let name = name.into();
        let (manifest, targets, manifest_bytes) = read_manifest(&name, &*source)?;
        let layout = Layout::new(manifest_bytes, &manifest, &targets).map_err(FileError::manifest(&name))?;
        let whole_layers = layout.whole_layers(source.length_bytes());
        let mut by_name: Vec<u32> = (0..manifest.arrays.len() as u32).collect();
        by_name.sort_unstable_by_key(|&array| manifest.arrays[array as usize].spec.name.as_str());
        let mut by_target: Vec<u32> = (0..manifest.layers.len() as u32).collect();
        by_target.sort_by_key(|&layer| manifest.layers[layer as usize].target);
        let target_starts = (0..=targets.len())
            .map(|target| {
                by_target.partition_point(|&layer| manifest.layers[layer as usize].target < target) as u32
            })
            .collect();
        let is_checked = manifest.layers.iter().map(|_| AtomicBool::new(false)).collect();
        Ok(Self {
            name,
            source,
            manifest,
            targets,
            layout,
            whole_layers,
            by_name,
            by_target,
            target_starts,
            is_checked,
        })
    }

    fn first_missing(&self) -> Option<&str> {
        if self.source.length_bytes() >= self.layout.smallest_complete_bytes {
            return None;
        }
        let missing =
            (self.whole_layers..self.manifest.layers.len()).find(|&layer| self.layout.ordinals[layer] == 0);
        // Without any array the side files are what is missing.
        Some(missing.map_or("", |layer| self.targets.name(self.manifest.layers[layer].target, self.arrays())))
    }

    /// What errors call the file: its path.
    pub fn name(&self) -> &str {
        &self.name
    }
    /// What the file says about itself.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }
    /// Which arrays share layers.
    pub fn targets(&self) -> &Targets {
        &self.targets
    }
    /// Where everything stands.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }
    /// Bytes there are: fewer than [`Layout::file_bytes`] for a prefix.
    pub fn length_bytes(&self) -> u64 {
        self.source.length_bytes()
    }
    /// Layers that are wholly there.
    pub fn whole_layers(&self) -> usize {
        self.whole_layers
    }
    /// Every array, in source order.
    pub fn arrays(&self) -> &[ArrayEntry] {
        &self.manifest.arrays
    }
    /// The recipe text of an array.
    pub fn recipe(&self, array: &ArrayEntry) -> &str {
        self.manifest.recipes.get(array.recipe).map_or("", String::as_str)
    }
    /// Index of the array with this name.
    pub fn array_index(&self, name: &str) -> Option<usize> {
        let named = |&array: &u32| self.manifest.arrays[array as usize].spec.name.as_str().cmp(name);
        self.by_name.binary_search_by(named).ok().map(|found| self.by_name[found] as usize)
    }

    /// Where the numbers of the array with this name are.
    ///
    /// # Errors
    /// [`FileError::UnknownArray`].
    pub fn locate(&self, name: &str) -> Result<Location, FileError> {
        let unknown = || FileError::UnknownArray { file: self.name.clone(), name: name.to_owned() };
        let array = self.array_index(name).ok_or_else(unknown)?;
        let target = self.targets.of_array(array).ok_or_else(unknown)?;
        let coded_as = self.targets.spec(target, self.arrays()).ok_or_else(unknown)?;
        let original = match self.manifest.arrays[array].storage {
            Storage::AliasOf(original) => original,
            Storage::Own | Storage::Bundle(_) => array,
        };
        let before = self.targets.members(target).iter().take_while(|&&member| (member as usize) < original);
        // The sum over the whole bundle did not overflow (`coded_as`), so neither does a part of it.
        let start = before.map(|&member| self.manifest.arrays[member as usize].spec.len()).sum();
        let end = start + self.manifest.arrays[original].spec.len();
        Ok(Location { array, target, coded_as, elements: start..end })
    }

    /// Layers of a target that are there, in the order they are applied: indices into [`Manifest::layers`].
    pub fn layer_indices(&self, target: usize) -> &[u32] {
        match (self.target_starts.get(target), self.target_starts.get(target.saturating_add(1))) {
            (Some(&start), Some(&end)) => {
                let all = &self.by_target[start as usize..end as usize];
                &all[..all.partition_point(|&layer| (layer as usize) < self.whole_layers)]
            }
            _ => &[],
        }
    }

    /// Payload of one layer, checked against its checksum the first time.
    ///
    /// # Errors
    /// [`FileError::LayerChecksum`], or what the system says. A layer that is not there is an end-of-file error.
    pub fn layer(&self, layer: usize) -> Result<Cow<'_, [u8]>, FileError> {
        let missing = || FileError::io(format!("reading layer {layer} of `{}`", self.name));
        let extent = self
            .layout
            .extents
            .get(layer)
            .ok_or(std::io::ErrorKind::UnexpectedEof.into())
            .map_err(missing())?;
        let payload =
            source::read(&*self.source, extent.start, extent.end - extent.start).map_err(missing())?;
        if !self.is_checked[layer].load(Ordering::Relaxed) {
            if crc32fast::hash(&payload) != self.manifest.layers[layer].crc32 {
                return Err(self.layer_damaged(layer));
            }
            self.is_checked[layer].store(true, Ordering::Relaxed);
        }
        Ok(payload)
    }

    /// Payloads of the layers that hold an array (of its whole bundle where it shares them), in the order they are
    /// applied; at least one. [`File::locate`] says how to decode them.
    ///
    /// # Errors
    /// As [`File::locate`] and [`File::layer`].
    pub fn layers_of(&self, name: &str) -> Result<Vec<Cow<'_, [u8]>>, FileError> {
        let target = self.locate(name)?.target;
        self.layer_indices(target).iter().map(|&layer| self.layer(layer as usize)).collect()
    }

    /// The copied side files: name and bytes, each checked.
    ///
    /// # Errors
    /// [`FileError::SideFiles`].
    pub fn side_files(&self) -> Result<Vec<(String, Vec<u8>)>, FileError> {
        side::unpack(&self.manifest.side, &self.stored_side_files()?)
            .map_err(|message| self.side_damaged(message))
    }

    /// The side files as they are stored.
    pub(crate) fn stored_side_files(&self) -> Result<Cow<'_, [u8]>, FileError> {
        let Range { start, end } = self.layout.side;
        source::read(&*self.source, start, end - start)
            .map_err(FileError::io(format!("reading the side files of `{}`", self.name)))
    }

    pub(crate) fn side_damaged(&self, message: String) -> FileError {
        let Range { start, end } = self.layout.side;
        FileError::SideFiles { file: self.name.clone(), start, end, message }
    }

    pub(crate) fn layer_damaged(&self, layer: usize) -> FileError {
        let Range { start, end } = self.layout.extents[layer];
        FileError::LayerChecksum {
            file: self.name.clone(),
            layer,
            array: self.targets.name(self.manifest.layers[layer].target, self.arrays()).to_owned(),
            ordinal: self.layout.ordinals[layer] as usize,
            start,
            end,
            intact: Intact {
                layers: layer,
                is_complete: start >= self.layout.smallest_complete_bytes,
                bits_per_element: self.bits_per_element(start),
                whole_bits_per_element: self.bits_per_element(self.layout.file_bytes),
            },
        }
    }

    /// Elements of all arrays, tied ones once.
    pub fn elements(&self) -> u64 {
        let stored = self.arrays().iter().filter(|array| !matches!(array.storage, Storage::AliasOf(_)));
        stored.fold(0, |sum, array| sum.saturating_add(array.spec.len() as u64))
    }

    pub(crate) fn bits_per_element(&self, bytes: u64) -> f64 {
        bytes.saturating_sub(self.layout.side.end - self.layout.side.start) as f64 * 8.0
            / (self.elements().max(1) as f64)
    }

    pub(crate) fn source(&self) -> &dyn ReadAt {
        &*self.source
    }
    pub(crate) fn layers(&self) -> &[LayerEntry] {
        &self.manifest.layers
    }
}

/// Reads header and manifest: two reads at most, the second only where the manifest is longer than the first brought.
fn read_manifest(name: &str, source: &dyn ReadAt) -> Result<(Manifest, Targets, u64), FileError> {
    const FIRST_BYTES: u64 = 4096;
    let found = source.length_bytes();
    let failed = || FileError::io(format!("reading `{name}`"));
    let start = source::read(source, 0, found.min(FIRST_BYTES)).map_err(failed())?;
    let header = Header::read(&start).map_err(FileError::manifest(name))?;
    let end = HEADER_BYTES as u64 + u64::from(header.manifest_bytes);
    if end > found {
        return Err(ManifestError::Truncated { what: "manifest", needed: end, found })
            .map_err(FileError::manifest(name));
    }
    let whole =
        if end <= start.len() as u64 { start } else { source::read(source, 0, end).map_err(failed())? };
    let (manifest, targets) =
        manifest::decode(header, &whole[HEADER_BYTES..end as usize]).map_err(FileError::manifest(name))?;
    Ok((manifest, targets, end))
}
