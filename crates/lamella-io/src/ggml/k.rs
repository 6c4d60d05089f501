//! Super-blocks of 256 weights whose scales are themselves quantised: `Q2_K` to `Q6_K`.
//!
//! In all of them the low bits of a weight are found the same way: the code bytes are cut into stretches of 32 (64
//! for `Q6_K`), and a stretch is read once per field of its bytes, lowest field first, 32 weights each time. So
//! with 2-bit fields, weights 0 to 31 are the lowest fields of bytes 0 to 31, weights 32 to 63 the next fields of
//! the *same* bytes.

use super::f16_at;

/// `[16] scales (low half) and minima (high half), [64] 2-bit codes, [f16] scale, [f16] scale of minima`.
///
/// Weight = (d * scale) * code - (m * minimum), one pair for 16 weights.
pub(super) fn q2_k(block: &[u8; 84], out: &mut [f32; 256]) {
    let (d, m) = (f16_at(block, 80), f16_at(block, 82));
    let codes = &block[16..80];
    for i in 0..256 {
        let pair = block[i / 16];
        let scale = d * f32::from(pair & 15);
        let minimum = m * f32::from(pair >> 4);
        out[i] = scale * f32::from(field2(codes, i)) - minimum;
    }
}

/// `[32] third bits, [64] 2-bit codes, [12] scales of 6 bits, [f16] scale`.
///
/// Weight = (d * (scale - 32)) * (code - 4 where the third bit is 0). Scale `j`'s low four bits are half `j / 8` of
/// byte `j % 8`; its high two bits are field `j / 4` of byte `8 + j % 4`.
pub(super) fn q3_k(block: &[u8; 110], out: &mut [f32; 256]) {
    let d = f16_at(block, 108);
    let (third_bits, codes, packed) = (&block[..32], &block[32..96], &block[96..108]);
    let scales: [f32; 16] = std::array::from_fn(|j| {
        let low = packed[j % 8] >> (4 * (j / 8)) & 15;
        let high = packed[8 + j % 4] >> (2 * (j / 4)) & 3;
        d * (i32::from(low | high << 4) - 32) as f32
    });
    for i in 0..256 {
        let third = third_bits[i % 32] >> (i / 32) & 1;
        let code = i32::from(field2(codes, i)) - if third == 0 { 4 } else { 0 };
        out[i] = scales[i / 16] * code as f32;
    }
}

/// `[f16] scale, [f16] scale of minima, [12] eight scales and eight minima of 6 bits, [128] 4-bit codes`.
///
/// Weight = (d * scale) * code - (m * minimum), one pair for 32 weights.
pub(super) fn q4_k(block: &[u8; 144], out: &mut [f32; 256]) {
    let (scales, minima) = scales_and_minima(block);
    for i in 0..256 {
        out[i] = scales[i / 32] * f32::from(field4(&block[16..], i)) - minima[i / 32];
    }
}

/// As `Q4_K`, with `[32]` bytes of fifth bits before the codes: bit `i / 32` of byte `i % 32`.
pub(super) fn q5_k(block: &[u8; 176], out: &mut [f32; 256]) {
    let (scales, minima) = scales_and_minima(block);
    for i in 0..256 {
        let fifth = block[16 + i % 32] >> (i / 32) & 1;
        let code = field4(&block[48..], i) | fifth << 4;
        out[i] = scales[i / 32] * f32::from(code) - minima[i / 32];
    }
}

/// `[128] low 4 bits, [64] high 2 bits, [16 x i8] scales, [f16] scale`.
///
/// Weight = (d * scale) * (code - 32), one scale for 16 weights. Low bits come in stretches of 64 bytes.
pub(super) fn q6_k(block: &[u8; 210], out: &mut [f32; 256]) {
    let d = f16_at(block, 208);
    for i in 0..256 {
        let low = block[64 * (i / 128) + i % 64] >> (4 * (i / 64 % 2)) & 15;
        let code = i32::from(low | field2(&block[128..192], i) << 4) - 32;
        let scale = d * f32::from(block[192 + i / 16] as i8);
        out[i] = scale * code as f32;
    }
}

/// Two-bit field `i` of stretches of 32 bytes.
fn field2(codes: &[u8], i: usize) -> u8 {
    codes[32 * (i / 128) + i % 32] >> (2 * (i / 32 % 4)) & 3
}

/// Four-bit field `i` of stretches of 32 bytes.
fn field4(codes: &[u8], i: usize) -> u8 {
    codes[32 * (i / 64) + i % 32] >> (4 * (i / 32 % 2)) & 15
}

/// The eight scales and minima of `Q4_K` and `Q5_K`, multiplied out.
///
/// The first four of each are the low six bits of bytes 0 to 3 (scales) and 4 to 7 (minima) of the 12; the last
/// four have their low bits in bytes 8 to 11 (scale in the low half) and their high two bits on top of those.
fn scales_and_minima(block: &[u8]) -> ([f32; 8], [f32; 8]) {
    let (d, m) = (f16_at(block, 0), f16_at(block, 2));
    let packed = &block[4..16];
    let code = |j: usize, of_minimum: usize| {
        if j < 4 {
            packed[4 * of_minimum + j] & 63
        } else {
            let low = packed[4 + j] >> (4 * of_minimum) & 15;
            low | packed[4 * of_minimum + j - 4] >> 6 << 4
        }
    };
    let scales = std::array::from_fn(|j| d * f32::from(code(j, 0)));
    let minima = std::array::from_fn(|j| m * f32::from(code(j, 1)));
    (scales, minima)
}
