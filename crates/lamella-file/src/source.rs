//! Where a file's bytes come from: memory, a memory-mapped file, or anything that reads at an offset (HTTP ranges).

use std::borrow::Cow;
use std::io;

/// Random access to bytes that do not change while they are read.
pub trait ReadAt: Send + Sync {
    /// Bytes there are.
    fn length_bytes(&self) -> u64;

    /// Fills `buffer` from `offset` on.
    ///
    /// # Errors
    /// [`io::ErrorKind::UnexpectedEof`] beyond the end, or what the medium says.
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()>;

    /// All bytes at once, where they lie in (mapped) memory.
    fn as_slice(&self) -> Option<&[u8]> {
        None
    }
}

/// The first bytes of a source: what a reader with little room looks at.
pub struct Prefix<S> {
    source: S,
    length_bytes: u64,
}

impl<S: ReadAt> Prefix<S> {
    /// At most `length_bytes` of `source`.
    pub fn new(source: S, length_bytes: u64) -> Self {
        let length_bytes = length_bytes.min(source.length_bytes());
        Self { source, length_bytes }
    }
}

impl<S: ReadAt> ReadAt for Prefix<S> {
    fn length_bytes(&self) -> u64 {
        self.length_bytes
    }
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        let end = offset.checked_add(buffer.len() as u64);
        if end.is_none_or(|end| end > self.length_bytes) {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.source.read_at(offset, buffer)
    }
    fn as_slice(&self) -> Option<&[u8]> {
        self.source.as_slice()?.get(..usize::try_from(self.length_bytes).ok()?)
    }
}

impl ReadAt for Vec<u8> {
    fn length_bytes(&self) -> u64 {
        self.len() as u64
    }
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        read_slice(self, offset, buffer)
    }
    fn as_slice(&self) -> Option<&[u8]> {
        Some(self)
    }
}

pub(crate) fn read_slice(bytes: &[u8], offset: u64, buffer: &mut [u8]) -> io::Result<()> {
    let found = range(bytes, offset, buffer.len() as u64).ok_or(io::ErrorKind::UnexpectedEof)?;
    buffer.copy_from_slice(found);
    Ok(())
}

fn range(bytes: &[u8], offset: u64, length: u64) -> Option<&[u8]> {
    let start = usize::try_from(offset).ok()?;
    let end = start.checked_add(usize::try_from(length).ok()?)?;
    bytes.get(start..end)
}

/// `length` bytes from `offset` on, borrowed where that is possible. The caller has checked that they exist, so that
/// no more is allocated than the source holds.
pub(crate) fn read<'s>(source: &'s dyn ReadAt, offset: u64, length: u64) -> io::Result<Cow<'s, [u8]>> {
    if offset.checked_add(length).is_none_or(|end| end > source.length_bytes()) {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    if let Some(bytes) = source.as_slice() {
        return range(bytes, offset, length)
            .map(Cow::Borrowed)
            .ok_or_else(|| io::ErrorKind::UnexpectedEof.into());
    }
    let length = usize::try_from(length).map_err(|_| io::ErrorKind::OutOfMemory)?;
    let mut bytes = vec![0; length];
    source.read_at(offset, &mut bytes)?;
    Ok(Cow::Owned(bytes))
}

/// Hands the bytes of a range to `take`, at most a mebibyte at a time.
pub(crate) fn stream(
    source: &dyn ReadAt,
    range: std::ops::Range<u64>,
    mut take: impl FnMut(&[u8]),
) -> io::Result<()> {
    const CHUNK_BYTES: u64 = 1 << 20;
    let mut offset = range.start;
    while offset < range.end {
        let length = CHUNK_BYTES.min(range.end - offset);
        take(&read(source, offset, length)?);
        offset += length;
    }
    Ok(())
}
