//! A trained network as a Hugging Face directory.

use std::path::Path;

use lamella_codec::{Array, Dtype, TensorSource};
use lamella_io::SafetensorsWriter;
use serde_json::Value;

use super::text::beginning;
use super::{Texts, TrainError};
use crate::Named;

/// Bytes of text put beside the weights for calibration and for judging.
const TEXT_BYTES: usize = 65_536;

/// Writes `config.json`, `model.safetensors` and the side files into the directory, which exists: every array of
/// `source`, the trained ones with their new numbers, floats as `dtype`; `calibration.txt` and `evaluation.txt` from
/// the texts.
///
/// # Errors
/// What cannot be read or written.
pub fn write_model(
    directory: &Path,
    source: &dyn TensorSource,
    named: &Named,
    dtype: Dtype,
    (config, side_files): (&Value, &[(String, Vec<u8>)]),
    texts: &Texts,
) -> Result<(), TrainError> {
    let mut config = config.clone();
    if let Some(fields) = config.as_object_mut() {
        let name = match dtype {
            Dtype::BF16 => "bfloat16",
            Dtype::F16 => "float16",
            _ => "float32",
        };
        fields.shift_remove("dtype");
        fields.insert("torch_dtype".to_owned(), name.into());
    }
    let is_float = |found: Dtype| matches!(found, Dtype::F32 | Dtype::F16 | Dtype::BF16);
    let mut specs = source.arrays().to_vec();
    specs.iter_mut().filter(|spec| is_float(spec.dtype)).for_each(|spec| spec.dtype = dtype);
    let path = directory.join("model.safetensors");
    let mut writer = SafetensorsWriter::create(&path, &[("format", "pt")], &specs)?;
    for spec in &specs {
        let position = named.parameters.iter().position(|parameter| parameter.name == spec.name);
        let array = match position {
            Some(index) => {
                let values = named.parameters[index].stored(&named.network.parameters()[index]);
                Array::from_f32(spec.clone(), &values)?
            }
            None if is_float(spec.dtype) => {
                Array::from_f32(spec.clone(), &source.array(&spec.name)?.to_f32()?)?
            }
            None => source.array(&spec.name)?.into_owned(),
        };
        writer.write(&array)?;
    }
    writer.finish()?;
    let mut text = serde_json::to_vec_pretty(&config).map_err(std::io::Error::from)?;
    text.push(b'\n');
    fs_err::write(directory.join("config.json"), text)?;
    for (name, bytes) in side_files.iter().filter(|(name, _)| name != "config.json") {
        let path = directory.join(name);
        if let Some(parent) = path.parent() {
            fs_err::create_dir_all(parent)?;
        }
        fs_err::write(path, bytes)?;
    }
    for (name, parts) in [("calibration.txt", &texts.learned), ("evaluation.txt", &texts.held_out)] {
        let whole = parts.concat();
        if !whole.is_empty() {
            fs_err::write(directory.join(name), beginning(&whole, TEXT_BYTES))?;
        }
    }
    Ok(())
}
