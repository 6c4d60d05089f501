//! An open `.lam` file as a source of arrays.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use lamella_codec::{
    Array, ArraySpec, Catalogue, CatalogueError, Codec, CodedLinear, GrowingArray, Recipe, RecipeError,
    SourceError, TensorSource,
};
use lamella_file::{File, FileError, Storage};

/// Decoded bytes an array may have per byte of its layers, beyond [`FREE_BYTES`]: a matrix of one repeated value
/// codes to almost nothing, but a hostile file must not turn kilobytes into terabytes.
const MAX_EXPANSION: u64 = 1 << 14;
const FREE_BYTES: u64 = 1 << 24;

/// Why a coded model could not be opened or read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// The container.
    #[error(transparent)]
    File(#[from] FileError),
    /// A recipe text that this version cannot read.
    #[error("`{file}` stores a recipe that this version cannot read")]
    Recipe {
        /// File.
        file: String,
        /// Why.
        #[source]
        source: RecipeError,
    },
    /// A recipe whose codec this version does not have.
    #[error("`{file}` needs a codec that this version does not have; a newer one may read it")]
    Codec {
        /// File.
        file: String,
        /// Why.
        #[source]
        source: CatalogueError,
    },
    /// A file that does not go on where another one ends.
    #[error("`{file}` is not a longer part of `{shorter}`")]
    OtherFile {
        /// The file that was to be read on.
        file: String,
        /// The file read so far.
        shorter: String,
    },
    /// An array claims far more than its layers can hold.
    #[error("array `{array}` of `{file}` claims {claimed} bytes in {stored} stored ones")]
    Expansion {
        /// File.
        file: String,
        /// Array.
        array: String,
        /// Bytes of the decoded array.
        claimed: u64,
        /// Bytes of its layers.
        stored: u64,
    },
}

/// A coded model: hands out decoded arrays by name.
///
/// Opening reads the manifest and builds the codecs; arrays are decoded when they are asked for and not kept
/// (bundles of small arrays excepted, which are kept once decoded, and the last few stacks, until all their arrays were
/// asked for).
pub struct CodedModel {
    file: File,
    specs: Vec<ArraySpec>,
    codecs: Vec<Arc<dyn Codec>>,
    /// Decoded bundles by target.
    kept: Mutex<BTreeMap<usize, Kept>>,
    /// By target: arrays as far as they have grown, where the model is to grow.
    growing: Option<Mutex<BTreeMap<usize, Box<dyn GrowingArray>>>>,
}

/// A bundle that was decoded.
struct Kept {
    whole: Arc<Array<'static>>,
    /// How often a stack is still expected to be asked for; `None` for small arrays, which stay.
    left: Option<usize>,
}

/// Stacks that are kept at a time.
const KEPT_STACKS: usize = 4;

impl std::fmt::Debug for CodedModel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "CodedModel({:?})", self.file)
    }
}

impl CodedModel {
    /// Opens a file or a valid prefix of one.
    ///
    /// # Errors
    /// A damaged manifest, a prefix that misses an array, a recipe or codec unknown to this version.
    pub fn open(path: &Path, catalogue: &Catalogue) -> Result<Self, OpenError> {
        Self::new(File::open(path)?, catalogue)
    }

    /// Reads an open container.
    ///
    /// # Errors
    /// As [`CodedModel::open`].
    pub fn new(file: File, catalogue: &Catalogue) -> Result<Self, OpenError> {
        let name = || file.name().to_owned();
        let mut codecs = Vec::new();
        for text in &file.manifest().recipes {
            let recipe: Recipe = text.parse().map_err(|source| OpenError::Recipe { file: name(), source })?;
            codecs
                .push(catalogue.codec(&recipe).map_err(|source| OpenError::Codec { file: name(), source })?);
        }
        for target in 0..file.targets().len() {
            let Some(spec) = file.targets().spec(target, file.arrays()) else { continue };
            let claimed = spec.checked_size_bytes().unwrap_or(usize::MAX) as u64;
            let layers = file.layer_indices(target);
            let stored: u64 =
                layers.iter().map(|&layer| file.manifest().layers[layer as usize].length_bytes).sum();
            if claimed > FREE_BYTES.saturating_add(stored.saturating_mul(MAX_EXPANSION)) {
                return Err(OpenError::Expansion { file: name(), array: spec.name, claimed, stored });
            }
        }
        let specs = file.arrays().iter().map(|array| array.spec.clone()).collect();
        Ok(Self { file, specs, codecs, kept: Mutex::new(BTreeMap::new()), growing: None })
    }

