//! ggml's block formats, the other way: grids and codes into bytes.
//!
//! A solver decides scales and codes; this module knows which there are ([`BlockForm`]) and where their bits go
//! ([`BlockForm::pack`]). Every form is one formula:
//!
//! ```text
//! weight i = scale * scale_codes[i / group] * level(codes[i]) - minimum * minimum_codes[i / group]
//! ```
//!
//! where `scale` and `minimum` are `f16` numbers of the block, the scale and minimum codes small integers (1 in
//! forms without groups), and a level the code itself, the code minus an offset, or an entry of a table.
//!
//! ```
//! use lamella_io::{Codes, GgmlType};
//! let form = GgmlType::Q4_0.block_form().unwrap();
//! let mut codes = Codes::zeros(form);
//! codes.scale = 0.5;
//! codes.codes[0] = 3;
//! let mut bytes = Vec::new();
//! form.pack(&codes, &mut bytes);
//! assert_eq!(GgmlType::Q4_0.dequantize(&bytes)[0], 0.5 * (3.0 - 8.0));
//! ```

mod pack;

use super::GgmlType;
use super::iq::LEVELS_4;

/// What a code stands for before it is scaled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Levels {
    /// Code minus this offset.
    Uniform {
        /// The code of level zero.
        offset: i32,
        /// Number of codes.
        count: usize,
    },
    /// The sixteen uneven levels of the `IQ4` types.
    Table,
}

/// The grids one type offers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BlockForm {
    /// The type.
    pub kind: GgmlType,
    /// Weights of a block.
    pub block: usize,
    /// Weights that share a scale code.
    pub group: usize,
    /// What codes stand for.
    pub levels: Levels,
    /// Smallest and largest scale code.
    pub scale_codes: (i32, i32),
    /// Largest minimum code; 0 where the type has no minima. Forms without groups have 1, and a minimum of either
    /// sign.
    pub most_minimum_code: i32,
}

impl GgmlType {
    /// The grids of a type that Lamella can quantise into.
    pub fn block_form(self) -> Option<BlockForm> {
        use GgmlType::*;
        let uniform = |offset: i32, bits: u32| Levels::Uniform { offset, count: 1 << bits };
        let (group, levels, scale_codes, most_minimum_code) = match self {
            Q8_0 => (32, uniform(128, 8), (1, 1), 0),
            Q4_0 => (32, uniform(8, 4), (1, 1), 0),
            Q5_0 => (32, uniform(16, 5), (1, 1), 0),
            Q4_1 => (32, uniform(0, 4), (1, 1), 1),
            Q5_1 => (32, uniform(0, 5), (1, 1), 1),
            IQ4_NL => (32, Levels::Table, (1, 1), 0),
            Q2_K => (16, uniform(0, 2), (0, 15), 15),
            Q3_K => (16, uniform(4, 3), (-32, 31), 0),
            Q4_K => (32, uniform(0, 4), (0, 63), 63),
            Q5_K => (32, uniform(0, 5), (0, 63), 63),
            Q6_K => (16, uniform(32, 6), (-128, 127), 0),
            IQ4_XS => (32, Levels::Table, (-32, 31), 0),
            _ => return None,
        };
        Some(BlockForm {
            kind: self,
            block: self.block_elements(),
            group,
            levels,
            scale_codes,
            most_minimum_code,
        })
    }
}

/// One block's numbers.
#[derive(Debug, Clone, PartialEq)]
pub struct Codes {
    /// The block's scale; representable as `f16`.
    pub scale: f32,
    /// The scale of minima; representable as `f16`.
    pub minimum: f32,
    /// One per group.
    pub scale_codes: Vec<i32>,
    /// One per group.
    pub minimum_codes: Vec<i32>,
    /// One per weight, from 0.
    pub codes: Vec<u8>,
}

impl Codes {
    /// The code whose level is nearest to zero.
    pub fn zero_code(form: &BlockForm) -> u8 {
        match form.levels {
            Levels::Uniform { offset, .. } => offset as u8,
            Levels::Table => 8,
        }
    }
    /// A block that decodes to zeros.
    pub fn zeros(form: BlockForm) -> Self {
        let code = Self::zero_code(&form);
        let first = i32::from(form.scale_codes == (1, 1));
        let first_minimum = i32::from(form.most_minimum_code == 1);
        Self {
            scale: 0.0,
            minimum: 0.0,
            scale_codes: vec![first; form.n_groups()],
            minimum_codes: vec![first_minimum; form.n_groups()],
            codes: vec![code; form.block],
        }
    }
}

