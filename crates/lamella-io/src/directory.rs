//! A model as people have it: a directory of weights, configuration and tokenizer, or one weight file.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::{Path, PathBuf};

use lamella_codec::{Array, ArraySpec, SourceError, TensorSource};
use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::checkpoint::{Checkpoint, MadeTokenizer};
use crate::mapped::MappedFile;
use crate::safetensors::{CompressedTensors, is_compressed};
use crate::side_files::{LeftOut, SideFiles};
use crate::weight_files::{Found, find_weights};
use crate::{GgufFile, IoError, Llama2cFile, RwkvCppFile, SafetensorsFile};

/// An opened model: its arrays, configuration and side files.
///
/// | given | arrays | side files |
/// |---|---|---|
/// | a directory with `model.safetensors` | that file's | the directory's, by [the rule](crate::LeftOut) |
/// | a directory with `*.safetensors.index.json` | all shards', in the order of their names | the same |
/// | a directory with other `*.safetensors` | all of them | the same |
/// | a directory with one `*.gguf` and no safetensors | that file's | as for the file |
/// | a directory whose `config.json` names compressed-tensors | the weights its codes stand for | as above; `config.json` without the quantisation |
/// | one `.safetensors` file | its own | none |
/// | one GGUF file, one llama2.c or rwkv.cpp `.bin` file | its own, quantised ones as `f32` | what the file says: `config.json`, `tokenizer.json` |
///
/// Opening reads headers only; arrays are borrowed from memory maps.
///
/// ```no_run
/// use lamella_codec::TensorSource;
/// let model = lamella_io::ModelDirectory::open("assets/stories260k")?;
/// println!("{} arrays, {} bytes", model.arrays().len(), model.weight_bytes());
/// # Ok::<(), lamella_io::IoError>(())
/// ```
#[derive(Debug)]
pub struct ModelDirectory {
    root: PathBuf,
    weight_files: Vec<PathBuf>,
    weights: Weights,
    specs: Vec<ArraySpec>,
    by_name: BTreeMap<String, (usize, usize)>,
    config: Option<Value>,
    side_files: SideFiles,
    made_files: Vec<(String, Vec<u8>)>,
}

#[derive(Debug)]
enum Weights {
    Safetensors(Vec<SafetensorsFile>),
    Other(Box<dyn Checkpoint>),
}

