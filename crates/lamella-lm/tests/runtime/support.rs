//! Reading of golden files and checkpoints.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use lamella_codec::{Array, ArraySpec, Dtype, TensorMap, TensorSource};
use lamella_lm::Network;
use serde_json::Value;

/// The golden file of this name.
pub fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name)
}

/// A file or directory of the shared test data, `None` (with a printed reason) where there is none.
pub fn shared(name: &str) -> Option<PathBuf> {
    let root = std::env::var("LAMELLA_DATA")
        .unwrap_or_else(|_| concat!(env!("CARGO_MANIFEST_DIR"), "/../../../shared/data").to_owned());
    existing(Path::new(&root).join(name))
}

/// The MiniLM encoder's directory, `None` (with a printed reason) where there is none.
pub fn minilm() -> Option<PathBuf> {
    let root = std::env::var("LAMELLA_MINILM")
        .unwrap_or_else(|_| concat!(env!("CARGO_MANIFEST_DIR"), "/../../.ci-data/minilm").to_owned());
    existing(PathBuf::from(root))
}

fn existing(path: PathBuf) -> Option<PathBuf> {
    if path.exists() {
        return Some(path);
    }
    println!("skipped: {} does not exist", path.display());
    None
}

pub fn json(path: impl AsRef<Path>) -> Value {
    serde_json::from_slice(&fs_err::read(path.as_ref()).unwrap()).unwrap()
}

/// Little-endian `f32` numbers.
pub fn floats(path: impl AsRef<Path>) -> Vec<f32> {
    let bytes = fs_err::read(path.as_ref()).unwrap();
    bytes.as_chunks::<4>().0.iter().map(|&b| f32::from_le_bytes(b)).collect()
}

pub fn tokens(value: &Value) -> Vec<u32> {
    value.as_array().unwrap().iter().map(|token| token.as_u64().unwrap() as u32).collect()
}

/// All arrays of a safetensors file.
pub fn arrays(path: impl AsRef<Path>) -> Arc<dyn TensorSource> {
    let bytes = fs_err::read(path.as_ref()).unwrap();
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let mut map = TensorMap::default();
    for (name, view) in file.tensors() {
        let dtype = Dtype::from_name(&view.dtype().to_string()).unwrap();
        let spec = ArraySpec::new(name, view.shape().to_vec(), dtype);
        map.insert(Array::new(spec, view.data().to_vec()).unwrap());
    }
    Arc::new(map)
}

/// The network of a checkpoint directory.
pub fn network(directory: &Path) -> Network {
    Network::open(&json(directory.join("config.json")), arrays(directory.join("model.safetensors"))).unwrap()
}

/// Largest absolute difference.
pub fn largest_difference(left: &[f32], right: &[f32]) -> f32 {
    assert_eq!(left.len(), right.len());
    left.iter()
        .zip(right)
        .map(|(a, b)| (a - b).abs())
        .fold(0.0, |a, b| if b > a || b.is_nan() { b } else { a })
}

pub fn standard_deviation(values: &[f32]) -> f32 {
    let n = values.len() as f64;
    let mean = values.iter().map(|&x| f64::from(x)).sum::<f64>() / n;
    (values.iter().map(|&x| (f64::from(x) - mean).powi(2)).sum::<f64>() / n).sqrt() as f32
}
