//! Binary logarithms in 16-bit fixed point, by repeated squaring: integers only.

use std::sync::OnceLock;

/// `log2(2)` in the fixed point of [`log2_fixed`].
pub const LOG2_ONE: u32 = 1 << 16;

const SMALL: usize = 4097;

/// `floor(log2(value) * 65536)`, with 0 for 0 and 1. Exact to one unit.
pub fn log2_fixed(value: u64) -> u32 {
    static TABLE: OnceLock<Vec<u32>> = OnceLock::new();
    let table = TABLE.get_or_init(|| (0..SMALL as u64).map(by_squaring).collect());
    match usize::try_from(value) {
        Ok(index) if index < SMALL => table[index],
        _ => by_squaring(value),
    }
}

fn by_squaring(value: u64) -> u32 {
    if value < 2 {
        return 0;
    }
    let whole = value.ilog2();
    // The mantissa in [1, 2) with 31 fractional bits; each squaring yields the next binary digit of the logarithm.
    let mut mantissa = if whole <= 31 { value << (31 - whole) } else { value >> (whole - 31) };
    let mut fraction = 0u32;
    for _ in 0..16 {
        mantissa = (mantissa * mantissa) >> 31;
        fraction <<= 1;
        if mantissa >= 1 << 32 {
            fraction |= 1;
            mantissa >>= 1;
        }
    }
    whole << 16 | fraction
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn close_to_the_real_logarithm() {
        for value in (1..10_000).chain([1 << 20, 12_345_678_901, u64::MAX]) {
            let expected = (value as f64).log2() * 65536.0;
            let found = f64::from(log2_fixed(value));
            assert!((found - expected).abs() < 1.5, "{value}: {found} {expected}");
        }
    }
}
