//! Decoding 32 lanes by search, up to four streams side by side.
//!
//! ```text
//! slots  = x mod 2^bits                     32 words: of lanes 0 to 15 the low halves, of lanes 16 to 31 the high ones
//! index  = search(slots)                    five comparisons; search.rs
//! x      = frequency[index] * (x >> bits) + slots - start[index]
//! low    = lanes with x < 2^16
//! x      = low ? x << 16 | next word : x    "expand" deals the words
//! ```
//! A round is one chain of about 70 cycles that keeps the vector units busy for 28, so streams take turns.
#![allow(unsafe_code, reason = "vector intrinsics")]

use super::search::SearchTable;
use std::arch::x86_64::*;

/// Most streams side by side.
pub(super) const MOST_STREAMS: usize = 4;

/// Whole rounds of one stream.
pub(super) struct SearchSegment<'s, 'p> {
    pub(super) states: &'s mut [u32; 32],
    pub(super) words: &'s mut &'p [u8],
    /// The number of the table of each round.
    pub(super) rounds: &'s [u8],
    /// 32 symbols a round.
    pub(super) out: &'s mut [u8],
}

/// Proof that the machine has AVX-512 F, BW, VL and DQ.
pub(super) struct Kernel(());

impl Kernel {
    /// The kernel, where the machine has what it needs.
    pub(super) fn new() -> Option<Self> {
        (crate::cpu::detected_level() == crate::cpu::CpuLevel::Avx512).then_some(Self(()))
    }

    /// Decodes the same number of rounds in each segment (as many as the shortest has) while each has 32 words left;
    /// returns the rounds done.
    pub(super) fn decode<const K: usize>(
        &self,
        segments: [SearchSegment<'_, '_>; K],
        tables: &[SearchTable],
        bits: u32,
    ) -> usize {
        let fits = |segment: &SearchSegment<'_, '_>| {
            segment.out.len() / 32 >= segment.rounds.len()
                && segment.rounds.iter().all(|&table| usize::from(table) < tables.len())
        };
        if !segments.iter().all(fits) {
            return 0;
        }
        // SAFETY: `self` proves the features; every round has a table and room for its symbols.
        unsafe {
            match bits {
                8 => decode_rounds::<8, K>(segments, tables),
                9 => decode_rounds::<9, K>(segments, tables),
                10 => decode_rounds::<10, K>(segments, tables),
                11 => decode_rounds::<11, K>(segments, tables),
                12 => decode_rounds::<12, K>(segments, tables),
                _ => 0,
            }
        }
    }
}

