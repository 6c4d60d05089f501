//! Codes of the house recipe as packed integers: a linear that multiplies without being expanded.
//!
//! `house(execute=int4)` and `int8` write what the plain recipe writes, with all offsets 0: an element is then an
//! integer times its column's step times its row's factor. With a trellis the integers count half steps. At load each
//! column goes from the coder straight into [`Packed`]; what codes beyond the width are short of goes into a [`Sparse`]
//! matrix beside it, and is added in floats:
//!
//! `y_i = f_i (product_i + sum_k missing_ik (s_k x_k))`, with `f` the rows' factors and `s` the columns' steps.

use lamella_codec::CodedLinear;
use lamella_quant::execute::{Activations, Packed, Sparse, Width, product};
use rayon::prelude::*;

use super::form::Reader;

/// Entries beside four bits, over all codes, from which eight bits are taken: sums beside them take longer then.
const MOST_MISSING: f64 = 1.0 / 24.0;

/// A matrix in packed integers.
#[derive(Debug, Clone)]
pub struct PackedLinear {
    packed: Packed,
    /// One per column, halved where codes count half steps.
    steps: Vec<f32>,
    /// One per row, or empty.
    factors: Vec<f32>,
    missing: Sparse,
}

impl PackedLinear {
    /// Reads a payload into packed integers of `width`, or into eight bits where too many codes need more than four.
    ///
    /// `None` where the payload is not one of such integers: it has offsets, or too many codes beyond eight bits.
    ///
    /// # Errors
    /// A sentence that says what does not fit.
    pub fn read(payload: &[u8], rows: usize, columns: usize, width: Width) -> Result<Option<Self>, String> {
        let most = (rows as f64 * columns as f64 * MOST_MISSING) as usize;
        match Self::read_as(payload, rows, columns, width, most)? {
            None if width == Width::Four => Self::read_as(payload, rows, columns, Width::Eight, most),
            read => Ok(read),
        }
    }

    fn read_as(
        payload: &[u8],
        rows: usize,
        columns: usize,
        width: Width,
        most: usize,
    ) -> Result<Option<Self>, String> {
        let reader = Reader::new(payload, rows, columns)?;
        let header = &reader.header;
        let has_offsets = header.offsets.groups.iter().flatten().flatten().any(|&offset| offset != 0);
        if has_offsets {
            return Ok(None);
        }
        if u32::try_from(rows.saturating_mul(columns)).is_err() {
            return Err(format!("{rows} x {columns} weights are too many to be executed"));
        }
        let has_halves = header.trellis.memory_bits() > 0;
        let unit = if has_halves { 0.5 } else { 1.0 };
        let steps = header.column_steps().into_iter().map(|step| step * unit).collect();
        let factors = header.row_factors();
        let mut packed = Packed::zeros(width, rows, columns);
        // Row, column and what is missing, as the columns come.
        let mut found: Vec<(u32, u32, i32)> = Vec::new();
        let mut halves = vec![0i32; rows];
        reader.columns(|column, codes, quantizers| {
            let codes = if has_halves {
                for ((half, &code), &quantizer) in halves.iter_mut().zip(codes).zip(quantizers) {
                    *half = 2 * code - code.signum() * i32::from(quantizer);
                }
                &halves
            } else {
                codes
            };
            packed.set_column(column, codes, |row, code| {
                // One more than is allowed is enough to know.
                if found.len() <= most {
                    found.push((row as u32, column as u32, code));
                }
            });
        })?;
        // Stable: the columns of a row stay in order.
        found.sort_by_key(|&(row, ..)| row);
        let found = found.into_iter().map(|(row, column, code)| (row as usize, column as usize, code));
        let missing = Sparse::new(rows, columns, found, most);
        Ok(missing.map(|missing| Self { packed, steps, factors, missing }))
    }

    /// Bits of the packed integers.
    pub fn width(&self) -> Width {
        self.packed.width()
    }
    /// Entries kept beside them.
    pub fn n_missing(&self) -> usize {
        self.missing.len()
    }
}

impl CodedLinear for PackedLinear {
    fn apply(&self, inputs: &[f32], tokens: usize, outputs: &mut [f32], stride: usize, column: usize) {
        let (rows, columns) = (self.packed.rows(), self.packed.columns());
        let inputs = &inputs[..tokens * columns];
        product(&self.packed, &Activations::new(inputs, &self.steps), outputs, stride, column);
        self.missing.add(inputs, &self.steps, outputs, stride, column);
        if self.factors.is_empty() {
            return;
        }
        let scale = |outputs: &mut [f32]| {
            let outputs = outputs[column..column + rows].iter_mut();
            outputs.zip(&self.factors).for_each(|(output, factor)| *output *= factor);
        };
        if tokens <= 16 {
            outputs.chunks_mut(stride).take(tokens).for_each(scale);
        } else {
            outputs.par_chunks_mut(stride).take(tokens).for_each(scale);
        }
    }

    fn add_row(&self, index: usize, target: &mut [f32]) {
        let factor = self.factors.get(index).copied().unwrap_or(1.0);
        for (column, (value, &step)) in target.iter_mut().zip(&self.steps).enumerate() {
            *value += self.packed.code(index, column) as f32 * (step * factor);
        }
        for (column, code) in self.missing.row(index) {
            target[column] += code as f32 * (self.steps[column] * factor);
        }
    }

    fn resident_bytes(&self) -> usize {
        self.packed.size_bytes()
            + size_of_val(&self.steps[..])
            + size_of_val(&self.factors[..])
            + self.missing.size_bytes()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use lamella_codec::suite::check_product;
    use lamella_codec::{Array, ArraySpec, Codec, Dtype, Knowledge, Rate};

    use crate::systems::house::House;

    fn house(text: &str) -> House {
        House::from_recipe(&text.parse().unwrap()).unwrap()
    }

    #[test]
    fn packed_integers_multiply_like_the_decoded_matrix() {
        let (rows, columns) = (70, 96);
        let values: Vec<f32> =
            (0..rows * columns).map(|i| ((i * 2_654_435_761) >> 7 & 1023) as f32 / 300.0 - 1.7).collect();
        let spec = ArraySpec::new("w", vec![rows, columns], Dtype::F32);
        let array = Array::from_f32(spec.clone(), &values).unwrap();
        let usage = Arc::new((0..rows).map(|row| (row % 7) as f64).collect::<Vec<f64>>());
        let mut knowledge = Knowledge::default();
        knowledge.row_usage = Some(usage);
        // 0.05 makes most codes overflow four bits, 0.3 some.
        for (text, step) in [("int4", 0.3), ("int4", 0.05), ("int8", 0.05), ("int8, trellis=0", 0.05)] {
            let codec = house(&format!("house(execute={text})"));
            let encoded = codec.encode(&array, &knowledge, Rate::Step(step)).unwrap();
            let layers = [&encoded.layers[0].payload[..]];
            let decoded = codec.decode(&spec, &layers).unwrap().to_f32().unwrap();
            let linear = codec.execute(&spec, &layers).unwrap().unwrap();
            let checked = check_product(&*linear, &decoded, columns, 0.01);
            assert_eq!(checked, Ok(()), "{text} at step {step}");
            assert!(house("house").execute(&spec, &layers).unwrap().is_none());
        }
        let error = House::from_recipe(&"house(execute=int4, trellis=7)".parse().unwrap()).unwrap_err();
        assert!(error.to_string().contains("with execute=int4 it is 0"), "{error}");
    }
}
