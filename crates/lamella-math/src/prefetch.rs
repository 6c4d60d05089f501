//! Asking for memory before it is needed.
#![allow(unsafe_code, reason = "the instruction takes a pointer")]

/// Asks for the cache line of `slice[index]`, where there is one; changes nothing but time.
///
/// For strided access whose next lines the processor does not guess.
#[inline(always)]
pub fn prefetch<T>(slice: &[T], index: usize) {
    #[cfg(target_arch = "x86_64")]
    if let Some(element) = slice.get(index) {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        // SAFETY: the address is that of an element; the instruction never faults and every x86-64 has it.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(std::ptr::from_ref(element).cast()) };
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = (slice, index);
}
