//! Ternary, sign-only and 4-bit float blocks: `TQ1_0`, `TQ2_0`, `Q1_0`, `MXFP4`, `NVFP4`.

use super::f16_at;
use super::legacy::{bit, nibble};

/// The 4-bit floats of one sign bit, two exponent bits and one mantissa bit, doubled so that they are integers.
const E2M1_DOUBLED: [i8; 16] = [0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12];

/// `[48] five weights a byte, [4] four weights a byte, [f16] scale`; weight = scale * (digit - 1).
///
/// A byte holds a fraction in base 3: digit `n` is the integer part of `3 * (byte * 3^n mod 256) / 256`. The first
/// 32 bytes are read once per digit, then the next 16, then the last 4 with four digits.
pub(super) fn tq1_0(block: &[u8; 54], out: &mut [f32; 256]) {
    const POWERS: [u8; 5] = [1, 3, 9, 27, 81];
    let scale = f16_at(block, 52);
    for i in 0..256 {
        let (byte, power) = match i {
            0..160 => (i % 32, i / 32),
            160..240 => (32 + i % 16, (i - 160) / 16),
            _ => (48 + i % 4, (i - 240) / 4),
        };
        let fraction = block[byte].wrapping_mul(POWERS[power]);
        let digit = (u16::from(fraction) * 3) >> 8;
        out[i] = scale * (i32::from(digit) - 1) as f32;
    }
}

/// `[64] 2-bit codes, [f16] scale`; weight = scale * (code - 1). Stretches of 32 bytes, lowest field first.
pub(super) fn tq2_0(block: &[u8; 66], out: &mut [f32; 256]) {
    let scale = f16_at(block, 64);
    for i in 0..256 {
        let code = block[32 * (i / 128) + i % 32] >> (2 * (i / 32 % 4)) & 3;
        out[i] = scale * (i32::from(code) - 1) as f32;
    }
}

/// `[f16] scale, [16] bits`; weight = scale where the bit is 1, else -scale.
pub(super) fn q1_0(block: &[u8; 18], out: &mut [f32; 128]) {
    let scale = f16_at(block, 0);
    for i in 0..128 {
        out[i] = if bit(&block[2..], i) == 1 { scale } else { -scale };
    }
}

/// `[u8] exponent, [16] codes`; weight = 2^(exponent - 128) * doubled 4-bit float.
pub(super) fn mxfp4(block: &[u8; 17], out: &mut [f32; 32]) {
    let exponent = u32::from(block[0]);
    // The two smallest powers are subnormal.
    let bits = if exponent < 2 { 0x0020_0000 << exponent } else { (exponent - 1) << 23 };
    let scale = f32::from_bits(bits);
    for i in 0..32 {
        out[i] = scale * f32::from(E2M1_DOUBLED[usize::from(nibble(&block[1..], i))]);
    }
}

/// `[4] scales, [32] codes`, one scale for 16 weights whose codes lie in 8 bytes, low halves first.
///
/// A scale is an 8-bit float of four exponent bits (bias 7) and three mantissa bits; 0 and 127 are zero.
pub(super) fn nvfp4(block: &[u8; 36], out: &mut [f32; 64]) {
    for i in 0..64 {
        let part = i / 16;
        let code = block[4 + 8 * part + i % 8] >> (4 * (i / 8 % 2)) & 15;
        out[i] = nvfp4_scale(block[part]) * f32::from(E2M1_DOUBLED[usize::from(code)]);
    }
}

/// Half of the 8-bit float, because the codes' values are doubled.
fn nvfp4_scale(byte: u8) -> f32 {
    if byte == 0 || byte == 0x7f {
        return 0.0;
    }
    let (exponent, mantissa) = (u32::from(byte >> 3 & 15), f32::from(byte & 7));
    let value = if exponent == 0 {
        mantissa * (1.0 / 512.0)
    } else {
        // 2^(exponent - 7).
        (1.0 + mantissa / 8.0) * f32::from_bits((exponent + 120) << 23)
    };
    value * 0.5
}
