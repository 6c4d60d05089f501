//! compressed-tensors checkpoints, expanded: what vLLM and transformers read as quantised, handed out as floats.
//!
//! A quantised linear `X` is stored as one of
//!
//! | format | arrays | weight |
//! |---|---|---|
//! | `pack-quantized` | `X.weight_packed` (I32), `X.weight_scale`, `X.weight_shape` (I64) | codes of 4 or 8 bits, lowest bits first in each word, offset by half their range |
//! | `int-quantized` | `X.weight` (I8), `X.weight_scale` | the integers themselves |
//! | `float-quantized` | `X.weight` (F8_E4M3), `X.weight_scale` | the small floats themselves |
//!
//! Weight `[i, j]` is `code * scale[i, j / group]`, rounded to the scales' type; a scale of one column stands for the
//! whole row. Arrays with zero points or an order of columns are refused by name.

use std::collections::BTreeMap;

use lamella_codec::{Array, ArraySpec, Dtype, SourceError, TensorSource};
use serde_json::Value;

use super::SafetensorsFile;
use crate::IoError;
use crate::checkpoint::{Checkpoint, MadeTokenizer};

/// Shards of a compressed-tensors checkpoint, seen as the arrays they stand for.
#[derive(Debug)]
pub(crate) struct CompressedTensors {
    shards: Vec<SafetensorsFile>,
    config: Value,
    specs: Vec<ArraySpec>,
    places: BTreeMap<String, Place>,
}

/// Where an array comes from: its ordinal, and the names of what it is made of.
#[derive(Debug)]
struct Place {
    ordinal: usize,
    shard: usize,
    form: Form,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    /// As it lies.
    Plain,
    /// Words of codes of so many bits.
    Packed { bits: usize },
    /// Integers or small floats.
    Naive,
}

/// Whether a `config.json` says that its weights are compressed-tensors.
pub(crate) fn is_compressed(config: &Value) -> bool {
    config["quantization_config"]["quant_method"] == "compressed-tensors"
}

impl CompressedTensors {
    /// Checks that every quantised array is whole.
    ///
    /// # Errors
    /// An array whose parts are missing, contradict each other, or are of a kind that is not read.
    pub(crate) fn new(shards: Vec<SafetensorsFile>, mut config: Value) -> Result<Self, IoError> {
        let mut found: BTreeMap<String, (usize, ArraySpec)> = BTreeMap::new();
        for (shard, file) in shards.iter().enumerate() {
            found.extend(file.arrays().iter().map(|spec| (spec.name.clone(), (shard, spec.clone()))));
        }
        if let Some(fields) = config.as_object_mut() {
            fields.remove("quantization_config");
        }
        let mut this = Self { shards, config, specs: Vec::new(), places: BTreeMap::new() };
        for shard in 0..this.shards.len() {
            for spec in this.shards[shard].arrays().to_vec() {
                this.add(shard, spec, &found)?;
            }
        }
        Ok(this)
    }

