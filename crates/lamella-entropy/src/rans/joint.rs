//! Several payloads decoded side by side, a part at a time: symbols are used while they are in the nearest cache.

use super::assignment::{Assignment, Part};
use super::plain::Reader;
use super::table::DecodeTables;
use super::{CHUNK_SYMBOLS, Lanes, PayloadJob, decode_pair, decode_payload};
use crate::cpu::{CpuLevel, cpu_level};
use crate::error::{Error, Result, corrupt};

/// One of several payloads that are decoded side by side.
#[derive(Debug, Clone, Copy)]
pub struct JointPayload<'a> {
    /// The whole payload.
    pub bytes: &'a [u8],
    /// Which table codes which symbol.
    pub assignment: Assignment<'a>,
    /// Number of symbols.
    pub symbols: usize,
}

/// Decodes payloads of the same tables side by side, a part of each at a time.
///
/// Where the tables are small (at most 32 coded symbols each) and the machine has AVX-512, chains of dependent steps
/// of up to four payloads overlap, and only the symbols asked for are decoded. Elsewhere each payload is decoded whole
/// at the beginning and handed out in parts: the same symbols and, but for where in the sequence of calls they come, the
/// same errors.
#[derive(Debug)]
pub struct JointDecoder<'a> {
    tables: &'a DecodeTables,
    streams: Vec<Stream<'a>>,
}

/// Which table a round has: a number, or this where it has several.
const MIXED: u8 = u8::MAX;

#[derive(Debug)]
enum Stream<'a> {
    Searched(Searched<'a>),
    Whole { symbols: Vec<u8>, position: usize },
}

impl<'a> JointDecoder<'a> {
    /// Reads the beginnings of the payloads.
    ///
    /// # Errors
    /// As [`decode_payload`].
    pub fn new(payloads: &[JointPayload<'a>], tables: &'a DecodeTables) -> Result<Self> {
        Self::at(cpu_level(), payloads, tables)
    }

    pub(super) fn at(
        level: CpuLevel,
        payloads: &[JointPayload<'a>],
        tables: &'a DecodeTables,
    ) -> Result<Self> {
        let has_search = level == CpuLevel::Avx512
            && tables.searched().len() == tables.count()
            && tables.count() < usize::from(MIXED);
        let is_long = |payload: &JointPayload<'_>| {
            payload.bytes.first() == Some(&Lanes::ThirtyTwo.index())
                && (1..=CHUNK_SYMBOLS).contains(&payload.symbols)
                && !matches!(payload.assignment, Assignment::PerSymbol(_))
        };
        let mut streams = Vec::with_capacity(payloads.len());
        if has_search && payloads.iter().all(is_long) {
            for payload in payloads {
                payload.assignment.check(payload.symbols, tables.count())?;
                streams.push(Stream::Searched(Searched::new(payload)?));
            }
            return Ok(Self { tables, streams });
        }
        for payloads in payloads.chunks(2) {
            let mut outs: Vec<Vec<u8>> = payloads.iter().map(|payload| vec![0; payload.symbols]).collect();
            let mut jobs = payloads.iter().zip(&mut outs).map(|(payload, out)| PayloadJob {
                bytes: payload.bytes,
                assignment: payload.assignment,
                out,
            });
            match (jobs.next(), jobs.next()) {
                (Some(first), Some(second)) => decode_pair([first, second], tables)?,
                (Some(job), _) => decode_payload(job.bytes, tables, &job.assignment, job.out)?,
                _ => {}
            }
            streams.extend(outs.into_iter().map(|symbols| Stream::Whole { symbols, position: 0 }));
        }
        Ok(Self { tables, streams })
    }

    /// Decodes the next symbols of each payload, as many as its buffer holds.
    ///
    /// Fastest where all buffers hold the same multiple of 32.
    ///
    /// # Errors
    /// [`Error::LengthMismatch`] where buffers and payloads differ in number or a payload has not so many symbols left;
    /// else as [`decode_payload`].
    pub fn decode(&mut self, outs: &mut [&mut [u8]]) -> Result<()> {
        if outs.len() != self.streams.len() {
            let (found, expected) = (outs.len(), self.streams.len());
            return Err(Error::LengthMismatch { name: "buffers", found, expected });
        }
        let mut searched = Vec::with_capacity(outs.len());
        for (stream, out) in self.streams.iter_mut().zip(outs) {
            let left = match stream {
                Stream::Searched(stream) => stream.symbols - stream.position,
                Stream::Whole { symbols, position } => symbols.len() - *position,
            };
            if out.len() > left {
                return Err(Error::LengthMismatch { name: "symbols", found: out.len(), expected: left });
            }
            match stream {
                Stream::Searched(stream) => searched.push((stream, &mut **out)),
                Stream::Whole { symbols, position } => {
                    out.copy_from_slice(&symbols[*position..*position + out.len()]);
                    *position += out.len();
                }
            }
        }
        search(&mut searched, self.tables)
    }

    /// The checks that come free at the end: nothing is left, and all states are where the encoder began.
    ///
    /// # Errors
    /// As [`decode_payload`].
    pub fn finish(self) -> Result<()> {
        self.streams.into_iter().try_for_each(|stream| match stream {
            Stream::Searched(stream) => stream.reader.finish(),
            Stream::Whole { .. } => Ok(()),
        })
    }
}

/// A payload that a kernel searches.
#[derive(Debug)]
struct Searched<'a> {
    reader: Reader<'a>,
    /// The table of each whole round of 32 symbols.
    rounds: Vec<u8>,
    stretches: Stretches<'a>,
    symbols: usize,
    position: usize,
}

