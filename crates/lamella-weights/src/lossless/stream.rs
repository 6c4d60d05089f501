//! One stream of bytes of an array: as it is, one repeated byte, or coded under one table or a table per class of rows
//! or columns.
//!
//! Rows and columns of a weight matrix differ in scale, so a table each would fit them best and cost most. They are
//! sorted by their mean symbol into up to [`MAX_CLASSES`] classes of equal size; classes are kept where they pay for
//! their tables.

use lamella_entropy::models::Frequencies;
use lamella_entropy::models::header::{self, FittedTable, HeaderModel};
use lamella_entropy::range::{RangeDecoder, RangeEncoder};
use lamella_entropy::rans::{
    self, Assignment, DecodeTables, EncodeTables, JointDecoder, JointPayload, Run, Workspace,
};
use lamella_entropy::varint::{read_varint, write_varint};
use rayon::prelude::*;

use super::StreamError;

/// Most classes of rows or columns.
pub(crate) const MAX_CLASSES: usize = 16;

const RAW: u8 = 0;
const CONSTANT: u8 = 1;
const ONE_TABLE: u8 = 2;
const ROW_CLASSES: u8 = 3;
const COLUMN_CLASSES: u8 = 4;

/// Counts of the 256 byte values.
pub(crate) type Counts = [u64; 256];

/// Adds the bytes to `counts`.
pub(crate) fn count(bytes: &[u8], counts: &mut Counts) {
    // Four histograms: equal neighbours then rarely wait for each other. A block holds fewer than 2^32 bytes.
    let mut parts = [[0u32; 256]; 4];
    let (fours, rest) = bytes.as_chunks::<4>();
    for four in fours {
        for (part, &byte) in parts.iter_mut().zip(four) {
            part[usize::from(byte)] = part[usize::from(byte)].wrapping_add(1);
        }
    }
    for &byte in rest {
        counts[usize::from(byte)] += 1;
    }
    for part in &parts {
        for (sum, &count) in counts.iter_mut().zip(part) {
            *sum += u64::from(count);
        }
    }
}

/// Which table codes which element.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Classes {
    /// One table.
    One,
    /// The class of each row.
    Rows(Vec<u8>),
    /// The class of each column.
    Columns(Vec<u8>),
}

/// How a stream is coded.
#[derive(Debug, Clone)]
pub(crate) enum Coding {
    /// As it is.
    Raw,
    /// One repeated byte.
    Constant(u8),
    /// Under tables of one precision, one for each class.
    Tables(Vec<FittedTable>, Classes),
}

/// Short streams need no more digits than their counts have.
fn precision_for(symbols: u64) -> u32 {
    match symbols {
        0..256 => 8,
        256..1024 => 10,
        _ => 12,
    }
}

impl Coding {
    /// The best coding of a stream with these counts for each class (one: no classes), and its bits.
    ///
    /// # Errors
    /// None for any counts; the type leaves room.
    pub(crate) fn choose(counts: &[Counts], classes: Classes) -> Result<(Self, f64), StreamError> {
        let mut total = [0u64; 256];
        for counts in counts {
            total.iter_mut().zip(counts).for_each(|(sum, &count)| *sum += count);
        }
        let n: u64 = total.iter().sum();
        let raw = (Self::Raw, 8.0 * n as f64);
        if let Some(byte) = total.iter().position(|&count| count == n && n > 0) {
            return Ok((Self::Constant(byte as u8), 8.0));
        }
        if n < 16 {
            return Ok(raw);
        }
        let bits = precision_for(n);
        let (mut tables, mut cost) = (Vec::new(), 0.0);
        let fitted = counts.par_iter().map(|counts| {
            // A class without elements still has a table: that of the whole stream.
            let counts = if counts.iter().all(|&count| count == 0) { &total } else { counts };
            // Symbols beyond the last take time and no bits; one more, as a lone symbol lends to the one after it.
            let last = counts.iter().rposition(|&count| count > 0).unwrap_or(0);
            header::fit(&counts[..(last + 2).min(256)], bits, None)
        });
        for fitted in fitted.collect::<Vec<_>>() {
            let fitted = fitted?;
            cost += fitted.total_bits;
            tables.push(fitted);
        }
        let class_bytes = match &classes {
            Classes::One => 0,
            Classes::Rows(classes) | Classes::Columns(classes) => rans::encode(classes)?.len() + 4,
        };
        cost += 8.0 * class_bytes as f64 + 24.0;
        if cost >= raw.1 * 0.999 {
            return Ok(raw);
        }
        Ok((Self::Tables(tables, classes), cost))
    }

