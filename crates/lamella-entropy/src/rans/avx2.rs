//! Decoding and encoding 32 lanes as four vectors of eight, with gathers.
//!
//! One round, for each vector of eight states `x`:
//! ```text
//! entry  = gather(entries, x & mask)                      one load per lane, 8 at once
//! symbol = entry & 255                                    the four vectors are packed to 32 bytes at the end
//! x      = (entry >> 8 & 4095) * (x >> bits) + (entry >> 20)
//! low    = lanes with x < 2^16                            as an 8-bit mask
//! x      = low ? x << 16 | next word : x                  words dealt out in lane order
//! words += popcount(low)
//! ```
//! Dealing out needs an "expand": lane `i` takes word number `popcount(low & (2^i - 1))`. AVX2 has none, so a table of
//! 256 permutations (2 KiB) does it. The chain from one vector's words to the next is only the addition to the
//! pointer; the gathers, the long latency here, overlap.
//!
//! Encoding walks backwards as the AVX-512 kernel does; "compress" is a byte shuffle by another table of 256 rows, which
//! moves the words of full lanes to the end of 16 bytes, so that one store puts them before those already written.
#![allow(unsafe_code, reason = "vector intrinsics")]

use super::kernel::{EncodeSegment, Segment};
use super::plain::Writer;
use std::arch::x86_64::*;

/// Proof that the machine has AVX2.
pub(super) struct Kernel(());

/// For each mask the word each of the eight lanes takes.
const DEAL: [[u8; 8]; 256] = {
    let mut table = [[0; 8]; 256];
    let mut mask = 0;
    while mask < 256 {
        let mut lane = 0;
        while lane < 8 {
            table[mask][lane] = (mask & ((1 << lane) - 1)).count_ones() as u8;
            lane += 1;
        }
        mask += 1;
    }
    table
};

/// For each mask of full lanes the bytes that move their words, in lane order, to the end of eight words.
const PACK: [[u8; 16]; 256] = {
    let mut table = [[0x80; 16]; 256];
    let mut mask = 0usize;
    while mask < 256 {
        let mut place = 16 - 2 * mask.count_ones() as usize;
        let mut lane = 0;
        while lane < 8 {
            if mask >> lane & 1 == 1 {
                table[mask][place] = 2 * lane as u8;
                table[mask][place + 1] = 2 * lane as u8 + 1;
                place += 2;
            }
            lane += 1;
        }
        mask += 1;
    }
    table
};

impl Kernel {
    /// The kernel, where the machine has what it needs.
    pub(super) fn new() -> Option<Self> {
        (is_x86_feature_detected!("avx2") && is_x86_feature_detected!("popcnt")).then_some(Self(()))
    }

    /// Decodes whole rounds of 32 symbols in all segments while each has 32 words left; returns the rounds done.
    pub(super) fn decode<const K: usize>(&self, segments: [Segment<'_, '_>; K], bits: u32) -> usize {
        if !segments.iter().all(|segment| segment.stays_inside(bits)) {
            return 0;
        }
        // SAFETY: `self` proves AVX2; `stays_inside` has bounded every gather index.
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
        // SAFETY: `self` proves AVX2; `stays_inside` has bounded every gather index.
        unsafe { encode_rounds(writer, segment) }
    }
}