    fn add(
        &mut self,
        shard: usize,
        spec: ArraySpec,
        found: &BTreeMap<String, (usize, ArraySpec)>,
    ) -> Result<(), IoError> {
        let path = self.shards[shard].path().to_owned();
        let refuse = |message: String| Err(IoError::damaged_array(&path, &spec.name, message));
        let module = |ending: &str| spec.name.strip_suffix(ending);
        if let Some(module) = module(".weight_packed") {
            let scale = found.get(&format!("{module}.weight_scale")).map(|found| &found.1);
            let shape = self.stored_shape(module, found);
            let (Some(scale), Some([rows, columns])) = (scale, shape) else {
                return refuse("its `weight_scale` or `weight_shape` is missing or no shape".to_owned());
            };
            let words = match spec.shape[..] {
                [packed_rows, words] if packed_rows == rows && spec.dtype == Dtype::I32 => words,
                _ => return refuse(format!("it is no I32 array of {rows} rows")),
            };
            let fits = |bits: &usize| (columns * bits).div_ceil(32) == words;
            let Some(bits) = [4, 8].into_iter().find(fits) else {
                return refuse(format!("{words} words for {columns} columns are neither 4 nor 8 bits each"));
            };
            let refused = ["weight_zero_point", "weight_g_idx", "weight_global_scale"];
            if let Some(extra) = refused.iter().find(|name| found.contains_key(&format!("{module}.{name}"))) {
                return refuse(format!("`{module}.{extra}` is not read: zero points and orders are not"));
            }
            let expanded = ArraySpec::new(format!("{module}.weight"), vec![rows, columns], scale.dtype);
            return self.insert(shard, expanded, Form::Packed { bits }, scale, &path);
        }
        if let Some(module) = module(".weight")
            && let (Some((_, scale)), true) = (
                found.get(&format!("{module}.weight_scale")),
                matches!(spec.dtype, Dtype::I8 | Dtype::F8E4M3),
            )
        {
            if spec.shape.len() != 2 || found.contains_key(&format!("{module}.weight_zero_point")) {
                return refuse("it is no matrix without zero points".to_owned());
            }
            let expanded = ArraySpec::new(spec.name.clone(), spec.shape.clone(), scale.dtype);
            return self.insert(shard, expanded, Form::Naive, scale, &path);
        }
        let parts = [".weight_scale", ".weight_shape"];
        if parts.iter().any(|ending| module(ending).is_some()) {
            return Ok(());
        }
        self.places.insert(spec.name.clone(), Place { ordinal: self.specs.len(), shard, form: Form::Plain });
        self.specs.push(spec);
        Ok(())
    }

    fn insert(
        &mut self,
        shard: usize,
        spec: ArraySpec,
        form: Form,
        scale: &ArraySpec,
        path: &std::path::Path,
    ) -> Result<(), IoError> {
        let (rows, columns) = (spec.shape[0], spec.shape[1]);
        let is_fit = match scale.shape[..] {
            [scale_rows, groups] => scale_rows == rows && groups > 0 && columns.is_multiple_of(groups),
            _ => false,
        };
        if !is_fit || !spec.dtype.is_float() {
            let message = format!("scales {:?} do not fit {rows} rows of {columns}", scale.shape);
            return Err(IoError::damaged_array(path, &spec.name, message));
        }
        let place = Place { ordinal: self.specs.len(), shard, form };
        if self.places.insert(spec.name.clone(), place).is_some() {
            return Err(IoError::damaged_array(path, &spec.name, "it is stored twice".to_owned()));
        }
        self.specs.push(spec);
        Ok(())
    }

    /// The two numbers of `weight_shape`.
    fn stored_shape(&self, module: &str, found: &BTreeMap<String, (usize, ArraySpec)>) -> Option<[usize; 2]> {
        let name = format!("{module}.weight_shape");
        let (shard, spec) = found.get(&name)?;
        let array = self.shards[*shard].array(&name).ok()?;
        let (numbers, _) = array.bytes.as_chunks::<8>();
        match (spec.dtype, numbers) {
            (Dtype::I64, [rows, columns]) => Some([
                usize::try_from(i64::from_le_bytes(*rows)).ok()?,
                usize::try_from(i64::from_le_bytes(*columns)).ok()?,
            ]),
            _ => None,
        }
    }

    /// The shard that holds an array's numbers.
    pub(crate) fn shard_of(&self, name: &str) -> usize {
        self.places.get(name).map_or(0, |place| place.shard)
    }

    /// An array of any shard, by its stored name.
    fn stored(&self, name: &str) -> Result<Array<'_>, SourceError> {
        let holds = |shard: &&SafetensorsFile| shard.spec(name).is_some();
        let shard = self.shards.iter().find(holds);
        shard.ok_or_else(|| SourceError::Missing { name: name.to_owned() })?.array(name)
    }

    fn expand(&self, spec: &ArraySpec, form: Form) -> Result<Array<'static>, SourceError> {
        let failed = |error: lamella_codec::ArrayError| SourceError::Unreadable {
            name: spec.name.clone(),
            source: Box::new(error),
        };
        let module = spec.name.trim_end_matches(".weight");
        let scales = self.stored(&format!("{module}.weight_scale"))?.to_f32().map_err(failed)?;
        let (rows, columns) = (spec.shape[0], spec.shape[1]);
        let codes: Vec<f32> = match form {
            Form::Packed { bits } => {
                let stored = self.stored(&format!("{module}.weight_packed"))?;
                unpack(&stored.bytes, rows, columns, bits)
            }
            _ => {
                let stored = self.stored(&spec.name)?;
                match stored.spec.dtype {
                    Dtype::I8 => stored.bytes.iter().map(|&code| f32::from(code as i8)).collect(),
                    _ => stored.to_f32().map_err(failed)?,
                }
            }
        };
        let group = columns / (scales.len() / rows.max(1)).max(1);
        let values: Vec<f32> =
            codes.iter().enumerate().map(|(i, &code)| code * scales[i / group.max(1)]).collect();
        Array::from_f32(spec.clone(), &values).map_err(failed)
    }
}

