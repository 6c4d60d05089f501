//! Files that changed, end early or lie.

use std::sync::{Arc, Mutex, PoisonError};

use lamella_codec::Dtype;
use lamella_file::{File, FileError, ManifestError, ReadAt, Storage, to_bytes};

use crate::sample::{entry, small};

/// Everything a reader does with a file.
fn use_all_of(bytes: &[u8]) -> Result<(), FileError> {
    let file = File::from_bytes(bytes)?;
    file.side_files()?;
    for array in file.arrays() {
        let location = file.locate(&array.spec.name)?;
        assert!(location.elements.end <= location.coded_as.len());
        assert!(!file.layers_of(&array.spec.name)?.is_empty());
    }
    file.inspect();
    file.verify(|_| {}).map(|_| ())
}

/// A file that changes while it is open.
#[derive(Clone)]
struct Changing(Arc<Mutex<Vec<u8>>>);

impl Changing {
    fn flip(&self, position: usize, bit: u32) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)[position] ^= 1 << bit;
    }
}

impl ReadAt for Changing {
    fn length_bytes(&self) -> u64 {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).len() as u64
    }
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> std::io::Result<()> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).read_at(offset, buffer)
    }
}

#[test]
fn every_flipped_bit_is_found() {
    let bytes = small().bytes();
    use_all_of(&bytes).unwrap();
    let changing = Changing(Arc::new(Mutex::new(bytes.clone())));
    let open = File::from_source("changing", Box::new(changing.clone())).unwrap();
    let manifest_bytes = open.layout().manifest_bytes as usize;
    for position in 0..bytes.len() {
        for bit in 0..8 {
            changing.flip(position, bit);
            let is_found = if position < manifest_bytes {
                File::from_source("changed", Box::new(changing.clone())).is_err()
            } else {
                open.verify(|_| {}).is_err()
            };
            assert!(is_found, "bit {bit} of byte {position}");
            changing.flip(position, bit);
        }
    }
    open.verify(|_| {}).unwrap();
}

#[test]
fn every_cut_is_a_valid_prefix_or_names_what_is_missing() {
    let sample = small();
    let bytes = sample.bytes();
    let whole = File::from_bytes(bytes.clone()).unwrap();
    let layout = whole.layout();
    let order = ["embed.weight", "blocks.0.norm", "blocks.1.up.weight"];
    for length in 0..bytes.len() as u64 {
        let prefix = &bytes[..length as usize];
        if length >= layout.smallest_complete_bytes {
            use_all_of(prefix).unwrap();
            let file = File::from_bytes(prefix).unwrap();
            let layers = layout.extents.iter().filter(|extent| extent.end <= length).count();
            assert_eq!(file.whole_layers(), layers);
            continue;
        }
        match File::from_bytes(prefix).unwrap_err() {
            FileError::Incomplete { array, found, needed, .. } => {
                assert!(length >= layout.manifest_bytes);
                assert_eq!((found, needed), (length, layout.smallest_complete_bytes));
                let present = layout.extents[..3].iter().filter(|extent| extent.end <= length).count();
                assert_eq!(array, order[present]);
            }
            FileError::Manifest { source: ManifestError::Truncated { needed, found, .. }, .. } => {
                assert!(length < layout.manifest_bytes && needed > found && found == length);
            }
            other => panic!("{length}: {other}"),
        }
    }
}

#[test]
fn bytes_that_follow_are_found() {
    let mut bytes = small().bytes();
    bytes.push(0);
    let error = use_all_of(&bytes).unwrap_err();
    assert!(matches!(error, FileError::Trailing { .. }), "{error}");
}

/// Every byte of the manifest, with the checksum made right again, so that the parser itself is what refuses.
#[test]
fn hostile_manifests_never_panic() {
    let bytes = small().bytes();
    let manifest_end = File::from_bytes(bytes.clone()).unwrap().layout().manifest_bytes as usize;
    for position in 13..manifest_end {
        for value in [0, 0x80, 0xff, bytes[position] ^ 1] {
            let mut bad = bytes.clone();
            bad[position] = value;
            let crc32 = {
                let mut hasher = crc32fast::Hasher::new();
                hasher.update(&bad[..9]);
                hasher.update(&bad[13..manifest_end]);
                hasher.finalize()
            };
            bad[9..13].copy_from_slice(&crc32.to_le_bytes());
            drop(use_all_of(&bad));
        }
    }
}

