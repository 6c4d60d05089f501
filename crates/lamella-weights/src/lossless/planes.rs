//! An array as streams of bytes in blocks: what `exact` stores.
//!
//! # Stored form
//! After the byte that names the form ([`FORM_PLANES`]):
//!
//! ```text
//! varint   elements
//! u8       fields: 0 bytes; k + 1 float with k kept mantissa bits, then u16 window_start
//! streams  symbols (floats only), then the low planes from the lowest up: coding, tables, classes (stream.rs)
//! index    for each block: varint bytes of escapes; for each coded stream varint bytes of its data
//! blocks   for each block: symbols, escapes, head, low planes
//! ```
//!
//! A block is [`BLOCK_ELEMENTS`] elements; each decodes by itself. Every block has at least one byte in the index, so
//! that the number of elements, and with it what a decoder allocates, is bounded by the payload's length.

use std::ops::Range;

use lamella_codec::{ArraySpec, Dtype};
use lamella_entropy::rans::Workspace;
use lamella_entropy::varint::{read_varint, write_varint};
use rayon::prelude::*;

use super::StreamError;
use super::choice::{self, Choice};
use super::fields::{self, Fields, FloatFields, WINDOW, float_format};
use super::pages::zeros;
use super::stream::{BlockAssignment, Coding, Decoder, Encoder, Extent, take};

/// First byte of a payload of planes.
pub(crate) const FORM_PLANES: u8 = 0;

/// Elements of a block.
pub const BLOCK_ELEMENTS: usize = 1 << 18;

/// Blocks decoded side by side, at most.
const MOST_JOINT: usize = 4;

/// Elements that are decoded and put together at a time: a multiple of 32 that leaves the nearest cache half empty.
const PART: usize = 2048;

/// Rows and columns of an array as classes see them: the last axis is a row.
pub(crate) fn rows_and_columns(shape: &[usize], elements: usize) -> (usize, usize) {
    let columns = shape.last().copied().unwrap_or(1).max(1);
    (elements / columns, columns)
}

/// Codes an array's bytes without loss.
///
/// The same bytes at any number of threads.
///
/// # Errors
/// None for an array whose bytes fill its shape; the type leaves room.
pub fn encode(spec: &ArraySpec, bytes: &[u8]) -> Result<Vec<u8>, StreamError> {
    let payload = encode_chosen(spec, bytes, choice::choose(spec, bytes)?)?;
    let width = spec.dtype.size_bytes();
    if payload.len() <= bytes.len() + 16 + width {
        return Ok(payload);
    }
    // What was chosen by a sample, or what pays for escapes, can come out larger than the bytes themselves.
    let codings = (0..width).map(|_| Coding::Raw).collect();
    let raw = encode_chosen(spec, bytes, Choice { fields: Fields::Bytes { width }, codings })?;
    Ok(if raw.len() < payload.len() { raw } else { payload })
}

