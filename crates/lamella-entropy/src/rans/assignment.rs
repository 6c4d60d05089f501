//! Which table codes which symbol.

use crate::error::{Error, Result};

/// Consecutive symbols coded with one table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Run {
    /// Number of symbols.
    pub length: usize,
    /// Index of the table.
    pub table: usize,
}

/// The table of every symbol of a payload; not stored, both sides know it.
#[derive(Debug, Clone, Copy)]
pub enum Assignment<'a> {
    /// All symbols use this table.
    One(usize),
    /// Runs in order, such as the columns of a matrix; their lengths sum to the number of symbols.
    Runs(&'a [Run]),
    /// A table index for each symbol ("indexed coding").
    PerSymbol(&'a [u8]),
}

/// An assignment cut to one chunk.
#[derive(Debug, Clone, Copy)]
pub(super) enum Part<'a> {
    One(usize),
    /// The first run has lost its first `skip` symbols.
    Runs {
        runs: &'a [Run],
        skip: usize,
    },
    PerSymbol(&'a [u8]),
}

impl<'a> Assignment<'a> {
    pub(super) fn check(&self, symbols: usize, tables: usize) -> Result<()> {
        let greatest = match *self {
            Self::One(table) => table,
            Self::Runs(runs) => {
                let found = runs.iter().fold(0usize, |sum, run| sum.saturating_add(run.length));
                if found != symbols {
                    return Err(Error::LengthMismatch { name: "runs", found, expected: symbols });
                }
                runs.iter().map(|run| run.table).max().unwrap_or(0)
            }
            Self::PerSymbol(indexes) => {
                if indexes.len() != symbols {
                    return Err(Error::LengthMismatch {
                        name: "table indexes",
                        found: indexes.len(),
                        expected: symbols,
                    });
                }
                indexes.iter().copied().max().map_or(0, usize::from)
            }
        };
        if greatest >= tables {
            return Err(Error::OutOfRange {
                name: "table index",
                found: greatest as i64,
                low: 0,
                high: tables as i64 - 1,
            });
        }
        Ok(())
    }

    /// The whole as one part.
    pub(super) fn whole(&self) -> Part<'a> {
        match *self {
            Self::One(table) => Part::One(table),
            Self::Runs(runs) => Part::Runs { runs, skip: 0 },
            Self::PerSymbol(indexes) => Part::PerSymbol(indexes),
        }
    }

    /// One part per chunk of `chunk` symbols (one part for no symbols).
    pub(super) fn split(&self, symbols: usize, chunk: usize) -> Vec<Part<'a>> {
        match *self {
            Self::One(table) => vec![Part::One(table); symbols.div_ceil(chunk).max(1)],
            Self::PerSymbol(indexes) => {
                let mut parts: Vec<_> = indexes.chunks(chunk).map(Part::PerSymbol).collect();
                if parts.is_empty() {
                    parts.push(Part::PerSymbol(&[]));
                }
                parts
            }
            Self::Runs(runs) => {
                let mut parts = vec![Part::Runs { runs, skip: 0 }];
                let (mut position, mut border) = (0usize, chunk);
                for (index, run) in runs.iter().enumerate() {
                    let end = position + run.length;
                    while border < end {
                        parts.push(Part::Runs { runs: &runs[index..], skip: border - position });
                        border += chunk;
                    }
                    if border == end && end < symbols {
                        parts.push(Part::Runs { runs: &runs[index + 1..], skip: 0 });
                        border += chunk;
                    }
                    position = end;
                }
                parts
            }
        }
    }

    pub(super) fn for_each_run(
        &self,
        symbols: usize,
        f: impl FnMut(usize, usize, usize) -> Result<()>,
    ) -> Result<()> {
        self.whole().for_each_run(symbols, f)
    }
}

impl<'a> Part<'a> {
    /// Length and table of each stretch, for walking several parts side by side; `symbols` bounds only `One`.
    pub(super) fn stretches(&self, symbols: usize) -> Box<dyn Iterator<Item = (usize, usize)> + 'a> {
        match *self {
            Self::One(table) => Box::new(std::iter::once((symbols, table))),
            Self::Runs { runs, skip } => Box::new(
                runs.iter()
                    .enumerate()
                    .map(move |(index, run)| (run.length - if index == 0 { skip } else { 0 }, run.table)),
            ),
            Self::PerSymbol(indexes) => {
                Box::new(indexes.chunk_by(|a, b| a == b).map(|run| (run.len(), usize::from(run[0]))))
            }
        }
    }

    /// Calls `f(start, length, table)` for maximal stretches of one table, in order, up to `symbols`.
    pub(super) fn for_each_run(
        &self,
        symbols: usize,
        mut f: impl FnMut(usize, usize, usize) -> Result<()>,
    ) -> Result<()> {
        match *self {
            Self::One(table) => f(0, symbols, table),
            Self::Runs { runs, mut skip } => {
                let mut start = 0;
                for run in runs {
                    let length = (run.length - skip).min(symbols - start);
                    skip = 0;
                    if length > 0 {
                        f(start, length, run.table)?;
                    }
                    start += length;
                    if start == symbols {
                        break;
                    }
                }
                Ok(())
            }
            Self::PerSymbol(indexes) => {
                let mut start = 0;
                for stretch in indexes[..symbols].chunk_by(|a, b| a == b) {
                    f(start, stretch.len(), usize::from(stretch[0]))?;
                    start += stretch.len();
                }
                Ok(())
            }
        }
    }

    /// The same stretches, last first.
    pub(super) fn for_each_run_reversed(
        &self,
        symbols: usize,
        mut f: impl FnMut(usize, usize, usize) -> Result<()>,
    ) -> Result<()> {
        match *self {
            Self::One(table) => f(0, symbols, table),
            Self::Runs { runs, skip } => {
                // Find where the part ends, then walk back.
                let (mut end_run, mut total) = (0, 0usize);
                while total < symbols + skip && end_run < runs.len() {
                    total += runs[end_run].length;
                    end_run += 1;
                }
                let mut end = symbols;
                let mut run_start = total - skip.min(total);
                for (index, run) in runs[..end_run].iter().enumerate().rev() {
                    run_start = if index == 0 { 0 } else { run_start - run.length };
                    if end > run_start {
                        f(run_start, end - run_start, run.table)?;
                    }
                    end = run_start;
                }
                Ok(())
            }
            Self::PerSymbol(indexes) => {
                let mut end = symbols;
                while end > 0 {
                    let table = indexes[end - 1];
                    let length = indexes[..end].iter().rev().take_while(|&&index| index == table).count();
                    end -= length;
                    f(end, length, usize::from(table))?;
                }
                Ok(())
            }
        }
    }
}
