//! What the codes of house layers cost under static class tables and under the adaptive coder that stores no table.
//!
//! `cargo run --release -p lamella-weights --example house_contexts -- NAME=FILE.lam...` prints one line of JSON a file;
//! `tools/measure_contexts.py` makes the files and writes docs/results/contexts.md.
//!
//! Static: a table of 12 bits for each class and quantiser, learned from the very codes, its header counted, and ideal
//! code lengths under it (no lane states). Classes are quantiles of the mean magnitude of columns, or of the product of
//! row and column means; which row and column belongs to which is counted as the library would store it. The number of
//! classes is the best of 1 to 16 for each array. Signs cost a bit on both sides; so do the bits of escapes.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a measurement stops where it cannot go on")]

use lamella_entropy::models::header;
use lamella_entropy::range::RangeEncoder;
use lamella_entropy::rans;
use lamella_file::File;
use lamella_weights::house::coder::code_matrix;
use lamella_weights::house::form::read_codes;

/// Symbols of a static table; the last one escapes.
const SYMBOLS: usize = 64;

/// The codes of one layer.
struct Layer {
    rows: usize,
    columns: usize,
    /// Magnitudes and quantisers, column after column.
    magnitudes: Vec<u32>,
    quantizers: Vec<u8>,
    /// Bytes under the adaptive coder.
    adaptive: usize,
}

impl Layer {
    fn read(payload: &[u8], rows: usize, columns: usize) -> Self {
        let (header, mut codes) = read_codes(payload, rows, columns).unwrap();
        let mut encoder = RangeEncoder::new();
        let mut quantizers = Vec::with_capacity(codes.len());
        let steps = header.column_steps();
        code_matrix(&mut encoder, header.trellis, rows, &steps, &mut codes, |_, _, column| {
            quantizers.extend_from_slice(column);
        });
        let magnitudes = codes.iter().map(|code| code.unsigned_abs()).collect();
        Self { rows, columns, magnitudes, quantizers, adaptive: encoder.finish().len() }
    }

    /// Bits of signs and of what lies behind escapes (Elias gamma).
    fn plain_bits(&self) -> f64 {
        let bits = |&magnitude: &u32| match magnitude {
            0 => 0,
            1..=62 => 1,
            _ => 2 + 2 * u64::from((magnitude - 62).ilog2()),
        };
        self.magnitudes.iter().map(bits).sum::<u64>() as f64
    }

    /// Bits under one table for each class and quantiser.
    fn static_bits(&self, n_classes: usize, class: impl Fn(usize, usize) -> usize) -> f64 {
        let mut counts = vec![[[0u64; SYMBOLS]; 2]; n_classes];
        for column in 0..self.columns {
            for row in 0..self.rows {
                let place = column * self.rows + row;
                let symbol = (self.magnitudes[place] as usize).min(SYMBOLS - 1);
                counts[class(row, column)][usize::from(self.quantizers[place])][symbol] += 1;
            }
        }
        let tables = counts.iter().flatten().filter(|counts| counts.iter().any(|&count| count > 0));
        self.plain_bits()
            + tables.map(|counts| header::fit(counts, 12, None).unwrap().total_bits).sum::<f64>()
    }

    fn means(&self) -> (Vec<f64>, Vec<f64>) {
        let (mut rows, mut columns) = (vec![0.0; self.rows], vec![0.0; self.columns]);
        for (place, &magnitude) in self.magnitudes.iter().enumerate() {
            rows[place % self.rows] += f64::from(magnitude);
            columns[place / self.rows] += f64::from(magnitude);
        }
        (rows, columns)
    }

    /// Bits of one table, of classes of columns, and of classes of rows times columns.
    fn all_static_bits(&self) -> [f64; 3] {
        let (rows, columns) = self.means();
        let one = self.static_bits(1, |_, _| 0);
        let mut best = [one; 3];
        for n in [2, 4, 8, 16] {
            let of_column = quantiles(&columns, n);
            let stored = 8.0 * rans::encode(&of_column).unwrap().len() as f64;
            let bits = stored + self.static_bits(n, |_, column| usize::from(of_column[column]));
            best[1] = best[1].min(bits);
            // The product of two quantised factors, in up to as many classes again.
            let of_row = quantiles(&rows, n);
            let stored = stored + 8.0 * rans::encode(&of_row).unwrap().len() as f64;
            let (row_means, column_means) =
                (class_means(&rows, &of_row, n), class_means(&columns, &of_column, n));
            let mut products: Vec<(f64, usize)> =
                (0..n * n).map(|pair| (row_means[pair / n] * column_means[pair % n], pair)).collect();
            products.sort_by(|a, b| a.0.total_cmp(&b.0));
            let mut class_of_pair = vec![0; n * n];
            products.iter().enumerate().for_each(|(rank, &(_, pair))| class_of_pair[pair] = rank / n);
            let class = |row: usize, column: usize| {
                class_of_pair[usize::from(of_row[row]) * n + usize::from(of_column[column])]
            };
            best[2] = best[2].min(stored + self.static_bits(n, class));
        }
        best[2] = best[2].min(best[1]);
        best
    }
}

/// Classes of equal size by rising value.
fn quantiles(values: &[f64], n: usize) -> Vec<u8> {
    let mut order: Vec<usize> = (0..values.len()).collect();
    order.sort_by(|&a, &b| values[a].total_cmp(&values[b]));
    let mut classes = vec![0; values.len()];
    order.iter().enumerate().for_each(|(rank, &index)| classes[index] = (rank * n / values.len()) as u8);
    classes
}

fn class_means(values: &[f64], classes: &[u8], n: usize) -> Vec<f64> {
    (0..n)
        .map(|class| {
            let members: Vec<f64> = values
                .iter()
                .zip(classes)
                .filter(|&(_, &of)| usize::from(of) == class)
                .map(|(value, _)| *value)
                .collect();
            members.iter().sum::<f64>() / members.len().max(1) as f64
        })
        .collect()
}

fn main() {
    for argument in std::env::args().skip(1) {
        let (name, path) = argument.split_once('=').expect("usage: house_contexts NAME=FILE.lam...");
        let file = File::open(path).unwrap();
        let (mut weights, mut layers, mut adaptive, mut fixed) = (0usize, 0, 0usize, [0.0f64; 3]);
        for array in file.arrays() {
            if !file.recipe(array).starts_with("house") {
                continue;
            }
            let spec = file.locate(&array.spec.name).unwrap().coded_as;
            let payload = file.layers_of(&array.spec.name).unwrap()[0].to_vec();
            let rows = spec.shape.first().copied().unwrap_or(1);
            let columns = spec.shape.iter().product::<usize>() / rows.max(1);
            let layer = Layer::read(&payload, rows, columns);
            layers += 1;
            weights += rows * columns;
            adaptive += layer.adaptive;
            fixed.iter_mut().zip(layer.all_static_bits()).for_each(|(sum, bits)| *sum += bits / 8.0);
        }
        println!(
            "{{\"name\": \"{name}\", \"layers\": {layers}, \"weights\": {weights}, \"adaptive\": {adaptive}, \"one\": {:.0}, \"columns\": {:.0}, \"both\": {:.0}}}",
            fixed[0], fixed[1], fixed[2]
        );
    }
}
