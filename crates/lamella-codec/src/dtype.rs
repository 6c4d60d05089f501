//! Element types of stored arrays.

use serde::{Deserialize, Serialize};

/// Element type of an array, little-endian in memory and in files.
///
/// Names follow safetensors (`F32`, `BF16`, `F8_E4M3`, …); [`Dtype::code`] is the byte that `.lam` files store
/// and never changes its meaning.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[non_exhaustive]
#[allow(missing_docs, reason = "the variants are the standard names of the element types")]
pub enum Dtype {
    F64,
    F32,
    F16,
    BF16,
    #[serde(rename = "F8_E4M3")]
    F8E4M3,
    #[serde(rename = "F8_E5M2")]
    F8E5M2,
    I64,
    I32,
    I16,
    I8,
    U64,
    U32,
    U16,
    U8,
    #[serde(rename = "BOOL")]
    Bool,
}

const ALL: [(Dtype, u8, usize, &str); 15] = [
    (Dtype::F64, 0, 8, "F64"),
    (Dtype::F32, 1, 4, "F32"),
    (Dtype::F16, 2, 2, "F16"),
    (Dtype::BF16, 3, 2, "BF16"),
    (Dtype::F8E4M3, 4, 1, "F8_E4M3"),
    (Dtype::F8E5M2, 5, 1, "F8_E5M2"),
    (Dtype::I64, 6, 8, "I64"),
    (Dtype::I32, 7, 4, "I32"),
    (Dtype::I16, 8, 2, "I16"),
    (Dtype::I8, 9, 1, "I8"),
    (Dtype::U64, 10, 8, "U64"),
    (Dtype::U32, 11, 4, "U32"),
    (Dtype::U16, 12, 2, "U16"),
    (Dtype::U8, 13, 1, "U8"),
    (Dtype::Bool, 14, 1, "BOOL"),
];

impl Dtype {
    fn row(self) -> (u8, usize, &'static str) {
        ALL.iter().find(|row| row.0 == self).map_or((255, 1, "UNKNOWN"), |row| (row.1, row.2, row.3))
    }
    /// The byte that names this type in `.lam` files.
    pub fn code(self) -> u8 {
        self.row().0
    }
    /// The type named by `code`, or `None` where no type has that number.
    pub fn from_code(code: u8) -> Option<Self> {
        ALL.iter().find(|row| row.1 == code).map(|row| row.0)
    }
    /// Bytes of one element.
    pub fn size_bytes(self) -> usize {
        self.row().1
    }
    /// The safetensors name, `BF16` for instance.
    pub fn name(self) -> &'static str {
        self.row().2
    }
    /// The type with this safetensors name.
    pub fn from_name(name: &str) -> Option<Self> {
        ALL.iter().find(|row| row.3 == name).map(|row| row.0)
    }
    /// Whether elements are floating-point numbers that [`crate::Array::to_f32`] reads.
    pub fn is_float(self) -> bool {
        matches!(self, Self::F64 | Self::F32 | Self::F16 | Self::BF16 | Self::F8E4M3 | Self::F8E5M2)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_and_names_are_unique_and_return() {
        for (dtype, code, size, name) in ALL {
            assert_eq!(Dtype::from_code(code), Some(dtype));
            assert_eq!(Dtype::from_name(name), Some(dtype));
            assert_eq!(dtype.size_bytes(), size);
        }
        assert_eq!(Dtype::from_code(200), None);
    }
}