fn encode_chosen(spec: &ArraySpec, bytes: &[u8], choice: Choice) -> Result<Vec<u8>, StreamError> {
    let Choice { fields, codings } = choice;
    let width = spec.dtype.size_bytes();
    let elements = bytes.len() / width;
    let (_, columns) = rows_and_columns(&spec.shape, elements);
    let mut payload = vec![FORM_PLANES];
    write_varint(&mut payload, elements as u64);
    match fields {
        Fields::Bytes { .. } => payload.push(0),
        Fields::Float(fields) => {
            payload.push(1 + fields.kept_bits as u8);
            payload.extend_from_slice(&fields.window_start.to_le_bytes());
        }
    }
    for coding in &codings {
        coding.write(&mut payload)?;
    }
    let encoders = codings.iter().map(Encoder::new).collect::<Result<Vec<_>, _>>()?;
    let blocks: Vec<(usize, &[u8])> = bytes.chunks(BLOCK_ELEMENTS * width).enumerate().collect();
    // Batches bound the memory beside the output; their size changes no byte.
    let batch = (4 * rayon::current_num_threads()).min(blocks.len());
    let mut rooms: Vec<Room> = Vec::new();
    rooms.resize_with(batch, Room::default);
    let n_coded = encoders.iter().filter(|encoder| matches!(encoder, Encoder::Tables(..))).count();
    if blocks.len() == batch {
        // All blocks at once: no room for the whole has to be made before.
        code_batch(&fields, &encoders, &blocks, &mut rooms, columns)?;
        let lengths = rooms.iter().map(|room| room.lengths.len() + room.data.len()).sum();
        payload.reserve_exact(lengths);
        rooms.iter().for_each(|room| payload.extend_from_slice(&room.lengths));
        rooms.iter().for_each(|room| payload.extend_from_slice(&room.data));
        return Ok(payload);
    }
    // The index stands before the data and is known after it: nearly always it has this size.
    let expected = blocks.len() * (1 + 3 * n_coded);
    let start = payload.len() + expected;
    let mut index = Vec::with_capacity(expected);
    let mut whole = zeros(start + bytes.len() + bytes.len() / 8 + 64)?;
    let mut end = start;
    for batch in blocks.chunks(batch.max(1)) {
        let rooms = &mut rooms[..batch.len()];
        code_batch(&fields, &encoders, batch, rooms, columns)?;
        let size: usize = rooms.iter().map(|room| room.data.len()).sum();
        if whole.len() < end + size {
            whole.resize(end + size, 0);
        }
        let mut places = Vec::with_capacity(rooms.len());
        let mut free = &mut whole[end..];
        for room in rooms.iter() {
            index.extend_from_slice(&room.lengths);
            let (place, rest) = free.split_at_mut(room.data.len());
            places.push(place);
            free = rest;
        }
        places
            .into_par_iter()
            .zip(rooms.par_iter())
            .for_each(|(place, room)| place.copy_from_slice(&room.data));
        end += size;
    }
    whole.truncate(end);
    let head = payload.len() + index.len();
    if head == start {
        whole[..payload.len()].copy_from_slice(&payload);
        whole[payload.len()..start].copy_from_slice(&index);
        whole.shrink_to_fit();
        return Ok(whole);
    }
    payload.reserve_exact(index.len() + end - start);
    payload.extend_from_slice(&index);
    payload.extend_from_slice(&whole[start..]);
    Ok(payload)
}

/// Codes numbered blocks, each in its room.
fn code_batch(
    fields: &Fields,
    encoders: &[Encoder<'_>],
    blocks: &[(usize, &[u8])],
    rooms: &mut [Room],
    columns: usize,
) -> Result<(), StreamError> {
    blocks.par_iter().zip(rooms.par_iter_mut()).try_for_each(|(&(block, bytes), room)| {
        let length = bytes.len() / fields.width();
        let extent = Extent { columns, start: block * BLOCK_ELEMENTS, length };
        encode_block(fields, encoders, bytes, extent, room)
    })
}

/// What a block is coded in, used again for others.
#[derive(Default)]
struct Room {
    symbols: Vec<u8>,
    workspace: Workspace,
    lengths: Vec<u8>,
    data: Vec<u8>,
}

fn encode_block(
    fields: &Fields,
    encoders: &[Encoder<'_>],
    bytes: &[u8],
    extent: Extent,
    room: &mut Room,
) -> Result<(), StreamError> {
    let Room { symbols, workspace, lengths, data } = room;
    lengths.clear();
    data.clear();
    data.reserve(bytes.len());
    symbols.resize(extent.length, 0);
    let mut low = encoders;
    match fields {
        Fields::Bytes { .. } => write_varint(lengths, 0),
        Fields::Float(fields) => {
            fields.symbols(bytes, symbols);
            let escapes = fields.escapes(bytes, symbols);
            write_varint(lengths, escapes.len() as u64);
            if let [first, rest @ ..] = encoders {
                first.encode(symbols, extent, workspace, lengths, data)?;
                low = rest;
            }
            data.extend_from_slice(&escapes);
            if fields.head_bits() > 0 {
                fields.head(bytes, symbols);
                fields::pack(symbols, fields.head_bits(), data);
            }
        }
    }
    for (plane, encoder) in low.iter().enumerate() {
        match (fields, encoder) {
            (_, Encoder::Constant) => {}
            (Fields::Bytes { width: 1 }, _) => encoder.encode(bytes, extent, workspace, lengths, data)?,
            (Fields::Float(fields), Encoder::Raw) => {
                let start = data.len();
                data.resize(start + extent.length, 0);
                fields.low_plane(bytes, plane, &mut data[start..]);
            }
            _ => {
                fill_plane(fields, bytes, plane, symbols);
                encoder.encode(symbols, extent, workspace, lengths, data)?;
            }
        }
    }
    Ok(())
}

/// One low plane of any fields.
pub(crate) fn fill_plane(fields: &Fields, bytes: &[u8], plane: usize, out: &mut [u8]) {
    match fields {
        Fields::Bytes { width } => fields::byte_plane(bytes, *width, plane, out),
        Fields::Float(fields) => fields.low_plane(bytes, plane, out),
    }
}

/// A parsed payload: decodes whole, or block by block.
///
/// ```
/// use lamella_codec::{ArraySpec, Dtype};
/// use lamella_weights::lossless::{Planes, encode};
/// let spec = ArraySpec::new("w", vec![300_000], Dtype::U8);
/// let bytes: Vec<u8> = (0..300_000u32).map(|i| (i % 7) as u8).collect();
/// let payload = encode(&spec, &bytes)?;
/// let planes = Planes::parse(&spec, &payload)?;
/// assert_eq!(planes.n_blocks(), 2);
/// let second = planes.block_elements(1);
/// assert_eq!(planes.decode_block(1)?, bytes[second]);
/// # Ok::<(), lamella_weights::lossless::StreamError>(())
/// ```
pub struct Planes<'a> {
    fields: Fields,
    decoders: Vec<Decoder>,
    columns: usize,
    elements: usize,
    blocks: Vec<Block<'a>>,
}

/// The data of one block: symbols, escapes, head, low planes.
struct Block<'a> {
    escapes: &'a [u8],
    head: &'a [u8],
    streams: Vec<&'a [u8]>,
}

