//! The functions and counters that predictions are made of, all in integers.

/// `stretch` is in units of 1/256 and stays within ±`STRETCH_LIMIT`.
pub(super) const STRETCH_LIMIT: i32 = 2047;

/// `squash[x + 2047]` = 65536 / (1 + exp(-x / 256)), within 16 and 65520.
const SQUASH: [u16; 4095] = squash_table();
/// `stretch[p / 16]`: the inverse of [`SQUASH`].
const STRETCH: [i16; 4096] = stretch_table();

const fn squash_table() -> [u16; 4095] {
    // exp(-1/256) as a fraction of 2^62: the Taylor series, truncated terms.
    const ONE: u128 = 1 << 62;
    let (mut term, mut step, mut n, mut is_odd) = (ONE, ONE, 1, true);
    while term > 0 {
        term /= 256 * n;
        if is_odd {
            step -= term;
        } else {
            step += term;
        }
        is_odd = !is_odd;
        n += 1;
    }
    let mut table = [0u16; 4095];
    let (mut power, mut x) = (ONE, 0);
    while x < 2048 {
        let p = (ONE << 16) / (ONE + power);
        let p = if p > 65520 { 65520 } else { p as u16 };
        table[2047 + x] = p;
        table[2047 - x] = (65536 - p as u32) as u16;
        power = (power * step) >> 62;
        x += 1;
    }
    table
}

const fn stretch_table() -> [i16; 4096] {
    let mut table = [0i16; 4096];
    let (mut x, mut p) = (0usize, 0usize);
    while p < 4096 {
        while x < 4094 && (SQUASH[x] as usize) < p * 16 + 8 {
            x += 1;
        }
        table[p] = x as i16 - 2047;
        p += 1;
    }
    table
}

pub(super) fn squash(x: i32) -> i32 {
    i32::from(SQUASH[(x.clamp(-STRETCH_LIMIT, STRETCH_LIMIT) + STRETCH_LIMIT) as usize])
}

pub(super) fn stretch(p: u16) -> i32 {
    i32::from(STRETCH[usize::from(p >> 4)])
}

/// An adaptive probability that the next bit is 1.
#[derive(Debug, Clone, Copy)]
pub(super) struct Counter {
    pub(super) p: u16,
    pub(super) uses: u16,
}

/// `65536 / (uses + 1.5)`, at least 1/32.
const RATES: [i32; 32] = {
    let mut rates = [0; 32];
    let mut uses = 0;
    while uses < 32 {
        rates[uses] = 131_072 / (2 * uses as i32 + 3);
        if rates[uses] < 2048 {
            rates[uses] = 2048;
        }
        uses += 1;
    }
    rates
};

impl Counter {
    pub(super) const NEW: Self = Self { p: 32768, uses: 0 };

    pub(super) fn update(&mut self, bit: bool) {
        let target = if bit { 65535 } else { 0 };
        let p = i64::from(self.p);
        let moved = p + (((target - p) * i64::from(RATES[usize::from(self.uses.min(31))])) >> 16);
        self.p = moved.clamp(32, 65503) as u16;
        self.uses = (self.uses + 1).min(255);
    }
}

pub(super) fn hash(value: u64, salt: u64) -> u32 {
    let mixed = (value ^ salt.wrapping_mul(0x9E37_79B9_7F4A_7C15)).wrapping_mul(0xD6E8_FEB8_6659_FD93);
    ((mixed ^ (mixed >> 29)) >> 16) as u32
}
