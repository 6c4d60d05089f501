//! Huff0 and FSE as zstd contains them, in blocks of 128 KiB, each with its own table.

use std::ffi::c_void;

const BLOCK: usize = 128 << 10;

// Inner functions of the zstd library that the `zstd-sys` crate links statically.
unsafe extern "C" {
    fn HUF_compress4X_repeat(
        dst: *mut c_void,
        dst_size: usize,
        src: *const c_void,
        src_size: usize,
        max_symbol: u32,
        table_log: u32,
        workspace: *mut c_void,
        workspace_size: usize,
        table: *mut usize,
        repeat: *mut i32,
        flags: i32,
    ) -> usize;
    fn HUF_decompress4X_hufOnly_wksp(
        table: *mut u32,
        dst: *mut c_void,
        dst_size: usize,
        src: *const c_void,
        src_size: usize,
        workspace: *mut c_void,
        workspace_size: usize,
        flags: i32,
    ) -> usize;
    fn HIST_count(count: *mut u32, max_symbol: *mut u32, src: *const c_void, src_size: usize) -> usize;
    fn FSE_optimalTableLog(max_table_log: u32, src_size: usize, max_symbol: u32) -> u32;
    fn FSE_normalizeCount(
        normalized: *mut i16,
        table_log: u32,
        count: *const u32,
        src_size: usize,
        max_symbol: u32,
        use_low_prob: u32,
    ) -> usize;
    fn FSE_writeNCount(
        dst: *mut c_void,
        size: usize,
        normalized: *const i16,
        max_symbol: u32,
        table_log: u32,
    ) -> usize;
    fn FSE_buildCTable_wksp(
        table: *mut u32,
        normalized: *const i16,
        max_symbol: u32,
        table_log: u32,
        workspace: *mut c_void,
        workspace_size: usize,
    ) -> usize;
    fn FSE_compress_usingCTable(
        dst: *mut c_void,
        dst_size: usize,
        src: *const c_void,
        src_size: usize,
        table: *const u32,
    ) -> usize;
    fn FSE_decompress_wksp_bmi2(
        dst: *mut c_void,
        dst_size: usize,
        src: *const c_void,
        src_size: usize,
        max_log: u32,
        workspace: *mut c_void,
        workspace_size: usize,
        bmi2: i32,
    ) -> usize;
}

/// Use BMI2 where the machine has it; all results are checked against the input.
const FLAG_BMI2: i32 = 1;

fn blocks(symbols: &[u8], mut encode: impl FnMut(&[u8], &mut [u8]) -> usize) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(symbols.len());
    let mut buffer = vec![0u8; 2 * BLOCK];
    for block in symbols.chunks(BLOCK) {
        let size = encode(block, &mut buffer);
        assert!(size > 1 && size < buffer.len(), "block did not compress");
        bytes.extend_from_slice(&(size as u32).to_le_bytes()[..3]);
        bytes.extend_from_slice(&buffer[..size]);
    }
    bytes
}

fn unblock(mut bytes: &[u8], out: &mut [u8], mut decode: impl FnMut(&[u8], &mut [u8]) -> usize) {
    for block in out.chunks_mut(BLOCK) {
        let size = usize::from(bytes[0]) | usize::from(bytes[1]) << 8 | usize::from(bytes[2]) << 16;
        let done = decode(&bytes[3..3 + size], block);
        assert_eq!(done, block.len(), "block did not decode");
        bytes = &bytes[3 + size..];
    }
}

pub fn huff0_encode(symbols: &[u8]) -> Vec<u8> {
    let mut workspace = vec![0u64; 2048];
    let mut table = vec![0usize; 258];
    blocks(symbols, |block, buffer| {
        let mut repeat = 0;
        // SAFETY: buffers are as large as huf.h asks for (workspace 8.5 KiB, table 257 words), sizes are passed on.
        unsafe {
            HUF_compress4X_repeat(
                buffer.as_mut_ptr().cast(),
                buffer.len(),
                block.as_ptr().cast(),
                block.len(),
                255,
                11,
                workspace.as_mut_ptr().cast(),
                8 * workspace.len(),
                table.as_mut_ptr(),
                &mut repeat,
                FLAG_BMI2,
            )
        }
    })
}

pub fn huff0_decode(bytes: &[u8], out: &mut [u8]) {
    let mut workspace = vec![0u32; 1024];
    let mut table = vec![0u32; 4097];
    unblock(bytes, out, |bytes, block| {
        table[0] = 12 * 0x0100_0001;
        // SAFETY: the table holds 1 + 2^12 words as its first word says, the workspace 2.5 KiB and more.
        unsafe {
            HUF_decompress4X_hufOnly_wksp(
                table.as_mut_ptr(),
                block.as_mut_ptr().cast(),
                block.len(),
                bytes.as_ptr().cast(),
                bytes.len(),
                workspace.as_mut_ptr().cast(),
                4 * workspace.len(),
                FLAG_BMI2,
            )
        }
    });
}

pub fn fse_encode(symbols: &[u8]) -> Vec<u8> {
    let mut workspace = vec![0u32; 8192];
    let mut table = vec![0u32; 1 + 2048 + 512];
    blocks(symbols, |block, buffer| {
        let (mut counts, mut normalized, mut max_symbol) = ([0u32; 256], [0i16; 256], 255u32);
        // SAFETY: arrays hold 256 symbols and tables of 12 bits, as fse.h asks for; sizes are passed on.
        unsafe {
            HIST_count(counts.as_mut_ptr(), &mut max_symbol, block.as_ptr().cast(), block.len());
            let log = FSE_optimalTableLog(12, block.len(), max_symbol);
            FSE_normalizeCount(normalized.as_mut_ptr(), log, counts.as_ptr(), block.len(), max_symbol, 1);
            let header = FSE_writeNCount(
                buffer.as_mut_ptr().cast(),
                buffer.len(),
                normalized.as_ptr(),
                max_symbol,
                log,
            );
            FSE_buildCTable_wksp(
                table.as_mut_ptr(),
                normalized.as_ptr(),
                max_symbol,
                log,
                workspace.as_mut_ptr().cast(),
                4 * workspace.len(),
            );
            let rest = &mut buffer[header..];
            header
                + FSE_compress_usingCTable(
                    rest.as_mut_ptr().cast(),
                    rest.len(),
                    block.as_ptr().cast(),
                    block.len(),
                    table.as_ptr(),
                )
        }
    })
}

pub fn fse_decode(bytes: &[u8], out: &mut [u8]) {
    let mut workspace = vec![0u32; 16384];
    unblock(bytes, out, |bytes, block| {
        // SAFETY: 64 KiB of workspace are more than tables of 12 bits and 256 symbols need.
        unsafe {
            FSE_decompress_wksp_bmi2(
                block.as_mut_ptr().cast(),
                block.len(),
                bytes.as_ptr().cast(),
                bytes.len(),
                12,
                workspace.as_mut_ptr().cast(),
                4 * workspace.len(),
                1,
            )
        }
    });
}
