//! Range coding for *adaptive* models: probabilities that change after every symbol, known to both sides.
//!
//! A range coder keeps an interval `[low, low + range)` inside the unit interval and shrinks it in proportion to the
//! probability of what is coded. Unlike [rANS](crate::rans) it is a queue (first in, first out), so the decoder can
//! update its models exactly when the encoder did; it is also 10 to 30 times slower. Use it for headers, for contexts
//! that adapt, and for streams of a few hundred symbols; use rANS for everything large with static tables.
//!
//! # Definition
//! `range` has 32 bits and stays at least `2^24`; `low` has 32 bits plus a carry, which is added to the bytes already
//! written. A bit with 16-bit probability `p` of being one (1 to 65,535) splits the range at `(range * p) >> 16`, ones
//! below. A symbol with cumulative frequency `c`, frequency `f` and total `2^t` (t at most 16) takes
//! `[r * c, r * (c + f))` with `r = range >> t`, the last symbol also the remainder. After each step, while
//! `range < 2^24`, the top byte of `low` is written and both shift by 8. At the end the shortest byte string inside
//! the interval is written, and up to four trailing zero bytes are dropped: the decoder reads zeros beyond the end.
//!
//! # Example
//! ```
//! use lamella_entropy::range::{AdaptiveBit, RangeDecoder, RangeEncoder};
//! let mut encoder = RangeEncoder::new();
//! let mut model = AdaptiveBit::new();
//! for index in 0..1000 {
//!     encoder.encode_adaptive(&mut model, index % 50 == 0);
//! }
//! let bytes = encoder.finish();
//! assert!(bytes.len() < 25);
//! let mut decoder = RangeDecoder::new(&bytes);
//! let mut model = AdaptiveBit::new();
//! for index in 0..1000 {
//!     assert_eq!(decoder.decode_adaptive(&mut model), index % 50 == 0);
//! }
//! ```
//!
//! Source: G. N. N. Martin, "Range encoding", 1979; two-rate estimation as in modern video coders.

const BOTTOM: u32 = 1 << 24;

/// Writes bits and symbols under probabilities given one by one.
#[derive(Debug, Clone)]
pub struct RangeEncoder {
    low: u32,
    range: u32,
    bytes: Vec<u8>,
}

impl Default for RangeEncoder {
    fn default() -> Self {
        Self::new()
    }
}

impl RangeEncoder {
    /// An encoder with nothing written.
    pub fn new() -> Self {
        Self { low: 0, range: u32::MAX, bytes: Vec::new() }
    }

    /// Codes one bit with 16-bit probability `probability_of_one` (0 is taken as 1).
    pub fn encode_bit(&mut self, bit: bool, probability_of_one: u16) {
        let bound = split(self.range, probability_of_one);
        if bit {
            self.range = bound;
        } else {
            self.add(bound);
            self.range -= bound;
        }
        self.renormalize();
    }

    /// Codes one bit under a model and lets the model learn it.
    pub fn encode_adaptive(&mut self, model: &mut AdaptiveBit, bit: bool) {
        self.encode_bit(bit, model.probability_of_one());
        model.update(bit);
    }

    /// Codes `width` equally likely bits (at most 32), most significant first.
    pub fn encode_raw(&mut self, value: u32, width: u32) {
        for index in (0..width.min(32)).rev() {
            self.encode_bit(value >> index & 1 == 1, 1 << 15);
        }
    }

    /// Codes a symbol that owns `[cumulative, cumulative + frequency)` of `1 << total_bits` (at most 16 bits).
    ///
    /// The caller guarantees `frequency > 0` and `cumulative + frequency <= 1 << total_bits`.
    pub fn encode_frequency(&mut self, cumulative: u32, frequency: u32, total_bits: u32) {
        let unit = self.range >> total_bits;
        let start = unit.wrapping_mul(cumulative);
        let is_last = cumulative + frequency >= 1 << total_bits;
        let width = if is_last { self.range.wrapping_sub(start) } else { unit.wrapping_mul(frequency) };
        self.add(start);
        self.range = width;
        self.renormalize();
    }

