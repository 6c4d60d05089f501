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

use super::kernel::{EncodeSegment, Segment};
use super::plain::Writer;
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

    /// Encodes whole rounds backwards, stopping before a round with a symbol of frequency zero; returns how many
    /// symbols at the front are left.
    pub(super) fn encode(&self, writer: &mut Writer, segment: EncodeSegment<'_>) -> usize {
        if !segment.stays_inside() {
            return segment.symbols.len();
        }
        let target =
            Target { states: &mut writer.states, buffer: &mut writer.buffer, start: &mut writer.start };
        // SAFETY: `self` proves the features; `stays_inside` has bounded every gather index.
        unsafe {
            match Lookup::of(&segment) {
                Lookup::Permute { first, width: 32 } => encode_rounds::<2>(target, segment, first),
                Lookup::Permute { first, width: 64 } => encode_rounds::<4>(target, segment, first),
                Lookup::Permute { first, .. } => encode_rounds::<8>(target, segment, first),
                Lookup::Gather => encode_rounds::<1>(target, segment, 0),
            }
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

/// Where the encoder finds the entries of 16 symbols.
enum Lookup {
    /// In 256 entries a table, by gathers of 64 bits.
    Gather,
    /// In the 32, 64 or 128 entries from this symbol on, held in registers and picked by permutations: a gather of
    /// sixteen costs about 26 micro-operations, a pick among 64 entries three.
    Permute { first: u32, width: usize },
}

impl Lookup {
    fn of(segment: &EncodeSegment<'_>) -> Self {
        if segment.indexes.is_some() {
            return Self::Gather;
        }
        let (first, last) = (usize::from(segment.span.0), usize::from(segment.span.1));
        // A window must lie inside the 256 entries.
        let fit = |width: usize| Self::Permute { first: first.min(256 - width) as u32, width };
        match last.saturating_sub(first) {
            0..32 => fit(32),
            32..64 => fit(64),
            64..128 => fit(128),
            _ => Self::Gather,
        }
    }
}

/// Words of `T` 16-entry vectors picked by index.
#[target_feature(enable = "avx512f")]
fn pick<const T: usize>(tables: &[__m512i; T], index: __m512i) -> __m512i {
    let mut level = *tables;
    // The first step picks among pairs by index bits 0 to 4, each further one by the next bit.
    let mut count = T / 2;
    for pair in 0..count {
        level[pair] = _mm512_permutex2var_epi32(level[2 * pair], index, level[2 * pair + 1]);
    }
    let mut bit = 32;
    while count > 1 {
        count /= 2;
        let upper = _mm512_test_epi32_mask(index, _mm512_set1_epi32(bit));
        for pair in 0..count {
            level[pair] = _mm512_mask_mov_epi32(level[2 * pair], upper, level[2 * pair + 1]);
        }
        bit *= 2;
    }
    level[0]
}

/// States, buffer and its first used byte, on their way through the encoder.
struct Target<'a> {
    states: &'a mut [u32; 32],
    buffer: &'a mut [u8],
    start: &'a mut usize,
}

/// # Safety
/// The features; [`EncodeSegment::stays_inside`] holds.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,popcnt")]
unsafe fn encode_rounds<const T: usize>(target: Target<'_>, segment: EncodeSegment<'_>, first: u32) -> usize {
    let EncodeSegment { entries, indexes, bits, symbols, .. } = segment;
    let low_mask = _mm512_set1_epi32(0xfff);
    let complement = _mm512_set1_epi32(1 << bits);
    let top_shift = _mm_cvtsi32_si128(32 - bits as i32);
    let thirty_two = _mm512_set1_epi64(32);
    let high_half = _mm512_set1_epi64(!0xffff_ffff);
    let low_half = _mm512_set1_epi64(0xffff_ffff);
    let byte = _mm256_set1_epi32(0xff);
    let second_byte = _mm256_set1_epi32(0xff00);
    let base = entries.as_ptr().cast::<i64>();
    // The window of entries as vectors of packed words and of reciprocals; unused (and T = 1) for gathers.
    let mut packed_table = [_mm512_setzero_si512(); T];
    let mut reciprocal_table = [_mm512_setzero_si512(); T];
    if T > 1 {
        let even_words = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
        let odd_words = _mm512_or_si512(even_words, _mm512_set1_epi32(1));
        for (index, (packed, reciprocal)) in packed_table.iter_mut().zip(&mut reciprocal_table).enumerate() {
            let window = &entries[first as usize + 16 * index..first as usize + 16 * index + 16];
            // SAFETY: the window is 16 entries of 8 bytes.
            let (low, high) = unsafe {
                let place = window.as_ptr().cast::<i32>();
                (_mm512_loadu_si512(place.cast()), _mm512_loadu_si512(place.add(16).cast()))
            };
            *packed = _mm512_permutex2var_epi32(low, even_words, high);
            *reciprocal = _mm512_permutex2var_epi32(low, odd_words, high);
        }
    }
    let first_symbol = _mm512_set1_epi32(first as i32);
    let width = _mm512_set1_epi32(16 * T as i32);
    let mut x = [_mm512_setzero_si512(); 2];
    for (vector, sixteen) in x.iter_mut().zip(target.states.chunks_exact(16)) {
        // SAFETY: `sixteen` is 64 readable bytes.
        *vector = unsafe { _mm512_loadu_si512(sixteen.as_ptr().cast()) };
    }
    let mut start = *target.start;
    let mut left = symbols.len() / 32 * 32;
    // A round writes at most 64 bytes.
    while left >= 32 && start >= 64 {
        let mut packed = [_mm512_setzero_si512(); 2];
        // Reciprocals of even and of odd lanes, each in the low half of 64 bits.
        let mut even_reciprocal = [_mm512_setzero_si512(); 2];
        let mut odd_reciprocal = [_mm512_setzero_si512(); 2];
        let mut uncodable = 0u16;
        for half in 0..2 {
            // SAFETY: symbols `left - 32` to `left - 1` exist; this half is 16 of them.
            let raw = unsafe { _mm_loadu_si128(symbols.as_ptr().add(left - 32 + 16 * half).cast()) };
            if T > 1 {
                let index = _mm512_sub_epi32(_mm512_cvtepu8_epi32(raw), first_symbol);
                uncodable |= _mm512_cmpge_epu32_mask(index, width);
                packed[half] = pick(&packed_table, index);
                let reciprocal = pick(&reciprocal_table, index);
                even_reciprocal[half] = reciprocal;
                odd_reciprocal[half] = _mm512_srli_epi64::<32>(reciprocal);
            } else {
                let pairs = _mm256_cvtepu16_epi32(raw);
                let mut even = _mm256_and_si256(pairs, byte);
                let mut odd = _mm256_srli_epi32::<8>(pairs);
                if let Some(indexes) = indexes {
                    // SAFETY: there are as many indexes as symbols.
                    let tables = unsafe {
                        let place = indexes.as_ptr().add(left - 32 + 16 * half);
                        _mm256_cvtepu16_epi32(_mm_loadu_si128(place.cast()))
                    };
                    even = _mm256_or_si256(even, _mm256_slli_epi32::<8>(_mm256_and_si256(tables, byte)));
                    odd = _mm256_or_si256(odd, _mm256_and_si256(tables, second_byte));
                }
                // SAFETY: the caller has bounded every index; an entry is 8 bytes.
                let (even, odd) = unsafe {
                    (_mm512_i32gather_epi64::<8>(even, base), _mm512_i32gather_epi64::<8>(odd, base))
                };
                packed[half] = _mm512_mask_mov_epi32(even, 0xaaaa, _mm512_slli_epi64::<32>(odd));
                even_reciprocal[half] = _mm512_srli_epi64::<32>(even);
                odd_reciprocal[half] = _mm512_srli_epi64::<32>(odd);
            }
            uncodable |= _mm512_testn_epi32_mask(packed[half], low_mask);
        }
        if uncodable != 0 {
            break;
        }
        for half in [1, 0] {
            let frequency = _mm512_and_si512(packed[half], low_mask);
            let full = _mm512_cmpge_epu32_mask(_mm512_srl_epi32(x[half], top_shift), frequency);
            let count = full.count_ones() as usize;
            start = start.wrapping_sub(2 * count);
            let words = _mm512_cvtepi32_epi16(_mm512_maskz_compress_epi32(full, x[half]));
            // SAFETY: `count` words fit between `start` and what was written before; at least 64 bytes were free.
            unsafe {
                let place = target.buffer.as_mut_ptr().add(start).cast();
                _mm256_mask_storeu_epi16(place, (1u32 << count).wrapping_sub(1) as u16, words);
            }
            let state = _mm512_mask_srli_epi32::<16>(x[half], full, x[half]);
            let even_product = _mm512_add_epi64(
                _mm512_mul_epu32(state, even_reciprocal[half]),
                _mm512_slli_epi64::<32>(state),
            );
            let odd_product = _mm512_add_epi64(
                _mm512_mul_epu32(_mm512_srli_epi64::<32>(state), odd_reciprocal[half]),
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
    *target.start = start;
    for (vector, sixteen) in x.iter().zip(target.states.chunks_exact_mut(16)) {
        // SAFETY: `sixteen` is 64 writable bytes.
        unsafe { _mm512_storeu_si512(sixteen.as_mut_ptr().cast(), *vector) };
    }
    left
}
