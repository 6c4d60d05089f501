//! Reads little-endian fields out of bytes that may end anywhere.

use std::path::Path;

use crate::IoError;

/// A position in a file's bytes; every step is checked against the end.
#[derive(Debug)]
pub(crate) struct Cursor<'a> {
    bytes: &'a [u8],
    position: usize,
    path: &'a Path,
}

impl<'a> Cursor<'a> {
    pub(crate) fn new(bytes: &'a [u8], path: &'a Path) -> Self {
        Self { bytes, position: 0, path }
    }
    /// Bytes from the start of the file.
    pub(crate) fn position(&self) -> usize {
        self.position
    }
    /// Bytes that are left.
    pub(crate) fn remaining(&self) -> usize {
        self.bytes.len() - self.position
    }
    /// An error about this file at this position.
    pub(crate) fn damaged(&self, message: impl std::fmt::Display) -> IoError {
        IoError::damaged(self.path, format!("at byte {}: {message}", self.position))
    }
    /// The next `length` bytes. `what` names them in the error.
    pub(crate) fn take(&mut self, length: usize, what: &str) -> Result<&'a [u8], IoError> {
        if length > self.remaining() {
            return Err(self.damaged(format!("{what} needs {length} bytes, {} are left", self.remaining())));
        }
        let taken = &self.bytes[self.position..self.position + length];
        self.position += length;
        Ok(taken)
    }
    fn array<const N: usize>(&mut self, what: &str) -> Result<[u8; N], IoError> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(N, what)?);
        Ok(array)
    }
    pub(crate) fn u8(&mut self, what: &str) -> Result<u8, IoError> {
        Ok(self.array::<1>(what)?[0])
    }
    pub(crate) fn u32(&mut self, what: &str) -> Result<u32, IoError> {
        Ok(u32::from_le_bytes(self.array(what)?))
    }
    pub(crate) fn u64(&mut self, what: &str) -> Result<u64, IoError> {
        Ok(u64::from_le_bytes(self.array(what)?))
    }
    /// A 64-bit length or count that must fit this machine.
    pub(crate) fn length(&mut self, what: &str) -> Result<usize, IoError> {
        let length = self.u64(what)?;
        usize::try_from(length).map_err(|_| self.damaged(format!("{what} of {length}")))
    }
    pub(crate) fn i32(&mut self, what: &str) -> Result<i32, IoError> {
        Ok(i32::from_le_bytes(self.array(what)?))
    }
    pub(crate) fn f32(&mut self, what: &str) -> Result<f32, IoError> {
        Ok(f32::from_le_bytes(self.array(what)?))
    }
}
