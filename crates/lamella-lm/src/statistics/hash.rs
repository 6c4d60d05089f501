//! Content hashes, so that statistics are never used for another model or text unnoticed.

use lamella_codec::TensorSource;
use sha2::{Digest, Sha256};

use crate::LmError;

/// SHA-256 of a text's bytes, 64 hexadecimal digits.
pub fn text_hash(text: &str) -> String {
    hexadecimal(&Sha256::digest(text.as_bytes()))
}

/// SHA-256 over every array's name, shape, dtype and bytes, in the order of names: the same arrays give the same
/// hash whatever files they came in. Reads every array once, one at a time.
///
/// # Errors
/// An array that cannot be read.
pub fn source_hash(source: &dyn TensorSource) -> Result<String, LmError> {
    let mut names: Vec<&str> = source.arrays().iter().map(|spec| spec.name.as_str()).collect();
    names.sort_unstable();
    let mut hasher = Sha256::new();
    for name in names {
        let array = source.array(name)?;
        hasher.update((name.len() as u64).to_le_bytes());
        hasher.update(name.as_bytes());
        hasher.update(array.spec.dtype.name().as_bytes());
        hasher.update((array.spec.shape.len() as u64).to_le_bytes());
        for &extent in &array.spec.shape {
            hasher.update((extent as u64).to_le_bytes());
        }
        hasher.update(&array.bytes[..]);
    }
    Ok(hexadecimal(&hasher.finalize()))
}

pub(crate) fn hexadecimal(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    bytes
        .iter()
        .flat_map(|&byte| [DIGITS[usize::from(byte >> 4)], DIGITS[usize::from(byte & 15)]])
        .map(char::from)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use lamella_codec::{Array, ArraySpec, Dtype, TensorMap};

    #[test]
    fn known_digest() {
        assert_eq!(text_hash("abc"), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    }

    #[test]
    fn order_of_arrays_does_not_matter_but_their_content_does() {
        let array = |name: &str, value: f32| {
            Array::from_f32(ArraySpec::new(name, vec![1], Dtype::F32), &[value]).unwrap()
        };
        let source = |arrays: [(&str, f32); 2]| {
            let mut map = TensorMap::default();
            arrays.into_iter().for_each(|(name, value)| map.insert(array(name, value)));
            source_hash(&map).unwrap()
        };
        assert_eq!(source([("a", 1.0), ("b", 2.0)]), source([("b", 2.0), ("a", 1.0)]));
        assert_ne!(source([("a", 1.0), ("b", 2.0)]), source([("a", 2.0), ("b", 1.0)]));
    }
}