    /// Writes everything but the data.
    ///
    /// # Errors
    /// None for what [`Coding::choose`] made.
    pub(crate) fn write(&self, out: &mut Vec<u8>) -> Result<(), StreamError> {
        let (tables, classes) = match self {
            Self::Raw => {
                out.push(RAW);
                return Ok(());
            }
            Self::Constant(byte) => {
                out.extend_from_slice(&[CONSTANT, *byte]);
                return Ok(());
            }
            Self::Tables(tables, classes) => (tables, classes),
        };
        let bits = tables.first().map_or(12, |table| table.frequencies.probability_bits());
        let mode = match classes {
            Classes::One => ONE_TABLE,
            Classes::Rows(_) => ROW_CLASSES,
            Classes::Columns(_) => COLUMN_CLASSES,
        };
        out.push(mode | ((bits - 8) as u8) << 4);
        if let Classes::Rows(classes) | Classes::Columns(classes) = classes {
            out.push(tables.len() as u8);
            let coded = rans::encode(classes)?;
            write_varint(out, coded.len() as u64);
            out.extend_from_slice(&coded);
        }
        write_tables(tables, out);
        Ok(())
    }
}

/// Writes tables after their length; later ones cost less.
pub(crate) fn write_tables(tables: &[FittedTable], out: &mut Vec<u8>) {
    let (mut encoder, mut model) = (RangeEncoder::new(), HeaderModel::new());
    for table in tables {
        model.write(&mut encoder, &table.exact, None, table.precision);
    }
    let coded = encoder.finish();
    write_varint(out, coded.len() as u64);
    out.extend_from_slice(&coded);
}

/// Tables laid out for encoding.
///
/// # Errors
/// Tables of different precision.
pub(crate) fn encode_tables(tables: &[FittedTable]) -> Result<EncodeTables, StreamError> {
    let tables: Vec<Frequencies> = tables.iter().map(|table| table.frequencies.clone()).collect();
    Ok(EncodeTables::new(&tables)?)
}

/// Reads tables.
///
/// # Errors
/// Bytes that make no tables.
pub(crate) fn read_tables(
    input: &mut &[u8],
    count: usize,
    bits: u32,
) -> Result<Vec<Frequencies>, StreamError> {
    let length = read_varint(input)?;
    let mut decoder = RangeDecoder::new(take(input, length)?);
    let mut model = HeaderModel::new();
    (0..count).map(|_| Ok(model.read(&mut decoder, 256, bits, None)?)).collect()
}

/// A part of the input.
///
/// # Errors
/// Fewer bytes than asked for.
pub(crate) fn take<'a>(input: &mut &'a [u8], length: u64) -> Result<&'a [u8], StreamError> {
    let found = input.len();
    let split = usize::try_from(length).ok().and_then(|length| input.split_at_checked(length));
    let (part, rest) = split.ok_or_else(|| {
        StreamError::Damaged(format!("it ends early: {length} bytes needed, {found} found"))
    })?;
    *input = rest;
    Ok(part)
}

/// Memory for `length` bytes, or an error.
///
/// # Errors
/// [`StreamError::Memory`].
pub(crate) fn reserve(bytes: &mut Vec<u8>, length: usize) -> Result<(), StreamError> {
    bytes.try_reserve_exact(length).map_err(|_| StreamError::Memory { bytes: length as u64 })
}

/// Which elements of a block belong to which class.
pub(crate) struct BlockAssignment {
    runs: Vec<Run>,
    indexes: Vec<u8>,
    kind: u8,
}

impl BlockAssignment {
    /// For the elements `start..start + length` of an array with `columns` columns.
    pub(crate) fn new(classes: &Classes, columns: usize, start: usize, length: usize) -> Self {
        let mut assignment = Self { runs: Vec::new(), indexes: Vec::new(), kind: ONE_TABLE };
        match classes {
            Classes::One => {}
            Classes::Rows(classes) => {
                assignment.kind = ROW_CLASSES;
                let mut position = start;
                while position < start + length {
                    let row = position / columns;
                    let end = ((row + 1) * columns).min(start + length);
                    let (run, table) = (end - position, usize::from(classes[row]));
                    match assignment.runs.last_mut() {
                        Some(last) if last.table == table => last.length += run,
                        _ => assignment.runs.push(Run { length: run, table }),
                    }
                    position = end;
                }
            }
            Classes::Columns(classes) => {
                assignment.kind = COLUMN_CLASSES;
                assignment.indexes.reserve_exact(length);
                let mut column = start % columns;
                while assignment.indexes.len() < length {
                    let count = (columns - column).min(length - assignment.indexes.len());
                    assignment.indexes.extend_from_slice(&classes[column..column + count]);
                    column = 0;
                }
            }
        }
        assignment
    }

    fn get(&self) -> Assignment<'_> {
        match self.kind {
            ROW_CLASSES => Assignment::Runs(&self.runs),
            COLUMN_CLASSES => Assignment::PerSymbol(&self.indexes),
            _ => Assignment::One(0),
        }
    }
}

/// Where a block lies.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Extent {
    /// Columns of the array.
    pub(crate) columns: usize,
    /// First element.
    pub(crate) start: usize,
    /// Number of elements.
    pub(crate) length: usize,
}