impl<'a> Planes<'a> {
    /// Reads everything but the blocks' data.
    ///
    /// # Errors
    /// A payload that does not fit the spec, is cut or contradicts itself.
    pub fn parse(spec: &ArraySpec, payload: &'a [u8]) -> Result<Self, StreamError> {
        let damaged = |message: String| StreamError::Damaged(message);
        let mut input = payload;
        let form = take(&mut input, 1)?[0];
        if form != FORM_PLANES {
            return Err(damaged(format!("form {form} is not known")));
        }
        let claimed = read_varint(&mut input)?;
        let elements = spec.checked_len().filter(|_| spec.checked_size_bytes().is_some());
        let elements = elements
            .filter(|&elements| elements as u64 == claimed)
            .ok_or_else(|| damaged(format!("it holds {claimed} elements of shape {:?}", spec.shape)))?;
        let n_blocks = elements.div_ceil(BLOCK_ELEMENTS);
        if n_blocks > input.len() {
            return Err(damaged(format!("{n_blocks} blocks cannot stand in {} bytes", input.len())));
        }
        let fields = read_fields(spec.dtype, &mut input)?;
        let (rows, columns) = rows_and_columns(&spec.shape, elements);
        let n_streams = usize::from(fields.has_symbols()) + fields.low_planes();
        let decoders = (0..n_streams)
            .map(|_| Decoder::read(&mut input, rows, columns))
            .collect::<Result<Vec<_>, _>>()?;
        if n_blocks > input.len() {
            return Err(damaged(format!("{n_blocks} blocks cannot stand in {} bytes", input.len())));
        }
        let n_coded = decoders.iter().filter(|decoder| decoder.is_coded()).count();
        let mut lengths = Vec::with_capacity(n_blocks);
        for _ in 0..n_blocks {
            let block = (0..=n_coded).map(|_| read_varint(&mut input)).collect::<Result<Vec<u64>, _>>()?;
            lengths.push(block);
        }
        let mut planes = Self { fields, decoders, columns, elements, blocks: Vec::with_capacity(n_blocks) };
        for (block, lengths) in lengths.iter().enumerate() {
            let block = planes.read_block(block, lengths, &mut input)?;
            planes.blocks.push(block);
        }
        if !input.is_empty() {
            return Err(damaged(format!("{} bytes are left over", input.len())));
        }
        Ok(planes)
    }

