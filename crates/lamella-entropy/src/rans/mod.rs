//! Interleaved rANS with static tables: entropy coding at the speed of memory.
//!
//! rANS keeps the message in a number `x`: coding a symbol of probability `f / 2^n` multiplies it by about `2^n / f`.
//! It is a **stack**: the encoder walks backwards so that the decoder walks forwards. Several independent states
//! (*lanes*) take turns, so that a processor works on many symbols at once; all words go to one stream.
//!
//! # Which coder
//! | data | coder |
//! |---|---|
//! | symbols from a few static tables, any size | **rANS** (this module): within 0.1 % of the entropy, fastest |
//! | probabilities that adapt from symbol to symbol | [`crate::range`]: as small, 10 to 30 times slower |
//! | geometric numbers, tiny budgets for code | [`crate::bits`] (Golomb, Rice, Elias): no table at all |
//! | tables with code lengths in whole bits | [`crate::huffman`]: up to 0.5 bit a symbol larger near certainty |
//! | incompressible or fixed-width codes | [`crate::bits`] packing |
//!
//! # Costs
//! One lane wastes about a byte, each lane of several two bytes; [`Lanes::for_payload`] keeps that below 0.3 %.
//! Worst case: a symbol of frequency 1 costs `probability_bits` bits, so output is at most 1.5 bytes a symbol.
//! Payloads of more than [`CHUNK_SYMBOLS`] symbols are coded in chunks that decode in parallel.
//!
//! # Layers of the interface
//! [`encode`] and [`decode`] choose table, precision and lanes themselves. [`encode_payload`] and [`decode_payload`]
//! take tables and say which symbol uses which ([`Assignment`]): one table, a run of symbols each (columns of a
//! matrix), or one per symbol (learned codecs).
//!
//! ```
//! use lamella_entropy::rans;
//! let symbols: Vec<u8> = (0..1000u32).map(|i| (i * i % 7) as u8).collect();
//! let bytes = rans::encode(&symbols)?;
//! assert_eq!(bytes.len(), 252); // 1.95 bits a symbol are 244 bytes; table and lengths take 8
//! assert_eq!(rans::decode(&bytes, symbols.len())?, symbols);
//! # Ok::<(), lamella_entropy::Error>(())
//! ```
//!
//! The bytes are defined in `plain.rs`; vector kernels give the same bytes and the same symbols.
//! Sources: J. Duda, "Asymmetric numeral systems" (arXiv 1311.2540); F. Giesen, "Interleaved entropy coders"
//! (arXiv 1402.3392).

mod assignment;
mod container;
mod joint;
mod kernel;
mod plain;
mod search;
mod table;

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(target_arch = "x86_64")]
mod avx512_search;

pub use assignment::{Assignment, Run};
pub use container::{decode, decode_into, encode};
pub use joint::{JointDecoder, JointPayload};
pub use table::{DecodeTables, EncodeTables};

use crate::error::{Error, Result, corrupt};
use crate::varint::{read_varint, take, write_varint};
use plain::Writer;
use rayon::prelude::*;

/// Symbols per chunk of a long payload.
pub const CHUNK_SYMBOLS: usize = 1 << 20;

/// How many coder states take turns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lanes {
    /// For payloads up to a few KiB: wastes about one byte.
    One,
    /// 16 bytes of states.
    Four,
    /// 32 bytes of states.
    Eight,
    /// 128 bytes of states; decoded by vector kernels.
    ThirtyTwo,
}

impl Lanes {
    /// All choices, in the order of their stored index.
    pub const ALL: [Self; 4] = [Self::One, Self::Four, Self::Eight, Self::ThirtyTwo];

    /// The number of states.
    pub fn count(self) -> usize {
        match self {
            Self::One => 1,
            Self::Four => 4,
            Self::Eight => 8,
            Self::ThirtyTwo => 32,
        }
    }

