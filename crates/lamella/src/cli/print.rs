//! The only place that writes to standard output and standard error.

use std::io::Write;

use serde::Serialize;

/// Writes data to standard output. A closed pipe ends the program quietly, as it should for a filter.
pub(crate) fn data(text: &str) {
    write_out(text.as_bytes());
    if !text.ends_with('\n') {
        write_out(b"\n");
    }
}

/// Writes a piece of streaming output without a line end.
pub(crate) fn piece(text: &str) {
    write_out(text.as_bytes());
}

/// Writes a report as one JSON document.
pub(crate) fn json(report: &impl Serialize) {
    match serde_json::to_string_pretty(report) {
        Ok(text) => data(&text),
        Err(error) => note(&format!("error: the report cannot be written as JSON: {error}")),
    }
}

fn write_out(bytes: &[u8]) {
    let mut out = std::io::stdout().lock();
    if out.write_all(bytes).and_then(|()| out.flush()).is_err() {
        std::process::exit(0);
    }
}

/// Writes a line to standard error.
pub(crate) fn note(line: &str) {
    let _ = writeln!(std::io::stderr().lock(), "{line}");
}

/// Bytes as a person reads them, in powers of 1000.
pub(crate) fn bytes(count: u64) -> String {
    let value = count as f64;
    match count {
        0..=9_999 => format!("{count} B"),
        10_000..=999_999 => format!("{:.1} KB", value / 1e3),
        1_000_000..=999_999_999 => format!("{:.2} MB", value / 1e6),
        _ => format!("{:.2} GB", value / 1e9),
    }
}

/// Lines of cells with aligned columns; the first column to the left, the others to the right.
pub(crate) fn table(header: &[&str], rows: &[Vec<String>]) -> String {
    let mut widths: Vec<usize> = header.iter().map(|cell| cell.chars().count()).collect();
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let line = |cells: &mut dyn Iterator<Item = &str>| {
        let mut line = String::new();
        for (index, (cell, &width)) in cells.zip(&widths).enumerate() {
            if index == 0 {
                line.push_str(&format!("{cell:<width$}"));
            } else {
                line.push_str(&format!("  {cell:>width$}"));
            }
        }
        line.trim_end().to_owned()
    };
    let mut lines = vec![line(&mut header.iter().copied())];
    lines.extend(rows.iter().map(|row| line(&mut row.iter().map(String::as_str))));
    lines.join("\n")
}
