//! Block floating point and the order of K-sort ([`crate::systems`]).

mod claim;

use lamella_quant::gptq::activation_order;

pub use claim::measure;

/// Blocks of values that share an exponent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Blocks {
    /// Bits of a mantissa with its sign.
    pub bits: u32,
    /// Values of a block.
    pub size: usize,
}

/// `2^exponent`, exactly.
fn power(exponent: i32) -> f64 {
    f64::from_bits(((exponent + 1023) as u64) << 52)
}

impl Blocks {
    /// Blocks of a row of heads; none crosses from one head into the next.
    pub fn count(&self, columns: usize, head: usize) -> usize {
        if head == 0 {
            return 0;
        }
        columns / head * head.div_ceil(self.size) + (columns % head).div_ceil(self.size)
    }

    /// Exponent bytes (`e + 127`, 0 for blocks of zeros or subnormal numbers) and mantissas (in two's complement of
    /// `bits` bits) of a row.
    pub fn quantize(&self, row: &[f32], head: usize, exponents: &mut Vec<u8>, mantissas: &mut Vec<u16>) {
        let top = f64::from((1i32 << (self.bits - 1)) - 1);
        for block in row.chunks(head.max(1)).flat_map(|head| head.chunks(self.size)) {
            let largest = block.iter().fold(0.0f32, |largest, value| largest.max(value.abs()));
            let byte = (largest.to_bits() >> 23) as u8;
            exponents.push(byte);
            let scale = power(self.bits as i32 - 2 - (i32::from(byte) - 127));
            for &value in block {
                let mantissa =
                    if byte == 0 { 0.0 } else { (f64::from(value) * scale).round().clamp(-top, top) };
                mantissas.push(mantissa as i32 as u16 & ((1u32 << self.bits) - 1) as u16);
            }
        }
    }

    /// The values of rows.
    pub fn dequantize(&self, exponents: &[u8], mantissas: &[u16], columns: usize, head: usize) -> Vec<f32> {
        let mut values = Vec::with_capacity(mantissas.len());
        let mut exponents = exponents.iter();
        let sign = 1i32 << (self.bits - 1);
        for block in mantissas
            .chunks(columns.max(1))
            .flat_map(|row| row.chunks(head.max(1)))
            .flat_map(|head| head.chunks(self.size))
        {
            let byte = exponents.next().copied().unwrap_or(0);
            let scale = power(i32::from(byte) - 127 - self.bits as i32 + 2);
            let number = |&mantissa: &u16| {
                let mantissa = (i32::from(mantissa) ^ sign) - sign;
                if byte == 0 { 0.0 } else { (f64::from(mantissa) * scale) as f32 }
            };
            values.extend(block.iter().map(number));
        }
        values
    }
}

/// K-sort: the channels of each head by falling norm of their rows of `W_k` (`[kv_heads * head_dim, hidden]`).
/// `order[position]` is the original channel.
pub fn key_order(weight: &[f32], columns: usize, head_dim: usize) -> Vec<u32> {
    let norms: Vec<f32> = weight
        .chunks_exact(columns.max(1))
        .map(|row| row.iter().map(|&w| f64::from(w) * f64::from(w)).sum::<f64>() as f32)
        .collect();
    norms
        .chunks(head_dim.max(1))
        .enumerate()
        .flat_map(|(head, norms)| {
            activation_order(norms).into_iter().map(move |channel| channel + (head * head_dim) as u32)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mantissas_by_hand() {
        let blocks = Blocks { bits: 4, size: 2 };
        let (mut exponents, mut mantissas) = (Vec::new(), Vec::new());
        // 5 has exponent 2, so that a step is 1; 1.9 has exponent 0: a step of a quarter, 7 steps at most.
        blocks.quantize(&[5.0, -2.6, 1.9, -0.3, 0.0, 0.0], 6, &mut exponents, &mut mantissas);
        assert_eq!(exponents, [129, 127, 0]);
        assert_eq!(blocks.dequantize(&exponents, &mantissas, 6, 6), [5.0, -3.0, 1.75, -0.25, 0.0, 0.0]);
        assert_eq!(blocks.count(10, 5), 6);
        assert_eq!(key_order(&[1.0, 3.0, 2.0, 5.0], 1, 2), [1, 0, 3, 2]);
    }
}
