//! Decoding and encoding 32 lanes as two vectors of sixteen.
//!
//! Decoding follows the AVX2 kernel; "expand" (deal words to the lanes that need one) and the masks are instructions
//! here. Encoding runs the other way round, from the last symbol to the first:
//! ```text
//! entry  = gather(entries, symbol)                        frequency, cumulative, reciprocal
//! full   = lanes with x >= frequency << (32 - bits)
//! words  = compress(full, x & 65535)                      stored in front of those already written
//! x      = full ? x >> 16 : x
//! q      = (x * reciprocal + (x << 32)) >> (32 + shift)   exact division, even and odd lanes apart
//! x      = x + q * (2^bits - frequency) + cumulative
//! ```
#![allow(unsafe_code, reason = "vector intrinsics")]

use super::kernel::Segment;
use super::plain::Writer;
use super::table::EncodeEntry;
use std::arch::x86_64::*;

/// Proof that the machine has AVX-512 F, BW, VL and DQ.
pub(super) struct Kernel(());

impl Kernel {
    /// The kernel, where the machine has what it needs.
    pub(super) fn new() -> Option<Self> {
        (crate::cpu::detected_level() == crate::cpu::CpuLevel::Avx512).then_some(Self(()))
    }

    /// Decodes whole rounds of 32 symbols in all segments while each has 32 words left; returns the rounds done.
    pub(super) fn decode<const K: usize>(&self, segments: [Segment<'_, '_>; K], bits: u32) -> usize {
        if !segments.iter().all(|segment| segment.stays_inside(bits)) {
            return 0;
        }
        // SAFETY: `self` proves the features; `stays_inside` has bounded every gather index.
        unsafe {
            match bits {
                8 => decode_rounds::<8, K>(segments),
                9 => decode_rounds::<9, K>(segments),
                10 => decode_rounds::<10, K>(segments),
                11 => decode_rounds::<11, K>(segments),
                _ => decode_rounds::<12, K>(segments),
            }
        }
    }

    /// Encodes whole rounds backwards with one table of 256 entries, stopping before a round with a symbol of
    /// frequency zero; returns how many symbols at the front are left.
    pub(super) fn encode(
        &self,
        writer: &mut Writer,
        entries: &[EncodeEntry],
        bits: u32,
        symbols: &[u8],
    ) -> usize {
        let Ok(entries) = <&[EncodeEntry; 256]>::try_from(entries) else { return symbols.len() };
        // SAFETY: `self` proves the features.
        unsafe {
            encode_rounds(&mut writer.states, &mut writer.buffer, &mut writer.start, entries, bits, symbols)
        }
    }
}

/// # Safety
/// The features; [`Segment::stays_inside`] holds for every segment.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,popcnt")]
unsafe fn decode_rounds<const BITS: u32, const K: usize>(mut segments: [Segment<'_, '_>; K]) -> usize {
    let mask = _mm512_set1_epi32((1 << BITS) - 1);
    let low_mask = _mm512_set1_epi32(0xfff);
    let limit = _mm512_set1_epi32(1 << 16);
    let mut x = [[_mm512_setzero_si512(); 2]; K];
    let mut used = [0usize; K];
    let mut rounds = usize::MAX;
    for (vectors, segment) in x.iter_mut().zip(&segments) {
        rounds = rounds.min(segment.out.len() / 32);
        for (vector, sixteen) in vectors.iter_mut().zip(segment.states.chunks_exact(16)) {
            // SAFETY: `sixteen` is 64 readable bytes.
            *vector = unsafe { _mm512_loadu_si512(sixteen.as_ptr().cast()) };
        }
    }
    let mut done = 0usize;
    while done < rounds && segments.iter().zip(&used).all(|(segment, used)| segment.words.len() - used >= 64)
    {
        for half in 0..2 {
            for stream in 0..K {
                let segment = &mut segments[stream];
                let state = x[stream][half];
                let mut slots = _mm512_and_si512(state, mask);
                if let Some(indexes) = segment.indexes {
                    let sixteen = &indexes[32 * done + 16 * half..32 * done + 16 * half + 16];
                    // SAFETY: `sixteen` is 16 readable bytes.
                    let raw = unsafe { _mm_loadu_si128(sixteen.as_ptr().cast()) };
                    slots = _mm512_or_si512(slots, _mm512_slli_epi32::<BITS>(_mm512_cvtepu8_epi32(raw)));
                }
                // SAFETY: the caller has bounded every slot.
                let entry = unsafe { _mm512_i32gather_epi32::<4>(slots, segment.entries.as_ptr().cast()) };
                // SAFETY: every segment has at least `rounds` times 32 bytes, and `done < rounds`.
                unsafe {
                    let target = segment.out.as_mut_ptr().add(32 * done + 16 * half);
                    _mm_storeu_si128(target.cast(), _mm512_cvtepi32_epi8(entry));
                }
                let frequency = _mm512_and_si512(_mm512_srli_epi32::<8>(entry), low_mask);
                let product = _mm512_mullo_epi32(frequency, _mm512_srli_epi32::<BITS>(state));
                let next = _mm512_add_epi32(product, _mm512_srli_epi32::<20>(entry));
                let low = _mm512_cmplt_epu32_mask(next, limit);
                // SAFETY: two halves use at most 16 words each, so 32 bytes are left of the 64 checked above.
                let fresh = unsafe { _mm256_loadu_si256(segment.words.as_ptr().add(used[stream]).cast()) };
                let dealt = _mm512_maskz_expand_epi32(low, _mm512_cvtepu16_epi32(fresh));
                x[stream][half] = _mm512_mask_or_epi32(next, low, _mm512_slli_epi32::<16>(next), dealt);
                used[stream] = used[stream].wrapping_add(2 * low.count_ones() as usize);
            }
        }
        done += 1;
    }
    for ((vectors, used), segment) in x.iter().zip(used).zip(segments) {
        *segment.words = &segment.words[used..];
        for (vector, sixteen) in vectors.iter().zip(segment.states.chunks_exact_mut(16)) {
            // SAFETY: `sixteen` is 64 writable bytes.
            unsafe { _mm512_storeu_si512(sixteen.as_mut_ptr().cast(), *vector) };
        }
    }
    done
}