impl<'a> Searched<'a> {
    fn new(payload: &JointPayload<'a>) -> Result<Self> {
        let symbols = payload.symbols;
        let mut rounds = vec![0u8; symbols / 32];
        let stretches = match payload.assignment.whole() {
            Part::One(table) => {
                rounds.fill(table as u8);
                Stretches { rest: &[], current: (symbols, table) }
            }
            Part::Runs { runs, .. } => {
                let mut start = 0;
                for run in runs {
                    let end = start + run.length;
                    // Rounds wholly inside; those that the run shares with others are mixed.
                    let first = start.div_ceil(32).min(rounds.len());
                    let inside = first..(end / 32).max(first);
                    if start % 32 != 0 && start / 32 < rounds.len() {
                        rounds[start / 32] = MIXED;
                    }
                    if end % 32 != 0 && end / 32 < rounds.len() {
                        rounds[end / 32] = MIXED;
                    }
                    rounds[inside].fill(run.table as u8);
                    start = end;
                }
                let mut stretches = Stretches { rest: runs, current: (0, 0) };
                stretches.skip(0);
                stretches
            }
            // Never given.
            Part::PerSymbol(_) => return Err(corrupt("assignment")),
        };
        let reader = Reader::new(&payload.bytes[1..], Lanes::ThirtyTwo)?;
        Ok(Self { reader, rounds, stretches, symbols, position: 0 })
    }

    /// Decodes plainly up to the next whole round that a kernel may take, or to the end of `out`.
    fn plainly(&mut self, tables: &DecodeTables, out: &mut [u8], done: &mut usize) -> Result<()> {
        while *done < out.len() {
            // Where words run short no kernel may go on.
            let is_ending = self.reader.words.len() < 64;
            let lane = self.position % 32;
            let is_mixed = self.rounds.get(self.position / 32).is_none_or(|&table| table == MIXED);
            if !is_ending && lane == 0 && !is_mixed && out.len() - *done >= 32 {
                break;
            }
            let wanted = if is_ending { usize::MAX } else { 32 - lane };
            let (length, table) = self.stretches.current;
            let count = length.min(wanted).min(out.len() - *done);
            self.reader.decode_run(tables, table, lane, &mut out[*done..*done + count])?;
            self.advance(count);
            *done += count;
        }
        Ok(())
    }

    /// Decodes plainly whatever comes.
    fn rest(&mut self, tables: &DecodeTables, out: &mut [u8]) -> Result<()> {
        let mut done = 0;
        while done < out.len() {
            let (length, table) = self.stretches.current;
            let count = length.min(out.len() - done);
            self.reader.decode_run(tables, table, self.position % 32, &mut out[done..done + count])?;
            self.advance(count);
            done += count;
        }
        Ok(())
    }

