//! ggml's block formats, dequantised to `f32`.
//!
//! A row is cut into blocks of 32, 64, 128 or 256 weights; each block carries its own scales. What a block decodes
//! to is defined here by the same operations in the same order as the `gguf` Python package, so the numbers are
//! equal in every bit.
//!
//! | types | idea | bits per weight |
//! |---|---|---|
//! | `Q4_0`, `Q5_0`, `Q8_0` | one `f16` scale per 32 weights, codes centred on zero | 4.5, 5.5, 8.5 |
//! | `Q4_1`, `Q5_1` | scale and minimum | 5, 6 |
//! | `Q2_K` to `Q6_K` | 256 weights; scales (and minima) of 16 or 32 weights are themselves quantised | 2.6 to 6.6 |
//! | `IQ1` to `IQ3` | groups of 4 or 8 weights come from a codebook, signs apart | 1.6 to 3.4 |
//! | `IQ4_NL`, `IQ4_XS` | 4-bit codes into 16 uneven levels | 4.5, 4.25 |
//! | `TQ1_0`, `TQ2_0`, `Q1_0` | ternary and sign-only weights | 1.7, 2.1, 1.1 |
//! | `MXFP4`, `NVFP4` | 4-bit floats under 8-bit float scales | 4.25, 4.5 |

mod iq;
mod iq_grids;
mod k;
mod legacy;
mod quantize;
mod small;

pub use quantize::{BlockForm, Codes, Levels};

use lamella_codec::Dtype;

/// How the numbers of a ggml tensor are stored. Codes are GGUF's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
#[allow(missing_docs, reason = "the variants are ggml's own names")]
#[allow(non_camel_case_types, reason = "the variants are ggml's own names")]
pub enum GgmlType {
    F32,
    F16,
    BF16,
    F64,
    I8,
    I16,
    I32,
    I64,
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q8_0,
    Q2_K,
    Q3_K,
    Q4_K,
    Q5_K,
    Q6_K,
    IQ1_S,
    IQ1_M,
    IQ2_XXS,
    IQ2_XS,
    IQ2_S,
    IQ3_XXS,
    IQ3_S,
    IQ4_NL,
    IQ4_XS,
    TQ1_0,
    TQ2_0,
    Q1_0,
    MXFP4,
    NVFP4,
}

/// Type, GGUF code, weights per block, bytes per block, name.
const TYPES: [(GgmlType, u32, usize, usize, &str); 32] = {
    use GgmlType::*;
    [
        (F32, 0, 1, 4, "F32"),
        (F16, 1, 1, 2, "F16"),
        (BF16, 30, 1, 2, "BF16"),
        (F64, 28, 1, 8, "F64"),
        (I8, 24, 1, 1, "I8"),
        (I16, 25, 1, 2, "I16"),
        (I32, 26, 1, 4, "I32"),
        (I64, 27, 1, 8, "I64"),
        (Q4_0, 2, 32, 18, "Q4_0"),
        (Q4_1, 3, 32, 20, "Q4_1"),
        (Q5_0, 6, 32, 22, "Q5_0"),
        (Q5_1, 7, 32, 24, "Q5_1"),
        (Q8_0, 8, 32, 34, "Q8_0"),
        (Q2_K, 10, 256, 84, "Q2_K"),
        (Q3_K, 11, 256, 110, "Q3_K"),
        (Q4_K, 12, 256, 144, "Q4_K"),
        (Q5_K, 13, 256, 176, "Q5_K"),
        (Q6_K, 14, 256, 210, "Q6_K"),
        (IQ1_S, 19, 256, 50, "IQ1_S"),
        (IQ1_M, 29, 256, 56, "IQ1_M"),
        (IQ2_XXS, 16, 256, 66, "IQ2_XXS"),
        (IQ2_XS, 17, 256, 74, "IQ2_XS"),
        (IQ2_S, 22, 256, 82, "IQ2_S"),
        (IQ3_XXS, 18, 256, 98, "IQ3_XXS"),
        (IQ3_S, 21, 256, 110, "IQ3_S"),
        (IQ4_NL, 20, 32, 18, "IQ4_NL"),
        (IQ4_XS, 23, 256, 136, "IQ4_XS"),
        (TQ1_0, 34, 256, 54, "TQ1_0"),
        (TQ2_0, 35, 256, 66, "TQ2_0"),
        (Q1_0, 41, 128, 18, "Q1_0"),
        (MXFP4, 39, 32, 17, "MXFP4"),
        (NVFP4, 40, 64, 36, "NVFP4"),
    ]
};