/// # Safety
/// The features; each segment has 32 bytes of `out` for each of its `rounds`, each of which names one of `tables`.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,popcnt")]
unsafe fn decode_rounds<const BITS: u32, const K: usize>(
    segments: [SearchSegment<'_, '_>; K],
    tables: &[SearchTable],
) -> usize {
    let low_slots = _mm512_set1_epi32((1 << BITS) - 1);
    let high_slots = _mm512_set1_epi32(((1 << BITS) - 1) << 16);
    let low_words = _mm512_set1_epi32(0xffff);
    let limit = _mm512_set1_epi32(1 << 16);
    let [one, two, four, eight] = [1, 2, 4, 8].map(|step| _mm512_set1_epi16(step));
    let sixteen = _mm512_set1_epi16(16);
    // Narrowed to bytes, lane i stands before lane 16 + i; this puts each half of 16 bytes in order.
    let halves = _mm256_setr_epi8(
        0, 2, 4, 6, 8, 10, 12, 14, 1, 3, 5, 7, 9, 11, 13, 15, //
        0, 2, 4, 6, 8, 10, 12, 14, 1, 3, 5, 7, 9, 11, 13, 15,
    );
    let mut x = [[_mm512_setzero_si512(); 2]; MOST_STREAMS];
    let mut words = [std::ptr::null::<u8>(); MOST_STREAMS];
    let mut left = [0usize; K];
    let mut names = [std::ptr::null::<u8>(); MOST_STREAMS];
    let mut out = [std::ptr::null_mut::<u8>(); MOST_STREAMS];
    let mut rounds = usize::MAX;
    let mut segments = segments;
    for (stream, segment) in segments.iter_mut().enumerate() {
        rounds = rounds.min(segment.rounds.len());
        words[stream] = segment.words.as_ptr();
        left[stream] = segment.words.len();
        names[stream] = segment.rounds.as_ptr();
        out[stream] = segment.out.as_mut_ptr();
        for (vector, sixteen) in x[stream].iter_mut().zip(segment.states.chunks_exact(16)) {
            // SAFETY: `sixteen` is 64 readable bytes.
            *vector = unsafe { _mm512_loadu_si512(sixteen.as_ptr().cast()) };
        }
    }
    let tables = tables.as_ptr();
    let mut done = 0usize;
    // Written out for each stream, so that states and pointers stay in registers.
    macro_rules! round {
        ($stream:literal) => {
            if K > $stream {
                // SAFETY: `done` is less than the number of rounds, each of which names a table; a table's arrays are
                // 64 bytes each. The 64 bytes read from `words` are left, by `safe`; `out` has 32 bytes for the round.
                unsafe {
                    let table = &*tables.add(usize::from(*names[$stream].add(done)));
                    let pick = |entries: &[u16; 32], index| {
                        _mm512_permutexvar_epi16(index, _mm512_load_si512(entries.as_ptr().cast()))
                    };
                    let [low, high] = x[$stream];
                    let slots = _mm512_ternarylogic_epi32::<0xea>(
                        _mm512_slli_epi32::<16>(high),
                        high_slots,
                        _mm512_and_si512(low, low_slots),
                    );
                    let upper = _mm512_cmpge_epu16_mask(slots, _mm512_set1_epi16(table.start[16] as i16));
                    let border = _mm512_mask_blend_epi16(
                        upper,
                        _mm512_set1_epi16(table.start[8] as i16),
                        _mm512_set1_epi16(table.start[24] as i16),
                    );
                    let above = _mm512_cmpge_epu16_mask(slots, border);
                    let mut index = _mm512_maskz_mov_epi16(upper, sixteen);
                    index = _mm512_mask_add_epi16(index, above, index, eight);
                    let above = _mm512_cmpge_epu16_mask(slots, pick(&table.four_on, index));
                    index = _mm512_mask_add_epi16(index, above, index, four);
                    let above = _mm512_cmpge_epu16_mask(slots, pick(&table.two_on, index));
                    index = _mm512_mask_add_epi16(index, above, index, two);
                    let above = _mm512_cmpge_epu16_mask(slots, pick(&table.one_on, index));
                    index = _mm512_mask_add_epi16(index, above, index, one);

                    let frequency = pick(&table.frequency, index);
                    let offset = _mm512_sub_epi16(slots, pick(&table.start, index));
                    let grown = [
                        _mm512_add_epi32(
                            _mm512_mullo_epi32(
                                _mm512_and_si512(frequency, low_words),
                                _mm512_srli_epi32::<BITS>(low),
                            ),
                            _mm512_and_si512(offset, low_words),
                        ),
                        _mm512_add_epi32(
                            _mm512_mullo_epi32(
                                _mm512_srli_epi32::<16>(frequency),
                                _mm512_srli_epi32::<BITS>(high),
                            ),
                            _mm512_srli_epi32::<16>(offset),
                        ),
                    ];
                    for (state, next) in x[$stream].iter_mut().zip(grown) {
                        let is_low = _mm512_cmplt_epu32_mask(next, limit);
                        let fresh = _mm512_cvtepu16_epi32(_mm256_loadu_si256(words[$stream].cast()));
                        let dealt = _mm512_maskz_expand_epi32(is_low, fresh);
                        *state = _mm512_mask_or_epi32(next, is_low, _mm512_slli_epi32::<16>(next), dealt);
                        words[$stream] = words[$stream].add((is_low.count_ones() as usize).wrapping_mul(2));
                    }
                    let bytes = _mm512_cvtepi16_epi8(pick(&table.symbol, index));
                    let ordered =
                        _mm256_permute4x64_epi64::<0b11_01_10_00>(_mm256_shuffle_epi8(bytes, halves));
                    _mm256_storeu_si256(out[$stream].add(done.wrapping_mul(32)).cast(), ordered);
                }
            }
        };
    }
    loop {
        // So many rounds cannot run out of words, 64 bytes each at most.
        let safe = left.iter().fold(rounds.wrapping_sub(done), |safe, left| safe.min(left / 64));
        if safe == 0 {
            break;
        }
        let before = words;
        let end = done.wrapping_add(safe);
        while done < end {
            round!(0);
            round!(1);
            round!(2);
            round!(3);
            done = done.wrapping_add(1);
        }
        for ((left, now), before) in left.iter_mut().zip(words).zip(before) {
            *left = left.wrapping_sub(now.addr().wrapping_sub(before.addr()));
        }
    }
    for ((vectors, left), segment) in x.iter().zip(left).zip(segments) {
        let used = segment.words.len() - left;
        *segment.words = &segment.words[used..];
        for (vector, sixteen) in vectors.iter().zip(segment.states.chunks_exact_mut(16)) {
            // SAFETY: `sixteen` is 64 writable bytes.
            unsafe { _mm512_storeu_si512(sixteen.as_mut_ptr().cast(), *vector) };
        }
    }
    done
}
