//! Whole files as byte slices, memory-mapped.
#![allow(
    unsafe_code,
    reason = "memory mapping is unsafe by nature; this module is its only place in the crate"
)]

use std::ops::Deref;
use std::path::{Path, PathBuf};

use crate::IoError;

/// A file's bytes, paged in by the operating system when they are looked at.
#[derive(Debug)]
pub(crate) struct MappedFile {
    path: PathBuf,
    map: Option<memmap2::Mmap>,
}

impl MappedFile {
    /// Maps the whole file for reading. Directories and other things that are no plain file are errors.
    pub(crate) fn open(path: &Path) -> Result<Self, IoError> {
        let file = fs_err::File::open(path)?;
        let about = file.metadata()?;
        if !about.is_file() {
            return Err(IoError::damaged(path, "it is not a plain file"));
        }
        let map = if about.len() == 0 {
            None
        } else {
            // SAFETY: the map is read-only and is only ever seen as `&[u8]`, for which any bytes are valid. A
            // process that shortens the file while it is mapped makes later reads fail with a signal, and one
            // that changes it changes the numbers read; both are the hazard of any memory-mapped reader and are
            // stated in the crate's documentation.
            Some(unsafe { memmap2::Mmap::map(file.file()) }?)
        };
        Ok(Self { path: path.to_owned(), map })
    }
    /// Where the file lies.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

impl Deref for MappedFile {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        self.map.as_deref().unwrap_or(&[])
    }
}