impl GgmlType {
    fn row(self) -> (usize, usize, &'static str) {
        TYPES.iter().find(|row| row.0 == self).map_or((1, 1, "?"), |row| (row.2, row.3, row.4))
    }
    /// The type with this GGUF code.
    pub fn from_code(code: u32) -> Option<Self> {
        TYPES.iter().find(|row| row.1 == code).map(|row| row.0)
    }
    /// GGUF's code of the type.
    pub fn code(self) -> u32 {
        TYPES.iter().find(|row| row.0 == self).map_or(0, |row| row.1)
    }
    /// The type of this name, in any case: `q4_k`, `F16`.
    pub fn from_name(name: &str) -> Option<Self> {
        TYPES.iter().find(|row| row.4.eq_ignore_ascii_case(name)).map(|row| row.0)
    }
    /// Every type's name, for messages.
    pub(crate) fn names() -> String {
        TYPES.map(|row| row.4).join(", ")
    }
    /// ggml's name, `Q4_K` for instance.
    pub fn name(self) -> &'static str {
        self.row().2
    }
    /// Weights that share a block.
    pub fn block_elements(self) -> usize {
        self.row().0
    }
    /// Bytes of a block.
    pub fn block_bytes(self) -> usize {
        self.row().1
    }
    /// The element type that arrays of this kind are handed out in: their own where nothing is quantised, `F32`
    /// otherwise.
    pub fn dtype(self) -> Dtype {
        match self {
            Self::F16 => Dtype::F16,
            Self::BF16 => Dtype::BF16,
            Self::F64 => Dtype::F64,
            Self::I8 => Dtype::I8,
            Self::I16 => Dtype::I16,
            Self::I32 => Dtype::I32,
            Self::I64 => Dtype::I64,
            _ => Dtype::F32,
        }
    }
    /// Whether bytes must be decoded before they are numbers of [`GgmlType::dtype`].
    pub fn is_quantized(self) -> bool {
        self.block_elements() > 1
    }
    /// Bytes of `n_elements` weights, or `None` where they are no whole number of blocks or too many.
    pub fn size_bytes(self, n_elements: usize) -> Option<usize> {
        let (elements, bytes, _) = self.row();
        if !n_elements.is_multiple_of(elements) {
            return None;
        }
        (n_elements / elements).checked_mul(bytes)
    }

    /// Decodes whole blocks; bytes after the last whole block are ignored. Types that are not quantised decode to
    /// nothing: their bytes are numbers already.
    pub fn dequantize(self, bytes: &[u8]) -> Vec<f32> {
        match self {
            Self::Q4_0 => blocks(bytes, legacy::q4_0),
            Self::Q4_1 => blocks(bytes, legacy::q4_1),
            Self::Q5_0 => blocks(bytes, legacy::q5_0),
            Self::Q5_1 => blocks(bytes, legacy::q5_1),
            Self::Q8_0 => blocks(bytes, legacy::q8_0),
            Self::Q2_K => blocks(bytes, k::q2_k),
            Self::Q3_K => blocks(bytes, k::q3_k),
            Self::Q4_K => blocks(bytes, k::q4_k),
            Self::Q5_K => blocks(bytes, k::q5_k),
            Self::Q6_K => blocks(bytes, k::q6_k),
            Self::IQ1_S => blocks(bytes, iq::iq1_s),
            Self::IQ1_M => blocks(bytes, iq::iq1_m),
            Self::IQ2_XXS => blocks(bytes, iq::iq2_xxs),
            Self::IQ2_XS => blocks(bytes, iq::iq2_xs),
            Self::IQ2_S => blocks(bytes, iq::iq2_s),
            Self::IQ3_XXS => blocks(bytes, iq::iq3_xxs),
            Self::IQ3_S => blocks(bytes, iq::iq3_s),
            Self::IQ4_NL => blocks(bytes, iq::iq4_nl),
            Self::IQ4_XS => blocks(bytes, iq::iq4_xs),
            Self::TQ1_0 => blocks(bytes, small::tq1_0),
            Self::TQ2_0 => blocks(bytes, small::tq2_0),
            Self::Q1_0 => blocks(bytes, small::q1_0),
            Self::MXFP4 => blocks(bytes, small::mxfp4),
            Self::NVFP4 => blocks(bytes, small::nvfp4),
            Self::F32 | Self::F16 | Self::BF16 | Self::F64 => Vec::new(),
            Self::I8 | Self::I16 | Self::I32 | Self::I64 => Vec::new(),
        }
    }
}