    fn advance(&mut self, count: usize) {
        self.position += count;
        self.stretches.skip(count);
    }
}

/// Stretches of one table, from a position on.
#[derive(Debug)]
struct Stretches<'a> {
    rest: &'a [super::Run],
    /// What is left of the current one, not empty before the end, and its table.
    current: (usize, usize),
}

impl Stretches<'_> {
    fn skip(&mut self, mut count: usize) {
        while count >= self.current.0 {
            count -= self.current.0;
            let Some((run, rest)) = self.rest.split_first() else {
                self.current.0 = 0;
                return;
            };
            self.current = (run.length, run.table);
            self.rest = rest;
        }
        self.current.0 -= count;
    }
}

#[cfg(target_arch = "x86_64")]
fn search(streams: &mut [(&mut Searched<'_>, &mut [u8])], tables: &DecodeTables) -> Result<()> {
    use super::avx512_search::{Kernel, MOST_STREAMS, SearchSegment};
    let Some(kernel) = Kernel::new() else { return plainly(streams, tables) };
    for streams in streams.chunks_mut(MOST_STREAMS) {
        let mut done = [0usize; MOST_STREAMS];
        loop {
            let mut ready: Vec<(usize, SearchSegment<'_, '_>)> = Vec::with_capacity(MOST_STREAMS);
            for (index, ((stream, out), done)) in streams.iter_mut().zip(&mut done).enumerate() {
                stream.plainly(tables, out, done)?;
                let first = stream.position / 32;
                let most = (out.len() - *done) / 32;
                let rounds = &stream.rounds[first.min(stream.rounds.len())..];
                let rounds = &rounds[..most.min(rounds.len())];
                let rounds = rounds.split(|&table| table == MIXED).next().unwrap_or(&[]);
                if rounds.is_empty() {
                    continue;
                }
                let reader = &mut stream.reader;
                let out = &mut out[*done..*done + 32 * rounds.len()];
                let (states, words) = (&mut reader.states, &mut reader.words);
                ready.push((index, SearchSegment { states, words, rounds, out }));
            }
            let indexes: Vec<usize> = ready.iter().map(|(index, _)| *index).collect();
            let segments = ready.into_iter().map(|(_, segment)| segment).collect();
            let count = of_all(&kernel, segments, tables);
            if count == 0 {
                // No stream has a round left; what a kernel refuses is done plainly.
                for ((stream, out), done) in streams.iter_mut().zip(done) {
                    stream.rest(tables, &mut out[done..])?;
                }
                break;
            }
            for index in indexes {
                streams[index].0.advance(32 * count);
                done[index] += 32 * count;
            }
        }
    }
    Ok(())
}

/// The kernel for as many streams as there are.
#[cfg(target_arch = "x86_64")]
fn of_all(
    kernel: &super::avx512_search::Kernel,
    segments: Vec<super::avx512_search::SearchSegment<'_, '_>>,
    tables: &DecodeTables,
) -> usize {
    let (searched, bits) = (tables.searched(), tables.probability_bits);
    let segments = match <[_; 4]>::try_from(segments) {
        Ok(segments) => return kernel.decode(segments, searched, bits),
        Err(segments) => segments,
    };
    let segments = match <[_; 3]>::try_from(segments) {
        Ok(segments) => return kernel.decode(segments, searched, bits),
        Err(segments) => segments,
    };
    let segments = match <[_; 2]>::try_from(segments) {
        Ok(segments) => return kernel.decode(segments, searched, bits),
        Err(segments) => segments,
    };
    match <[_; 1]>::try_from(segments) {
        Ok(segments) => kernel.decode(segments, searched, bits),
        Err(_) => 0,
    }
}

#[cfg(not(target_arch = "x86_64"))]
fn search(streams: &mut [(&mut Searched<'_>, &mut [u8])], tables: &DecodeTables) -> Result<()> {
    plainly(streams, tables)
}

/// What is left of each stream's buffer, without a kernel.
fn plainly(streams: &mut [(&mut Searched<'_>, &mut [u8])], tables: &DecodeTables) -> Result<()> {
    streams.iter_mut().try_for_each(|(stream, out)| stream.rest(tables, out))
}