/// # Safety
/// The features.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,popcnt")]
unsafe fn encode_rounds(
    states: &mut [u32; 32],
    buffer: &mut [u8],
    start: &mut usize,
    entries: &[EncodeEntry; 256],
    bits: u32,
    symbols: &[u8],
) -> usize {
    let low_mask = _mm512_set1_epi32(0xfff);
    let complement = _mm512_set1_epi32(1 << bits);
    let top_shift = _mm_cvtsi32_si128(32 - bits as i32);
    let thirty_two = _mm512_set1_epi64(32);
    let high_half = _mm512_set1_epi64(!0xffff_ffff);
    let low_half = _mm512_set1_epi64(0xffff_ffff);
    let base = entries.as_ptr().cast::<i32>();
    let mut x = [_mm512_setzero_si512(); 2];
    for (vector, sixteen) in x.iter_mut().zip(states.chunks_exact(16)) {
        // SAFETY: `sixteen` is 64 readable bytes.
        *vector = unsafe { _mm512_loadu_si512(sixteen.as_ptr().cast()) };
    }
    let mut left = symbols.len() / 32 * 32;
    // A round writes at most 64 bytes.
    while left >= 32 && *start >= 64 {
        let mut packed = [_mm512_setzero_si512(); 2];
        let mut reciprocal = [_mm512_setzero_si512(); 2];
        let mut uncodable = 0u16;
        for half in 0..2 {
            // SAFETY: symbols `left - 32` to `left - 1` exist; this half is 16 of them.
            let raw = unsafe { _mm_loadu_si128(symbols.as_ptr().add(left - 32 + 16 * half).cast()) };
            let index = _mm512_cvtepu8_epi32(raw);
            // SAFETY: an index is at most 255, an entry is 8 bytes, the table has 256.
            packed[half] = unsafe { _mm512_i32gather_epi32::<8>(index, base) };
            // SAFETY: as above; the reciprocal is the second word of an entry.
            reciprocal[half] = unsafe { _mm512_i32gather_epi32::<8>(index, base.add(1)) };
            uncodable |= _mm512_testn_epi32_mask(packed[half], low_mask);
        }
        if uncodable != 0 {
            break;
        }
        for half in [1, 0] {
            let frequency = _mm512_and_si512(packed[half], low_mask);
            let full = _mm512_cmpge_epu32_mask(_mm512_srl_epi32(x[half], top_shift), frequency);
            let count = full.count_ones() as usize;
            *start -= 2 * count;
            let words = _mm512_cvtepi32_epi16(_mm512_maskz_compress_epi32(full, x[half]));
            // SAFETY: `count` words fit between `start` and what was written before; at least 64 bytes were free.
            unsafe {
                _mm256_mask_storeu_epi16(
                    buffer.as_mut_ptr().add(*start).cast(),
                    ((1u32 << count) - 1) as u16,
                    words,
                );
            }
            let state = _mm512_mask_srli_epi32::<16>(x[half], full, x[half]);
            let even_product =
                _mm512_add_epi64(_mm512_mul_epu32(state, reciprocal[half]), _mm512_slli_epi64::<32>(state));
            let odd_product = _mm512_add_epi64(
                _mm512_mul_epu32(_mm512_srli_epi64::<32>(state), _mm512_srli_epi64::<32>(reciprocal[half])),
                _mm512_and_si512(state, high_half),
            );
            let even_shift = _mm512_srli_epi64::<24>(_mm512_and_si512(packed[half], low_half));
            let odd_shift = _mm512_srli_epi64::<56>(packed[half]);
            let even = _mm512_srlv_epi64(even_product, _mm512_add_epi64(even_shift, thirty_two));
            let odd = _mm512_srlv_epi64(odd_product, _mm512_add_epi64(odd_shift, thirty_two));
            let quotient = _mm512_or_si512(even, _mm512_slli_epi64::<32>(odd));
            let cumulative = _mm512_and_si512(_mm512_srli_epi32::<12>(packed[half]), low_mask);
            let grown = _mm512_mullo_epi32(quotient, _mm512_sub_epi32(complement, frequency));
            x[half] = _mm512_add_epi32(_mm512_add_epi32(state, grown), cumulative);
        }
        left -= 32;
    }
    for (vector, sixteen) in x.iter().zip(states.chunks_exact_mut(16)) {
        // SAFETY: `sixteen` is 64 writable bytes.
        unsafe { _mm512_storeu_si512(sixteen.as_mut_ptr().cast(), *vector) };
    }
    left
}