impl ModelDirectory {
    /// Opens a model directory or a single weight file.
    ///
    /// # Errors
    /// Nothing at `path`, no weights in it, a damaged header, an index that names what is not there, or an array
    /// in two shards.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, IoError> {
        let path = path.as_ref();
        let about = fs_err::metadata(path);
        match about {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                Err(IoError::NotFound { path: path.to_owned() })
            }
            Err(error) => Err(error.into()),
            Ok(about) if about.is_dir() => Self::open_directory(path),
            Ok(_) => Self::open_file(path),
        }
    }

    fn open_directory(root: &Path) -> Result<Self, IoError> {
        let (weight_files, index) = match find_weights(root)? {
            Found::Shards(files) => (files, None),
            Found::Indexed(files, index) => (files, Some(index)),
            Found::Gguf(file) => return Self::open_file(&file),
        };
        let shards = weight_files.iter().map(SafetensorsFile::open).collect::<Result<Vec<_>, _>>()?;
        let mut model = Self::of_shards(root, shards)?;
        if let Some((index_path, weight_map)) = index {
            model.check_index(&index_path, &weight_map)?;
        }
        model.side_files = SideFiles::of_directory(root, &weight_files)?;
        let config = root.join("config.json");
        if config.exists() {
            let value = serde_json::from_slice(&fs_err::read(&config)?)
                .map_err(|error| IoError::damaged(&config, format!("it is no JSON: {error}")))?;
            model.config = Some(value);
        }
        match model.config.take_if(|config| is_compressed(config)) {
            Some(config) => model.expanded(config),
            None => Ok(model),
        }
    }

    /// A compressed-tensors checkpoint as the arrays it stands for; `config.json` then says nothing of quantisation.
    fn expanded(mut self, config: Value) -> Result<Self, IoError> {
        let shards = match std::mem::replace(&mut self.weights, Weights::Safetensors(Vec::new())) {
            Weights::Safetensors(shards) => shards,
            Weights::Other(_) => Vec::new(),
        };
        let checkpoint = CompressedTensors::new(shards, config)?;
        self.specs = checkpoint.arrays().to_vec();
        let places = self.specs.iter().enumerate();
        self.by_name = places
            .map(|(ordinal, spec)| (spec.name.clone(), (checkpoint.shard_of(&spec.name), ordinal)))
            .collect();
        self.config = checkpoint.config();
        self.side_files.copied.retain(|(name, _)| name != "config.json");
        if let Some(config) = &self.config {
            self.made_files.push(("config.json".to_owned(), format!("{config:#}\n").into_bytes()));
        }
        self.weights = Weights::Other(Box::new(checkpoint));
        Ok(self)
    }

    fn open_file(path: &Path) -> Result<Self, IoError> {
        if has_suffix(path, ".safetensors") {
            return Self::of_shards(path, vec![SafetensorsFile::open(path)?]);
        }
        let checkpoint: Box<dyn Checkpoint> = {
            let file = MappedFile::open(path)?;
            if GgufFile::is_one(&file) {
                Box::new(GgufFile::open(path)?)
            } else if RwkvCppFile::is_one(&file) {
                Box::new(RwkvCppFile::open(path)?)
            } else if Llama2cFile::is_one(&file) {
                Box::new(Llama2cFile::open(path)?)
            } else {
                return Err(IoError::UnknownFormat { path: path.to_owned() });
            }
        };
        Self::of_checkpoint(path, checkpoint)
    }

    fn of_checkpoint(path: &Path, checkpoint: Box<dyn Checkpoint>) -> Result<Self, IoError> {
        let specs = checkpoint.arrays().to_vec();
        let by_name =
            specs.iter().enumerate().map(|(ordinal, spec)| (spec.name.clone(), (0, ordinal))).collect();
        let config = checkpoint.config();
        let mut made_files = Vec::new();
        if let Some(config) = &config {
            made_files.push(("config.json".to_owned(), format!("{config:#}\n").into_bytes()));
        }
        let mut side_files = SideFiles::default();
        match checkpoint.tokenizer()? {
            MadeTokenizer::Absent => {}
            MadeTokenizer::Made(text) => made_files.push(("tokenizer.json".to_owned(), text.into_bytes())),
            MadeTokenizer::LeftOut(left_out) => side_files.left_out.push(left_out),
        }
        Ok(Self {
            root: path.to_owned(),
            weight_files: vec![path.to_owned()],
            weights: Weights::Other(checkpoint),
            specs,
            by_name,
            config,
            side_files,
            made_files,
        })
    }

    fn of_shards(root: &Path, shards: Vec<SafetensorsFile>) -> Result<Self, IoError> {
        let mut specs = Vec::new();
        let mut by_name = BTreeMap::new();
        for (ordinal, shard) in shards.iter().enumerate() {
            for spec in shard.arrays() {
                let known = by_name.insert(spec.name.clone(), (ordinal, specs.len()));
                if let Some((first, _)) = known {
                    return Err(IoError::Duplicate {
                        array: spec.name.clone(),
                        first: shards[first].path().to_owned(),
                        second: shard.path().to_owned(),
                    });
                }
                specs.push(spec.clone());
            }
        }
        Ok(Self {
            root: root.to_owned(),
            weight_files: shards.iter().map(|shard| shard.path().to_owned()).collect(),
            weights: Weights::Safetensors(shards),
            specs,
            by_name,
            config: None,
            side_files: SideFiles::default(),
            made_files: Vec::new(),
        })
    }

    fn check_index(&self, index_path: &Path, weight_map: &BTreeMap<String, String>) -> Result<(), IoError> {
        for (array, shard_name) in weight_map {
            let is_there = self.by_name.get(array).is_some_and(|&(shard, _)| {
                self.weight_files[shard].file_name().is_some_and(|name| name == shard_name.as_str())
            });
            if !is_there {
                return Err(IoError::damaged_array(
                    index_path,
                    array,
                    format!("the index says it is in `{shard_name}`, which does not hold it"),
                ));
            }
        }
        Ok(())
    }

    /// The path that was opened.
    pub fn root(&self) -> &Path {
        &self.root
    }
    /// `config.json`, where there is one.
    pub fn config(&self) -> Option<Value> {
        self.config.clone()
    }
    /// The files that travel with the weights, by name; folders are separated by `/`. Read now, not on opening.
    ///
    /// # Errors
    /// A file that cannot be read any more.
    pub fn side_files(&self) -> Result<Vec<(String, Vec<u8>)>, IoError> {
        let mut files = self.made_files.clone();
        for (name, path) in &self.side_files.copied {
            files.push((name.clone(), fs_err::read(path)?));
        }
        Ok(files)
    }
    /// What of the directory is not copied, and why.
    pub fn left_out(&self) -> &[LeftOut] {
        &self.side_files.left_out
    }
    /// Bytes of all weight files, headers included: what `--size 50%` is a percentage of.
    pub fn weight_bytes(&self) -> u64 {
        match &self.weights {
            Weights::Safetensors(shards) => shards.iter().map(SafetensorsFile::size_bytes).sum(),
            Weights::Other(checkpoint) => checkpoint.size_bytes(),
        }
    }
    /// The weight files, in the order their arrays are listed.
    pub fn weight_files(&self) -> &[PathBuf] {
        &self.weight_files
    }
    /// The opened shards with their headers; empty where the weights are not safetensors.
    pub fn shards(&self) -> &[SafetensorsFile] {
        match &self.weights {
            Weights::Safetensors(shards) => shards,
            Weights::Other(_) => &[],
        }
    }
    /// Ordinal of the weight file that holds an array.
    pub fn shard_of(&self, name: &str) -> Option<usize> {
        self.by_name.get(name).map(|&(shard, _)| shard)
    }
    /// Lets an array's pages leave memory until it is asked for again (see [`SafetensorsFile::release`]); no effect
    /// on formats that are not safetensors.
    pub fn release(&self, name: &str) {
        if let (Weights::Safetensors(shards), Some(shard)) = (&self.weights, self.shard_of(name)) {
            shards[shard].release(name);
        }
    }
    /// SHA-256 of each weight file with its name, streamed from the disk.
    ///
    /// # Errors
    /// A file that cannot be read.
    pub fn weight_hashes(&self) -> Result<Vec<(String, [u8; 32])>, IoError> {
        let name = |path: &PathBuf| path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        self.weight_files.iter().map(|path| Ok((name(path), sha256_of_file(path)?))).collect()
    }
    /// The weights' content hash: of one file its SHA-256; of several the SHA-256 over the files' 32-byte hashes
    /// in the order of [`ModelDirectory::weight_files`], so that renaming shards does not change it.
    ///
    /// # Errors
    /// A file that cannot be read.
    pub fn content_hash(&self) -> Result<[u8; 32], IoError> {
        let hashes = self.weight_hashes()?;
        if let [(_, only)] = &hashes[..] {
            return Ok(*only);
        }
        let mut hasher = Sha256::new();
        hashes.iter().for_each(|(_, hash)| hasher.update(hash));
        Ok(hasher.finalize().into())
    }
    /// `calibration.txt`, where the directory has one.
    pub fn calibration_text(&self) -> Option<PathBuf> {
        self.text("calibration.txt")
    }
    /// `evaluation.txt`, where the directory has one.
    pub fn evaluation_text(&self) -> Option<PathBuf> {
        self.text("evaluation.txt")
    }
    fn text(&self, name: &str) -> Option<PathBuf> {
        let path = self.root.join(name);
        path.is_file().then_some(path)
    }
}

