//! Lists of single bits, written and taken from their heads.

/// Bits on their way into bytes, the first one lowest.
#[derive(Debug, Clone, Default)]
pub struct BitList {
    /// Eight bits each.
    pub bytes: Vec<u8>,
    /// Bits there are.
    pub count: usize,
    /// Ones among them.
    pub ones: usize,
}

impl BitList {
    /// Appends a bit.
    pub fn push(&mut self, bit: bool) {
        if self.count.is_multiple_of(8) {
            self.bytes.push(0);
        }
        if let Some(last) = self.bytes.last_mut() {
            *last |= u8::from(bit) << (self.count % 8);
        }
        self.count += 1;
        self.ones += usize::from(bit);
    }
}

/// Bits on their way out of bytes.
#[derive(Debug, Clone, Default)]
pub struct Head {
    /// Eight bits each.
    pub bytes: Vec<u8>,
    /// Bits there are.
    pub count: usize,
    /// Bits that were asked for, those beyond the end too.
    taken: usize,
    word: u64,
    held: u32,
    at: usize,
}

impl Head {
    /// The next bit. Bits are taken one by one or in runs, not both.
    #[inline]
    pub fn one(&mut self) -> u16 {
        if self.held == 0 {
            self.refill();
        }
        let bit = (self.word & 1) as u16;
        self.word >>= 1;
        self.held = self.held.wrapping_sub(1);
        bit
    }

    /// Up to 16 bits.
    #[inline]
    pub fn next(&mut self, count: usize) -> u16 {
        let place = self.taken / 8;
        let three = match self.bytes.get(place..place + 3) {
            Some(three) => [three[0], three[1], three[2], 0],
            None => std::array::from_fn(|i| self.bytes.get(place + i).copied().unwrap_or(0)),
        };
        let word = u32::from_le_bytes(three) >> (self.taken % 8);
        self.taken += count;
        word as u16
    }

    #[inline(never)]
    fn refill(&mut self) {
        let mut eight = [0u8; 8];
        let rest = self.bytes.get(self.at..).unwrap_or(&[]);
        let n = rest.len().min(8);
        eight[..n].copy_from_slice(&rest[..n]);
        self.at += 8;
        self.word = u64::from_le_bytes(eight);
        self.held = 64;
    }

    /// Whether all bits were taken, and none beyond.
    pub fn is_at_end(&self) -> bool {
        let by_one = (8 * self.at).saturating_sub(self.held as usize);
        self.taken + by_one == self.count
    }
}
