//! What the fuzz targets call: each function takes any bytes, must return, and panics where a law is broken.

use std::path::Path;

use lamella_codec::TensorSource;

use crate::{GgufFile, SafetensorsHeader};

/// Reads the bytes as a safetensors file: every array of a header that is accepted lies inside the file.
pub fn safetensors(bytes: &[u8]) {
    let Ok(header) = SafetensorsHeader::parse(bytes, Path::new("fuzzed.safetensors")) else { return };
    let whole = bytes.len() - header.size_bytes();
    for spec in header.arrays() {
        let extent = header.extent(&spec.name).expect("an array of the header has an extent");
        assert!(extent.start <= extent.end && extent.end <= whole, "an array leaves the file");
        assert_eq!(Some(extent.len()), spec.checked_size_bytes());
    }
}

/// Reads the bytes as a GGUF file, and every array of one that opens.
pub fn gguf(bytes: &[u8]) {
    let Ok(mut file) = tempfile::NamedTempFile::new() else { return };
    if std::io::Write::write_all(&mut file, bytes).is_err() {
        return;
    }
    let Ok(opened) = GgufFile::open(file.path()) else { return };
    for spec in opened.arrays() {
        let array = opened.array(&spec.name).expect("an array of an open file is there");
        assert_eq!(Some(array.bytes.len()), spec.checked_size_bytes());
    }
    let _ = opened.config();
    let _ = opened.tokenizer_json();
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn header() -> Vec<u8> {
        let text = br#"{"__metadata__":{"format":"pt"},"a":{"dtype":"F32","shape":[2,3],"data_offsets":[0,24]},"b":{"dtype":"BF16","shape":[5],"data_offsets":[24,34]}}"#;
        let mut bytes = (text.len() as u64).to_le_bytes().to_vec();
        bytes.extend_from_slice(text);
        bytes.resize(bytes.len() + 34, 7);
        bytes
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(100))]

        #[test]
        fn cut_and_changed_headers_give_errors_only(
            cut in 0usize..200,
            changes in prop::collection::vec((0usize..200, any::<u8>()), 0..4),
        ) {
            for mut bytes in [header(), include_bytes!("../tests/golden/tiny_llama.gguf").to_vec()] {
                for &(at, byte) in &changes {
                    if let Some(slot) = bytes.get_mut(at) {
                        *slot = byte;
                    }
                }
                bytes.truncate(bytes.len() - cut.min(bytes.len()));
                safetensors(&bytes);
                gguf(&bytes);
            }
        }

        #[test]
        fn any_bytes_return(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            safetensors(&bytes);
            gguf(&[b"GGUF\x03\0\0\0", &bytes[..]].concat());
        }
    }
}