    /// Codes a symbol under an adaptive distribution and lets it learn.
    pub fn encode_symbol(&mut self, model: &mut AdaptiveSymbol, symbol: usize) {
        let (cumulative, frequency) = model.interval(symbol);
        self.encode_frequency(cumulative, frequency, AdaptiveSymbol::TOTAL_BITS);
        model.update(symbol);
    }

    /// Bytes written so far, without what is still pending (at most 4 more).
    pub fn written(&self) -> usize {
        self.bytes.len()
    }

    /// Ends the stream with the fewest bytes and returns it.
    pub fn finish(mut self) -> Vec<u8> {
        // The number inside [low, low + range) with the most trailing zero bits.
        let end = u64::from(self.low) + u64::from(self.range);
        for shift in (0..=32u32).rev() {
            let mask = (1u64 << shift) - 1;
            let value = (u64::from(self.low) + mask) & !mask;
            if value < end {
                if value >> 32 != 0 {
                    self.carry();
                }
                self.bytes.extend_from_slice(&(value as u32).to_be_bytes());
                break;
            }
        }
        // Only these last four bytes may be dropped, so that a decoder can tell a cut stream by how far it overruns.
        for _ in 0..4 {
            if self.bytes.last() != Some(&0) {
                break;
            }
            self.bytes.pop();
        }
        self.bytes
    }

    fn add(&mut self, amount: u32) {
        let (low, carry) = self.low.overflowing_add(amount);
        self.low = low;
        if carry {
            self.carry();
        }
    }

    fn carry(&mut self) {
        for byte in self.bytes.iter_mut().rev() {
            *byte = byte.wrapping_add(1);
            if *byte != 0 {
                break;
            }
        }
    }

    fn renormalize(&mut self) {
        while self.range < BOTTOM {
            self.bytes.push((self.low >> 24) as u8);
            self.low <<= 8;
            self.range <<= 8;
        }
    }
}

fn split(range: u32, probability_of_one: u16) -> u32 {
    ((u64::from(range) * u64::from(probability_of_one.max(1))) >> 16) as u32
}

/// Reads what [`RangeEncoder`] wrote; never fails: beyond the end it reads zeros.
///
/// Whether the bytes were whole must be checked by the layer that stores them; [`RangeDecoder::overrun`] helps.
#[derive(Debug, Clone)]
pub struct RangeDecoder<'a> {
    code: u32,
    range: u32,
    bytes: &'a [u8],
    position: usize,
}

impl<'a> RangeDecoder<'a> {
    /// A decoder at the start of `bytes`.
    pub fn new(bytes: &'a [u8]) -> Self {
        let mut decoder = Self { code: 0, range: u32::MAX, bytes, position: 0 };
        for _ in 0..4 {
            decoder.code = decoder.code << 8 | u32::from(decoder.next_byte());
        }
        decoder
    }

    /// Reads one bit; see [`RangeEncoder::encode_bit`].
    pub fn decode_bit(&mut self, probability_of_one: u16) -> bool {
        let bound = split(self.range, probability_of_one);
        let bit = self.code < bound;
        if bit {
            self.range = bound;
        } else {
            self.code = self.code.wrapping_sub(bound);
            self.range -= bound;
        }
        self.renormalize();
        bit
    }

    /// Reads one bit under a model and lets the model learn it.
    pub fn decode_adaptive(&mut self, model: &mut AdaptiveBit) -> bool {
        let bit = self.decode_bit(model.probability_of_one());
        model.update(bit);
        bit
    }

    /// Reads `width` equally likely bits (at most 32), most significant first.
    pub fn decode_raw(&mut self, width: u32) -> u32 {
        (0..width.min(32)).fold(0, |value, _| value << 1 | u32::from(self.decode_bit(1 << 15)))
    }

    /// Where in `0..1 << total_bits` the next symbol lies; [`RangeDecoder::consume`] must follow.
    pub fn peek(&self, total_bits: u32) -> u32 {
        let unit = self.range >> total_bits;
        (self.code / unit).min((1 << total_bits) - 1)
    }

