//! **The definition of the bytes**, in safe code written to be read. The vector kernels must agree with it.
//!
//! # One payload
//! Lane `i mod L` codes symbol `i`. A lane is a 32-bit state `x`. To *decode* a symbol with `n`-bit tables: the slot is
//! `x mod 2^n`; its entry names symbol, frequency `f` and offset `o`; the new state is `f * (x >> n) + o`; where that is
//! below `2^16` it becomes `x << 16 | word` with the next 16-bit little-endian word of the payload.
//!
//! *Several lanes*: the payload starts with the `L` states (32 bits, little-endian), then the words. Encoding starts
//! with all states at `2^16`, so after decoding every state must be `2^16` and all words read: a check for free.
//!
//! *One lane* serves small payloads and pays for nothing: encoding starts with the state 0, and a state below `2^16`
//! stays as it is when no words are left. The payload starts with the state, 4 bytes where at least one word follows,
//! else only its lowest bytes up to the last that is not zero. After decoding the state must be 0.
//!
//! *Encoding* runs backwards over the symbols: while `x >= f << (32 - n)` the low 16 bits go out as a word, in front of
//! those already written, and `x` is shifted down; then `x` becomes `((x / f) << n) + (x mod f) + cumulative`.

use super::Lanes;
use super::assignment::Part;
use super::table::{DecodeTables, EncodeEntry, EncodeTables};
use crate::error::{Error, Result, corrupt};

/// States below this take in a word.
pub(super) const LOW: u32 = 1 << 16;

/// Decoder states and the words not yet read.
#[derive(Debug)]
pub(super) struct Reader<'a> {
    pub(super) states: [u32; 32],
    pub(super) words: &'a [u8],
    pub(super) lanes: Lanes,
}

impl<'a> Reader<'a> {
    pub(super) fn new(payload: &'a [u8], lanes: Lanes) -> Result<Self> {
        let mut states = [0u32; 32];
        if lanes == Lanes::One {
            let (head, words) = payload.split_at(payload.len().min(4));
            for (index, &byte) in head.iter().enumerate() {
                states[0] |= u32::from(byte) << (8 * index);
            }
            return Ok(Self { states, words, lanes });
        }
        let needed = 4 * lanes.count();
        if payload.len() < needed {
            return Err(Error::Truncated { needed, found: payload.len() });
        }
        let (head, words) = payload.split_at(needed);
        for (state, bytes) in states.iter_mut().zip(head.chunks_exact(4)) {
            *state = u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
        }
        Ok(Self { states, words, lanes })
    }

    /// The checks that come free: all words read, all states back where the encoder began.
    pub(super) fn finish(&self) -> Result<()> {
        let initial = if self.lanes == Lanes::One { 0 } else { LOW };
        if !self.words.is_empty() {
            return Err(corrupt("rans payload: words left over"));
        }
        if self.states[..self.lanes.count()].iter().any(|&state| state != initial) {
            return Err(corrupt("rans payload: final state"));
        }
        Ok(())
    }

    /// Decodes `out` with one table, the first symbol going to lane `lane`.
    pub(super) fn decode_run(
        &mut self,
        tables: &DecodeTables,
        table: usize,
        lane: usize,
        out: &mut [u8],
    ) -> Result<()> {
        let bits = tables.probability_bits;
        let entries = &tables.entries[table << bits..(table + 1) << bits];
        match self.lanes {
            Lanes::One => self.run::<1>(entries, bits, lane, out),
            Lanes::Four => self.run::<4>(entries, bits, lane, out),
            Lanes::Eight => self.run::<8>(entries, bits, lane, out),
            Lanes::ThirtyTwo => self.run::<32>(entries, bits, lane, out),
        }
    }

