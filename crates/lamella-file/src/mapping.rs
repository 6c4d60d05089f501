//! A memory-mapped file.
#![allow(unsafe_code, reason = "memory mapping")]

use std::io;
use std::path::Path;

use crate::source::{ReadAt, read_slice};

/// The bytes of a file, mapped into memory: pages are read when they are touched and dropped under pressure.
///
/// Another program that shortens the file while it is mapped kills this one (`SIGBUS`); one that writes into it is
/// found by checksums only before a layer's first use. The writers of this crate replace files by renaming, which
/// leaves open mappings untouched.
#[derive(Debug)]
pub struct MappedFile {
    /// `None` for an empty file, which cannot be mapped.
    mapping: Option<memmap2::Mmap>,
}

impl MappedFile {
    /// Maps a file.
    ///
    /// # Errors
    /// What the system says.
    pub fn open(path: &Path) -> io::Result<Self> {
        let file = fs_err::File::open(path)?;
        if file.metadata()?.len() == 0 {
            return Ok(Self { mapping: None });
        }
        // SAFETY: the mapping is read-only and every byte is a valid u8 whatever another process does to the file;
        // shortening it is the documented hazard above.
        let mapping = unsafe { memmap2::Mmap::map(file.file())? };
        Ok(Self { mapping: Some(mapping) })
    }
}

impl ReadAt for MappedFile {
    fn length_bytes(&self) -> u64 {
        self.as_slice().map_or(0, |bytes| bytes.len() as u64)
    }
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        read_slice(self.as_slice().unwrap_or_default(), offset, buffer)
    }
    fn as_slice(&self) -> Option<&[u8]> {
        Some(self.mapping.as_deref().unwrap_or_default())
    }
}