    /// Removes a symbol; see [`RangeEncoder::encode_frequency`].
    pub fn consume(&mut self, cumulative: u32, frequency: u32, total_bits: u32) {
        let unit = self.range >> total_bits;
        let start = unit.wrapping_mul(cumulative);
        let is_last = cumulative + frequency >= 1 << total_bits;
        self.range = if is_last { self.range.wrapping_sub(start) } else { unit.wrapping_mul(frequency) };
        self.code = self.code.wrapping_sub(start);
        self.renormalize();
    }

    /// Reads a symbol under an adaptive distribution and lets it learn.
    pub fn decode_symbol(&mut self, model: &mut AdaptiveSymbol) -> usize {
        let symbol = model.find(self.peek(AdaptiveSymbol::TOTAL_BITS));
        let (cumulative, frequency) = model.interval(symbol);
        self.consume(cumulative, frequency, AdaptiveSymbol::TOTAL_BITS);
        model.update(symbol);
        symbol
    }

    /// Zero bytes read beyond the end of the input; a whole stream never needs more than four.
    pub fn overrun(&self) -> usize {
        self.position.saturating_sub(self.bytes.len())
    }

    /// Bytes of the input not yet read.
    pub fn unread(&self) -> usize {
        self.bytes.len().saturating_sub(self.position)
    }

    fn next_byte(&mut self) -> u8 {
        let byte = self.bytes.get(self.position).copied().unwrap_or(0);
        self.position += 1;
        byte
    }

    fn renormalize(&mut self) {
        while self.range < BOTTOM {
            self.code = self.code << 8 | u32::from(self.next_byte());
            self.range <<= 8;
        }
    }
}

/// A bit that learns its own probability.
///
/// The first updates average (`1 / (n + 1.5)`), so that a header of twenty bits already profits; later the mean of a
/// fast (1/16) and a slow (1/128) estimate follows changes without losing precision.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AdaptiveBit {
    fast: u16,
    slow: u16,
    count: u8,
}

impl Default for AdaptiveBit {
    fn default() -> Self {
        Self::new()
    }
}

/// `65536 / (n + 1.5)` for the n-th update.
const FIRST_RATES: [u32; 128] = {
    let mut rates = [0; 128];
    let mut index = 0;
    while index < 128 {
        rates[index] = (131_072 / (2 * index + 3)) as u32;
        index += 1;
    }
    rates
};

impl AdaptiveBit {
    /// A bit of which nothing is known.
    pub fn new() -> Self {
        Self { fast: 1 << 15, slow: 1 << 15, count: 0 }
    }

    /// A bit first thought to be one with 16-bit probability `probability_of_one`, as if seen `confidence` times.
    pub fn with_prior(probability_of_one: u16, confidence: u8) -> Self {
        let probability = probability_of_one.clamp(32, u16::MAX - 31);
        Self { fast: probability, slow: probability, count: confidence.min(127) }
    }

    /// 16-bit probability of a one, at least 32/65536 and at most 1 minus that.
    pub fn probability_of_one(&self) -> u16 {
        let mean = (u32::from(self.fast) + u32::from(self.slow)) >> 1;
        mean.clamp(32, 65_504) as u16
    }

    /// Learns one bit.
    pub fn update(&mut self, bit: bool) {
        let first = FIRST_RATES[usize::from(self.count & 127)];
        self.fast = approach(self.fast, bit, first.max(65_536 / 16));
        self.slow = approach(self.slow, bit, first.max(65_536 / 128));
        self.count = (self.count + 1).min(127);
    }
}

fn approach(probability: u16, bit: bool, rate: u32) -> u16 {
    let target = if bit { 65_535i64 } else { 0 };
    let difference = target - i64::from(probability);
    (i64::from(probability) + ((difference * i64::from(rate)) >> 16)).clamp(0, 65_535) as u16
}

/// A small alphabet (2 to 64 symbols) that learns its own distribution; each update costs its length.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AdaptiveSymbol {
    /// `cumulative[i]` is the weight of symbols below `i`, in `1 << 15`, without the floor each symbol keeps.
    cumulative: Vec<u16>,
    count: u32,
}

