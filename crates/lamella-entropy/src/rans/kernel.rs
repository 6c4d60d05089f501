//! The one place where a kernel is chosen, and the walk over runs that all kernels share.
//!
//! Vector kernels only take whole rounds of 32 symbols of one run that cannot run out of words; ends of runs and of
//! the payload go through the plain coder, which carries the same states. So errors, too, are the plain coder's.
//!
//! A round is a chain of dependent steps (slot, gather, multiply, renormalise) that leaves most of a core idle, so two
//! chunks are decoded side by side where there are two.

use super::Lanes;
use super::assignment::Part;
use super::plain::{self, Reader, Writer};
use super::table::{DecodeTables, EncodeEntry, EncodeTables};
use crate::cpu::{CpuLevel, cpu_level};
use crate::error::{Error, Result};

/// Chunks decoded side by side.
pub(super) const JOINT: usize = 2;

/// One chunk to decode.
pub(super) struct DecodeJob<'a> {
    pub(super) payload: &'a [u8],
    pub(super) part: Part<'a>,
    pub(super) out: &'a mut [u8],
}

/// Whole rounds of one stream, as vector kernels take them.
pub(super) struct Segment<'s, 'p> {
    pub(super) states: &'s mut [u32; 32],
    pub(super) words: &'s mut &'p [u8],
    /// The table; with `indexes` all tables.
    pub(super) entries: &'s [u32],
    /// A table number per symbol.
    pub(super) indexes: Option<&'s [u8]>,
    pub(super) out: &'s mut [u8],
}

impl Segment<'_, '_> {
    /// Whether every entry a kernel may gather exists: what its `unsafe` rests on.
    #[cfg(target_arch = "x86_64")]
    pub(super) fn stays_inside(&self, bits: u32) -> bool {
        if !(8..=12).contains(&bits) {
            return false;
        }
        match self.indexes {
            None => self.entries.len() >= 1 << bits,
            Some(indexes) => {
                let greatest = indexes.iter().copied().max().map_or(0, usize::from);
                indexes.len() >= self.out.len() && self.entries.len() >= (greatest + 1) << bits
            }
        }
    }
}

