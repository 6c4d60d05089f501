//! Compression of the texts a file carries beside its payloads: the description and the side files.
//!
//! | coding | number | when |
//! |---|---|---|
//! | stored | 0 | compression gains nothing, or would expand beyond the reader's bound |
//! | zstd | 1 | texts of more than 2 MiB |
//! | mixed | 2 | shorter texts: 40 % smaller than zstd -19 (wiki5m's side files: 10.0 of 17.6 KB), 0.5 MB/s |

use crate::limits::{EXPANSION_FLOOR_BYTES, MAX_EXPANSION, MAX_MIXED_BYTES, MAX_MIXED_EXPANSION};
use crate::mixing;

/// How a text is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum TextCoding {
    /// As it is.
    Stored,
    /// One zstd frame.
    Zstd,
    /// The context-mixing coder.
    Mixed,
}

impl TextCoding {
    /// The number that files store.
    pub fn code(self) -> u8 {
        match self {
            Self::Stored => 0,
            Self::Zstd => 1,
            Self::Mixed => 2,
        }
    }
    /// The coding of this number, if there is one.
    pub fn from_code(code: u8) -> Option<Self> {
        [Self::Stored, Self::Zstd, Self::Mixed].into_iter().find(|coding| coding.code() == code)
    }
}

/// Most bytes that `stored_bytes` of text coded like this may stand for.
fn expansion_bound(coding: TextCoding, stored_bytes: u64) -> u64 {
    let expanded = |factor: u64| stored_bytes.saturating_mul(factor).saturating_add(EXPANSION_FLOOR_BYTES);
    match coding {
        TextCoding::Stored => stored_bytes,
        TextCoding::Zstd => expanded(MAX_EXPANSION),
        TextCoding::Mixed => expanded(MAX_MIXED_EXPANSION).min(MAX_MIXED_BYTES),
    }
}

/// The stored form of `text`: mixed where it is short enough, else zstd, stored where neither gains or the reader's
/// bounds forbid both.
pub(crate) fn encode(text: &[u8]) -> (TextCoding, Vec<u8>) {
    let length = text.len() as u64;
    let allowed = |(coding, coded): &(TextCoding, Vec<u8>)| {
        coded.len() < text.len() && length <= expansion_bound(*coding, coded.len() as u64)
    };
    let mixed =
        (length <= MAX_MIXED_BYTES).then(|| (TextCoding::Mixed, mixing::encode(text))).filter(allowed);
    let zstd = || zstd::bulk::compress(text, 19).ok().map(|coded| (TextCoding::Zstd, coded)).filter(allowed);
    mixed.or_else(zstd).unwrap_or_else(|| (TextCoding::Stored, text.to_vec()))
}

/// The text of `length` bytes that `stored` stands for. Allocates `length` bytes, after checking them against the bound.
///
/// # Errors
/// A sentence without subject: what does not fit.
pub(crate) fn decode(coding: TextCoding, stored: &[u8], length: u64) -> Result<Vec<u8>, String> {
    let bound = expansion_bound(coding, stored.len() as u64);
    if length > bound {
        return Err(format!(
            "{} stored bytes claim to hold {length}, at most {bound} are allowed",
            stored.len()
        ));
    }
    let capacity = usize::try_from(length).map_err(|error| error.to_string())?;
    let text = match coding {
        TextCoding::Stored => stored.to_vec(),
        TextCoding::Mixed => mixing::decode(stored, capacity),
        TextCoding::Zstd => {
            // One call into a buffer of the stated length: a streaming decoder would allocate the window that a
            // hostile frame asks for, whatever the length.
            zstd::bulk::decompress(stored, capacity).map_err(|error| format!("zstd: {error}"))?
        }
    };
    if text.len() as u64 != length {
        return Err(format!("{length} bytes of text are stated, another number is stored"));
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_return() {
        let long: Vec<u8> = (0..2_200_000u32).map(|i| (i % 1009 % 251) as u8).collect();
        for text in
            [Vec::new(), b"abc".to_vec(), b"abcabcabc".repeat(50), vec![0; 1 << 16], vec![0; 200_000], long]
        {
            let (coding, stored) = encode(&text);
            assert_eq!(decode(coding, &stored, text.len() as u64).unwrap(), text);
            // A mixed text of another length is another text, which a checksum finds.
            if coding != TextCoding::Mixed {
                assert!(decode(coding, &stored, text.len() as u64 + 1).is_err());
                assert!(text.is_empty() || decode(coding, &stored, text.len() as u64 - 1).is_err());
                assert!(text.is_empty() || decode(coding, &stored[1..], text.len() as u64).is_err());
            }
        }
    }

    #[test]
    fn a_bomb_is_refused_by_its_length() {
        let bomb = zstd::bulk::compress(&vec![0; 64 << 20], 19).unwrap();
        assert!(decode(TextCoding::Zstd, &bomb, 64 << 20).is_err());
        assert!(decode(TextCoding::Zstd, &bomb, 1000).is_err());
    }
}
