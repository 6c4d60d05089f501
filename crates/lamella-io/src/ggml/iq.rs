//! Codebook types: `IQ1` to `IQ3` (groups of 4 or 8 weights from a table) and `IQ4` (uneven levels).
//!
//! A weight of the table types is `(d * f(scale)) * level * sign`: the level comes from a group of the codebook, the
//! sign from a bit of its own. Where signs are stored in 7 bits for 8 weights, the eighth makes the number of minus
//! signs even.

use super::f16_at;
use super::iq_grids as grids;

const LEVELS_2: [f32; 4] = [8.0, 25.0, 43.0, 0.0];
const LEVELS_3_XXS: [f32; 8] = [4.0, 12.0, 20.0, 28.0, 36.0, 44.0, 52.0, 62.0];
const LEVELS_3_S: [f32; 8] = [1.0, 3.0, 5.0, 7.0, 9.0, 11.0, 13.0, 15.0];
pub(super) const LEVELS_4: [i8; 16] =
    [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113];
/// Offset of every level of the 1-bit types.
const DELTA_1: f32 = 0.125;

/// `[f16] scale`, then per 32 weights `[4] group numbers, [u32] four times 7 sign bits and a 4-bit scale`.
pub(super) fn iq2_xxs(block: &[u8; 66], out: &mut [f32; 256]) {
    let d = f16_at(block, 0);
    for part in 0..8 {
        let at = 2 + 8 * part;
        let field = u32_at(block, at + 4);
        let scale = d * (0.5 + (field >> 28) as f32) * 0.25;
        for group in 0..4 {
            let entry = grids::IQ2_XXS[usize::from(block[at + group])];
            let signs = even_signs(field >> (7 * group));
            group_of_8(entry, signs, scale, &mut out[32 * part + 8 * group..]);
        }
    }
}

/// `[f16] scale, [32 x u16] 9-bit group number and 7 sign bits, [8] 4-bit scales of 16 weights`.
pub(super) fn iq2_xs(block: &[u8; 74], out: &mut [f32; 256]) {
    let d = f16_at(block, 0);
    for group in 0..32 {
        let field = u16_at(block, 2 + 2 * group);
        let scale = d * (0.5 + f32::from(half_byte(&block[66..], group / 2))) * 0.25;
        let entry = grids::IQ2_XS[usize::from(field & 511)];
        group_of_8(entry, even_signs(u32::from(field >> 9)), scale, &mut out[8 * group..]);
    }
}

/// `[f16] scale, [32] low bits of group numbers, [32] signs, [8] high two bits, [8] 4-bit scales of 16 weights`.
pub(super) fn iq2_s(block: &[u8; 82], out: &mut [f32; 256]) {
    let d = f16_at(block, 0);
    for group in 0..32 {
        let high = block[66 + group / 4] >> (2 * (group % 4)) & 3;
        let entry = grids::IQ2_S[usize::from(block[2 + group]) | usize::from(high) << 8];
        let scale = d * (0.5 + f32::from(half_byte(&block[74..], group / 2))) * 0.25;
        group_of_8(entry, block[34 + group], scale, &mut out[8 * group..]);
    }
}

/// `[f16] scale, [64] group numbers, [8 x u32] four times 7 sign bits and a 4-bit scale of 32 weights`.
pub(super) fn iq3_xxs(block: &[u8; 98], out: &mut [f32; 256]) {
    let d = f16_at(block, 0);
    for group in 0..64 {
        let field = u32_at(block, 66 + 4 * (group / 8));
        let scale = d * (0.5 + (field >> 28) as f32) * 0.5;
        let signs = even_signs(field >> (7 * (group / 2 % 4))) >> (4 * (group % 2));
        let entry = grids::IQ3_XXS[usize::from(block[2 + group])];
        group_of_4(entry, signs, scale, &LEVELS_3_XXS, &mut out[4 * group..]);
    }
}

/// `[f16] scale, [64] low bits of group numbers, [8] ninth bits, [32] signs, [4] 4-bit scales of 32 weights`.
pub(super) fn iq3_s(block: &[u8; 110], out: &mut [f32; 256]) {
    let d = f16_at(block, 0);
    for group in 0..64 {
        let ninth = block[66 + group / 8] >> (group % 8) & 1;
        let entry = grids::IQ3_S[usize::from(block[2 + group]) | usize::from(ninth) << 8];
        let scale = d * f32::from(1 + 2 * half_byte(&block[106..], group / 8));
        let signs = block[74 + group / 2] >> (4 * (group % 2));
        group_of_4(entry, signs, scale, &LEVELS_3_S, &mut out[4 * group..]);
    }
}