pub(super) fn decode(jobs: &mut [DecodeJob<'_>], lanes: Lanes, tables: &DecodeTables) -> Result<()> {
    decode_at(cpu_level(), jobs, lanes, tables)
}

pub(super) fn encode(
    symbols: &[u8],
    tables: &EncodeTables,
    part: &Part<'_>,
    writer: &mut Writer,
) -> Result<()> {
    encode_at(cpu_level(), symbols, tables, part, writer)
}

/// Decodes with the kernel of `level`, which the machine must have. Errors are those of the first chunk that has one.
pub(super) fn decode_at(
    level: CpuLevel,
    jobs: &mut [DecodeJob<'_>],
    lanes: Lanes,
    tables: &DecodeTables,
) -> Result<()> {
    if level == CpuLevel::Plain || lanes != Lanes::ThirtyTwo {
        for job in jobs {
            plain::decode(job.payload, lanes, tables, &job.part, job.out)?;
        }
        return Ok(());
    }
    let mut streams = Vec::with_capacity(jobs.len());
    for job in jobs {
        streams.push(Stream::new(job)?);
    }
    while let [first, second] = streams.as_mut_slice() {
        if !first.prepare(tables) || !second.prepare(tables) {
            break;
        }
        let rounds = first.ready.min(second.ready);
        let done = rounds_of(
            level,
            tables.probability_bits,
            [first.segment(tables, rounds), second.segment(tables, rounds)],
        );
        first.advance(done);
        second.advance(done);
    }
    for stream in &mut streams {
        while stream.prepare(tables) {
            let done = rounds_of(level, tables.probability_bits, [stream.segment(tables, stream.ready)]);
            stream.advance(done);
        }
    }
    streams.into_iter().try_for_each(Stream::finish)
}

/// A chunk on its way: what is decoded, and the rounds a kernel may take next.
struct Stream<'a, 's> {
    reader: Reader<'a>,
    error: Option<Error>,
    out: &'s mut [u8],
    position: usize,
    indexes: Option<&'a [u8]>,
    stretches: Box<dyn Iterator<Item = (usize, usize)> + 'a>,
    /// Symbols of the current stretch not yet decoded, and its table.
    stretch: (usize, usize),
    /// Rounds ready for a kernel.
    ready: usize,
    /// Set where the words are nearly used up: the rest is left to the plain coder.
    is_ending: bool,
}

impl<'a, 's> Stream<'a, 's> {
    fn new(job: &'s mut DecodeJob<'a>) -> Result<Self> {
        let length = job.out.len();
        let indexes = if let Part::PerSymbol(indexes) = job.part { Some(indexes) } else { None };
        Ok(Self {
            reader: Reader::new(job.payload, Lanes::ThirtyTwo)?,
            error: None,
            out: &mut *job.out,
            position: 0,
            indexes,
            // A kernel takes an index per symbol, so such a part is one stretch until its end.
            stretches: if indexes.is_some() {
                Box::new(std::iter::empty())
            } else {
                job.part.stretches(length)
            },
            stretch: if indexes.is_some() { (length, 0) } else { (0, 0) },
            ready: 0,
            is_ending: false,
        })
    }

    /// Decodes plainly up to the next round a kernel may take; false where there is none left.
    fn prepare(&mut self, tables: &DecodeTables) -> bool {
        loop {
            if self.error.is_some() || self.position == self.out.len() {
                return false;
            }
            self.is_ending |= self.reader.words.len() < 64;
            if self.stretch.0 == 0 {
                match self.stretches.next() {
                    Some(stretch) => {
                        self.stretch = (stretch.0.min(self.out.len() - self.position), stretch.1)
                    }
                    None => return false,
                }
                continue;
            }
            let (left, table) = self.stretch;
            let lane = self.position % 32;
            self.ready = if lane == 0 && !self.is_ending { left / 32 } else { 0 };
            if self.ready > 0 {
                return true;
            }
            let count = if self.is_ending { left } else { (32 - lane).min(left) };
            let range = self.position..self.position + count;
            let result = match self.indexes {
                None => self.reader.decode_run(tables, table, lane, &mut self.out[range]),
                Some(indexes) => {
                    let (position, reader) = (self.position, &mut self.reader);
                    let out = &mut self.out[range.clone()];
                    Part::PerSymbol(&indexes[range]).for_each_run(count, |start, length, table| {
                        let lane = (position + start) % 32;
                        reader.decode_run(tables, table, lane, &mut out[start..start + length])
                    })
                }
            };
            self.error = result.err();
            self.position += count;
            self.stretch.0 -= count;
        }
    }

    /// The next `rounds` for a kernel; only after `prepare` said yes.
    fn segment<'t>(&'t mut self, tables: &'t DecodeTables, rounds: usize) -> Segment<'t, 'a> {
        let range = self.position..self.position + 32 * rounds;
        let bits = tables.probability_bits;
        let (entries, indexes) = match self.indexes {
            Some(indexes) => (tables.entries.as_slice(), Some(&indexes[range.clone()])),
            None => (&tables.entries[self.stretch.1 << bits..(self.stretch.1 + 1) << bits], None),
        };
        let reader = &mut self.reader;
        Segment {
            states: &mut reader.states,
            words: &mut reader.words,
            entries,
            indexes,
            out: &mut self.out[range],
        }
    }

    fn advance(&mut self, rounds: usize) {
        // A kernel that did nothing will do nothing again.
        self.is_ending |= rounds == 0;
        self.position += 32 * rounds;
        self.stretch.0 -= 32 * rounds;
    }

    fn finish(self) -> Result<()> {
        match self.error {
            Some(error) => Err(error),
            None => self.reader.finish(),
        }
    }
}

/// Decodes the same number of rounds in each segment and returns it: fewer than asked only where words run short.
fn rounds_of<const K: usize>(level: CpuLevel, bits: u32, segments: [Segment<'_, '_>; K]) -> usize {
    #[cfg(target_arch = "x86_64")]
    {
        if level == CpuLevel::Avx512
            && let Some(kernel) = super::avx512::Kernel::new()
        {
            return kernel.decode(segments, bits);
        }
        if let Some(kernel) = super::avx2::Kernel::new() {
            return kernel.decode(segments, bits);
        }
    }
    let _ = (level, bits, segments);
    0
}

/// Symbols to encode, as vector kernels take them.
#[derive(Clone, Copy)]
pub(super) struct EncodeSegment<'a> {
    /// The table of 256 entries; with `indexes` all tables.
    pub(super) entries: &'a [EncodeEntry],
    /// A table number per symbol.
    pub(super) indexes: Option<&'a [u8]>,
    /// First and last symbol that the one table can code.
    pub(super) span: (u8, u8),
    pub(super) bits: u32,
    pub(super) symbols: &'a [u8],
}

