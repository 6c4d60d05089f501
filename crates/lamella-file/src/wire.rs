//! Numbers and texts as bytes: LEB128 varints in their shortest form, little-endian fixed widths, counted texts.
#![warn(clippy::indexing_slicing, clippy::arithmetic_side_effects, clippy::cast_possible_truncation)]

use crate::ManifestError;

/// Appends `value` as a LEB128 varint: seven bits a byte, lowest first, the top bit set on all but the last.
pub(crate) fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value.to_le_bytes()[0] | 0x80);
        value >>= 7;
    }
    out.push(value.to_le_bytes()[0]);
}

/// Appends a text: its length in bytes, then its UTF-8.
pub(crate) fn put_text(out: &mut Vec<u8>, text: &str) {
    put_varint(out, text.len() as u64);
    out.extend_from_slice(text.as_bytes());
}

/// Maps a signed number to an unsigned one, small magnitudes first: 0, -1, 1, -2, …
pub(crate) fn zigzag(value: i64) -> u64 {
    (value.cast_unsigned() << 1) ^ (value >> 63).cast_unsigned()
}

/// Undoes [`zigzag`].
pub(crate) fn unzigzag(value: u64) -> i64 {
    (value >> 1).cast_signed() ^ (value & 1).cast_signed().wrapping_neg()
}

/// Reads what the functions above wrote, front to back.
#[derive(Debug, Clone)]
pub(crate) struct Reader<'a> {
    rest: &'a [u8],
    what: &'static str,
    total: usize,
}

impl<'a> Reader<'a> {
    /// A reader over `bytes`, called `what` in errors.
    pub(crate) fn new(bytes: &'a [u8], what: &'static str) -> Self {
        Self { rest: bytes, what, total: bytes.len() }
    }

    pub(crate) fn remaining(&self) -> usize {
        self.rest.len()
    }

    fn truncated(&self, more: u64) -> ManifestError {
        let found = self.total as u64;
        let read = found.saturating_sub(self.rest.len() as u64);
        ManifestError::Truncated { what: self.what, needed: read.saturating_add(more), found }
    }

    pub(crate) fn bytes(&mut self, count: u64) -> Result<&'a [u8], ManifestError> {
        let split = usize::try_from(count).ok().and_then(|count| self.rest.split_at_checked(count));
        let (taken, rest) = split.ok_or_else(|| self.truncated(count))?;
        self.rest = rest;
        Ok(taken)
    }

    pub(crate) fn array<const N: usize>(&mut self) -> Result<[u8; N], ManifestError> {
        let (taken, rest) = self.rest.split_first_chunk::<N>().ok_or_else(|| self.truncated(N as u64))?;
        self.rest = rest;
        Ok(*taken)
    }

    pub(crate) fn u8(&mut self) -> Result<u8, ManifestError> {
        Ok(self.array::<1>()?[0])
    }

    pub(crate) fn u32(&mut self) -> Result<u32, ManifestError> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    pub(crate) fn varint(&mut self) -> Result<u64, ManifestError> {
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            let byte = self.u8()?;
            let bits = u64::from(byte & 0x7f);
            if shift == 63 && bits > 1 {
                break;
            }
            value |= bits << shift;
            if byte & 0x80 == 0 {
                if byte == 0 && shift > 0 {
                    return Err(ManifestError::invalid(format!(
                        "a number in the {} is not in its shortest form",
                        self.what
                    )));
                }
                return Ok(value);
            }
        }
        Err(ManifestError::invalid(format!("a number in the {} exceeds 64 bits", self.what)))
    }

    /// A varint of at most `allowed`, named `counted` (plural) where it is more.
    pub(crate) fn bounded(&mut self, counted: &'static str, allowed: u64) -> Result<u64, ManifestError> {
        let found = self.varint()?;
        if found > allowed {
            return Err(ManifestError::Limit { what: counted, found, allowed });
        }
        Ok(found)
    }

    /// A number of entries, each of which takes at least `least_bytes` of what is left.
    pub(crate) fn count(
        &mut self,
        counted: &'static str,
        allowed: u64,
        least_bytes: u64,
    ) -> Result<usize, ManifestError> {
        let count = self.bounded(counted, allowed)?;
        let needed = count.saturating_mul(least_bytes);
        if needed > self.rest.len() as u64 {
            return Err(self.truncated(needed));
        }
        usize::try_from(count).map_err(|_| ManifestError::Limit { what: counted, found: count, allowed })
    }

    /// An index below `below`.
    pub(crate) fn index(&mut self, what: &'static str, below: usize) -> Result<usize, ManifestError> {
        let found = self.varint()?;
        usize::try_from(found)
            .ok()
            .filter(|&index| index < below)
            .ok_or_else(|| ManifestError::invalid(format!("{what} {found} of {below}")))
    }

    pub(crate) fn text(&mut self, counted: &'static str, allowed: u64) -> Result<String, ManifestError> {
        let length = self.bounded(counted, allowed)?;
        let bytes = self.bytes(length)?;
        match std::str::from_utf8(bytes) {
            Ok(text) => Ok(text.to_owned()),
            Err(_) => Err(ManifestError::invalid(format!("a text in the {} is not UTF-8", self.what))),
        }
    }

    /// Refuses bytes left over.
    pub(crate) fn finish(self) -> Result<(), ManifestError> {
        match self.rest.len() {
            0 => Ok(()),
            left => Err(ManifestError::invalid(format!("{left} bytes follow the end of the {}", self.what))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn varints_and_signs_return(value in any::<u64>(), shift in 0u32..64) {
            let value = value >> shift;
            let mut bytes = Vec::new();
            put_varint(&mut bytes, value);
            let mut reader = Reader::new(&bytes, "test");
            prop_assert_eq!(reader.varint().unwrap(), value);
            prop_assert!(reader.finish().is_ok());
            prop_assert_eq!(zigzag(unzigzag(value)), value);
        }
    }

    #[test]
    fn long_forms_and_overflows_are_refused() {
        assert!(Reader::new(&[0x80, 0x00], "test").varint().is_err());
        assert!(Reader::new(&[0xff; 11], "test").varint().is_err());
        let mut most = vec![0xff; 9];
        most.push(1);
        assert_eq!(Reader::new(&most, "test").varint().unwrap(), u64::MAX);
        most.splice(9.., [2]);
        assert!(Reader::new(&most, "test").varint().is_err());
    }

    #[test]
    fn a_count_is_refused_before_anything_is_allocated() {
        let mut bytes = Vec::new();
        put_varint(&mut bytes, 1 << 19);
        let error = Reader::new(&bytes, "test").count("arrays", 1 << 20, 5).unwrap_err();
        assert!(matches!(error, ManifestError::Truncated { .. }), "{error}");
    }
}