#[test]
fn manifests_that_contradict_themselves_are_not_written() {
    let refused = |change: &dyn Fn(&mut lamella_file::Manifest), words: &str| {
        let mut sample = small();
        change(&mut sample.manifest);
        let error = to_bytes(&sample.manifest, &sample.side.bytes, &sample.payloads).unwrap_err().to_string();
        assert!(error.contains(words), "{error}");
    };
    refused(&|manifest| manifest.arrays[2].recipe = 9, "`blocks.1.up.weight` uses recipe 9 of 2");
    refused(&|manifest| manifest.arrays[2].shard = 1, "is of shard 1 of 1");
    refused(&|manifest| manifest.arrays[2].spec.name = "embed.weight".to_owned(), "two arrays are named");
    refused(&|manifest| manifest.arrays[2].spec.name = String::new(), "has no name");
    refused(&|manifest| manifest.arrays[2].spec.shape = vec![1; 17], "17 axes; at most 16");
    refused(&|manifest| manifest.arrays[2].spec.shape = vec![usize::MAX, 3], "exceeds");
    refused(&|manifest| manifest.arrays[4].storage = Storage::AliasOf(4), "is tied to array 4");
    refused(&|manifest| manifest.arrays[4].storage = Storage::AliasOf(1), "of another shape");
    refused(&|manifest| manifest.arrays[3].recipe = 1, "share a bundle but not");
    refused(&|manifest| manifest.arrays[1].storage = Storage::Bundle(1), "begins bundle 1, expected 0");
    refused(
        &|manifest| {
            manifest.arrays[1].spec.shape = vec![1 << 41];
            manifest.arrays[3].spec.shape = vec![1 << 42];
        },
        "bytes of a bundle",
    );
    refused(&|manifest| manifest.layers[0].target = 3, "layer 0 refines target 3 of 3");
    refused(&|manifest| manifest.layers[0].distortion = -1.0, "distortion -1");
    refused(&|manifest| manifest.layers[0].crc32 ^= 1, "payload of layer 0");
    refused(&|manifest| manifest.layers[1].target = 0, "array `blocks.0.norm` has no layer");
    refused(&|manifest| manifest.side.files[0].name = "../x".to_owned(), "not a plain relative path");
    refused(&|manifest| manifest.side.crc32 ^= 1, "side files are not those");
    refused(
        &|manifest| manifest.arrays.push(entry("late", &[1], Dtype::U8, Storage::Own)),
        "array `late` has no layer",
    );
}

#[test]
fn messages_say_what_where_and_what_next() {
    let bytes = small().bytes();
    let file = File::from_bytes(bytes.clone()).unwrap();
    let extent = file.layout().extents[4].clone();
    let mut bad = bytes.clone();
    bad[extent.start as usize] ^= 4;
    let error = File::from_bytes(bad).unwrap().verify(|_| {}).unwrap_err();
    assert_eq!(
        error.to_string(),
        format!(
            "layer 4 of `memory` fails its checksum (bytes {} to {}, array `embed.weight`): the file changed after it was written",
            extent.start, extent.end
        )
    );
    let details = error.details();
    assert!(details[0].starts_with("layers 0 to 3 are intact and hold every array, at "), "{details:?}");
    assert!(error.hints()[0].starts_with(&format!("`head -c {} memory", extent.start)));

    let error = File::from_bytes(b"PK\x03\x04not".to_vec()).unwrap_err();
    assert_eq!(
        error.to_string(),
        "`memory` cannot be opened: it does not begin with the bytes `8b 4c 41 4d` of a .lam file (found `50 4b 03 04`)"
    );
    let mut newer = bytes.clone();
    newer[4] = 9;
    let error = File::from_bytes(newer).unwrap_err();
    assert_eq!(
        error.to_string(),
        "`memory` cannot be opened: it is of format version 9; this program reads version 1"
    );
    let error = file.layers_of("lm_head").unwrap_err();
    assert_eq!(error.to_string(), "`memory` holds no array named `lm_head`");
}