    fn run<const L: usize>(&mut self, entries: &[u32], bits: u32, lane: usize, out: &mut [u8]) -> Result<()> {
        // Up to the first lane one by one, then whole rounds while a round cannot run out of words, then the rest.
        let head = ((L - lane % L) % L).min(out.len());
        let (first, rest) = out.split_at_mut(head);
        self.careful::<L>(entries, bits, lane, first)?;
        let rounds = if L == 1 { 0 } else { rest.len() / L };
        let mut done = 0;
        let mut states = [0u32; L];
        states.copy_from_slice(&self.states[..L]);
        let mut words = self.words;
        let mask = entries.len() - 1;
        for round in rest.chunks_exact_mut(L).take(rounds) {
            let Some(window) = words.get(..2 * L) else { break };
            let mut used = 0usize;
            for (state, symbol) in states.iter_mut().zip(round.iter_mut()) {
                let entry = entries[*state as usize & mask];
                *symbol = entry as u8;
                let x = (entry >> 8 & 0xfff).wrapping_mul(*state >> bits).wrapping_add(entry >> 20);
                // Without a branch: which lanes are low is as good as random.
                let place = used & (2 * L - 2);
                let word = u32::from(u16::from_le_bytes([window[place], window[place | 1]]));
                let is_low = u32::from(x < LOW);
                *state = x << (16 * is_low) | (word & is_low.wrapping_neg());
                used = used.wrapping_add(2 * is_low as usize);
            }
            words = &words[used.min(2 * L)..];
            done += L;
        }
        self.states[..L].copy_from_slice(&states);
        self.words = words;
        self.careful::<L>(entries, bits, 0, &mut rest[done..])
    }

    fn careful<const L: usize>(
        &mut self,
        entries: &[u32],
        bits: u32,
        lane: usize,
        out: &mut [u8],
    ) -> Result<()> {
        let mask = (1u32 << bits) - 1;
        let mut lane = lane % L;
        for symbol in out {
            let state = self.states[lane];
            let entry = entries[(state & mask) as usize];
            *symbol = entry as u8;
            let mut x = (entry >> 8 & 0xfff).wrapping_mul(state >> bits).wrapping_add(entry >> 20);
            if x < LOW {
                match self.words {
                    [low, high, rest @ ..] => {
                        x = x << 16 | u32::from(u16::from_le_bytes([*low, *high]));
                        self.words = rest;
                    }
                    _ if L == 1 => {}
                    rest => return Err(Error::Truncated { needed: 2, found: rest.len() }),
                }
            }
            self.states[lane] = x;
            lane += 1;
            if lane == L {
                lane = 0;
            }
        }
        Ok(())
    }
}

/// Encoder states and the words written so far, in a buffer filled from its end; reused from chunk to chunk.
pub(super) struct Writer {
    pub(super) states: [u32; 32],
    pub(super) buffer: Vec<u8>,
    /// First byte in use.
    pub(super) start: usize,
    lanes: Lanes,
}

impl Writer {
    pub(super) fn new(lanes: Lanes) -> Self {
        Self { states: [0; 32], buffer: Vec::new(), start: 0, lanes }
    }

    pub(super) fn lanes(&self) -> Lanes {
        self.lanes
    }

    /// Forgets what was written and makes room for `symbols` more.
    pub(super) fn begin(&mut self, symbols: usize) {
        self.states = [if self.lanes == Lanes::One { 0 } else { LOW }; 32];
        // A symbol costs at most `probability_bits` <= 12 bits, thus less than one word; states come on top.
        let size = 2 * symbols + 4 * self.lanes.count();
        if self.buffer.len() < size {
            self.buffer = vec![0; size];
        }
        self.start = self.buffer.len();
    }

    /// The payload after [`Writer::finish`].
    pub(super) fn payload(&self) -> &[u8] {
        &self.buffer[self.start..]
    }

    /// Encodes `symbols` backwards with one table; the first of them belongs to lane `lane` and has this position.
    pub(super) fn encode_run(
        &mut self,
        tables: &EncodeTables,
        table: usize,
        lane: usize,
        symbols: &[u8],
        position: usize,
    ) -> Result<()> {
        let Some(Ok(entries)) = tables.entries.get(256 * table..256 * (table + 1)).map(<&[_; 256]>::try_from)
        else {
            return Err(corrupt("table index"));
        };
        let bits = tables.probability_bits;
        match self.lanes {
            Lanes::One => self.run::<1>(entries, bits, lane, symbols, position),
            Lanes::Four => self.run::<4>(entries, bits, lane, symbols, position),
            Lanes::Eight => self.run::<8>(entries, bits, lane, symbols, position),
            Lanes::ThirtyTwo => self.run::<32>(entries, bits, lane, symbols, position),
        }
    }

