//! Blocks of 32 weights with one scale: `Q4_0`, `Q4_1`, `Q5_0`, `Q5_1`, `Q8_0`.
//!
//! Four-bit codes lie two to a byte: the low half of byte `i` is weight `i`, the high half weight `i + 16`. The
//! five-bit types keep each weight's fifth bit in a 32-bit field of its own, bit `i` for weight `i`.

use super::f16_at;

/// `[f16] scale, [16] codes`; weight = scale * (code - 8).
pub(super) fn q4_0(block: &[u8; 18], out: &mut [f32; 32]) {
    let scale = f16_at(block, 0);
    for i in 0..32 {
        out[i] = scale * (i32::from(nibble(&block[2..], i)) - 8) as f32;
    }
}

/// `[f16] scale, [f16] minimum, [16] codes`; weight = scale * code + minimum.
pub(super) fn q4_1(block: &[u8; 20], out: &mut [f32; 32]) {
    let (scale, minimum) = (f16_at(block, 0), f16_at(block, 2));
    for i in 0..32 {
        out[i] = scale * f32::from(nibble(&block[4..], i)) + minimum;
    }
}

/// `[f16] scale, [u32] fifth bits, [16] codes`; weight = scale * (code - 16).
pub(super) fn q5_0(block: &[u8; 22], out: &mut [f32; 32]) {
    let scale = f16_at(block, 0);
    for i in 0..32 {
        let code = nibble(&block[6..], i) | bit(&block[2..], i) << 4;
        out[i] = scale * (i32::from(code) - 16) as f32;
    }
}

/// `[f16] scale, [f16] minimum, [u32] fifth bits, [16] codes`; weight = scale * code + minimum.
pub(super) fn q5_1(block: &[u8; 24], out: &mut [f32; 32]) {
    let (scale, minimum) = (f16_at(block, 0), f16_at(block, 2));
    for i in 0..32 {
        let code = nibble(&block[8..], i) | bit(&block[4..], i) << 4;
        out[i] = scale * f32::from(code) + minimum;
    }
}

/// `[f16] scale, [32 x i8] codes`; weight = scale * code.
pub(super) fn q8_0(block: &[u8; 34], out: &mut [f32; 32]) {
    let scale = f16_at(block, 0);
    for i in 0..32 {
        out[i] = scale * f32::from(block[2 + i] as i8);
    }
}

/// Four-bit code `i` of 32.
pub(super) fn nibble(codes: &[u8], i: usize) -> u8 {
    if i < 16 { codes[i] & 15 } else { codes[i - 16] >> 4 }
}

/// Bit `i` of a little-endian field.
pub(super) fn bit(field: &[u8], i: usize) -> u8 {
    field[i / 8] >> (i % 8) & 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_by_hand() {
        // Scale 0.5; weight 0 has code 3, weight 16 code 15, all others 8.
        let mut block = [0x88u8; 18];
        block[..2].copy_from_slice(&half::f16::from_f32(0.5).to_le_bytes());
        block[2] = 0xf3;
        let mut out = [9.0; 32];
        q4_0(&block, &mut out);
        assert_eq!((out[0], out[16], out[1], out[31]), (-2.5, 3.5, 0.0, 0.0));
    }
}