    /// The stored index, 0 to 3.
    pub fn index(self) -> u8 {
        match self {
            Self::One => 0,
            Self::Four => 1,
            Self::Eight => 2,
            Self::ThirtyTwo => 3,
        }
    }

    /// Most lanes whose states waste at most about 0.25 % of a payload of this size.
    pub fn for_payload(bytes: usize) -> Self {
        match bytes {
            0..4_000 => Self::One,
            4_000..12_000 => Self::Four,
            12_000..28_000 => Self::Eight,
            _ => Self::ThirtyTwo,
        }
    }
}

/// Codes symbols with given tables: lanes are chosen by the ideal size, long input is cut into chunks.
///
/// Layout: one byte with the lanes' index, then the chunks, each but the last after its length (varint). A payload of
/// one chunk thus costs one byte. Same input, same bytes, on any machine and any number of threads.
///
/// # Errors
/// [`Error::UncodableSymbol`] for a symbol of frequency zero in its table; [`Error::LengthMismatch`] and
/// [`Error::OutOfRange`] where the assignment does not fit symbols or tables.
pub fn encode_payload(symbols: &[u8], tables: &EncodeTables, assignment: &Assignment<'_>) -> Result<Vec<u8>> {
    assignment.check(symbols.len(), tables.count())?;
    let lanes = Lanes::for_payload(ideal_bytes(symbols, tables, assignment));
    let mut bytes = vec![lanes.index()];
    encode_chunks(&mut bytes, symbols, lanes, tables, assignment)?;
    Ok(bytes)
}

/// Room that [`append_payload`] works in; worth keeping from call to call.
#[derive(Default)]
pub struct Workspace {
    /// One writer for each choice of lanes.
    writers: [Option<Writer>; 4],
}

impl std::fmt::Debug for Workspace {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Workspace")
    }
}

/// Appends what [`encode_payload`] returns to `out`, and returns its length: for many payloads in a row.
///
/// # Errors
/// As [`encode_payload`]; `out` is then as it was.
pub fn append_payload(
    symbols: &[u8],
    tables: &EncodeTables,
    assignment: &Assignment<'_>,
    workspace: &mut Workspace,
    out: &mut Vec<u8>,
) -> Result<usize> {
    if symbols.len() > CHUNK_SYMBOLS {
        let payload = encode_payload(symbols, tables, assignment)?;
        out.extend_from_slice(&payload);
        return Ok(payload.len());
    }
    assignment.check(symbols.len(), tables.count())?;
    let lanes = Lanes::for_payload(ideal_bytes(symbols, tables, assignment));
    let writer = workspace.writers[usize::from(lanes.index())].get_or_insert_with(|| Writer::new(lanes));
    kernel::encode(symbols, tables, &assignment.whole(), writer)?;
    out.push(lanes.index());
    out.extend_from_slice(writer.payload());
    Ok(1 + writer.payload().len())
}

/// One of several payloads that are decoded side by side.
#[derive(Debug)]
pub struct PayloadJob<'a> {
    /// The whole payload.
    pub bytes: &'a [u8],
    /// Which table codes which symbol.
    pub assignment: Assignment<'a>,
    /// Where the symbols go.
    pub out: &'a mut [u8],
}