    /// The same model that can [grow](CodedModel::grown): arrays whose codec knows how are kept as integers once they
    /// were asked for, about six bytes a weight.
    #[must_use]
    pub fn growing(mut self) -> Self {
        self.growing.get_or_insert_default();
        self
    }

    /// The model read on to the end of a longer prefix of the same file. Arrays that were asked for before take in their
    /// new layers alone, when they are asked for again; `self` decodes afresh from then on.
    ///
    /// # Errors
    /// Another file, or a shorter part of it.
    pub fn grown(&self, longer: File, catalogue: &Catalogue) -> Result<Self, OpenError> {
        let is_longer = longer.whole_layers() >= self.file.whole_layers();
        if !is_longer || longer.manifest() != self.file.manifest() {
            let shorter = self.file.name().to_owned();
            return Err(OpenError::OtherFile { file: longer.name().to_owned(), shorter });
        }
        let mut model = Self::new(longer, catalogue)?;
        if let Some(growing) = &self.growing {
            let states = std::mem::take(&mut *growing.lock().unwrap_or_else(PoisonError::into_inner));
            model.growing = Some(Mutex::new(states));
        }
        Ok(model)
    }

    /// A target's array as far as its layers are there.
    fn read_target(
        &self,
        codec: &dyn Codec,
        target: usize,
        spec: &ArraySpec,
    ) -> Result<Array<'static>, Box<dyn std::error::Error + Send + Sync>> {
        let all = self.file.layer_indices(target);
        let read = |layers: &[u32]| -> Result<Vec<Cow<'_, [u8]>>, FileError> {
            layers.iter().map(|&layer| self.file.layer(layer as usize)).collect()
        };
        let decode = || -> Result<Array<'static>, Box<dyn std::error::Error + Send + Sync>> {
            let layers = read(all)?;
            Ok(codec.decode(spec, &layers.iter().map(|layer| &layer[..]).collect::<Vec<_>>())?)
        };
        let Some(growing) = &self.growing else { return decode() };
        // Taken out while it works: threads of one pool must not wait for each other.
        let lock = || growing.lock().unwrap_or_else(PoisonError::into_inner);
        let known = lock().remove(&target).filter(|known| known.n_layers() <= all.len());
        let begun = match (known, all.first()) {
            (None, Some(&first)) => codec.begin(spec, &self.file.layer(first as usize)?)?,
            (known, _) => known,
        };
        let Some(mut array) = begun else { return decode() };
        for layer in read(&all[array.n_layers()..])? {
            array.apply(&layer)?;
        }
        let values = array.array()?;
        lock().insert(target, array);
        Ok(values)
    }

    /// The container.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// The codec of an array.
    pub fn codec_of(&self, name: &str) -> Option<&Arc<dyn Codec>> {
        let entry = &self.file.arrays()[self.file.array_index(name)?];
        self.codecs.get(entry.recipe)
    }

    /// The array as a linear on its coded form, where its recipe says that it runs so; `None` where it is to be
    /// decoded.
    ///
    /// # Errors
    /// An array that is not there, or is damaged.
    pub fn execute(&self, name: &str) -> Result<Option<Arc<dyn CodedLinear>>, SourceError> {
        let unreadable = |source: Box<dyn std::error::Error + Send + Sync>| SourceError::Unreadable {
            name: name.to_owned(),
            source,
        };
        let missing = || SourceError::Missing { name: name.to_owned() };
        let index = self.file.array_index(name).ok_or_else(missing)?;
        let entry = &self.file.arrays()[index];
        let place = self.file.locate(name).map_err(|error| unreadable(error.into()))?;
        let Some(codec) = self.codecs.get(entry.recipe) else { return Ok(None) };
        if place.elements != (0..place.coded_as.len()) {
            return Ok(None);
        }
        let layers = self.file.layers_of(name).map_err(|error| unreadable(error.into()))?;
        let layers: Vec<&[u8]> = layers.iter().map(|layer| &layer[..]).collect();
        codec.execute(&place.coded_as, &layers).map_err(|error| unreadable(error.into()))
    }

    fn decode(&self, name: &str) -> Result<Array<'static>, SourceError> {
        let unreadable = |source: Box<dyn std::error::Error + Send + Sync>| SourceError::Unreadable {
            name: name.to_owned(),
            source,
        };
        let index =
            self.file.array_index(name).ok_or_else(|| SourceError::Missing { name: name.to_owned() })?;
        let place = self.file.locate(name).map_err(|error| unreadable(error.into()))?;
        let entry = &self.file.arrays()[index];
        let is_bundle = matches!(entry.storage, Storage::Bundle(_));
        let known = if is_bundle { self.take_kept(place.target) } else { None };
        let whole = match known {
            Some(whole) => whole,
            None => {
                let codec =
                    self.codecs.get(entry.recipe).ok_or_else(|| unreadable("it names no recipe".into()))?;
                let whole = self.read_target(&**codec, place.target, &place.coded_as);
                let whole = Arc::new(whole.map_err(unreadable)?);
                if is_bundle {
                    self.keep(place.target, &whole);
                }
                whole
            }
        };
        let spec = entry.spec.clone();
        if !is_bundle && place.elements == (0..whole.spec.len()) {
            let bytes = match Arc::try_unwrap(whole) {
                Ok(whole) => whole.bytes.into_owned(),
                Err(shared) => shared.bytes.to_vec(),
            };
            return Array::new(spec, bytes).map_err(|error| unreadable(error.into()));
        }
        let width = spec.dtype.size_bytes();
        let bytes = whole
            .bytes
            .get(place.elements.start * width..place.elements.end * width)
            .ok_or_else(|| unreadable("its bundle is too short".into()))?;
        Array::new(spec, bytes.to_vec()).map_err(|error| unreadable(error.into()))
    }

    /// A bundle that was decoded before.
    fn take_kept(&self, target: usize) -> Option<Arc<Array<'static>>> {
        // Entries are only ever inserted and removed whole: a panic elsewhere cannot leave the map half changed.
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let Kept { whole, left } = kept.get_mut(&target)?;
        let whole = Arc::clone(whole);
        if let Some(left) = left {
            *left = left.saturating_sub(1);
            if *left == 0 {
                kept.remove(&target);
            }
        }
        Some(whole)
    }

    /// Keeps a bundle; a stack for its other arrays, in place of the one least far into the file.
    fn keep(&self, target: usize, whole: &Arc<Array<'static>>) {
        let others = self.file.targets().members(target).len().saturating_sub(1);
        let left = (whole.spec.shape.len() > 1).then_some(others);
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let stacks: Vec<usize> =
            kept.iter().filter(|(_, known)| known.left.is_some()).map(|(&target, _)| target).collect();
        if left.is_some() && stacks.len() >= KEPT_STACKS {
            stacks.first().map(|first| kept.remove(first));
        }
        kept.insert(target, Kept { whole: Arc::clone(whole), left });
    }
}

impl TensorSource for CodedModel {
    fn arrays(&self) -> &[ArraySpec] {
        &self.specs
    }
    fn array(&self, name: &str) -> Result<Array<'_>, SourceError> {
        self.decode(name)
    }
}
