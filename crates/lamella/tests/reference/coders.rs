//! Section 4.3 of docs/format.md: the range coder and the models that adapt under it.

/// Reads zeros beyond the end and counts them.
pub(crate) struct RangeDecoder<'a> {
    bytes: &'a [u8],
    position: usize,
    range: u32,
    code: u32,
}

impl<'a> RangeDecoder<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        let mut decoder = Self { bytes, position: 0, range: u32::MAX, code: 0 };
        (0..4).for_each(|_| decoder.shift());
        decoder
    }

    fn shift(&mut self) {
        self.code = self.code << 8 | self.bytes.get(self.position).map_or(0, |&byte| u32::from(byte));
        self.position += 1;
    }

    /// Bytes read beyond the end.
    pub(crate) fn overrun(&self) -> usize {
        self.position.saturating_sub(self.bytes.len())
    }

    fn take(&mut self, start: u32, width: u32) {
        self.code = self.code.wrapping_sub(start);
        self.range = width;
        while self.range < 1 << 24 {
            self.shift();
            self.range <<= 8;
        }
    }

    pub(crate) fn bit(&mut self, p: u32) -> bool {
        let bound = ((u64::from(self.range) * u64::from(p)) >> 16) as u32;
        let bit = self.code < bound;
        if bit {
            self.take(0, bound)
        } else {
            self.take(bound, self.range - bound)
        }
        bit
    }

    pub(crate) fn raw(&mut self, width: u32) -> u32 {
        (0..width).fold(0, |value, _| value << 1 | u32::from(self.bit(32_768)))
    }

    /// A symbol under cumulative frequencies that begin with 0 and end with `2^total_bits`.
    pub(crate) fn symbol(&mut self, cumulative: &[u32], total_bits: u32) -> usize {
        let unit = self.range >> total_bits;
        let place = (self.code / unit).min((1 << total_bits) - 1);
        let symbol = cumulative.partition_point(|&start| start <= place) - 1;
        let (start, end) = (cumulative[symbol], cumulative[symbol + 1]);
        let is_last = end == 1 << total_bits;
        let width = if is_last { self.range.wrapping_sub(unit * start) } else { unit * (end - start) };
        self.take(unit * start, width);
        symbol
    }

    pub(crate) fn adaptive(&mut self, model: &mut AdaptiveBit) -> bool {
        let bit = self.bit(((model.fast + model.slow) >> 1).clamp(32, 65_504) as u32);
        let first = 131_072 / (2 * model.count + 3);
        let goal = if bit { 65_535 } else { 0 };
        model.fast += ((goal - model.fast) * first.max(4096)) >> 16;
        model.slow += ((goal - model.slow) * first.max(512)) >> 16;
        model.count = (model.count + 1).min(127);
        bit
    }

    pub(crate) fn golomb(&mut self, model: &mut AdaptiveGolomb) -> u32 {
        let (mut length, mut number) = (0, 1u64);
        while length < 32 && self.adaptive(&mut model.length[length]) {
            length += 1;
        }
        if length > 0 {
            number = 2 | u64::from(self.adaptive(&mut model.first[length]));
            number = number << (length - 1) | u64::from(self.raw(length as u32 - 1));
        }
        (number - 1).min(u64::from(u32::MAX)) as u32
    }
}

#[derive(Clone, Copy)]
pub(crate) struct AdaptiveBit {
    fast: i64,
    slow: i64,
    count: i64,
}

pub(crate) const NEW_BIT: AdaptiveBit = AdaptiveBit { fast: 32_768, slow: 32_768, count: 0 };

#[derive(Clone)]
pub(crate) struct AdaptiveGolomb {
    length: [AdaptiveBit; 32],
    first: [AdaptiveBit; 33],
}

pub(crate) const NEW_GOLOMB: AdaptiveGolomb = AdaptiveGolomb { length: [NEW_BIT; 32], first: [NEW_BIT; 33] };
