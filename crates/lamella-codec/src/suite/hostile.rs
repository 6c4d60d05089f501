//! Laws of hostile bytes: whatever a decoder is handed, it returns.

use super::laws::{describe, unlike};
use super::{Run, Violation, synthetic};
use crate::{ArraySpec, Dtype, Encoded, Rate};

/// Payloads are cut at every byte and flipped at every bit, longer ones at about this many places evenly spread.
const EVERY: usize = 1024;

impl Run<'_> {
    pub(super) fn damaged(&mut self) -> Result<(), Violation> {
        for (shape, dtype) in
            [(vec![6, 10], Dtype::F32), (vec![1, 1], Dtype::F32), (vec![24, 40], Dtype::BF16)]
        {
            let spec = ArraySpec::new("suite", shape, dtype);
            if self.codec.accepts(&spec).is_err() {
                continue;
            }
            let array = self.synthetic(&spec, 11)?;
            for rate in self.rates() {
                let encoded = self.encode("cut", &array, &synthetic::knowledge(&spec, 11), rate)?;
                self.cut(&spec, &encoded, rate)?;
                self.flipped(&spec, &encoded, rate)?;
                self.wrong_spec(&spec, &encoded, rate)?;
            }
        }
        Ok(())
    }

    /// Decodes with layer `index` replaced; an array must be of the spec. Says whether one came.
    fn returns(
        &mut self,
        law: &'static str,
        spec: &ArraySpec,
        encoded: &Encoded,
        (index, payload): (usize, &[u8]),
        case: impl Fn() -> String,
    ) -> Result<bool, Violation> {
        let mut layers: Vec<&[u8]> = encoded.layers.iter().map(|layer| &layer.payload[..]).collect();
        if let Some(layer) = layers.get_mut(index) {
            *layer = payload;
        }
        self.checked.n_damaged += 1;
        // What it returns is not looked at: it returns.
        let _ = self.codec.execute(spec, &layers);
        let Ok(decoded) = self.codec.decode(spec, &layers) else { return Ok(false) };
        match unlike(spec, &decoded) {
            Some(message) => Err(self.broken(law, case(), message)),
            None => Ok(true),
        }
    }

    fn cut(&mut self, spec: &ArraySpec, encoded: &Encoded, rate: Rate) -> Result<(), Violation> {
        for (index, layer) in encoded.layers.iter().enumerate() {
            let length = layer.payload.len();
            let stride = length.div_ceil(EVERY).max(1);
            for kept in (0..length).step_by(stride).chain(length.checked_sub(1)) {
                let case =
                    || format!("{}, layer {index} cut to {kept} of {length} bytes", describe(spec, rate));
                if self.returns("cut", spec, encoded, (index, &layer.payload[..kept]), case)? {
                    return Err(self.broken("cut", case(), "decoded without an error"));
                }
            }
            for extra in [0u8, 0xff] {
                let case = || format!("{}, layer {index} with a byte {extra} more", describe(spec, rate));
                let longer = [&layer.payload[..], &[extra]].concat();
                if self.returns("longer", spec, encoded, (index, &longer), case)? {
                    return Err(self.broken("longer", case(), "decoded without an error"));
                }
            }
        }
        Ok(())
    }

    fn flipped(&mut self, spec: &ArraySpec, encoded: &Encoded, rate: Rate) -> Result<(), Violation> {
        for (index, layer) in encoded.layers.iter().enumerate() {
            let mut payload = layer.payload.clone();
            // An odd stride walks over all eight bit positions of a byte.
            let stride = (payload.len() * 8).div_ceil(EVERY) | 1;
            for bit in (0..payload.len() * 8).step_by(stride) {
                payload[bit / 8] ^= 1 << (bit % 8);
                let case = || format!("{}, layer {index}, bit {bit} flipped", describe(spec, rate));
                self.returns("bit flips", spec, encoded, (index, &payload), case)?;
                payload[bit / 8] ^= 1 << (bit % 8);
            }
            // Runs of ones are where counts and lengths become huge.
            for start in 0..payload.len().min(64) {
                let mut ones = layer.payload.clone();
                let end = (start + 8).min(ones.len());
                ones[start..end].fill(0xff);
                let case = || format!("{}, layer {index}, ones from byte {start}", describe(spec, rate));
                self.returns("bit flips", spec, encoded, (index, &ones), case)?;
            }
        }
        Ok(())
    }

    fn wrong_spec(&mut self, spec: &ArraySpec, encoded: &Encoded, rate: Rate) -> Result<(), Violation> {
        let (rows, columns) = spec.matrix().unwrap_or((1, 1));
        let shapes = [
            vec![rows + 1, columns],
            vec![rows, columns + 1],
            vec![rows * 2, columns],
            vec![0, columns],
            vec![columns, rows],
            vec![rows * columns],
            vec![],
            vec![1 << 20, 1 << 20],
            vec![1 << 40, 1],
            vec![1, 1 << 40],
            vec![usize::MAX, 2],
            vec![usize::MAX, usize::MAX],
        ];
        let n_elements = spec.len();
        let layers: Vec<&[u8]> = encoded.layers.iter().map(|layer| &layer.payload[..]).collect();
        for shape in shapes {
            for dtype in [spec.dtype, Dtype::F64, Dtype::I8, Dtype::Bool] {
                let other = ArraySpec::new("suite", shape.clone(), dtype);
                self.checked.n_damaged += 1;
                let Ok(decoded) = self.codec.decode(&other, &layers) else { continue };
                let case = || format!("{}, decoded as {} {shape:?}", describe(spec, rate), dtype.name());
                if let Some(message) = unlike(&other, &decoded) {
                    return Err(self.broken("wrong spec", case(), message));
                }
                // A codec that keeps plain bytes cannot tell two int8 from one bf16.
                // Nor can one whose size follows from the shape tell shapes of one size apart; the container's
                // manifest, under its checksum, does.
                let stored = Some(encoded.size_bytes() as u64);
                let is_as_long = other.checked_size_bytes() == spec.checked_size_bytes()
                    || self.codec.stored_bytes(&other) == stored;
                if other.checked_len() != Some(n_elements) && !is_as_long {
                    return Err(self.broken("wrong spec", case(), "decoded without an error"));
                }
            }
        }
        Ok(())
    }
}