impl TensorSource for ModelDirectory {
    fn arrays(&self) -> &[ArraySpec] {
        &self.specs
    }
    fn release(&self, name: &str) {
        Self::release(self, name);
    }
    fn array(&self, name: &str) -> Result<Array<'_>, SourceError> {
        let &(shard, _) =
            self.by_name.get(name).ok_or_else(|| SourceError::Missing { name: name.to_owned() })?;
        match &self.weights {
            Weights::Safetensors(shards) => shards[shard].array(name),
            Weights::Other(checkpoint) => checkpoint.array(name),
        }
    }
    fn spec(&self, name: &str) -> Option<&ArraySpec> {
        self.by_name.get(name).map(|&(_, ordinal)| &self.specs[ordinal])
    }
}

/// SHA-256 of a file, streamed with 1 MiB of memory.
///
/// # Errors
/// The file cannot be read.
pub fn sha256_of_file(path: impl AsRef<Path>) -> Result<[u8; 32], IoError> {
    let mut file = fs_err::File::open(path.as_ref())?;
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        let length = file.read(&mut buffer)?;
        if length == 0 {
            return Ok(hasher.finalize().into());
        }
        hasher.update(&buffer[..length]);
    }
}

fn has_suffix(path: &Path, suffix: &str) -> bool {
    path.file_name().and_then(|name| name.to_str()).is_some_and(|name| name.ends_with(suffix))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::SafetensorsWriter;
    use lamella_codec::Dtype;

    fn shard(path: &Path, names: &[&str]) {
        let specs: Vec<_> = names.iter().map(|name| ArraySpec::new(*name, vec![3], Dtype::F16)).collect();
        let mut writer = SafetensorsWriter::create(path, &[("format", "pt")], &specs).unwrap();
        for (i, spec) in specs.iter().enumerate() {
            writer.write(&Array::from_f32(spec.clone(), &[i as f32, 1.0, 2.0]).unwrap()).unwrap();
        }
        writer.finish().unwrap();
    }

    #[test]
    fn shards_are_read_by_their_index() {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path();
        shard(&root.join("model-00001-of-00002.safetensors"), &["b", "a"]);
        shard(&root.join("model-00002-of-00002.safetensors"), &["c"]);
        fs_err::write(root.join("config.json"), r#"{"model_type":"llama"}"#).unwrap();
        let index = |b: &str| {
            format!(
                r#"{{"metadata":{{"total_size":18}},"weight_map":{{"a":"model-00001-of-00002.safetensors","b":"{b}","c":"model-00002-of-00002.safetensors"}}}}"#
            )
        };
        let index_path = root.join("model.safetensors.index.json");
        fs_err::write(&index_path, index("model-00001-of-00002.safetensors")).unwrap();
        let model = ModelDirectory::open(root).unwrap();
        assert_eq!(model.arrays().iter().map(|spec| spec.name.as_str()).collect::<Vec<_>>(), ["b", "a", "c"]);
        assert_eq!(model.array("a").unwrap().to_f32().unwrap(), [1.0, 1.0, 2.0]);
        assert_eq!(model.shard_of("c"), Some(1));
        assert_eq!(model.config().unwrap()["model_type"], "llama");
        let side: Vec<_> = model.side_files().unwrap().into_iter().map(|(name, _)| name).collect();
        assert_eq!(side, ["config.json", "model.safetensors.index.json"]);
        assert_eq!(model.weight_bytes(), model.shards().iter().map(|s| s.bytes().len() as u64).sum::<u64>());
        assert!(matches!(model.array("d"), Err(SourceError::Missing { .. })));

        let damaged = [
            ("model-00002-of-00002.safetensors", "does not hold it"),
            ("model-00003-of-00002.safetensors", "missing"),
            ("../elsewhere.safetensors", "not a file name"),
        ];
        for (name, part) in damaged {
            fs_err::write(&index_path, index(name)).unwrap();
            let message = ModelDirectory::open(root).unwrap_err().to_string();
            assert!(message.contains(part), "{message}");
        }
        fs_err::remove_file(&index_path).unwrap();
        assert_eq!(ModelDirectory::open(root).unwrap().arrays().len(), 3);
        shard(&root.join("more.safetensors"), &["c"]);
        let message = ModelDirectory::open(root).unwrap_err().to_string();
        assert!(message.contains("array `c` is in both"), "{message}");
    }

    #[test]
    fn one_file_is_a_model_without_side_files() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("net.safetensors");
        shard(&path, &["w"]);
        fs_err::write(directory.path().join("config.json"), "{}").unwrap();
        let model = ModelDirectory::open(&path).unwrap();
        assert!(model.config().is_none() && model.side_files().unwrap().is_empty());
        assert_eq!(model.content_hash().unwrap(), sha256_of_file(&path).unwrap());
        let message = ModelDirectory::open(directory.path().join("nothing")).unwrap_err().to_string();
        assert!(message.contains("nothing") && message.contains("org/name"), "{message}");
    }

    #[test]
    fn the_asset_is_the_original_checkpoint() {
        let asset = concat!(env!("CARGO_MANIFEST_DIR"), "/../../assets/stories260k");
        let asset = ModelDirectory::open(asset).unwrap();
        assert_eq!(asset.arrays().iter().map(ArraySpec::len).sum::<usize>(), 260_032);
        assert!(asset.calibration_text().is_some() && asset.evaluation_text().is_some());
        let side: Vec<_> = asset.side_files().unwrap().into_iter().map(|(name, _)| name).collect();
        assert_eq!(
            side,
            ["config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"]
        );
        let Some(original) = crate::test_data("lm/stories260K/stories260K.bin") else {
            return;
        };
        let original = ModelDirectory::open(original).unwrap();
        assert_eq!(asset.arrays(), original.arrays());
        assert_eq!(asset.config(), original.config());
        for spec in original.arrays() {
            assert_eq!(asset.array(&spec.name).unwrap(), original.array(&spec.name).unwrap());
        }
    }

    #[test]
    fn real_directories_and_files_open() {
        let weights =
            [("lm/wiki5m", 5_246_208), ("lm/wiki5m-ft", 5_246_208), ("nets/silero_vad_16k.safetensors", 0)];
        for (name, n_weights) in weights {
            let Some(path) = crate::test_data(name) else {
                return;
            };
            let model = ModelDirectory::open(path).unwrap();
            let found: usize = model.arrays().iter().map(ArraySpec::len).sum();
            assert!(found == n_weights || n_weights == 0, "{found}");
            for spec in model.arrays() {
                assert_eq!(model.array(&spec.name).unwrap().first_non_finite(), None);
                model.release(&spec.name);
            }
        }
    }

    #[test]
    fn a_directory_without_weights_says_what_it_found() {
        let directory = tempfile::tempdir().unwrap();
        fs_err::write(directory.path().join("pytorch_model.bin"), "x").unwrap();
        let message = ModelDirectory::open(directory.path()).unwrap_err().to_string();
        assert!(message.contains("`pytorch_model.bin`"), "{message}");
    }
}
