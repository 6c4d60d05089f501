//! Running the program, and making models for it.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use lamella::codec::{Array, ArraySpec, Dtype, TensorSource};
use lamella::io::SafetensorsWriter;
use serde_json::Value;
use tempfile::TempDir;

/// What a run of the program left.
#[derive(Debug)]
pub(crate) struct Ran {
    pub(crate) code: Option<i32>,
    pub(crate) out: String,
    pub(crate) err: String,
}

impl Ran {
    /// Standard output as JSON.
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.out).unwrap_or_else(|error| panic!("{error} in {self:?}"))
    }
}

/// The program with these arguments, not yet started.
pub(crate) fn command(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_lamella"));
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command.env("LAMELLA_NO_PROGRESS", "1").current_dir(env!("CARGO_TARGET_TMPDIR"));
    command
}

/// Runs the program in a fresh process.
pub(crate) fn lamella(arguments: &[&str]) -> Ran {
    let output = command(arguments).output().unwrap();
    Ran {
        code: output.status.code(),
        out: String::from_utf8(output.stdout).unwrap(),
        err: String::from_utf8(output.stderr).unwrap(),
    }
}

/// Runs the program and expects it to succeed.
pub(crate) fn done(arguments: &[&str]) -> Ran {
    let ran = lamella(arguments);
    assert_eq!(ran.code, Some(0), "{arguments:?}: {ran:?}");
    ran
}

/// Runs the program and expects exit code 2, nothing on standard output, and an error that contains each text.
pub(crate) fn refused(arguments: &[&str], texts: &[&str]) -> Ran {
    let ran = lamella(arguments);
    assert_eq!(ran.code, Some(2), "{arguments:?}: {ran:?}");
    assert!(ran.out.is_empty(), "{arguments:?}: {ran:?}");
    texts
        .iter()
        .for_each(|text| assert!(ran.err.contains(text), "{arguments:?} does not say `{text}`: {}", ran.err));
    ran
}

/// A directory that goes with the test.
pub(crate) fn scratch() -> TempDir {
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap()
}

/// A path inside a directory, as an argument.
pub(crate) fn at(directory: &TempDir, name: &str) -> String {
    directory.path().join(name).to_str().unwrap().to_owned()
}

/// The model that comes with the project.
pub(crate) fn model() -> &'static str {
    concat!(env!("CARGO_MANIFEST_DIR"), "/../../assets/stories260k")
}

/// The first thousand tokens, about, of the model's calibration text: enough where a test is not about what is found.
pub(crate) fn short_text(directory: &TempDir) -> String {
    let words = std::fs::read_to_string(format!("{}/calibration.txt", model())).unwrap();
    let path = at(directory, "short.txt");
    std::fs::write(&path, words.chars().take(3_000).collect::<String>()).unwrap();
    path
}

/// The model in 160,000 bytes, made once for all tests that only read it.
pub(crate) fn story() -> &'static str {
    static STORY: OnceLock<(TempDir, String)> = OnceLock::new();
    let (_, path) = STORY.get_or_init(|| {
        let directory = scratch();
        let path = at(&directory, "story.lam");
        done(&["compress", model(), "--size", "160KB", "-o", &path]);
        (directory, path)
    });
    path
}

/// What `lamella eval --json` says of a file against an original.
pub(crate) fn judged(file: &str, original: &str) -> Value {
    let text = format!("{}/evaluation.txt", model());
    let arguments = ["eval", file, "--against", original, "--text", &text, "--no-noise-floor", "--json"];
    done(&arguments).json()
}

pub(crate) fn number(value: &Value, key: &str) -> f64 {
    value[key].as_f64().unwrap_or_else(|| panic!("no number `{key}` in {value}"))
}

/// The arrays of the project's model in another dtype.
pub(crate) fn arrays(dtype: Dtype) -> Vec<Array<'static>> {
    let source = lamella::io::open_model(model()).unwrap();
    let specs: Vec<ArraySpec> = source.arrays().to_vec();
    let convert = |spec: &ArraySpec| {
        let values = source.array(&spec.name).unwrap().to_f32().unwrap();
        Array::from_f32(ArraySpec::new(spec.name.clone(), spec.shape.clone(), dtype), &values).unwrap()
    };
    specs.iter().map(convert).collect()
}

/// Writes a safetensors file.
pub(crate) fn write(path: &Path, arrays: &[Array<'_>]) {
    let specs: Vec<ArraySpec> = arrays.iter().map(|array| array.spec.clone()).collect();
    let mut writer = SafetensorsWriter::create(path, &[("format", "pt")], &specs).unwrap();
    arrays.iter().for_each(|array| writer.write(array).unwrap());
    writer.finish().unwrap();
}

/// A directory with the project's model's side files and these shards.
pub(crate) fn model_of(shards: &[(&str, &[Array<'_>])]) -> TempDir {
    let directory = scratch();
    for name in [
        "config.json",
        "generation_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "calibration.txt",
    ] {
        std::fs::copy(Path::new(model()).join(name), directory.path().join(name)).unwrap();
    }
    let mut weight_map = serde_json::Map::new();
    for (name, arrays) in shards {
        write(&directory.path().join(name), arrays);
        weight_map.extend(arrays.iter().map(|array| (array.spec.name.clone(), Value::from(*name))));
    }
    if shards.len() > 1 {
        let index = serde_json::json!({ "metadata": {}, "weight_map": weight_map });
        std::fs::write(index_path(&directory), index.to_string()).unwrap();
    }
    directory
}

pub(crate) fn index_path(directory: &TempDir) -> PathBuf {
    directory.path().join("model.safetensors.index.json")
}

pub(crate) fn text(path: &TempDir) -> &str {
    path.path().to_str().unwrap()
}
