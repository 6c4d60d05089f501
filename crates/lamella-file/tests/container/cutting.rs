//! Cutting to size.

use lamella_file::{File, FileError, ReadAt, cut};

use crate::sample::{language_model, small};

#[test]
fn a_cut_file_is_whole_and_as_large_as_allowed() {
    let sample = language_model(2, 4);
    let file = File::from_bytes(sample.bytes()).unwrap();
    let (least, most) = (file.layout().smallest_complete_bytes, file.length_bytes());
    let (mut layers_before, mut first_failure) = (0, true);
    for bytes in (least - 700..most).step_by(1999) {
        let cut = match file.cut(bytes) {
            Err(FileError::CutTooSmall { smallest, .. }) => {
                assert!(bytes < smallest && first_failure);
                continue;
            }
            other => other.unwrap(),
        };
        first_failure = false;
        let shorter = cut.to_bytes().unwrap();
        assert!(shorter.len() as u64 <= bytes);
        let reopened = File::from_bytes(shorter).unwrap();
        assert_eq!(reopened.verify(|_| {}).unwrap().layers, cut.report().layers);
        assert_eq!(reopened.layout().file_bytes, reopened.length_bytes());
        assert!(cut.report().layers >= layers_before);
        layers_before = cut.report().layers;
        // A cut holds at least the layers of a plain prefix of the same length.
        assert!(layers_before >= file.layout().whole_layers(bytes));
        for layer in 0..layers_before {
            assert_eq!(reopened.layer(layer).unwrap(), sample.payloads[layer]);
        }
        assert_eq!(reopened.side_files().unwrap(), sample.side.unpack().unwrap());
    }
    assert!(!first_failure);
}

#[test]
fn nothing_to_cut_is_an_error() {
    let file = File::from_bytes(language_model(2, 1).bytes()).unwrap();
    let error = file.cut(file.length_bytes() - 1).unwrap_err();
    assert!(error.to_string().ends_with("is needed to have every array once"), "{error}");
    let file = File::from_bytes(small().bytes()).unwrap();
    let error = file.cut(file.length_bytes()).unwrap_err();
    assert!(matches!(error, FileError::NothingToCut { .. }), "{error}");
    let error = file.cut(10).unwrap_err();
    assert!(error.to_string().contains("array `embed.weight` would be lost"), "{error}");
}

#[test]
fn a_file_can_be_cut_in_place_and_a_prefix_can_be_cut_again() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("model.lam");
    let bytes = language_model(2, 4).bytes();
    fs_err::write(&path, &bytes[..bytes.len() - 100]).unwrap();
    let smallest = File::open(&path).unwrap().layout().smallest_complete_bytes;
    let report = cut(&path, smallest, &path).unwrap();
    assert_eq!(fs_err::metadata(&path).unwrap().len(), report.bytes);
    assert!(report.bytes <= smallest);
    File::open(&path).unwrap().verify(|_| {}).unwrap();
    assert_eq!(fs_err::read_dir(directory.path()).unwrap().count(), 1, "no temporary file is left");
}

/// A source that is not in memory, as an HTTP server is not.
struct Remote(Vec<u8>);

impl ReadAt for Remote {
    fn length_bytes(&self) -> u64 {
        self.0.len() as u64
    }
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> std::io::Result<()> {
        self.0.read_at(offset, buffer)
    }
}

#[test]
fn a_remote_source_gives_the_same() {
    let sample = language_model(40, 2);
    let bytes = sample.bytes();
    let near = File::from_bytes(bytes.clone()).unwrap();
    let far = File::from_source("https://example.org/model.lam", Box::new(Remote(bytes))).unwrap();
    assert_eq!(far.inspect(), near.inspect());
    assert_eq!(far.verify(|_| {}).unwrap(), near.verify(|_| {}).unwrap());
    assert_eq!(far.layers_of("model.norm.weight").unwrap(), near.layers_of("model.norm.weight").unwrap());
}

#[test]
fn an_incomplete_file_can_still_be_inspected() {
    let bytes = small().bytes();
    let manifest_end = File::from_bytes(bytes.clone()).unwrap().layout().manifest_bytes as usize;
    let start = bytes[..manifest_end].to_vec();
    let file = File::from_source_incomplete("start", Box::new(start)).unwrap();
    let report = file.inspect();
    assert_eq!((report.whole_layers, report.layers), (0, 6));
    assert_eq!(report.file_bytes, bytes.len() as u64);
}