/// # Safety
/// AVX2 and popcnt; [`Segment::stays_inside`] holds for every segment.
#[target_feature(enable = "avx2,popcnt")]
unsafe fn decode_rounds<const BITS: i32, const K: usize>(mut segments: [Segment<'_, '_>; K]) -> usize {
    let mask = _mm256_set1_epi32((1 << BITS) - 1);
    let low_mask = _mm256_set1_epi32(0xfff);
    let byte_mask = _mm256_set1_epi32(0xff);
    let order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
    let mut x = [[_mm256_setzero_si256(); 4]; K];
    let mut used = [0usize; K];
    let mut rounds = usize::MAX;
    for (vectors, segment) in x.iter_mut().zip(&segments) {
        rounds = rounds.min(segment.out.len() / 32);
        for (vector, eight) in vectors.iter_mut().zip(segment.states.chunks_exact(8)) {
            // SAFETY: `eight` is 32 readable bytes.
            *vector = unsafe { _mm256_loadu_si256(eight.as_ptr().cast()) };
        }
    }
    let mut done = 0usize;
    while done < rounds && segments.iter().zip(&used).all(|(segment, used)| segment.words.len() - used >= 64)
    {
        for stream in 0..K {
            let segment = &mut segments[stream];
            let mut symbols = [_mm256_setzero_si256(); 4];
            for group in 0..4 {
                let state = x[stream][group];
                let mut slots = _mm256_and_si256(state, mask);
                if let Some(indexes) = segment.indexes {
                    let eight = &indexes[32 * done + 8 * group..32 * done + 8 * group + 8];
                    // SAFETY: `eight` is 8 readable bytes.
                    let raw = unsafe { _mm_loadl_epi64(eight.as_ptr().cast()) };
                    slots = _mm256_or_si256(slots, _mm256_slli_epi32::<BITS>(_mm256_cvtepu8_epi32(raw)));
                }
                // SAFETY: the caller has bounded every slot.
                let entry = unsafe { _mm256_i32gather_epi32::<4>(segment.entries.as_ptr().cast(), slots) };
                symbols[group] = _mm256_and_si256(entry, byte_mask);
                let frequency = _mm256_and_si256(_mm256_srli_epi32::<8>(entry), low_mask);
                let product = _mm256_mullo_epi32(frequency, _mm256_srli_epi32::<BITS>(state));
                let next = _mm256_add_epi32(product, _mm256_srli_epi32::<20>(entry));
                let low = _mm256_cmpeq_epi32(_mm256_srli_epi32::<16>(next), _mm256_setzero_si256());
                let bits = _mm256_movemask_ps(_mm256_castsi256_ps(low)) as usize & 255;
                // SAFETY: four groups use at most 8 words each, so 16 bytes are left of the 64 checked above.
                let fresh = unsafe { _mm_loadu_si128(segment.words.as_ptr().add(used[stream]).cast()) };
                // SAFETY: a row of the table is 8 bytes.
                let deal = unsafe { _mm_loadl_epi64(DEAL[bits].as_ptr().cast()) };
                let dealt =
                    _mm256_permutevar8x32_epi32(_mm256_cvtepu16_epi32(fresh), _mm256_cvtepu8_epi32(deal));
                let filled = _mm256_or_si256(_mm256_slli_epi32::<16>(next), dealt);
                x[stream][group] = _mm256_blendv_epi8(next, filled, low);
                used[stream] = used[stream].wrapping_add(2 * bits.count_ones() as usize);
            }
            // 32-bit lanes to bytes: packing interleaves 128-bit halves, one permutation puts them in order.
            let first = _mm256_packus_epi32(symbols[0], symbols[1]);
            let second = _mm256_packus_epi32(symbols[2], symbols[3]);
            let packed = _mm256_permutevar8x32_epi32(_mm256_packus_epi16(first, second), order);
            // SAFETY: every segment has at least `rounds` times 32 bytes, and `done < rounds`.
            unsafe { _mm256_storeu_si256(segment.out.as_mut_ptr().add(32 * done).cast(), packed) };
        }
        done += 1;
    }
    for ((vectors, used), segment) in x.iter().zip(used).zip(segments) {
        *segment.words = &segment.words[used..];
        for (vector, eight) in vectors.iter().zip(segment.states.chunks_exact_mut(8)) {
            // SAFETY: `eight` is 32 writable bytes.
            unsafe { _mm256_storeu_si256(eight.as_mut_ptr().cast(), *vector) };
        }
    }
    done
}

