//! The reference decoder, `decoder.rs` and `codecs.rs`: docs/format.md as plain code that uses nothing of ours, section by section. It
//! is run on the files that hold the format; `golden.rs` says how they were made.
//!
//! It is written to be compared with the text, not to be fast or kind. The library must give the same bits.
#![allow(clippy::unwrap_used, reason = "tests")]

mod codecs;
mod decoder;
mod golden;

use std::path::{Path, PathBuf};

use lamella::codec::{ArraySpec, CodecError, Recipe, TensorSource};
use lamella::file::{File, FileError, ManifestError};
use lamella::weights::open::{CodedModel, OpenError};

fn directory(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests").join(name)
}

/// Name and bytes of every `.lam` file in a directory, by name.
fn files(directory: &Path) -> Vec<(String, Vec<u8>)> {
    let entries = std::fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path());
    let mut paths: Vec<PathBuf> =
        entries.filter(|path| path.extension().is_some_and(|e| e == "lam")).collect();
    paths.sort();
    let name = |path: &Path| path.file_name().unwrap().to_string_lossy().into_owned();
    paths.into_iter().map(|path| (name(&path), std::fs::read(&path).unwrap())).collect()
}

/// Every array as the library decodes it.
fn library(bytes: &[u8]) -> Result<Vec<(String, Vec<u8>)>, String> {
    let file = File::from_bytes(bytes).map_err(|error| file_kind(&error).to_owned())?;
    // A prefix is read, a whole file is also verified.
    if file.length_bytes() >= file.layout().file_bytes {
        file.verify(|_| {}).map_err(|error| file_kind(&error).to_owned())?;
    }
    let model = CodedModel::new(file, &lamella::catalogue()).map_err(|error| match error {
        OpenError::Recipe { .. } | OpenError::Codec { .. } => "recipe".to_owned(),
        other => other.to_string(),
    })?;
    let arrays = model.arrays().iter().map(|spec| {
        let array = model.array(&spec.name).map_err(|error| {
            let source = std::error::Error::source(&error).and_then(|source| source.downcast_ref());
            match source {
                Some(CodecError::Damaged { .. }) => "damaged".to_owned(),
                _ => error.to_string(),
            }
        })?;
        Ok((spec.name.clone(), array.bytes.into_owned()))
    });
    arrays.collect()
}

/// Every array as the reference decodes it.
fn reference(bytes: &[u8]) -> Result<Vec<(String, Vec<u8>)>, String> {
    // What is wrong inside a payload is one kind to the library.
    let kind = |kind: &str| if kind == "recipe" { "recipe" } else { "damaged" }.to_owned();
    let (arrays, _) = decoder::read(bytes)?;
    arrays.into_iter().map(|(name, .., bytes)| Ok((name, bytes.map_err(kind)?))).collect()
}

fn file_kind(error: &FileError) -> &'static str {
    match error {
        FileError::Manifest { source, .. } => match source {
            ManifestError::Magic { .. } => "magic",
            ManifestError::Version { .. } => "version",
            ManifestError::Truncated { .. } => "truncated",
            ManifestError::Checksum { .. } => "manifest-checksum",
            ManifestError::Limit { .. } => "limit",
            _ => "invalid",
        },
        FileError::Incomplete { .. } => "incomplete",
        FileError::LayerChecksum { .. } => "layer-checksum",
        FileError::Padding { .. } => "padding",
        FileError::Trailing { .. } => "trailing",
        FileError::SideFiles { .. } => "side-files",
        _ => "unknown",
    }
}

/// A line for each array of each golden file: file, array, dtype, CRC-32 of what it decodes to.
fn digests() -> String {
    let mut lines = String::new();
    for (name, bytes) in files(&directory("golden")) {
        for (array, decoded) in library(&bytes).unwrap_or_else(|error| panic!("{name}: {error}")) {
            lines += &format!("{name}\t{array}\t{}\t{:08x}\n", decoded.len(), decoder::crc32(&decoded));
        }
    }
    lines
}

/// Writes the golden files anew where `LAMELLA_BLESS=1` asks for it; the other tests then wait for the new ones.
fn bless() {
    static ONCE: std::sync::Once = std::sync::Once::new();
    ONCE.call_once(|| {
        if std::env::var_os("LAMELLA_BLESS").is_some_and(|value| value == "1") {
            for (name, bytes) in golden::files() {
                std::fs::write(directory("golden").join(name), bytes).unwrap();
            }
            for (name, bytes) in golden::errors() {
                std::fs::write(directory("golden-errors").join(name), bytes).unwrap();
            }
            std::fs::write(directory("golden").join("decoded.tsv"), digests()).unwrap();
        }
    });
}

#[test]
fn golden_files_decode_as_they_always_did() {
    bless();
    let expected = std::fs::read_to_string(directory("golden").join("decoded.tsv")).unwrap();
    assert_eq!(digests(), expected);
    assert!(expected.lines().count() >= 20, "{expected}");
}

