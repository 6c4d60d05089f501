//! MixLLM's product: two sets of rows as packed integers, activations of 8 bits, results put back in order.
//!
//! Two-step dequantisation: codes less their zero point and activations are multiplied and summed as integers; a
//! group's sum is converted once and multiplied by the scales ([`lamella_quant::execute`]). CPUs convert integers to
//! floats in one instruction, which takes the place of the paper's addition of a constant.

use lamella_codec::CodedLinear;
use lamella_quant::execute::{Activations, BLOCK, Grids, Packed, Width, product_grouped};

use super::form::{MixForm, Mixed};

/// Rows of one width.
#[derive(Debug)]
struct Part {
    /// Where each packed row belongs.
    rows: Vec<u32>,
    packed: Packed,
    grids: Grids,
}

/// A matrix laid out for products.
#[derive(Debug)]
pub struct PackedMix {
    parts: [Part; 2],
    /// For each row its part and its place there.
    places: Vec<(bool, u32)>,
    /// One for each column: activations are not scaled.
    ones: Vec<f32>,
}

impl PackedMix {
    /// Lays a matrix out; `None` where its groups are no whole blocks.
    pub fn new(form: MixForm, mixed: &Mixed) -> Option<Self> {
        let MixForm { rows, columns, group_size } = form;
        // A row of one group may have any length: it is filled up with zeros.
        let group_size = if group_size >= columns { columns.next_multiple_of(BLOCK) } else { group_size };
        if columns == 0 || !group_size.is_multiple_of(BLOCK) {
            return None;
        }
        let part = |fine: bool, width: Width| {
            let own: Vec<u32> = (0..rows as u32).filter(|&row| mixed.is_fine[row as usize] == fine).collect();
            let mut packed = Packed::zeros(width, own.len(), columns);
            let mut grids = Grids::zeros(own.len(), columns, group_size);
            let per_row = form.per_row();
            for (at, &row) in own.iter().enumerate() {
                let row = row as usize;
                packed.set_row_unsigned(at, &mixed.codes[row * columns..(row + 1) * columns]);
                for (index, group) in mixed.groups[row * per_row..(row + 1) * per_row].iter().enumerate() {
                    grids.set(at, index, group.scale, group.zero_point as u8);
                }
            }
            Part { rows: own, packed, grids }
        };
        let parts = [part(false, Width::Four), part(true, Width::Eight)];
        let mut places = vec![(false, 0); rows];
        for (fine, part) in [false, true].into_iter().zip(&parts) {
            part.rows.iter().enumerate().for_each(|(at, &row)| places[row as usize] = (fine, at as u32));
        }
        Some(Self { parts, places, ones: vec![1.0; columns] })
    }
}

impl CodedLinear for PackedMix {
    fn apply(&self, inputs: &[f32], tokens: usize, outputs: &mut [f32], stride: usize, column: usize) {
        let activations = Activations::new(&inputs[..tokens * self.ones.len()], &self.ones);
        for part in self.parts.iter().filter(|part| !part.rows.is_empty()) {
            let n = part.rows.len();
            let mut own = vec![0.0f32; tokens * n];
            product_grouped(&part.packed, &part.grids, &activations, &mut own, n, 0);
            for (own, outputs) in own.chunks_exact(n).zip(outputs.chunks_mut(stride)) {
                part.rows.iter().zip(own).for_each(|(&row, &value)| outputs[column + row as usize] = value);
            }
        }
    }

    fn add_row(&self, index: usize, target: &mut [f32]) {
        let (fine, at) = self.places[index];
        let (part, at) = (&self.parts[usize::from(fine)], at as usize);
        let bias = 1 << (part.packed.width().bits() - 1);
        for (column, value) in target.iter_mut().enumerate().take(self.ones.len()) {
            let (scale, zero) = part.grids.get(at, column / part.grids.group_size());
            *value += scale * (part.packed.code(at, column) + bias - i32::from(zero)) as f32;
        }
    }

    fn resident_bytes(&self) -> usize {
        let of_part =
            |part: &Part| part.packed.size_bytes() + part.grids.size_bytes() + size_of_val(&part.rows[..]);
        self.parts.iter().map(of_part).sum::<usize>()
            + size_of_val(&self.places[..])
            + size_of_val(&self.ones[..])
    }
}