/// A coding with its tables laid out for encoding.
pub(crate) enum Encoder<'a> {
    /// Stored as it is.
    Raw,
    /// Not stored.
    Constant,
    /// Coded.
    Tables(EncodeTables, &'a Classes),
}

impl<'a> Encoder<'a> {
    /// Lays out the tables.
    ///
    /// # Errors
    /// None for what [`Coding::choose`] made.
    pub(crate) fn new(coding: &'a Coding) -> Result<Self, StreamError> {
        Ok(match coding {
            Coding::Raw => Self::Raw,
            Coding::Constant(_) => Self::Constant,
            Coding::Tables(tables, classes) => Self::Tables(encode_tables(tables)?, classes),
        })
    }

    /// Appends a block's data to `out` and, where its length is not known beforehand, the length to `lengths`.
    ///
    /// # Errors
    /// A symbol that was not counted.
    pub(crate) fn encode(
        &self,
        symbols: &[u8],
        extent: Extent,
        workspace: &mut Workspace,
        lengths: &mut Vec<u8>,
        out: &mut Vec<u8>,
    ) -> Result<(), StreamError> {
        match self {
            Self::Constant => {}
            Self::Raw => out.extend_from_slice(symbols),
            Self::Tables(tables, classes) => {
                let assignment = BlockAssignment::new(classes, extent.columns, extent.start, extent.length);
                let length = rans::append_payload(symbols, tables, &assignment.get(), workspace, out)?;
                write_varint(lengths, length as u64);
            }
        }
        Ok(())
    }
}

/// A coding with its tables laid out for decoding.
pub(crate) enum Decoder {
    /// Stored as it is.
    Raw,
    /// This byte.
    Constant(u8),
    /// Coded.
    Tables(DecodeTables, Classes),
}

impl Decoder {
    /// Reads what [`Coding::write`] wrote, for a stream of `rows` times `columns` elements.
    ///
    /// # Errors
    /// Bytes that contradict themselves.
    pub(crate) fn read(input: &mut &[u8], rows: usize, columns: usize) -> Result<Self, StreamError> {
        let head = take(input, 1)?[0];
        let (mode, bits) = (head & 15, 8 + u32::from(head >> 4));
        match mode {
            RAW if bits == 8 => Ok(Self::Raw),
            CONSTANT if bits == 8 => Ok(Self::Constant(take(input, 1)?[0])),
            ONE_TABLE if bits <= 12 => {
                Ok(Self::Tables(DecodeTables::new(&read_tables(input, 1, bits)?)?, Classes::One))
            }
            ROW_CLASSES | COLUMN_CLASSES if bits <= 12 => {
                let n_tables = usize::from(take(input, 1)?[0]);
                let n_classes = if mode == ROW_CLASSES { rows } else { columns };
                let length = read_varint(input)?;
                let mut classes = Vec::new();
                reserve(&mut classes, n_classes)?;
                classes.resize(n_classes, 0);
                rans::decode_into(take(input, length)?, &mut classes)?;
                if classes.iter().any(|&class| usize::from(class) >= n_tables) || n_tables > MAX_CLASSES {
                    return Err(StreamError::Damaged("a class without a table".to_owned()));
                }
                let tables = DecodeTables::new(&read_tables(input, n_tables, bits)?)?;
                let classes =
                    if mode == ROW_CLASSES { Classes::Rows(classes) } else { Classes::Columns(classes) };
                Ok(Self::Tables(tables, classes))
            }
            _ => Err(StreamError::Damaged(format!("stream coding {head} is not known"))),
        }
    }

    /// Whether each block's data has a length of its own.
    pub(crate) fn is_coded(&self) -> bool {
        matches!(self, Self::Tables(..))
    }

    /// Decodes blocks side by side, a part at a time; `None` where nothing is coded.
    ///
    /// # Errors
    /// Data no encoder wrote.
    pub(crate) fn open<'d>(
        &'d self,
        data: &[&'d [u8]],
        extents: &[Extent],
        assignments: &'d [BlockAssignment],
    ) -> Result<Option<JointDecoder<'d>>, StreamError> {
        let Self::Tables(tables, _) = self else { return Ok(None) };
        let payloads: Vec<JointPayload<'d>> = data
            .iter()
            .zip(extents)
            .zip(assignments)
            .map(|((bytes, extent), assignment)| JointPayload {
                bytes,
                assignment: assignment.get(),
                symbols: extent.length,
            })
            .collect();
        Ok(Some(JointDecoder::new(&payloads, tables)?))
    }

    /// What [`Decoder::open`] needs to know of each block.
    pub(crate) fn assignments(&self, extents: &[Extent]) -> Vec<BlockAssignment> {
        let Self::Tables(_, classes) = self else { return Vec::new() };
        let assign =
            |extent: &Extent| BlockAssignment::new(classes, extent.columns, extent.start, extent.length);
        extents.iter().map(assign).collect()
    }
}
