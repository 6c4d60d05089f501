//! What the codes of quantised matrices cost under static class tables and under contexts.
//!
//! `cargo run --release -p lamella-entropy --example code_symbols -- FILE...`
//!
//! Each file: rows (u32), columns (u32), a class per column (u8 each), then the codes column by column (i32 each), all
//! little-endian. Prints, per file and in sum, bits per code under `integers` (static tables, their bytes counted),
//! under `context`, and the saving. Every output is decoded and compared first.

#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a program")]

use lamella_entropy::context;
use lamella_entropy::integers::{self, Columns};
use std::process::ExitCode;
use std::time::Instant;

struct Matrix {
    rows: usize,
    classes: Vec<u8>,
    codes: Vec<i32>,
}

fn parse(bytes: &[u8]) -> Option<Matrix> {
    let word = |bytes: &[u8]| bytes.first_chunk::<4>().map(|word| u32::from_le_bytes(*word));
    let (rows, columns) = (word(bytes)? as usize, word(bytes.get(4..)?)? as usize);
    let classes = bytes.get(8..8 + columns)?.to_vec();
    let codes = bytes.get(8 + columns..)?;
    (codes.len() == 4 * rows * columns).then(|| Matrix {
        rows,
        classes,
        codes: codes.chunks_exact(4).filter_map(word).map(|word| word as i32).collect(),
    })
}

fn main() -> ExitCode {
    let files: Vec<String> = std::env::args().skip(1).collect();
    println!("| file | codes | static bits | context bits | saved | static s | context s |");
    println!("|---|---:|---:|---:|---:|---:|---:|");
    let mut sums = [0usize; 3];
    for file in &files {
        let bytes = std::fs::read(file);
        let Some(matrix) = bytes.ok().as_deref().and_then(parse) else {
            eprintln!("error: `{file}` is not a dump of codes");
            return ExitCode::from(2);
        };
        match measure(&matrix) {
            Ok((fixed, adaptive, seconds)) => {
                print_row(file, matrix.codes.len(), fixed, adaptive, seconds);
                for (sum, value) in sums.iter_mut().zip([matrix.codes.len(), fixed, adaptive]) {
                    *sum += value;
                }
            }
            Err(error) => {
                eprintln!("error: `{file}`: {error}");
                return ExitCode::FAILURE;
            }
        }
    }
    print_row("all", sums[0], sums[1], sums[2], [0.0; 2]);
    ExitCode::SUCCESS
}

fn measure(matrix: &Matrix) -> lamella_entropy::Result<(usize, usize, [f64; 2])> {
    let columns = Columns::new(&matrix.codes, matrix.rows, &matrix.classes)?;
    let start = Instant::now();
    let fixed = integers::encode(&columns)?;
    let fixed_seconds = start.elapsed().as_secs_f64();
    let start = Instant::now();
    let adaptive = context::encode(&columns);
    let seconds = [fixed_seconds, start.elapsed().as_secs_f64()];
    assert!(integers::decode(&fixed, matrix.rows, &matrix.classes, matrix.codes.len())? == matrix.codes);
    assert!(context::decode(&adaptive, matrix.rows, &matrix.classes, matrix.codes.len())? == matrix.codes);
    Ok((fixed.len(), adaptive.len(), seconds))
}

fn print_row(name: &str, codes: usize, fixed: usize, adaptive: usize, seconds: [f64; 2]) {
    let bits = |bytes: usize| 8.0 * bytes as f64 / codes.max(1) as f64;
    let saved = 100.0 * (1.0 - adaptive as f64 / fixed.max(1) as f64);
    println!(
        "| {name} | {codes} | {:.4} | {:.4} | {saved:.2} % | {:.3} | {:.3} |",
        bits(fixed),
        bits(adaptive),
        seconds[0],
        seconds[1]
    );
}
