//! Self-contained arrays of symbols: table, precision and lanes chosen here.

use super::table::{DecodeTables, EncodeTables};
use super::{Assignment, Lanes, decode_chunks, encode_chunks};
use crate::error::{Error, Result, corrupt};
use crate::models::header::{self, HeaderModel};
use crate::range::{RangeDecoder, RangeEncoder};
use crate::varint::{read_varint, take, write_varint};

const KIND_CODED: u8 = 0;
const KIND_CONSTANT: u8 = 1;
const KIND_STORED: u8 = 2;

/// Codes symbols with one table, chosen with its precision so that table and payload together are least.
///
/// Layout: byte 0 holds the kind (bits 0 and 1: coded, constant, stored), the lanes' index (bits 2 and 3) and the
/// probability bits minus 8 (bits 4 to 6). A coded array continues with the table (varint length, then the form of
/// [`crate::models::header`]) and the chunks of the payload. No symbols are no bytes; the number of symbols is not
/// stored. Output is never longer than the input plus one byte.
///
/// # Errors
/// None for any input; the type leaves room.
pub fn encode(symbols: &[u8]) -> Result<Vec<u8>> {
    let Some(&first) = symbols.first() else { return Ok(Vec::new()) };
    let counts = histogram(symbols);
    if counts[usize::from(first)] == symbols.len() as u64 {
        return Ok(vec![KIND_CONSTANT, first]);
    }
    let bits = precision_for(symbols.len());
    let fitted = header::fit(&counts, bits, None)?;
    let mut encoder = RangeEncoder::new();
    HeaderModel::new().write(&mut encoder, &fitted.exact, None, fitted.precision);
    let table = encoder.finish();
    let data_bytes = ((fitted.total_bits - fitted.header_bits) / 8.0) as usize;
    let mut bytes = Vec::with_capacity(table.len() + data_bytes + data_bytes / 64 + 256);
    if table.len() + data_bytes < symbols.len() {
        let lanes = Lanes::for_payload(data_bytes);
        bytes.push(KIND_CODED | lanes.index() << 2 | ((bits - 8) as u8) << 4);
        write_varint(&mut bytes, table.len() as u64);
        bytes.extend_from_slice(&table);
        let tables = EncodeTables::new(std::slice::from_ref(&fitted.frequencies))?;
        encode_chunks(&mut bytes, symbols, lanes, &tables, &Assignment::One(0))?;
        if bytes.len() <= symbols.len() {
            return Ok(bytes);
        }
    }
    bytes.clear();
    bytes.push(KIND_STORED);
    bytes.extend_from_slice(symbols);
    Ok(bytes)
}

/// Decodes `count` symbols; allocates that many bytes, which the caller has found acceptable.
///
/// # Errors
/// [`Error::Truncated`] or [`Error::Corrupt`] for bytes that [`encode`] does not write.
pub fn decode(bytes: &[u8], count: usize) -> Result<Vec<u8>> {
    let mut out = vec![0; count];
    decode_into(bytes, &mut out)?;
    Ok(out)
}

/// Decodes into a buffer of exactly the number of symbols; after an error it holds garbage.
///
/// # Errors
/// As [`decode`].
pub fn decode_into(bytes: &[u8], out: &mut [u8]) -> Result<()> {
    if out.is_empty() {
        return if bytes.is_empty() { Ok(()) } else { Err(corrupt("bytes left over")) };
    }
    let mut input = bytes;
    let head = take(&mut input, 1)?[0];
    match head & 3 {
        KIND_CONSTANT if input.len() == 1 && head == KIND_CONSTANT => {
            out.fill(input[0]);
            Ok(())
        }
        KIND_STORED if head == KIND_STORED => {
            if input.len() != out.len() {
                return Err(Error::LengthMismatch {
                    name: "stored symbols",
                    found: input.len(),
                    expected: out.len(),
                });
            }
            out.copy_from_slice(input);
            Ok(())
        }
        KIND_CODED => {
            let bits = 8 + u32::from(head >> 4);
            let lanes = Lanes::ALL[usize::from(head >> 2 & 3)];
            if bits > 12 {
                return Err(corrupt("probability bits"));
            }
            let length = usize::try_from(read_varint(&mut input)?).unwrap_or(usize::MAX);
            let mut decoder = RangeDecoder::new(take(&mut input, length)?);
            let frequencies = HeaderModel::new().read(&mut decoder, 256, bits, None)?;
            let tables = DecodeTables::new(&[frequencies])?;
            decode_chunks(input, lanes, &tables, &Assignment::One(0), out)
        }
        _ => Err(corrupt("kind of symbol array")),
    }
}

/// Short arrays need no more digits than their counts have, and coarse tables are shorter.
fn precision_for(symbols: usize) -> u32 {
    match symbols {
        0..256 => 8,
        256..1024 => 10,
        _ => 12,
    }
}

/// Counts of the 256 symbols.
///
/// Long input is counted in pairs of neighbours: half as many increments, and equal symbols rarely wait for each other.
pub(crate) fn histogram(symbols: &[u8]) -> [u64; 256] {
    let mut total = [0u64; 256];
    let (pairs, rest) =
        if symbols.len() < 1 << 20 { (&[][..], symbols) } else { symbols.split_at(symbols.len() & !7) };
    // 32-bit counts cannot overflow within a block.
    for block in pairs.chunks(1 << 32) {
        let mut counts = vec![0u32; 1 << 16];
        let Ok(counts) = <&mut [u32; 1 << 16]>::try_from(counts.as_mut_slice()) else { break };
        for eight in block.chunks_exact(8) {
            let mut word = [0; 8];
            word.copy_from_slice(eight);
            let word = u64::from_le_bytes(word);
            for shift in [0, 16, 32, 48] {
                let slot = &mut counts[usize::from((word >> shift) as u16)];
                *slot = slot.wrapping_add(1);
            }
        }
        for (pair, &count) in counts.iter().enumerate() {
            total[pair & 255] += u64::from(count);
            total[pair >> 8] += u64::from(count);
        }
    }
    for &symbol in rest {
        total[usize::from(symbol)] += 1;
    }
    total
}