impl BlockForm {
    /// Groups of a block.
    pub fn n_groups(&self) -> usize {
        self.block / self.group
    }
    /// Whether every group has its own scale code.
    pub fn has_groups(&self) -> bool {
        self.scale_codes != (1, 1)
    }
    /// Whether weights are shifted by minima.
    pub fn has_minima(&self) -> bool {
        self.most_minimum_code > 0
    }
    /// Number of codes.
    pub fn n_codes(&self) -> usize {
        match self.levels {
            Levels::Uniform { count, .. } => count,
            Levels::Table => 16,
        }
    }
    /// What a code stands for.
    #[inline]
    pub fn level(&self, code: u8) -> f32 {
        match self.levels {
            Levels::Uniform { offset, .. } => (i32::from(code) - offset) as f32,
            Levels::Table => f32::from(LEVELS_4[usize::from(code & 15)]),
        }
    }
    /// The code whose level is nearest.
    #[inline]
    pub fn nearest(&self, level: f32) -> u8 {
        match self.levels {
            Levels::Uniform { offset, count } => {
                // Halves round away from level zero: the cast cuts towards it, four times as fast as `round`, which
                // is a call where the processor's rounding instruction may not be used. NaN becomes level zero.
                let rounded = (level + 0.5f32.copysign(level)) as i32;
                rounded.saturating_add(offset).clamp(0, count as i32 - 1) as u8
            }
            Levels::Table => {
                let above = LEVELS_4.iter().position(|&entry| f32::from(entry) >= level).unwrap_or(15);
                let below = above.saturating_sub(1);
                let distance = |code: usize| (f32::from(LEVELS_4[code]) - level).abs();
                if distance(below) <= distance(above) { below as u8 } else { above as u8 }
            }
        }
    }

    /// Appends a block's bytes. Codes outside their range are cut to their lowest bits.
    ///
    /// # Panics
    /// Where the lists are shorter than the form's: a caller's mistake, never the data's.
    pub fn pack(&self, codes: &Codes, out: &mut Vec<u8>) {
        let start = out.len();
        out.resize(start + self.kind.block_bytes(), 0);
        pack::pack(self.kind, codes, &mut out[start..]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KINDS: [GgmlType; 12] = {
        use GgmlType::*;
        [Q8_0, Q4_0, Q5_0, Q4_1, Q5_1, IQ4_NL, Q2_K, Q3_K, Q4_K, Q5_K, Q6_K, IQ4_XS]
    };

    #[test]
    fn packed_blocks_decode_to_the_formula() {
        let mut state = 1u64;
        let mut random = |limit: usize| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) as usize % limit
        };
        for kind in KINDS {
            let form = kind.block_form().unwrap();
            for _ in 0..50 {
                let mut block = Codes::zeros(form);
                block.scale = half::f16::from_f32(random(1000) as f32 / 700.0 - 0.6).to_f32();
                if form.has_minima() {
                    block.minimum = half::f16::from_f32(random(1000) as f32 / 900.0).to_f32();
                }
                for group in 0..form.n_groups() {
                    let (low, high) = form.scale_codes;
                    block.scale_codes[group] = low + random((high - low) as usize + 1) as i32;
                    if form.most_minimum_code > 1 {
                        block.minimum_codes[group] = random(form.most_minimum_code as usize + 1) as i32;
                    }
                }
                block.codes.iter_mut().for_each(|code| *code = random(form.n_codes()) as u8);
                let mut bytes = Vec::new();
                form.pack(&block, &mut bytes);
                let decoded = kind.dequantize(&bytes);
                for i in 0..form.block {
                    let scale = block.scale * block.scale_codes[i / form.group] as f32;
                    let minimum = block.minimum * block.minimum_codes[i / form.group] as f32;
                    let expected = scale * form.level(block.codes[i]) - minimum;
                    assert_eq!(decoded[i], expected, "{kind:?} weight {i}");
                }
            }
        }
    }

    #[test]
    fn the_nearest_code_is_nearest() {
        for kind in KINDS {
            let form = kind.block_form().unwrap();
            for step in -1400..1400 {
                let wanted = step as f32 * 0.11;
                let distance = |code: u8| (form.level(code) - wanted).abs();
                let best = (0..form.n_codes()).map(|code| distance(code as u8)).fold(f32::MAX, f32::min);
                assert_eq!(distance(form.nearest(wanted)), best, "{kind:?} {wanted}");
            }
        }
    }
}