/// Codes of words, lowest bits first, each row in words of its own; centred on zero.
fn unpack(bytes: &[u8], rows: usize, columns: usize, bits: usize) -> Vec<f32> {
    let row_bytes = (columns * bits).div_ceil(32) * 4;
    let mut codes = Vec::with_capacity(rows * columns);
    for row in bytes.chunks_exact(row_bytes.max(1)) {
        for column in 0..columns {
            codes.push(match bits {
                4 => f32::from(row[column / 2] >> (4 * (column % 2)) & 15) - 8.0,
                _ => f32::from(row[column]) - 128.0,
            });
        }
    }
    codes
}

impl TensorSource for CompressedTensors {
    fn arrays(&self) -> &[ArraySpec] {
        &self.specs
    }
    fn array(&self, name: &str) -> Result<Array<'_>, SourceError> {
        let place = self.places.get(name).ok_or_else(|| SourceError::Missing { name: name.to_owned() })?;
        match place.form {
            Form::Plain => self.shards[place.shard].array(name),
            form => self.expand(&self.specs[place.ordinal], form),
        }
    }
    fn spec(&self, name: &str) -> Option<&ArraySpec> {
        self.places.get(name).map(|place| &self.specs[place.ordinal])
    }
}

impl Checkpoint for CompressedTensors {
    fn config(&self) -> Option<Value> {
        Some(self.config.clone())
    }
    fn tokenizer(&self) -> Result<MadeTokenizer, IoError> {
        Ok(MadeTokenizer::Absent)
    }
    fn size_bytes(&self) -> u64 {
        self.shards.iter().map(SafetensorsFile::size_bytes).sum()
    }
}

#[cfg(test)]
mod tests {
    use crate::{ModelDirectory, SafetensorsFile};
    use lamella_codec::TensorSource;

    const GOLDEN: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/compressed_tensors");

    /// Both files were written by `tools/make_compressed_tensors_golden.py` with the package.
    #[test]
    fn compressed_tensors_expand_as_their_package_does() {
        let model = ModelDirectory::open(GOLDEN).unwrap();
        let expected = SafetensorsFile::open(format!("{GOLDEN}/expected.safetensors")).unwrap();
        assert_eq!(model.arrays().len(), expected.arrays().len());
        for spec in expected.arrays() {
            assert_eq!(model.array(&spec.name).unwrap(), expected.array(&spec.name).unwrap());
        }
        assert!(model.config().unwrap().get("quantization_config").is_none());
    }

    #[test]
    fn flips_and_cuts_of_the_header_never_panic() {
        let directory = tempfile::tempdir().unwrap();
        fs_err::copy(format!("{GOLDEN}/config.json"), directory.path().join("config.json")).unwrap();
        let original = fs_err::read(format!("{GOLDEN}/model.safetensors")).unwrap();
        let path = directory.path().join("model.safetensors");
        for at in (8..1400).step_by(5) {
            let mut bytes = original.clone();
            bytes[at] ^= 1 << (at % 7);
            fs_err::write(&path, &bytes).unwrap();
            if let Ok(model) = ModelDirectory::open(directory.path()) {
                for spec in model.arrays() {
                    let _ = model.array(&spec.name);
                }
            }
        }
        fs_err::write(&path, &original[..original.len() - 100]).unwrap();
        assert!(ModelDirectory::open(directory.path()).is_err());
    }
}