    fn read_block(
        &self,
        block: usize,
        lengths: &[u64],
        input: &mut &'a [u8],
    ) -> Result<Block<'a>, StreamError> {
        let count = self.block_length(block);
        let mut lengths = lengths.iter().copied();
        let n_escapes = lengths.next().unwrap_or(0);
        if !self.fields.has_symbols() && n_escapes > 0 {
            return Err(StreamError::Damaged("escapes without symbols".to_owned()));
        }
        let mut streams = Vec::with_capacity(self.decoders.len());
        let (mut escapes, mut head): (&[u8], &[u8]) = (&[], &[]);
        for (stream, decoder) in self.decoders.iter().enumerate() {
            let length = match decoder {
                Decoder::Raw => count as u64,
                Decoder::Constant(_) => 0,
                Decoder::Tables(..) => lengths.next().unwrap_or(0),
            };
            streams.push(take(input, length)?);
            if stream == 0 && self.fields.has_symbols() {
                escapes = take(input, n_escapes)?;
                head = take(input, fields::packed_bytes(count, self.fields.head_bits()) as u64)?;
            }
        }
        Ok(Block { escapes, head, streams })
    }

    /// Number of blocks.
    pub fn n_blocks(&self) -> usize {
        self.blocks.len()
    }

    fn block_length(&self, block: usize) -> usize {
        (self.elements - block * BLOCK_ELEMENTS).min(BLOCK_ELEMENTS)
    }

    /// The elements of a block: a half-open range; empty where there is no such block.
    pub fn block_elements(&self, block: usize) -> Range<usize> {
        let start = block.saturating_mul(BLOCK_ELEMENTS).min(self.elements);
        start..(start + BLOCK_ELEMENTS).min(self.elements)
    }

    /// The bytes of one block.
    ///
    /// # Errors
    /// Damaged data, or no such block.
    pub fn decode_block(&self, block: usize) -> Result<Vec<u8>, StreamError> {
        if block >= self.blocks.len() {
            return Err(StreamError::Damaged(format!(
                "there is no block {block}, only {}",
                self.blocks.len()
            )));
        }
        let mut out = zeros(self.block_length(block) * self.fields.width())?;
        self.decode_into(block, &mut out, &mut Vec::new())?;
        Ok(out)
    }

    /// The bytes of the whole array, blocks side by side.
    ///
    /// # Errors
    /// Damaged data, or more memory than there is.
    pub fn decode(&self) -> Result<Vec<u8>, StreamError> {
        let mut out = zeros(self.elements * self.fields.width())?;
        self.decode_to(&mut out)?;
        Ok(out)
    }

    /// Decodes into a buffer of the array's size in bytes.
    ///
    /// # Errors
    /// Damaged data, or a buffer of another size.
    pub fn decode_to(&self, out: &mut [u8]) -> Result<(), StreamError> {
        if out.len() != self.elements * self.fields.width() {
            return Err(StreamError::Damaged(format!("{} bytes do not hold the array", out.len())));
        }
        // A few blocks at a time: their coders' chains of dependent steps overlap.
        let group = (self.blocks.len() / rayon::current_num_threads().max(1)).clamp(1, MOST_JOINT);
        let size = BLOCK_ELEMENTS * self.fields.width();
        out.par_chunks_mut(group * size)
            .enumerate()
            .map_init(Vec::new, |scratch, (index, out)| self.decode_into(index * group, out, scratch))
            .collect::<Result<(), StreamError>>()
    }

    /// Decodes the blocks from this one on that fill `out`, part by part: symbols and heads are put together while
    /// they are in the nearest cache.
    fn decode_into(&self, first: usize, out: &mut [u8], scratch: &mut Vec<u8>) -> Result<(), StreamError> {
        let width = self.fields.width();
        let head_bits = self.fields.head_bits();
        let mut outs: Vec<&mut [u8]> = out.chunks_mut(BLOCK_ELEMENTS * width).collect();
        let n_blocks = outs.len();
        let blocks = &self.blocks[first..first + n_blocks];
        let extents: Vec<Extent> = (first..first + n_blocks)
            .map(|block| Extent {
                columns: self.columns,
                start: block * BLOCK_ELEMENTS,
                length: self.block_length(block),
            })
            .collect();
        let assignments: Vec<Vec<BlockAssignment>> =
            self.decoders.iter().map(|decoder| decoder.assignments(&extents)).collect();
        let mut coded = Vec::with_capacity(self.decoders.len());
        for (stream, (decoder, assignments)) in self.decoders.iter().zip(&assignments).enumerate() {
            let data: Vec<&[u8]> = blocks.iter().map(|block| block.streams[stream]).collect();
            coded.push(decoder.open(&data, &extents, assignments)?);
        }
        // Room for a part of each stream that does not lie as it is, of each block, and for a part of one head.
        scratch.resize((self.decoders.len() * n_blocks + 1) * PART, 0);
        let (head, rooms) = scratch.split_at_mut(PART);
        for (rooms, decoder) in rooms.chunks_mut(n_blocks * PART).zip(&self.decoders) {
            if let Decoder::Constant(byte) = decoder {
                rooms.fill(*byte);
            }
        }
        let mut escapes: Vec<&[u8]> = blocks.iter().map(|block| block.escapes).collect();
        for start in (0..extents[0].length).step_by(PART) {
            let part = |block: usize| extents[block].length.saturating_sub(start).min(PART);
            for (rooms, coded) in rooms.chunks_mut(n_blocks * PART).zip(&mut coded) {
                if let Some(coded) = coded {
                    let rooms = rooms.chunks_mut(PART).enumerate();
                    let mut parts: Vec<&mut [u8]> =
                        rooms.map(|(block, room)| &mut room[..part(block)]).collect();
                    coded.decode(&mut parts)?;
                }
            }
            for (index, block) in blocks.iter().enumerate() {
                let length = part(index);
                if length == 0 {
                    continue;
                }
                let mut planes: Vec<&[u8]> = Vec::with_capacity(self.decoders.len());
                for (stream, decoder) in self.decoders.iter().enumerate() {
                    planes.push(match decoder {
                        Decoder::Raw => &block.streams[stream][start..start + length],
                        _ => &rooms[(stream * n_blocks + index) * PART..][..length],
                    });
                }
                let head = if head_bits == 0 {
                    &[][..]
                } else {
                    let packed = &block.head[start / 8 * head_bits as usize..];
                    fields::unpack(packed, head_bits, &mut head[..length]);
                    &head[..length]
                };
                let out = &mut outs[index][start * width..(start + length) * width];
                if !self.join(&planes, head, &mut escapes[index], out) {
                    return Err(wrong_escapes(first + index));
                }
            }
        }
        coded.into_iter().flatten().try_for_each(|decoder| decoder.finish())?;
        match escapes.iter().position(|left| !left.is_empty()) {
            Some(block) => Err(wrong_escapes(first + block)),
            None => Ok(()),
        }
    }

    /// Puts planes together; false where escapes are missing.
    fn join(&self, planes: &[&[u8]], head: &[u8], escapes: &mut &[u8], out: &mut [u8]) -> bool {
        match (&self.fields, planes) {
            (Fields::Float(fields), [symbols, low @ ..]) => fields.join(symbols, head, low, escapes, out),
            _ => {
                fields::join_bytes(planes, self.fields.width(), out);
                true
            }
        }
    }
}

fn wrong_escapes(block: usize) -> StreamError {
    StreamError::Damaged(format!("block {block} has not one escape per escape symbol"))
}

fn read_fields(dtype: Dtype, input: &mut &[u8]) -> Result<Fields, StreamError> {
    let width = dtype.size_bytes();
    let kind = take(input, 1)?[0];
    if kind == 0 {
        return Ok(Fields::Bytes { width });
    }
    let kept_bits = u32::from(kind) - 1;
    match float_format(dtype) {
        Some((mantissa_bits, kept)) if kept.contains(&kept_bits) => {
            let start = take(input, 2)?;
            let window_start = u16::from_le_bytes([start[0], start[1]]);
            Ok(Fields::Float(FloatFields { width, mantissa_bits, kept_bits, window_start, window: WINDOW }))
        }
        _ => Err(StreamError::Damaged(format!("fields {kind} do not fit {}", dtype.name()))),
    }
}