/// Decodes two payloads of the same tables, side by side where both are short and have many lanes: their chains of
/// dependent steps overlap, which is nearly twice as fast as one after the other.
///
/// # Errors
/// As [`decode_payload`], of the first that has one.
pub fn decode_pair(jobs: [PayloadJob<'_>; 2], tables: &DecodeTables) -> Result<()> {
    let is_joint = jobs.iter().all(|job| {
        job.bytes.first() == Some(&Lanes::ThirtyTwo.index()) && (1..=CHUNK_SYMBOLS).contains(&job.out.len())
    });
    if !is_joint {
        return jobs
            .into_iter()
            .try_for_each(|job| decode_payload(job.bytes, tables, &job.assignment, job.out));
    }
    for job in &jobs {
        job.assignment.check(job.out.len(), tables.count())?;
    }
    let mut jobs = jobs.map(|job| kernel::DecodeJob {
        payload: &job.bytes[1..],
        part: job.assignment.whole(),
        out: job.out,
    });
    kernel::decode(&mut jobs, Lanes::ThirtyTwo, tables)
}

/// Decodes exactly `out.len()` symbols from the whole of `bytes`; the caller has bounded the output.
///
/// # Errors
/// [`Error::Truncated`] or [`Error::Corrupt`] for bytes no encoder wrote (not every change is noticed: checksums are
/// the container's task); assignment errors as in [`encode_payload`]. `out` then holds garbage.
pub fn decode_payload(
    bytes: &[u8],
    tables: &DecodeTables,
    assignment: &Assignment<'_>,
    out: &mut [u8],
) -> Result<()> {
    assignment.check(out.len(), tables.count())?;
    let mut input = bytes;
    let head = take(&mut input, 1)?[0];
    let lanes = Lanes::ALL.get(usize::from(head)).copied().ok_or(corrupt("lane count"))?;
    decode_chunks(input, lanes, tables, assignment, out)
}

/// Sum of ideal code lengths, for choosing lanes; uncodable symbols count nothing here.
fn ideal_bytes(symbols: &[u8], tables: &EncodeTables, assignment: &Assignment<'_>) -> usize {
    // Most long payloads are clear from their front.
    let front = ideal_bytes_of_front(symbols, 1 << 13, tables, assignment);
    if front > 60_000 {
        return front;
    }
    // Beyond this many symbols only near-certain data stays under the largest threshold.
    ideal_bytes_of_front(symbols, 1 << 17, tables, assignment)
}

/// The same from at most `sample` symbols at the front.
fn ideal_bytes_of_front(
    symbols: &[u8],
    sample: usize,
    tables: &EncodeTables,
    assignment: &Assignment<'_>,
) -> usize {
    let sample = symbols.len().min(sample);
    let mut bits = 0u64;
    let _ = assignment.for_each_run(sample, |start, length, table| {
        let mut counts = [0u64; 256];
        for &symbol in &symbols[start..start + length] {
            counts[usize::from(symbol)] += 1;
        }
        for (entry, &count) in tables.entries[table * 256..].iter().zip(&counts) {
            if count > 0 && entry.frequency() > 0 {
                let length =
                    (tables.probability_bits << 16) - crate::models::log2_fixed(u64::from(entry.frequency()));
                bits = bits.saturating_add(count * u64::from(length));
            }
        }
        Ok(())
    });
    let bytes = (bits >> 19) as usize;
    if sample == 0 { 0 } else { (bytes as u128 * symbols.len() as u128 / sample as u128) as usize }
}

pub(crate) fn encode_chunks(
    bytes: &mut Vec<u8>,
    symbols: &[u8],
    lanes: Lanes,
    tables: &EncodeTables,
    assignment: &Assignment<'_>,
) -> Result<()> {
    let parts = assignment.split(symbols.len(), CHUNK_SYMBOLS);
    let chunks: Vec<&[u8]> = symbols.chunks(CHUNK_SYMBOLS).collect();
    // Batches keep the buffers few and warm; how many chunks one holds changes no byte.
    let batch = rayon::current_num_threads();
    let mut writers: Vec<Writer> = Vec::new();
    for (first, batch_chunks) in chunks.chunks(batch).enumerate().map(|(index, part)| (index * batch, part)) {
        writers.resize_with(batch_chunks.len().max(writers.len()), || Writer::new(lanes));
        let results: Vec<Result<()>> = batch_chunks
            .par_iter()
            .zip(&parts[first..])
            .zip(&mut writers)
            .map(|((chunk, part), writer)| kernel::encode(chunk, tables, part, writer))
            .collect();
        for (index, result) in (first..).zip(results) {
            result.map_err(|error| in_chunk(error, index))?;
            let payload = writers[index - first].payload();
            if index + 1 < chunks.len() {
                write_varint(bytes, payload.len() as u64);
            }
            bytes.extend_from_slice(payload);
        }
    }
    Ok(())
}

fn in_chunk(error: Error, index: usize) -> Error {
    match error {
        Error::UncodableSymbol { symbol, position } => {
            Error::UncodableSymbol { symbol, position: position + index * CHUNK_SYMBOLS }
        }
        other => other,
    }
}

pub(crate) fn decode_chunks(
    mut input: &[u8],
    lanes: Lanes,
    tables: &DecodeTables,
    assignment: &Assignment<'_>,
    out: &mut [u8],
) -> Result<()> {
    if out.is_empty() {
        return if input.is_empty() { Ok(()) } else { Err(corrupt("rans payload: bytes left over")) };
    }
    let count = out.len().div_ceil(CHUNK_SYMBOLS);
    // Every length takes a byte at least, so the list is bounded by the input.
    if count - 1 > input.len() {
        return Err(Error::Truncated { needed: count - 1, found: input.len() });
    }
    let mut payloads = Vec::with_capacity(count);
    for _ in 1..count {
        let length = usize::try_from(read_varint(&mut input)?).unwrap_or(usize::MAX);
        payloads.push(take(&mut input, length)?);
    }
    payloads.push(input);
    let parts = assignment.split(out.len(), CHUNK_SYMBOLS);
    let mut jobs: Vec<kernel::DecodeJob<'_>> = out
        .chunks_mut(CHUNK_SYMBOLS)
        .zip(parts)
        .zip(payloads)
        .map(|((out, part), payload)| kernel::DecodeJob { payload, part, out })
        .collect();
    // Two chunks at a time on one core: their chains of dependent loads overlap.
    let results: Vec<Result<()>> =
        jobs.par_chunks_mut(kernel::JOINT).map(|jobs| kernel::decode(jobs, lanes, tables)).collect();
    results.into_iter().collect()
}

/// Decodes one payload with every kernel this machine has and compares symbols and errors: for fuzzing.
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) fn assert_levels_agree(
    payload: &[u8],
    lanes: Lanes,
    tables: &DecodeTables,
    assignment: &Assignment<'_>,
    count: usize,
) {
    use crate::cpu::{CpuLevel, detected_level};
    let decode_at = |level| {
        let (mut first, mut second) = (vec![0; count], vec![0; count]);
        let part = assignment.whole();
        let mut jobs = [
            kernel::DecodeJob { payload, part, out: &mut first },
            kernel::DecodeJob { payload, part, out: &mut second },
        ];
        let result = kernel::decode_at(level, &mut jobs, lanes, tables);
        result.map(|()| {
            assert_eq!(first, second);
            first
        })
    };
    let expected = decode_at(CpuLevel::Plain);
    for level in [CpuLevel::Avx2, CpuLevel::Avx512] {
        if level <= detected_level() {
            assert_eq!(decode_at(level), expected);
        }
    }
    if count == 0 {
        return;
    }
    // Side by side and in parts, of one payload and of several.
    let bytes = [&[lanes.index()], payload].concat();
    for (streams, part) in [(1, 4096), (3, 97)] {
        let jointly = || {
            let payload = JointPayload { bytes: &bytes, assignment: *assignment, symbols: count };
            let mut decoder = JointDecoder::at(detected_level(), &vec![payload; streams], tables)?;
            let mut outs = vec![vec![0; count]; streams];
            for start in (0..count).step_by(part) {
                let end = (start + part).min(count);
                let mut parts: Vec<&mut [u8]> = outs.iter_mut().map(|out| &mut out[start..end]).collect();
                decoder.decode(&mut parts)?;
            }
            decoder.finish()?;
            Ok(outs)
        };
        assert_eq!(jointly(), expected.clone().map(|symbols| vec![symbols; streams]));
    }
}

#[cfg(test)]
mod tests;
