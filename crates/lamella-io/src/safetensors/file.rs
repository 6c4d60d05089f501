//! A safetensors file, memory-mapped.

use std::path::Path;

use lamella_codec::{Array, ArraySpec, SourceError, TensorSource};

use super::SafetensorsHeader;
use crate::IoError;
use crate::mapped::MappedFile;

/// An open safetensors file. Opening reads and checks the header only; arrays are borrowed from the map.
#[derive(Debug)]
pub struct SafetensorsFile {
    map: MappedFile,
    header: SafetensorsHeader,
}

impl SafetensorsFile {
    /// Maps a file and checks its header.
    ///
    /// # Errors
    /// The file cannot be opened, or its header is damaged (see [`SafetensorsHeader::parse`]).
    pub fn open(path: impl AsRef<Path>) -> Result<Self, IoError> {
        let map = MappedFile::open(path.as_ref())?;
        let header = SafetensorsHeader::parse(&map, path.as_ref())?;
        Ok(Self { map, header })
    }
    /// Where the file lies.
    pub fn path(&self) -> &Path {
        self.map.path()
    }
    /// The checked header, with its original text.
    pub fn header(&self) -> &SafetensorsHeader {
        &self.header
    }
    /// Length of the file.
    pub fn size_bytes(&self) -> u64 {
        self.map.len() as u64
    }
    /// Lets an array's pages leave memory until it is asked for again; its slices stay valid. For programs that
    /// walk through a model larger than they may be themselves.
    pub fn release(&self, name: &str) {
        if let Some(extent) = self.header.extent(name) {
            let start = self.header.size_bytes();
            self.map.release(start + extent.start..start + extent.end);
        }
    }
    /// The whole file.
    pub fn bytes(&self) -> &[u8] {
        &self.map
    }
}

impl TensorSource for SafetensorsFile {
    fn arrays(&self) -> &[ArraySpec] {
        self.header.arrays()
    }
    fn array(&self, name: &str) -> Result<Array<'_>, SourceError> {
        let missing = || SourceError::Missing { name: name.to_owned() };
        let ordinal = self.header.position(name).ok_or_else(missing)?;
        let extent = self.header.extent(name).ok_or_else(missing)?;
        let start = self.header.size_bytes();
        let bytes = &self.map[start + extent.start..start + extent.end];
        Array::new(self.header.arrays()[ordinal].clone(), bytes)
            .map_err(|error| SourceError::Unreadable { name: name.to_owned(), source: Box::new(error) })
    }
    fn spec(&self, name: &str) -> Option<&ArraySpec> {
        self.header.position(name).map(|ordinal| &self.header.arrays()[ordinal])
    }
}
