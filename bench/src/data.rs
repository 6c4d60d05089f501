//! The symbols that are coded: i.i.d., so that only the entropy coder matters.

/// One data set of 8-bit symbols.
pub struct Data {
    pub name: &'static str,
    pub symbols: Vec<u8>,
    /// Empirical entropy in bits per symbol.
    pub entropy: f64,
}

/// Standard deviations of rounded Gaussians with (about) these entropies.
const SETS: [(&str, f64, usize); 5] = [
    ("4 bits, 16 MiB", 3.87, 16 << 20),
    ("4 bits, 64 KiB", 3.87, 64 << 10),
    ("0.5 bits, 4 MiB", 0.30, 4 << 20),
    ("2 bits, 4 MiB", 0.94, 4 << 20),
    ("6 bits, 4 MiB", 15.5, 4 << 20),
];

pub fn sets() -> impl Iterator<Item = Data> {
    SETS.iter().map(|&(name, deviation, count)| {
        let symbols = gaussian(deviation, count);
        let mut counts = [0u64; 256];
        symbols.iter().for_each(|&symbol| counts[usize::from(symbol)] += 1);
        let total = count as f64;
        let bits = |c: u64| if c == 0 { 0.0 } else { -(c as f64) * (c as f64 / total).log2() };
        let entropy = counts.iter().map(|&c| bits(c)).sum::<f64>() / total;
        Data { name, symbols, entropy }
    })
}

/// Rounded Gaussian numbers around 128 by the Box-Muller transform of a fixed xorshift sequence.
fn gaussian(deviation: f64, count: usize) -> Vec<u8> {
    let mut state = 0x2545_f491_4f6c_dd1du64;
    let mut uniform = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        ((state >> 11) as f64 + 0.5) / (1u64 << 53) as f64
    };
    let mut symbols = Vec::with_capacity(count);
    while symbols.len() < count {
        let (radius, angle) = ((-2.0 * uniform().ln()).sqrt() * deviation, std::f64::consts::TAU * uniform());
        for value in [radius * angle.cos(), radius * angle.sin()] {
            symbols.push((value + 128.0).round().clamp(0.0, 255.0) as u8);
        }
    }
    symbols.truncate(count);
    symbols
}
