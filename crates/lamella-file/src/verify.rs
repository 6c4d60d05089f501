//! Checking every byte of a file without decoding anything.

use serde::Serialize;

use crate::source::stream;
use crate::{File, FileError};

/// How far a [`File::verify`] is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// Bytes checked.
    pub done_bytes: u64,
    /// Bytes to check.
    pub total_bytes: u64,
}

/// What a verified file holds.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Verification {
    /// Version of this report.
    pub schema: u32,
    /// Bytes of the file.
    pub bytes: u64,
    /// Whole layers, each with the right checksum.
    pub whole_layers: usize,
    /// Layers the manifest names.
    pub layers: usize,
    /// Bytes at the end that belong to a layer which is not wholly there. They were not checked and are not used.
    pub unused_bytes: u64,
    /// Bits per element of what is used, side files left out.
    pub bits_per_element: f64,
}

impl File {
    /// Checks each byte: the manifest (done when the file was opened), the side files' checksums, each whole layer's
    /// checksum, that padding is zero and that nothing follows. Memory: one mebibyte at most.
    ///
    /// `progress` is called after each layer.
    ///
    /// # Errors
    /// The first thing that is wrong, front to back.
    pub fn verify(&self, mut progress: impl FnMut(Progress)) -> Result<Verification, FileError> {
        let layout = self.layout();
        let found = self.length_bytes();
        let failed = || FileError::io(format!("reading `{}`", self.name()));
        let used = layout.end_of(self.whole_layers());
        let mut hasher = crc32fast::Hasher::new();
        stream(self.source(), layout.side.clone(), |bytes| hasher.update(bytes)).map_err(failed())?;
        let crc32 = hasher.finalize();
        let stated = self.manifest().side.crc32;
        if crc32 != stated {
            return Err(self
                .side_damaged(format!("they fail their checksum (stated {stated:08x}, found {crc32:08x})")));
        }
        let mut position = layout.side.end;
        progress(Progress { done_bytes: position, total_bytes: used });
        for (index, extent) in layout.extents.iter().enumerate().take(self.whole_layers()) {
            self.check_padding(position, extent.start)?;
            let mut hasher = crc32fast::Hasher::new();
            stream(self.source(), extent.clone(), |bytes| hasher.update(bytes)).map_err(failed())?;
            if hasher.finalize() != self.layers()[index].crc32 {
                return Err(self.layer_damaged(index));
            }
            position = extent.end;
            progress(Progress { done_bytes: position, total_bytes: used });
        }
        if found > layout.file_bytes {
            return Err(FileError::Trailing {
                file: self.name().to_owned(),
                found,
                expected: layout.file_bytes,
            });
        }
        // A prefix may end inside padding: what there is of it is checked too.
        let next = layout.extents.get(self.whole_layers()).map_or(found, |extent| extent.start);
        self.check_padding(position, next.min(found))?;
        Ok(Verification {
            schema: 1,
            bytes: found,
            whole_layers: self.whole_layers(),
            layers: self.layers().len(),
            unused_bytes: found - used,
            bits_per_element: self.bits_per_element(used),
        })
    }

    fn check_padding(&self, start: u64, end: u64) -> Result<(), FileError> {
        let (mut first, mut offset) = (None, start);
        stream(self.source(), start..end, |bytes| {
            if let (None, Some(found)) = (first, bytes.iter().position(|&byte| byte != 0)) {
                first = Some(offset + found as u64);
            }
            offset += bytes.len() as u64;
        })
        .map_err(FileError::io(format!("reading `{}`", self.name())))?;
        match first {
            None => Ok(()),
            Some(offset) => Err(FileError::Padding { file: self.name().to_owned(), offset }),
        }
    }
}
