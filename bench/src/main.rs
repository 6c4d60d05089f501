//! Coders of 8-bit symbols beside their peers: one table from one run.
//!
//! `cargo run --release` (in `bench/`) prints the table and writes `docs/results/coders.md`. Each engine codes and decodes
//! each data set; a wrong symbol ends the run before anything is timed. Times are processor time of one thread, the
//! least of all repetitions, engines taking turns so that a slow moment hits all. Throughput counts the uncompressed
//! side. Rows for lower instruction sets come from this program started again with `LAMELLA_CPU`.

mod data;
mod engines;
mod huff0;

use cpu_time::ThreadTime;
use engines::Engine;
use std::fmt::Write;
use std::process::Command;

/// Seconds to code and to decode, and the size.
#[derive(Clone)]
struct Figures {
    encode: f64,
    decode: f64,
    bytes: usize,
    coded: Vec<u8>,
}

fn main() {
    let only_lamella = std::env::args().nth(1).as_deref() == Some("--lamella");
    let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build().expect("one thread");
    pool.install(|| if only_lamella { lamella_rows() } else { whole_table() });
}

fn measure(engines: &[Engine], symbols: &[u8]) -> Vec<Figures> {
    let mut out = vec![0u8; symbols.len()];
    let mut figures = Vec::new();
    for engine in engines {
        let start = ThreadTime::now();
        let bytes = (engine.encode)(symbols);
        let encode = start.elapsed().as_secs_f64();
        (engine.decode)(&bytes, &mut out);
        assert!(out == symbols, "{} does not return its input", engine.name);
        out.fill(0);
        figures.push(Figures { encode, decode: f64::MAX, bytes: bytes.len(), coded: bytes });
    }
    // Small data is coded many times per measurement.
    let repeats = (4 << 20) / symbols.len().max(1) + 1;
    for _ in 0..5 {
        for (engine, figures) in engines.iter().zip(&mut figures) {
            // A very slow encoder has been timed once: its figure is far from every other.
            if figures.encode * (repeats as f64) < 1.0 {
                let start = ThreadTime::now();
                for _ in 0..repeats {
                    std::hint::black_box((engine.encode)(symbols));
                }
                figures.encode = figures.encode.min(start.elapsed().as_secs_f64() / repeats as f64);
            }
            let start = ThreadTime::now();
            for _ in 0..repeats {
                (engine.decode)(std::hint::black_box(&figures.coded), &mut out);
            }
            figures.decode = figures.decode.min(start.elapsed().as_secs_f64() / repeats as f64);
        }
    }
    figures
}

/// Rows of this process's level alone, for the parent: one line per data set.
fn lamella_rows() {
    for data in data::sets() {
        let engine = engines::lamella();
        let figures = &measure(std::slice::from_ref(&engine), &data.symbols)[0];
        println!("{}\t{}\t{}\t{}", engine.name, figures.encode, figures.decode, figures.bytes);
    }
}

/// Rows of lower levels: per data set, name and figures.
fn lower_levels() -> Vec<Vec<(String, Figures)>> {
    let mut sets: Vec<Vec<(String, Figures)>> = Vec::new();
    let program = std::env::current_exe().expect("this program has a path");
    for level in ["avx2", "plain"] {
        let output =
            Command::new(&program).arg("--lamella").env("LAMELLA_CPU", level).output().expect("a child runs");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        for (index, line) in String::from_utf8_lossy(&output.stdout).lines().enumerate() {
            let fields: Vec<&str> = line.split('\t').collect();
            let [name, encode, decode, bytes] = fields[..] else { panic!("unexpected line {line}") };
            let figures = Figures {
                encode: encode.parse().expect("seconds"),
                decode: decode.parse().expect("seconds"),
                bytes: bytes.parse().expect("bytes"),
                coded: Vec::new(),
            };
            if sets.len() <= index {
                sets.push(Vec::new());
            }
            sets[index].push((name.to_owned(), figures));
        }
    }
    sets
}

fn whole_table() {
    let mut text = String::from(
        "# Coders of 8-bit symbols\n\nWritten by `cargo run --release` in `bench/`. I.i.d. rounded Gaussians; every output is checked before \
         anything is timed. Processor time of one thread, least of five turns; GB/s of 10^9 symbols, decoding into a \
         given buffer. *Over ideal*: bytes above the code length under the best 12-bit table, that is header, table and \
         lane states.\n",
    );
    writeln!(text, "\nMachine: {}. Versions: {}.", machine(), versions()).expect("text");
    let lower = lower_levels();
    for (data, lower) in data::sets().zip(lower) {
        let mut engines = vec![engines::lamella()];
        engines.extend(engines::peers());
        let figures = measure(&engines, &data.symbols);
        let mut rows: Vec<(String, Figures)> = vec![(engines[0].name.clone(), figures[0].clone())];
        rows.extend(lower.into_iter().filter(|(name, _)| *name != engines[0].name));
        rows.extend(
            engines.iter().skip(1).map(|engine| engine.name.clone()).zip(figures.iter().skip(1).cloned()),
        );
        write_set(&mut text, &data, &rows);
    }
    print!("{text}");
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/results/coders.md");
    std::fs::create_dir_all(concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/results")).expect("docs/results");
    std::fs::write(path, text).expect("docs/results/coders.md is written");
}

fn write_set(text: &mut String, data: &data::Data, rows: &[(String, Figures)]) {
    let count = data.symbols.len() as f64;
    let mut counts = [0u64; 256];
    data.symbols.iter().for_each(|&symbol| counts[usize::from(symbol)] += 1);
    let table = lamella_entropy::models::normalize(&counts, 12).expect("a table");
    let ideal = table.cost_fixed(&counts).expect("codable") as f64 / 65536.0 / 8.0;
    let find =
        |name: &str| rows.iter().find(|(row, _)| row == name).map(|(_, figures)| figures).expect("a peer");
    let (zstd, constriction) = (find("zstd -1"), find("constriction (table, 12 bits)"));
    writeln!(text, "\n## {} (entropy {:.3} bits)\n", data.name, data.entropy).expect("text");
    text.push_str("| coder | bytes | over ideal | to zstd -1 | encode GB/s | to zstd -1 | decode GB/s | to zstd -1 | to constriction |\n");
    text.push_str("|---|---:|---:|---:|---:|---:|---:|---:|---:|\n");
    for (name, row) in rows {
        writeln!(
            text,
            "| {name} | {} | {:+.3} % | {:.4} | {:.3} | {:.2} | {:.3} | {:.2} | {:.1} |",
            row.bytes,
            100.0 * (row.bytes as f64 / ideal - 1.0),
            row.bytes as f64 / zstd.bytes as f64,
            count / row.encode / 1e9,
            zstd.encode / row.encode,
            count / row.decode / 1e9,
            zstd.decode / row.decode,
            constriction.decode / row.decode,
        )
        .expect("text");
    }
}

fn machine() -> String {
    let cpu = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let name =
        cpu.lines().find(|line| line.starts_with("model name")).and_then(|line| line.split(": ").nth(1));
    format!(
        "{}, {} cores",
        name.unwrap_or("unknown"),
        std::thread::available_parallelism().map_or(1, usize::from)
    )
}

fn versions() -> String {
    let lock = include_str!("../Cargo.lock");
    let names = ["constriction", "lz4_flex", "pco", "zstd-sys"];
    let mut found = Vec::new();
    for name in names {
        let key = format!("name = \"{name}\"\nversion = \"");
        if let Some(rest) = lock.split(&key).nth(1) {
            found.push(format!("{name} {}", rest.split('"').next().unwrap_or("?")));
        }
    }
    found.join(", ")
}
