//! Large buffers of zeros on large pages.
//!
//! An array's bytes are written once, so that most of what a fresh buffer costs is its first touch: one page fault for
//! every 4 KiB. Linux is asked for pages of 2 MiB instead, which is a hint and changes nothing that can be read.
#![allow(unsafe_code, reason = "memory mapping: advice about pages")]

use super::StreamError;
use super::stream::reserve;

/// Bytes of a large page on the machines where that matters.
#[cfg(target_os = "linux")]
const LARGE_PAGE: usize = 2 << 20;

/// Zeros that the system hands out as they are first touched, or an error where there is not so much memory.
///
/// # Errors
/// [`StreamError::Memory`].
pub(crate) fn zeros(length: usize) -> Result<Vec<u8>, StreamError> {
    // Only `vec!` asks for zeroed memory, and it cannot fail: so the room is asked for and given back before.
    reserve(&mut Vec::new(), length)?;
    let mut bytes = vec![0; length];
    prefer_large_pages(&mut bytes);
    Ok(bytes)
}

#[cfg(target_os = "linux")]
fn prefer_large_pages(bytes: &mut [u8]) {
    let range = bytes.as_mut_ptr_range();
    let start = (range.start as usize).next_multiple_of(LARGE_PAGE);
    let end = range.end as usize / LARGE_PAGE * LARGE_PAGE;
    if start < end && bytes.len() >= 4 * LARGE_PAGE {
        let inside = &mut bytes[start - range.start as usize..end - range.start as usize];
        // SAFETY: the pages lie inside a buffer that is borrowed mutably, and the advice keeps their contents.
        // Whether it is taken does not matter.
        unsafe { libc::madvise(inside.as_mut_ptr().cast(), inside.len(), libc::MADV_HUGEPAGE) };
    }
}

#[cfg(not(target_os = "linux"))]
fn prefer_large_pages(_bytes: &mut [u8]) {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zeros_of_any_size_are_zero() {
        for length in [0, 1, 4095, (9 << 20) + 5] {
            let bytes = zeros(length).unwrap();
            assert!(bytes.len() == length && bytes.iter().all(|&byte| byte == 0));
        }
        assert!(matches!(zeros(usize::MAX / 4), Err(StreamError::Memory { .. })));
    }
}