/// Decodes block after block. `B` bytes give `N` weights.
fn blocks<const B: usize, const N: usize>(
    bytes: &[u8],
    decode: impl Fn(&[u8; B], &mut [f32; N]),
) -> Vec<f32> {
    let (whole, _) = bytes.as_chunks::<B>();
    let mut values = vec![0.0; whole.len() * N];
    let (out, _) = values.as_chunks_mut::<N>();
    for (block, out) in whole.iter().zip(out) {
        decode(block, out);
    }
    values
}

/// The `f16` at a place of a block, exactly as `f32`.
fn f16_at(block: &[u8], at: usize) -> f32 {
    half::f16::from_le_bytes([block[at], block[at + 1]]).to_f32()
}

#[cfg(test)]
mod tests {
    use super::*;
    use sha2::{Digest, Sha256};

    /// The bytes both sides of the golden file are made from.
    fn splitmix64(state: &mut u64) -> u64 {
        *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = *state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// `tests/golden/ggml.txt`, written by `tools/make_gguf_golden.py` with the `gguf` package: type, its code,
    /// number of blocks, the bytes whose sixth bit is cleared so that `f16` scales are finite, and the SHA-256 of
    /// the decoded little-endian `f32`.
    #[test]
    fn every_type_decodes_to_the_bits_of_the_reference() {
        let mut seen = Vec::new();
        for line in include_str!("../../tests/golden/ggml.txt").lines().filter(|line| !line.starts_with('#'))
        {
            let fields: Vec<&str> = line.split_whitespace().collect();
            let [name, code, n_blocks, finite, expected] = fields[..] else {
                panic!("{line}");
            };
            let kind = GgmlType::from_code(code.parse().unwrap()).unwrap();
            assert_eq!(kind.name(), name);
            let n_blocks: usize = n_blocks.parse().unwrap();
            let mut state = code.parse().unwrap();
            let mut bytes = Vec::new();
            while bytes.len() < n_blocks * kind.block_bytes() {
                bytes.extend_from_slice(&splitmix64(&mut state).to_le_bytes());
            }
            bytes.truncate(n_blocks * kind.block_bytes());
            for block in bytes.chunks_exact_mut(kind.block_bytes()) {
                for at in finite.split(',').filter(|&at| at != "-") {
                    block[at.parse::<usize>().unwrap()] &= 0xbf;
                }
            }
            let values = kind.dequantize(&bytes);
            assert_eq!(values.len(), n_blocks * kind.block_elements());
            let mut hasher = Sha256::new();
            values.iter().for_each(|value| hasher.update(value.to_le_bytes()));
            let found: String = hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
            assert_eq!(found, expected, "{name} begins {:?}", &values[..8]);
            seen.push(kind);
        }
        for (kind, ..) in TYPES {
            // The package does not decode the sign-only type.
            assert!(!kind.is_quantized() || kind == GgmlType::Q1_0 || seen.contains(&kind), "{kind:?}");
        }
    }

    #[test]
    fn the_sign_only_type_by_hand() {
        let mut block = [0u8; 18];
        block[..2].copy_from_slice(&half::f16::from_f32(0.75).to_le_bytes());
        block[3] = 0b10;
        let values = GgmlType::Q1_0.dequantize(&block);
        assert_eq!((values[8], values[9], values[10]), (-0.75, 0.75, -0.75));
    }

    #[test]
    fn sizes_are_whole_blocks() {
        assert_eq!(GgmlType::Q4_K.size_bytes(512), Some(288));
        assert_eq!(GgmlType::Q4_K.size_bytes(100), None);
        assert_eq!(GgmlType::F64.size_bytes(usize::MAX), None);
        assert!(GgmlType::Q8_0.dequantize(&[0; 33]).is_empty());
    }
}