    fn run<const L: usize>(
        &mut self,
        entries: &[EncodeEntry; 256],
        bits: u32,
        lane: usize,
        symbols: &[u8],
        position: usize,
    ) -> Result<()> {
        let mut states = [0u32; L];
        states.copy_from_slice(&self.states[..L]);
        // Backwards: what is left of the last round, whole rounds, what is there of the first.
        let head = ((L - lane % L) % L).min(symbols.len());
        let (first, rest) = symbols.split_at(head);
        let whole = rest.len() / L * L;
        let (rounds, last) = rest.split_at(whole);
        self.stretch(entries, bits, &mut states[..last.len()], last, position + head + whole)?;
        for (index, round) in rounds.chunks_exact(L).enumerate().rev() {
            self.stretch(entries, bits, &mut states, round, position + head + L * index)?;
        }
        let lane = lane % L;
        self.stretch(entries, bits, &mut states[lane..lane + head], first, position)?;
        self.states[..L].copy_from_slice(&states);
        Ok(())
    }

    /// At most one round: a symbol for each of these lanes, the last lane first.
    #[inline(always)]
    fn stretch(
        &mut self,
        entries: &[EncodeEntry; 256],
        bits: u32,
        states: &mut [u32],
        symbols: &[u8],
        position: usize,
    ) -> Result<()> {
        let complement = 1u32 << bits;
        let mut start = self.start;
        for (index, (state, &symbol)) in states.iter_mut().zip(symbols).enumerate().rev() {
            let entry = entries[usize::from(symbol)];
            let frequency = entry.frequency();
            if frequency == 0 {
                return Err(Error::UncodableSymbol { symbol: u32::from(symbol), position: position + index });
            }
            let mut x = *state;
            // Written in any case and kept only where the state is full: cheaper than a branch that is often wrong.
            let is_full = x >> (32 - bits) >= frequency;
            self.buffer[start - 2..start].copy_from_slice(&(x as u16).to_le_bytes());
            start -= 2 * usize::from(is_full);
            x >>= 16 * u32::from(is_full);
            let quotient = entry.divide(x);
            *state = x
                .wrapping_add(quotient.wrapping_mul(complement - frequency))
                .wrapping_add(entry.cumulative());
        }
        self.start = start;
        Ok(())
    }

    /// Puts the states in front of the words.
    pub(super) fn finish(&mut self) {
        let has_words = self.start < self.buffer.len();
        for lane in (0..self.lanes.count()).rev() {
            self.start -= 4;
            self.buffer[self.start..self.start + 4].copy_from_slice(&self.states[lane].to_le_bytes());
        }
        if self.lanes == Lanes::One && !has_words {
            let used = 4 - (self.states[0].leading_zeros() / 8) as usize;
            let end = self.buffer.len();
            self.buffer.copy_within(self.start..self.start + used, end - used);
            self.start = end - used;
        }
    }
}

/// Decodes a payload symbol by symbol.
pub(super) fn decode(
    payload: &[u8],
    lanes: Lanes,
    tables: &DecodeTables,
    part: &Part<'_>,
    out: &mut [u8],
) -> Result<()> {
    let mut reader = Reader::new(payload, lanes)?;
    part.for_each_run(out.len(), |start, length, table| {
        reader.decode_run(tables, table, start % lanes.count(), &mut out[start..start + length])
    })?;
    reader.finish()
}

/// Encodes a payload symbol by symbol.
pub(super) fn encode(
    symbols: &[u8],
    tables: &EncodeTables,
    part: &Part<'_>,
    writer: &mut Writer,
) -> Result<()> {
    writer.begin(symbols.len());
    let lanes = writer.lanes().count();
    part.for_each_run_reversed(symbols.len(), |start, length, table| {
        writer.encode_run(tables, table, start % lanes, &symbols[start..start + length], start)
    })?;
    writer.finish();
    Ok(())
}