#[test]
fn the_reference_decodes_the_same_bits() {
    bless();
    for (name, bytes) in files(&directory("golden")) {
        assert!(bytes.len() < 12_000, "{name} has {} bytes", bytes.len());
        let (ours, plain) =
            (library(&bytes).unwrap(), reference(&bytes).unwrap_or_else(|e| panic!("{name}: {e}")));
        assert_eq!(ours.len(), plain.len(), "{name}");
        for (ours, plain) in ours.iter().zip(&plain) {
            assert_eq!(ours.0, plain.0, "{name}");
            let first = ours.1.iter().zip(&plain.1).position(|(left, right)| left != right);
            assert!(ours.1 == plain.1, "{name}, array {}: differs from byte {first:?} on", ours.0);
        }
        let side_files = File::from_bytes(bytes.clone()).unwrap().side_files().unwrap();
        assert_eq!(decoder::read(&bytes).unwrap().1, side_files, "{name}");
    }
}

/// The container's own golden files hold no real payloads, but everything else.
#[test]
fn the_reference_reads_the_containers_golden_files() {
    let path = directory("../../lamella-file/tests/golden");
    for (name, bytes) in files(&path) {
        let (file, (arrays, side_files)) =
            (File::from_bytes(bytes.clone()).unwrap(), decoder::read(&bytes).unwrap());
        assert_eq!(side_files, file.side_files().unwrap(), "{name}");
        for (array, (plain, dtype, shape, recipe, _)) in file.arrays().iter().zip(&arrays) {
            assert_eq!(array.spec.name, *plain, "{name}");
            assert_eq!(usize::from(array.spec.dtype.code()), *dtype, "{name}");
            assert_eq!(array.spec.shape, *shape, "{name}");
            assert_eq!(file.recipe(array), recipe, "{name}");
        }
        assert_eq!(file.arrays().len(), arrays.len());
    }
}

#[test]
fn bad_files_are_refused_for_the_same_reason() {
    bless();
    let mut count = 0;
    for path in ["golden-errors", "../../lamella-file/tests/golden-errors"] {
        for (name, bytes) in files(&directory(path)) {
            let expected = name.split('.').next().unwrap();
            assert_eq!(library(&bytes).unwrap_err(), expected, "library, {name}");
            assert_eq!(reference(&bytes).unwrap_err(), expected, "reference, {name}");
            count += 1;
        }
    }
    assert!(count >= 19);
}

/// Any first N bytes: both read the same arrays, or neither reads any.
#[test]
fn prefixes_mean_the_same_to_both() {
    bless();
    for (name, bytes) in files(&directory("golden")) {
        for cut in (0..bytes.len()).rev().step_by(1 + bytes.len() / 12) {
            let (ours, plain) = (library(&bytes[..cut]), reference(&bytes[..cut]));
            assert_eq!(ours, plain, "{name}, first {cut} bytes");
        }
    }
}

/// Payloads with a byte changed, missing or added: both decode them to the same numbers, or both refuse.
#[test]
fn damaged_payloads_mean_the_same_to_both() {
    bless();
    for (name, bytes) in files(&directory("golden")) {
        let file = File::from_bytes(bytes).unwrap();
        for array in file.arrays() {
            let recipe: Recipe = file.recipe(array).parse().unwrap();
            let codec = lamella::catalogue().codec(&recipe).unwrap();
            let place = file.locate(&array.spec.name).unwrap();
            let payload = file.layers_of(&array.spec.name).unwrap()[0].to_vec();
            let spec = &place.coded_as;
            for damaged in damage(&payload) {
                let ours = codec.decode(spec, &[&damaged]).map(|array| array.bytes.into_owned());
                let plain =
                    codecs::decode(file.recipe(array), spec.dtype.code().into(), &spec.shape, &[&damaged]);
                match (&ours, &plain) {
                    (Ok(ours), Ok(plain)) => assert!(ours == plain, "{name}, {}", array.spec.name),
                    (Err(_), Err(_)) => {}
                    _ => panic!("{name}, {}: {:?}, {:?}", array.spec.name, ours.err(), plain.err()),
                }
            }
        }
    }
}

/// Variants of a payload.
fn damage(payload: &[u8]) -> Vec<Vec<u8>> {
    let changed = |(place, mask): (usize, u8)| {
        let mut bytes = payload.to_vec();
        bytes[place] ^= mask;
        bytes
    };
    let near = (0..payload.len().min(12)).flat_map(|place| [(place, 1), (place, 0x80)]);
    let far = (12..payload.len()).step_by(1 + payload.len() / 8).map(|place| (place, 0x55));
    let mut damaged: Vec<Vec<u8>> = near.chain(far).map(changed).collect();
    damaged.extend([payload[..payload.len() / 2].to_vec(), [payload, &[0]].concat(), Vec::new()]);
    damaged
}

/// A spec with two axes or one.
fn spec(name: &str, shape: &[usize], dtype: lamella::codec::Dtype) -> ArraySpec {
    ArraySpec::new(name, shape.to_vec(), dtype)
}
