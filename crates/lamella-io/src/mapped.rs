//! Whole files as byte slices, memory-mapped.
#![allow(
    unsafe_code,
    reason = "memory mapping is unsafe by nature; this module is its only place in the crate"
)]

use std::ops::{Deref, Range};
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
    /// Tells the operating system that a range is not needed for now. Reading it again brings it back from the
    /// file. A hint: failures are of no consequence.
    pub(crate) fn release(&self, range: Range<usize>) {
        #[cfg(unix)]
        if let Some(map) = &self.map
            && range.end <= map.len()
            && !range.is_empty()
        {
            // SAFETY: the map is of a file and read-only, so dropped pages are read from the file again with the
            // same content; slices that point into the range stay valid.
            let _ = unsafe {
                map.unchecked_advise_range(memmap2::UncheckedAdvice::DontNeed, range.start, range.len())
            };
        }
        #[cfg(not(unix))]
        let _ = range;
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn released_ranges_read_the_same_again() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("x");
        let bytes: Vec<u8> = (0..100_000u32).map(|i| (i % 251) as u8).collect();
        fs_err::write(&path, &bytes).unwrap();
        let map = MappedFile::open(&path).unwrap();
        assert_eq!(map[..], bytes);
        for range in [0..100_000, 5..70_001, 99_999..100_000, 0..0, 7..200_000] {
            map.release(range);
            assert_eq!(map[..], bytes);
        }
        let empty = directory.path().join("empty");
        fs_err::write(&empty, "").unwrap();
        assert!(MappedFile::open(&empty).unwrap().is_empty());
    }
}