impl EncodeSegment<'_> {
    /// Whether every entry a kernel may gather exists: what its `unsafe` rests on.
    #[cfg(target_arch = "x86_64")]
    pub(super) fn stays_inside(&self) -> bool {
        let n_tables = match self.indexes {
            None => 1,
            Some(indexes) if indexes.len() != self.symbols.len() => return false,
            Some(indexes) => indexes.iter().copied().max().map_or(0, usize::from) + 1,
        };
        (8..=12).contains(&self.bits) && self.entries.len() >= 256 * n_tables
    }
}

/// Encodes with the kernel of `level`, which the machine must have; the payload is then in `writer`.
pub(super) fn encode_at(
    level: CpuLevel,
    symbols: &[u8],
    tables: &EncodeTables,
    part: &Part<'_>,
    writer: &mut Writer,
) -> Result<()> {
    if level == CpuLevel::Plain || writer.lanes() != Lanes::ThirtyTwo {
        return plain::encode(symbols, tables, part, writer);
    }
    writer.begin(symbols.len());
    let bits = tables.probability_bits;
    // Whatever a kernel refuses (a symbol of frequency zero) the plain coder reports.
    if let Part::PerSymbol(indexes) = *part {
        let plainly = |writer: &mut Writer, from: usize, to: usize| {
            Part::PerSymbol(&indexes[from..to]).for_each_run_reversed(to - from, |start, length, table| {
                let start = from + start;
                writer.encode_run(tables, table, start % 32, &symbols[start..start + length], start)
            })
        };
        let whole = symbols.len() / 32 * 32;
        plainly(writer, whole, symbols.len())?;
        let segment = EncodeSegment {
            entries: &tables.entries,
            indexes: Some(&indexes[..whole]),
            span: (0, 255),
            bits,
            symbols: &symbols[..whole],
        };
        let left = encode_rounds(level, writer, segment);
        plainly(writer, 0, left)?;
        writer.finish();
        return Ok(());
    }
    part.for_each_run_reversed(symbols.len(), |start, length, table| {
        let symbols = &symbols[start..start + length];
        let head = ((32 - start % 32) % 32).min(length);
        let whole = (length - head) / 32 * 32;
        let (front, tail) = symbols.split_at(head + whole);
        writer.encode_run(tables, table, 0, tail, start + head + whole)?;
        let entries = tables.entries.get(table * 256..(table + 1) * 256).unwrap_or(&[]);
        let span = tables.spans.get(table).copied().unwrap_or((0, 255));
        let segment = EncodeSegment { entries, indexes: None, span, bits, symbols: &front[head..] };
        let left = encode_rounds(level, writer, segment);
        writer.encode_run(tables, table, 0, &front[head..head + left], start + head)?;
        writer.encode_run(tables, table, start % 32, &front[..head], start)
    })?;
    writer.finish();
    Ok(())
}

/// Encodes whole rounds backwards; returns how many symbols at the front are left.
fn encode_rounds(level: CpuLevel, writer: &mut Writer, segment: EncodeSegment<'_>) -> usize {
    #[cfg(target_arch = "x86_64")]
    {
        if level == CpuLevel::Avx512
            && let Some(kernel) = super::avx512::Kernel::new()
        {
            return kernel.encode(writer, segment);
        }
        if let Some(kernel) = super::avx2::Kernel::new() {
            return kernel.encode(writer, segment);
        }
    }
    let _ = (level, writer);
    segment.symbols.len()
}
