//! Where the bits of a block go: the layouts of `legacy.rs`, `k.rs` and `iq.rs`, written.

use super::super::GgmlType;
use super::Codes;

/// Writes a block into zeroed bytes of the type's block length.
pub(super) fn pack(kind: GgmlType, block: &Codes, out: &mut [u8]) {
    let (scale, minimum) = (block.scale, block.minimum);
    let codes = &block.codes;
    match kind {
        GgmlType::Q8_0 => {
            put_f16(out, 0, scale);
            out[2..].iter_mut().zip(codes).for_each(|(byte, &code)| *byte = code.wrapping_sub(128));
        }
        GgmlType::Q4_0 | GgmlType::IQ4_NL => {
            put_f16(out, 0, scale);
            nibbles(codes, &mut out[2..]);
        }
        GgmlType::Q4_1 => {
            put_f16(out, 0, scale);
            put_f16(out, 2, -minimum);
            nibbles(codes, &mut out[4..]);
        }
        GgmlType::Q5_0 => {
            put_f16(out, 0, scale);
            fifth_bits(codes, &mut out[2..6]);
            nibbles(codes, &mut out[6..]);
        }
        GgmlType::Q5_1 => {
            put_f16(out, 0, scale);
            put_f16(out, 2, -minimum);
            fifth_bits(codes, &mut out[4..8]);
            nibbles(codes, &mut out[8..]);
        }
        GgmlType::Q2_K => {
            for group in 0..16 {
                out[group] = (block.scale_codes[group] & 15) as u8 | (block.minimum_codes[group] << 4) as u8;
            }
            fields2(codes, &mut out[16..80]);
            put_f16(out, 80, scale);
            put_f16(out, 82, minimum);
        }
        GgmlType::Q3_K => {
            for (i, &code) in codes.iter().enumerate() {
                out[i % 32] |= (code >> 2 & 1) << (i / 32);
            }
            fields2(codes, &mut out[32..96]);
            for (j, &code) in block.scale_codes.iter().enumerate() {
                let code = (code + 32) as u8;
                out[96 + j % 8] |= (code & 15) << (4 * (j / 8));
                out[96 + 8 + j % 4] |= (code >> 4 & 3) << (2 * (j / 4));
            }
            put_f16(out, 108, scale);
        }
        GgmlType::Q4_K => {
            scales_and_minima(block, out);
            fields4(codes, &mut out[16..]);
        }
        GgmlType::Q5_K => {
            scales_and_minima(block, out);
            for (i, &code) in codes.iter().enumerate() {
                out[16 + i % 32] |= (code >> 4 & 1) << (i / 32);
            }
            fields4(codes, &mut out[48..]);
        }
        GgmlType::Q6_K => {
            for (i, &code) in codes.iter().enumerate() {
                out[64 * (i / 128) + i % 64] |= (code & 15) << (4 * (i / 64 % 2));
            }
            let high: Vec<u8> = codes.iter().map(|code| code >> 4).collect();
            fields2(&high, &mut out[128..192]);
            for (group, &code) in block.scale_codes.iter().enumerate() {
                out[192 + group] = code as i8 as u8;
            }
            put_f16(out, 208, scale);
        }
        GgmlType::IQ4_XS => {
            put_f16(out, 0, scale);
            let mut high = 0u16;
            for (part, &code) in block.scale_codes.iter().enumerate() {
                let code = (code + 32) as u8;
                high |= u16::from(code >> 4 & 3) << (2 * part);
                out[4 + part / 2] |= (code & 15) << (4 * (part % 2));
            }
            out[2..4].copy_from_slice(&high.to_le_bytes());
            for (part, codes) in codes.chunks_exact(32).enumerate() {
                nibbles(codes, &mut out[8 + 16 * part..]);
            }
        }
        // `BlockForm` exists for the types above alone.
        _ => {}
    }
}

fn put_f16(out: &mut [u8], at: usize, value: f32) {
    out[at..at + 2].copy_from_slice(&half::f16::from_f32(value).to_le_bytes());
}

/// Low four bits of 32 codes: code `i` and code `i + 16` share a byte.
fn nibbles(codes: &[u8], out: &mut [u8]) {
    for i in 0..16 {
        out[i] = codes[i] & 15 | (codes[i + 16] & 15) << 4;
    }
}

fn fifth_bits(codes: &[u8], out: &mut [u8]) {
    for (i, &code) in codes.iter().enumerate() {
        out[i / 8] |= (code >> 4 & 1) << (i % 8);
    }
}

/// Two-bit fields in stretches of 32 bytes.
fn fields2(codes: &[u8], out: &mut [u8]) {
    for (i, &code) in codes.iter().enumerate() {
        out[32 * (i / 128) + i % 32] |= (code & 3) << (2 * (i / 32 % 4));
    }
}

/// Four-bit fields in stretches of 32 bytes.
fn fields4(codes: &[u8], out: &mut [u8]) {
    for (i, &code) in codes.iter().enumerate() {
        out[32 * (i / 64) + i % 32] |= (code & 15) << (4 * (i / 32 % 2));
    }
}

/// The scales of `Q4_K` and `Q5_K`, and their eight scales and minima of 6 bits.
fn scales_and_minima(block: &Codes, out: &mut [u8]) {
    put_f16(out, 0, block.scale);
    put_f16(out, 2, block.minimum);
    let packed = &mut out[4..16];
    for j in 0..8 {
        let (scale, minimum) = ((block.scale_codes[j] & 63) as u8, (block.minimum_codes[j] & 63) as u8);
        if j < 4 {
            packed[j] |= scale;
            packed[4 + j] |= minimum;
        } else {
            packed[4 + j] |= scale & 15 | minimum << 4;
            packed[j - 4] |= scale >> 4 << 6;
            packed[j] |= minimum >> 4 << 6;
        }
    }
}
