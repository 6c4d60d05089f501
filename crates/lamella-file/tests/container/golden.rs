//! Files that every later version must read, and files that it must refuse, with the same kind of error.
//!
//! `LAMELLA_BLESS=1` writes them anew: while the format is unstable, after a change of it, never otherwise.

use std::path::{Path, PathBuf};

use lamella_file::{File, FileError, ManifestError};

use crate::sample::{language_model, one, small};

fn directory(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests").join(name)
}

fn is_blessing() -> bool {
    std::env::var_os("LAMELLA_BLESS").is_some_and(|value| value == "1")
}

/// Compares with the golden file of this name, or writes it.
fn check(directory_name: &str, name: &str, bytes: &[u8]) {
    let path = directory(directory_name).join(name);
    if is_blessing() {
        fs_err::write(&path, bytes).expect("the tests' directory is writable");
    }
    let golden = fs_err::read(&path).ok();
    assert!(golden.as_deref() == Some(bytes), "{} has other bytes now: the format changed", path.display());
}

#[test]
fn written_files_keep_their_bytes() {
    check("golden", "small.lam", &small().bytes());
    check("golden", "one.lam", &one().bytes());
    check("golden", "language_model.lam", &language_model(1, 1).bytes());
    let empty = lamella_file::to_bytes(&lamella_file::Manifest::default(), &[], &[] as &[&[u8]]).unwrap();
    check("golden", "empty.lam", &empty);
    let cut = File::from_bytes(small().bytes()).unwrap();
    let cut = cut.cut(cut.length_bytes() - 1).unwrap().to_bytes().unwrap();
    check("golden", "small_cut.lam", &cut);
}

/// The dump in docs/format.md is the golden file's.
#[test]
fn the_written_format_shows_the_bytes() {
    let page = directory("../../../docs/format.md");
    let page = fs_err::read_to_string(page).unwrap();
    for (row, bytes) in one().bytes().chunks(16).enumerate() {
        let hex: Vec<String> = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        let line = format!("{:08x}  {}", row * 16, hex.join(" "));
        assert!(page.contains(&line), "docs/format.md does not show\n{line}");
    }
}

#[test]
fn golden_files_read_as_before() {
    for entry in fs_err::read_dir(directory("golden")).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|extension| extension == "lam") {
            let file = File::open(&path).unwrap();
            file.verify(|_| {}).unwrap();
            file.side_files().unwrap();
        }
    }
    let file = File::open(directory("golden").join("small.lam")).unwrap();
    assert_eq!(*file.manifest(), small().manifest);
    for (layer, payload) in small().payloads.iter().enumerate() {
        assert_eq!(file.layer(layer).unwrap(), *payload);
    }
}

/// The kind of an error, as golden-errors name it.
fn kind(error: &FileError) -> &'static str {
    match error {
        FileError::Manifest { source, .. } => match source {
            ManifestError::Magic { .. } => "magic",
            ManifestError::Version { .. } => "version",
            ManifestError::Truncated { .. } => "truncated",
            ManifestError::Checksum { .. } => "manifest-checksum",
            ManifestError::Limit { .. } => "limit",
            ManifestError::Invalid { .. } => "invalid",
            _ => "unknown",
        },
        FileError::Incomplete { .. } => "incomplete",
        FileError::LayerChecksum { .. } => "layer-checksum",
        FileError::Padding { .. } => "padding",
        FileError::Trailing { .. } => "trailing",
        FileError::SideFiles { .. } => "side-files",
        _ => "unknown",
    }
}

/// Puts the right checksum into a header whose manifest was changed.
fn mend(mut bytes: Vec<u8>, manifest_end: usize) -> Vec<u8> {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&bytes[..9]);
    hasher.update(&bytes[13..manifest_end]);
    bytes[9..13].copy_from_slice(&hasher.finalize().to_le_bytes());
    bytes
}

#[test]
fn bad_files_are_refused_for_their_reason() {
    let good = small().bytes();
    let file = File::from_bytes(good.clone()).unwrap();
    let layout = file.layout().clone();
    let manifest_end = layout.manifest_bytes as usize;
    let changed = |position: u64, value: u8| {
        let mut bytes = good.clone();
        bytes[position as usize] = value;
        bytes
    };
    let padding = layout.extents[2].start - 1;
    let cases: [(&str, Vec<u8>); 13] = [
        ("magic.a-zip-file", b"PK\x03\x04".to_vec()),
        ("magic.text", b"# a readme\n".to_vec()),
        ("version.255", changed(4, 255)),
        ("truncated.empty", Vec::new()),
        ("truncated.header", good[..12].to_vec()),
        ("truncated.manifest", good[..manifest_end - 1].to_vec()),
        ("manifest-checksum.flip", changed(20, good[20] ^ 1)),
        ("limit.manifest-length", changed(8, 255)),
        ("invalid.text-coding", mend(changed(13, 77), manifest_end)),
        ("incomplete.first-layer", good[..layout.extents[2].end as usize - 1].to_vec()),
        (
            "layer-checksum.flip",
            changed(layout.extents[3].start, good[layout.extents[3].start as usize] ^ 128),
        ),
        ("padding.one", changed(padding, 1)),
        ("side-files.flip", changed(layout.side.start, good[layout.side.start as usize] ^ 1)),
    ];
    for (name, bytes) in cases {
        check("golden-errors", &format!("{name}.lam"), &bytes);
    }
    let mut n_files = 0;
    for entry in fs_err::read_dir(directory("golden-errors")).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        let error = File::open(&path).and_then(|file| file.verify(|_| {})).unwrap_err();
        assert_eq!(kind(&error), name.split('.').next().unwrap(), "{name}: {error}");
        n_files += 1;
    }
    assert!(n_files >= 13);
}