impl AdaptiveSymbol {
    /// All intervals lie in `0..1 << 15`.
    pub const TOTAL_BITS: u32 = 15;

    /// A uniform start over `alphabet_size` symbols, clamped to 2..=64.
    pub fn new(alphabet_size: usize) -> Self {
        let size = alphabet_size.clamp(2, 64);
        let top = Self::top(size);
        let cumulative = (0..=size).map(|index| (top * index as u32 / size as u32) as u16).collect();
        Self { cumulative, count: 0 }
    }

    /// Number of symbols.
    pub fn alphabet_size(&self) -> usize {
        self.cumulative.len() - 1
    }

    fn top(size: usize) -> u32 {
        // Each symbol keeps 4/32768 whatever is learned.
        (1 << Self::TOTAL_BITS) - 4 * size as u32
    }

    fn at(&self, index: usize) -> u32 {
        u32::from(self.cumulative[index]) + 4 * index as u32
    }

    /// Cumulative frequency and frequency of a symbol (the last one if `symbol` lies outside).
    pub fn interval(&self, symbol: usize) -> (u32, u32) {
        let symbol = symbol.min(self.alphabet_size() - 1);
        let start = self.at(symbol);
        (start, self.at(symbol + 1) - start)
    }

    /// The symbol that owns `position`.
    pub fn find(&self, position: u32) -> usize {
        let mut symbol = 0;
        while symbol + 1 < self.alphabet_size() && self.at(symbol + 1) <= position {
            symbol += 1;
        }
        symbol
    }

    /// Learns one symbol.
    pub fn update(&mut self, symbol: usize) {
        let size = self.alphabet_size();
        let rate = (3 + self.count / 16).min(6);
        self.count = (self.count + 1).min(1024);
        let top = Self::top(size) as i32;
        for index in 1..size {
            let target = if index > symbol { top } else { 0 };
            let value = i32::from(self.cumulative[index]);
            self.cumulative[index] = (value + ((target - value) >> rate)) as u16;
        }
    }
}

/// Adaptive Exp-Golomb: small numbers cost little and what is usual is learned. For headers.
#[derive(Debug, Clone)]
pub struct AdaptiveGolomb {
    length: [AdaptiveBit; 33],
    first: [AdaptiveBit; 33],
}

impl Default for AdaptiveGolomb {
    fn default() -> Self {
        Self::new()
    }
}

impl AdaptiveGolomb {
    /// A model of which nothing is known.
    pub fn new() -> Self {
        Self { length: [AdaptiveBit::new(); 33], first: [AdaptiveBit::new(); 33] }
    }

    /// Codes `value` as the length of `value + 1` in unary (adaptive), its second bit (adaptive) and the rest raw.
    pub fn encode(&mut self, encoder: &mut RangeEncoder, value: u32) {
        let number = u64::from(value) + 1;
        let length = number.ilog2();
        for index in 0..length {
            encoder.encode_adaptive(&mut self.length[index as usize], true);
        }
        if length < 32 {
            encoder.encode_adaptive(&mut self.length[length as usize], false);
        }
        if length > 0 {
            encoder.encode_adaptive(&mut self.first[length as usize], number >> (length - 1) & 1 == 1);
            encoder.encode_raw((number & ((1 << (length - 1)) - 1)) as u32, length - 1);
        }
    }

    /// Reads what [`AdaptiveGolomb::encode`] wrote; saturates on bytes no encoder writes.
    pub fn decode(&mut self, decoder: &mut RangeDecoder<'_>) -> u32 {
        let mut length = 0u32;
        while length < 32 && decoder.decode_adaptive(&mut self.length[length as usize]) {
            length += 1;
        }
        let mut number = 1u64;
        if length > 0 {
            number = number << 1 | u64::from(decoder.decode_adaptive(&mut self.first[length as usize]));
            number = number << (length - 1) | u64::from(decoder.decode_raw(length - 1));
        }
        u32::try_from(number - 1).unwrap_or(u32::MAX)
    }
}

#[cfg(test)]
#[path = "range_tests.rs"]
mod tests;
