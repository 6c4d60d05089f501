//! What the fuzz targets call: each function takes any bytes, must return, and panics where a law is broken.

use crate::manifest::{self, Header, decode_description, encode_description};
use crate::{File, Layout, limits, mixing};

/// Opens the bytes as a file and does with it all that a reader can do.
pub fn file(bytes: &[u8]) {
    let Ok(file) = File::from_bytes(bytes) else { return };
    let length = bytes.len() as u64;
    for array in file.arrays() {
        let location = file.locate(&array.spec.name).expect("an array of the file is found");
        assert!(location.elements.end <= location.coded_as.len());
        let layers = file.layer_indices(location.target);
        assert!(!layers.is_empty(), "an open file has every array");
        drop(file.layers_of(&array.spec.name));
    }
    drop(file.side_files());
    let report = file.inspect();
    assert_eq!(report.arrays.iter().map(|array| u128::from(array.bytes)).sum::<u128>(), present_bytes(&file));
    if file.verify(|_| {}).is_ok() && file.whole_layers() > 0 {
        let shorter = file.cut(length.saturating_sub(1));
        if let Ok(shorter) = shorter {
            let bytes = shorter.to_bytes().expect("a verified file can be cut");
            assert!((bytes.len() as u64) < length);
            let cut = File::from_bytes(bytes).expect("a cut file opens");
            cut.verify(|_| {}).expect("a cut file verifies");
        }
    }
}

fn present_bytes(file: &File) -> u128 {
    let layers = &file.manifest().layers[..file.whole_layers()];
    layers.iter().map(|layer| u128::from(layer.length_bytes)).sum()
}

/// Reads the bytes as a manifest with a right checksum, behind which payloads of zeros would follow.
pub fn manifest(bytes: &[u8]) {
    let Ok(manifest_bytes) = u32::try_from(bytes.len()) else { return };
    let header = Header { manifest_bytes, crc32: Header::checksum(bytes) };
    let Ok((manifest, targets)) = manifest::decode(header, bytes) else { return };
    let head = manifest::encode(&manifest).expect("a manifest that was read can be written");
    let rewritten = Header::read(&head).expect("a written header is right");
    let (again, targets_again) =
        manifest::decode(rewritten, &head[limits::HEADER_BYTES..]).expect("a written manifest can be read");
    assert!(again == manifest && targets_again == targets, "a manifest returns");
    if let Ok(layout) = Layout::new(head.len() as u64, &manifest, &targets) {
        assert!(layout.smallest_complete_bytes <= layout.file_bytes);
    }
}

/// Reads the bytes as a description, before any compression.
pub fn description(bytes: &[u8]) {
    let Ok(manifest) = decode_description(bytes) else { return };
    if manifest.validate().is_err() {
        return;
    }
    let again =
        decode_description(&encode_description(&manifest)).expect("a written description can be read");
    assert!(again == manifest, "a description returns");
}

/// Parts of a file that the other targets can start from: its manifest and its description.
///
/// # Errors
/// A manifest that cannot be written.
pub fn seeds(file: &File) -> Result<(Vec<u8>, Vec<u8>), crate::ManifestError> {
    let head = manifest::encode(file.manifest())?;
    Ok((head[limits::HEADER_BYTES..].to_vec(), encode_description(file.manifest())))
}

/// Decodes the bytes as a mixed text, and codes them as one.
pub fn text(bytes: &[u8]) {
    let bytes = &bytes[..bytes.len().min(4096)];
    assert_eq!(mixing::decode(bytes, bytes.len() * 2).len(), bytes.len() * 2);
    assert_eq!(mixing::decode(&mixing::encode(bytes), bytes.len()), bytes, "a text returns");
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Inputs that once broke something, and the corpus: one directory for each target.
    #[test]
    fn regressions_stay_fixed() {
        let fuzz = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz");
        type Target = (&'static str, fn(&[u8]));
        let targets: [Target; 4] = [
            ("file_open", file),
            ("file_manifest", manifest),
            ("file_description", description),
            ("file_text", text),
        ];
        for (name, target) in targets {
            for kind in ["corpus", "regressions"] {
                let Ok(entries) = fs_err::read_dir(fuzz.join(kind).join(name)) else { continue };
                for entry in entries {
                    target(&fs_err::read(entry.unwrap().path()).unwrap());
                }
            }
        }
    }

    #[test]
    fn golden_files_pass_every_target() {
        let golden = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
        for entry in fs_err::read_dir(golden).unwrap() {
            let bytes = fs_err::read(entry.unwrap().path()).unwrap();
            file(&bytes);
            let open = File::from_bytes(bytes.clone()).unwrap();
            let (manifest_seed, description_seed) = seeds(&open).unwrap();
            if let Some(corpus) = std::env::var_os("LAMELLA_WRITE_SEEDS").map(std::path::PathBuf::from) {
                let name = format!("golden_{:08x}", crc32fast::hash(&bytes));
                for (target, seed) in [
                    ("file_open", &bytes),
                    ("file_manifest", &manifest_seed),
                    ("file_description", &description_seed),
                    ("file_text", &description_seed),
                ] {
                    fs_err::create_dir_all(corpus.join(target)).unwrap();
                    fs_err::write(corpus.join(target).join(&name), seed).unwrap();
                }
            }
            manifest(&manifest_seed);
            description(&description_seed);
            text(&bytes);
        }
    }
}