/// # Safety
/// AVX2 and popcnt; [`EncodeSegment::stays_inside`] holds.
#[target_feature(enable = "avx2,popcnt")]
unsafe fn encode_rounds(writer: &mut Writer, segment: EncodeSegment<'_>) -> usize {
    let EncodeSegment { entries, indexes, bits, symbols, .. } = segment;
    let low_mask = _mm256_set1_epi32(0xfff);
    let word_mask = _mm256_set1_epi32(0xffff);
    let complement = _mm256_set1_epi32(1 << bits);
    let top_shift = _mm_cvtsi32_si128(32 - bits as i32);
    let thirty_two = _mm256_set1_epi64x(32);
    let high_half = _mm256_set1_epi64x(!0xffff_ffff);
    let low_half = _mm256_set1_epi64x(0xffff_ffff);
    let byte = _mm_set1_epi32(0xff);
    let second_byte = _mm_set1_epi32(0xff00);
    let base = entries.as_ptr().cast::<i64>();
    let mut x = [_mm256_setzero_si256(); 4];
    for (vector, eight) in x.iter_mut().zip(writer.states.chunks_exact(8)) {
        // SAFETY: `eight` is 32 readable bytes.
        *vector = unsafe { _mm256_loadu_si256(eight.as_ptr().cast()) };
    }
    let buffer = writer.buffer.as_mut_ptr();
    let mut start = writer.start;
    let mut left = symbols.len() / 32 * 32;
    // A round writes at most 64 bytes.
    while left >= 32 && start >= 64 {
        let mut packed = [_mm256_setzero_si256(); 4];
        // Reciprocals of even and of odd lanes, each in the low half of 64 bits.
        let mut even_reciprocal = [_mm256_setzero_si256(); 4];
        let mut odd_reciprocal = [_mm256_setzero_si256(); 4];
        let mut uncodable = _mm256_setzero_si256();
        for group in 0..4 {
            let place = left - 32 + 8 * group;
            // SAFETY: symbols `place` to `place + 7` exist.
            let pairs = unsafe { _mm_cvtepu16_epi32(_mm_loadl_epi64(symbols.as_ptr().add(place).cast())) };
            let mut even = _mm_and_si128(pairs, byte);
            let mut odd = _mm_srli_epi32::<8>(pairs);
            if let Some(indexes) = indexes {
                // SAFETY: there are as many indexes as symbols.
                let tables =
                    unsafe { _mm_cvtepu16_epi32(_mm_loadl_epi64(indexes.as_ptr().add(place).cast())) };
                even = _mm_or_si128(even, _mm_slli_epi32::<8>(_mm_and_si128(tables, byte)));
                odd = _mm_or_si128(odd, _mm_and_si128(tables, second_byte));
            }
            // SAFETY: the caller has bounded every index; an entry is 8 bytes.
            let (even, odd) =
                unsafe { (_mm256_i32gather_epi64::<8>(base, even), _mm256_i32gather_epi64::<8>(base, odd)) };
            packed[group] = _mm256_blend_epi32::<0xaa>(even, _mm256_slli_epi64::<32>(odd));
            even_reciprocal[group] = _mm256_srli_epi64::<32>(even);
            odd_reciprocal[group] = _mm256_srli_epi64::<32>(odd);
            let frequency = _mm256_and_si256(packed[group], low_mask);
            uncodable = _mm256_or_si256(uncodable, _mm256_cmpeq_epi32(frequency, _mm256_setzero_si256()));
        }
        if _mm256_movemask_epi8(uncodable) != 0 {
            break;
        }
        for group in [3, 2, 1, 0] {
            let frequency = _mm256_and_si256(packed[group], low_mask);
            // Frequencies and shifted states are below 2^24: signed comparison will do.
            let stays = _mm256_cmpgt_epi32(frequency, _mm256_srl_epi32(x[group], top_shift));
            let full = !_mm256_movemask_ps(_mm256_castsi256_ps(stays)) as usize & 255;
            let words = _mm256_and_si256(x[group], word_mask);
            let words = _mm256_permute4x64_epi64::<0b1000>(_mm256_packus_epi32(words, words));
            // SAFETY: a row of the table is 16 bytes; 64 bytes were free and each group uses at most 16 of them.
            unsafe {
                let row = _mm_loadu_si128(PACK[full].as_ptr().cast());
                let words = _mm_shuffle_epi8(_mm256_castsi256_si128(words), row);
                _mm_storeu_si128(buffer.add(start - 16).cast(), words);
            }
            start -= 2 * full.count_ones() as usize;
            let state = _mm256_blendv_epi8(_mm256_srli_epi32::<16>(x[group]), x[group], stays);
            let even_product = _mm256_add_epi64(
                _mm256_mul_epu32(state, even_reciprocal[group]),
                _mm256_slli_epi64::<32>(state),
            );
            let odd_product = _mm256_add_epi64(
                _mm256_mul_epu32(_mm256_srli_epi64::<32>(state), odd_reciprocal[group]),
                _mm256_and_si256(state, high_half),
            );
            let even_shift = _mm256_srli_epi64::<24>(_mm256_and_si256(packed[group], low_half));
            let odd_shift = _mm256_srli_epi64::<56>(packed[group]);
            let even = _mm256_srlv_epi64(even_product, _mm256_add_epi64(even_shift, thirty_two));
            let odd = _mm256_srlv_epi64(odd_product, _mm256_add_epi64(odd_shift, thirty_two));
            let quotient = _mm256_or_si256(even, _mm256_slli_epi64::<32>(odd));
            let cumulative = _mm256_and_si256(_mm256_srli_epi32::<12>(packed[group]), low_mask);
            let grown = _mm256_mullo_epi32(quotient, _mm256_sub_epi32(complement, frequency));
            x[group] = _mm256_add_epi32(_mm256_add_epi32(state, grown), cumulative);
        }
        left -= 32;
    }
    writer.start = start;
    for (vector, eight) in x.iter().zip(writer.states.chunks_exact_mut(8)) {
        // SAFETY: `eight` is 32 writable bytes.
        unsafe { _mm256_storeu_si256(eight.as_mut_ptr().cast(), *vector) };
    }
    left
}