/// `[f16] scale, [32] low bits of group numbers, [8 x u16] four times 3 high bits, a 3-bit scale of 32 weights and
/// the sign of their offset`.
pub(super) fn iq1_s(block: &[u8; 50], out: &mut [f32; 256]) {
    let d = f16_at(block, 0);
    for group in 0..32 {
        let field = u16_at(block, 34 + 2 * (group / 4));
        let scale = d * f32::from(2 * (field >> 12 & 7) + 1);
        let high = field >> (3 * (group % 4)) & 7;
        let delta = if field & 0x8000 == 0 { DELTA_1 } else { -DELTA_1 };
        ternary_group(
            usize::from(block[group + 2]) | usize::from(high) << 8,
            scale,
            delta,
            &mut out[8 * group..],
        );
    }
}

/// `[32] low bits of group numbers, [16] per group three high bits and the sign of the offset, [4 x u16] four
/// times a 3-bit scale of 16 weights and a quarter of the block's `f16` scale`.
pub(super) fn iq1_m(block: &[u8; 56], out: &mut [f32; 256]) {
    let quarters = |j: usize| u16_at(block, 48 + 2 * j) >> 12 << (4 * j);
    let d = half::f16::from_bits(quarters(0) | quarters(1) | quarters(2) | quarters(3)).to_f32();
    for group in 0..32 {
        let part = group / 2;
        let scale = d * f32::from(2 * (u16_at(block, 48 + 2 * (part / 4)) >> (3 * (part % 4)) & 7) + 1);
        let field = half_byte(&block[32..], group);
        let delta = if field & 8 == 0 { DELTA_1 } else { -DELTA_1 };
        let entry = usize::from(block[group]) | usize::from(field & 7) << 8;
        ternary_group(entry, scale, delta, &mut out[8 * group..]);
    }
}

/// `[f16] scale, [16] codes`; weight = scale * level.
pub(super) fn iq4_nl(block: &[u8; 18], out: &mut [f32; 32]) {
    let scale = f16_at(block, 0);
    for i in 0..32 {
        out[i] = scale * level_4(&block[2..], i);
    }
}

/// `[f16] scale, [u16] high two bits of eight scales, [4] their low bits, [128] codes, 16 bytes per 32 weights`.
pub(super) fn iq4_xs(block: &[u8; 136], out: &mut [f32; 256]) {
    let d = f16_at(block, 0);
    for part in 0..8 {
        let high = (u16_at(block, 2) >> (2 * part) & 3) as u8;
        let code = half_byte(&block[4..], part) | high << 4;
        let scale = d * (i32::from(code) - 32) as f32;
        for i in 0..32 {
            out[32 * part + i] = scale * level_4(&block[8 + 16 * part..], i);
        }
    }
}

fn level_4(codes: &[u8], i: usize) -> f32 {
    f32::from(LEVELS_4[usize::from(super::legacy::nibble(codes, i))])
}

fn group_of_8(entry: u16, signs: u8, scale: f32, out: &mut [f32]) {
    for i in 0..8 {
        let level = LEVELS_2[usize::from(entry >> (2 * i) & 3)];
        out[i] = scale * level * sign(signs, i);
    }
}

fn group_of_4(entry: u16, signs: u8, scale: f32, levels: &[f32; 8], out: &mut [f32]) {
    for i in 0..4 {
        let level = levels[usize::from(entry >> (3 * i) & 7)];
        out[i] = scale * level * sign(signs, i);
    }
}

fn ternary_group(entry: usize, scale: f32, delta: f32, out: &mut [f32]) {
    for i in 0..8 {
        let level = f32::from(grids::IQ1_S[entry] >> (2 * i) & 3) - 1.0;
        out[i] = scale * (level + delta);
    }
}

fn sign(signs: u8, i: usize) -> f32 {
    if signs >> i & 1 == 0 { 1.0 } else { -1.0 }
}

/// Eight signs from the low seven bits.
fn even_signs(field: u32) -> u8 {
    let seven = (field & 127) as u8;
    seven | (seven.count_ones() as u8 & 1) << 7
}

fn u16_at(block: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([block[at], block[at + 1]])
}

fn u32_at(block: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([block[at], block[at + 1], block[at + 2], block[at + 3]])
}

/// Half `i` of a byte array, low halves first.
fn half_byte(bytes: &[u8], i: usize) -> u8 {
    bytes[i / 2] >> (4 * (i % 2)) & 15
}
