//! Every kernel against the plain one, and that against exact arithmetic.

use super::product::product_with;
use super::*;

struct Numbers(u64);
impl Numbers {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        self.0 >> 33
    }
    fn codes(&mut self, width: Width, rows: usize, columns: usize) -> Packed {
        let mut packed = Packed::zeros(width, rows, columns);
        let span = 2 * width.largest() as u64 + 1;
        for column in 0..columns {
            let codes: Vec<i32> = (0..rows).map(|_| (self.next() % span) as i32 - width.largest()).collect();
            packed.set_column(column, &codes, |_, _| panic!("codes are within the range"));
            for (row, &code) in codes.iter().enumerate() {
                assert_eq!(packed.code(row, column), code);
            }
        }
        packed
    }
    /// Groups of two blocks with zero points over the width's whole range.
    fn grids(&mut self, packed: &Packed) -> Grids {
        let mut grids = Grids::zeros(packed.rows(), packed.columns(), 2 * BLOCK);
        for row in 0..packed.rows() {
            for group in 0..packed.columns().div_ceil(2 * BLOCK) {
                let zero = (self.next() % (2 * packed.width().bias() as u64)) as u8;
                grids.set(row, group, self.floats(1)[0], zero);
            }
        }
        grids
    }
    fn floats(&mut self, n: usize) -> Vec<f32> {
        (0..n).map(|_| (self.next() as f32 / (1u64 << 30) as f32 - 1.0) * 3.0).collect()
    }
}

/// Features and rows around every edge: block, line, tile, chunk.
const SHAPES: [(usize, usize); 9] =
    [(1, 1), (31, 16), (32, 17), (33, 15), (64, 256), (100, 300), (2048, 48), (5632, 16), (257, 33)];

fn run(kernels: Kernels, packed: &Packed, grids: Option<&Grids>, activations: &Activations) -> Vec<u32> {
    let (stride, tokens) = (packed.rows() + 5, activations.tokens());
    let mut outputs = vec![7.0; stride * tokens];
    product_with(kernels, packed, grids, activations, &mut outputs, stride, 3);
    assert!((0..tokens).all(|token| outputs[token * stride + 2] == 7.0), "columns outside stay");
    outputs.iter().map(|value| value.to_bits()).collect()
}

#[test]
fn every_kernel_equals_the_plain_one() {
    let all = all_kernels();
    for name in ["avx2", "avx512", "vnni"] {
        if !all.iter().any(|kernels| kernels.name == name) {
            println!("skipped: this machine has no {name}");
        }
    }
    let mut numbers = Numbers(5);
    for width in [Width::Four, Width::Eight] {
        for (columns, rows) in SHAPES {
            let packed = numbers.codes(width, rows, columns);
            for tokens in [1, TOKENS, TOKENS + 3] {
                let inputs = numbers.floats(tokens * columns);
                let activations = Activations::new(&inputs, &numbers.floats(columns));
                let expected = run(all[0], &packed, None, &activations);
                let grids = numbers.grids(&packed);
                let expected_grouped = run(all[0], &packed, Some(&grids), &activations);
                for &kernels in &all[1..] {
                    let found = run(kernels, &packed, None, &activations);
                    assert_eq!(found, expected, "{} {width:?} {rows} x {columns}", kernels.name);
                    let found = run(kernels, &packed, Some(&grids), &activations);
                    assert_eq!(
                        found, expected_grouped,
                        "{} {width:?} {rows} x {columns}, grids",
                        kernels.name
                    );
                }
            }
        }
    }
}

#[test]
fn extremes_do_not_overflow() {
    let columns = 96;
    for width in [Width::Four, Width::Eight] {
        for (code, input) in [(1, 1.0), (1, -1.0), (-1, 1.0)] {
            let mut packed = Packed::zeros(width, 16, columns);
            for column in 0..columns {
                packed.set_column(column, &[code * width.largest(); 16], |_, _| ());
            }
            let activations = Activations::new(&vec![input; columns], &vec![1.0; columns]);
            for kernels in all_kernels() {
                let mut outputs = [0.0; 16];
                product_with(kernels, &packed, None, &activations, &mut outputs, 16, 0);
                let exact = (code * width.largest()) as f32 * input * columns as f32;
                assert!((outputs[0] - exact).abs() <= 1e-5 * exact.abs(), "{}: {}", kernels.name, outputs[0]);
            }
        }
    }
}

#[test]
fn grids_by_hand() {
    // Two groups of 32: 3 (5 - 4) x = 3 x in the first, -1 (0 - 15) x = 15 x in the second, x = 1 in all 64 features.
    let mut packed = Packed::zeros(Width::Four, 1, 64);
    packed.set_row_unsigned(0, &std::array::from_fn::<u8, 64, _>(|column| if column < 32 { 5 } else { 0 }));
    let mut grids = Grids::zeros(1, 64, 32);
    grids.set(0, 0, 3.0, 4);
    grids.set(0, 1, -1.0, 15);
    let mut outputs = [0.0];
    product_grouped(&packed, &grids, &Activations::new(&[1.0; 64], &[1.0; 64]), &mut outputs, 1, 0);
    assert!((outputs[0] - (32.0 * 3.0 + 32.0 * 15.0)).abs() < 1e-3, "{}", outputs[0]);
    assert_eq!((packed.code(0, 3), grids.get(0, 1)), (-3, (-1.0, 15)));
}

#[test]
fn rounding_activations_loses_under_half_a_step() {
    let mut numbers = Numbers(9);
    let (columns, rows) = (200, 20);
    let packed = numbers.codes(Width::Four, rows, columns);
    let (inputs, steps) = (numbers.floats(columns), numbers.floats(columns));
    let mut outputs = vec![0.0; rows];
    product(&packed, &Activations::new(&inputs, &steps), &mut outputs, rows, 0);
    for row in 0..rows {
        let folded = |column: usize| f64::from(inputs[column]) * f64::from(steps[column]);
        let exact: f64 = (0..columns).map(|c| f64::from(packed.code(row, c)) * folded(c)).sum();
        let largest = (0..columns).map(|c| folded(c).abs()).fold(0.0, f64::max);
        let bound: f64 =
            (0..columns).map(|c| f64::from(packed.code(row, c).abs())).sum::<f64>() * largest / 254.0;
        assert!((f64::from(outputs[row]) - exact).abs() <= bound);
    }
}

#[test]
fn the_thread_count_does_not_change_a_bit() {
    let mut numbers = Numbers(3);
    let packed = numbers.codes(Width::Four, 700, 512);
    let activations = Activations::new(&numbers.floats(512 * 9), &numbers.floats(512));
    let run = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| run(kernels(), &packed, None, &activations))
    };
    assert_eq!(run(1), run(3));
}

#[test]
fn codes_out_of_range_are_cut_and_reported() {
    let mut packed = Packed::zeros(Width::Four, 3, 2);
    let mut missing = Vec::new();
    packed.set_column(1, &[9, -7, -20], |row, rest| missing.push((row, rest)));
    assert_eq!(missing, [(0, 2), (2, -12)]);
    assert_eq!([packed.code(0, 1), packed.code(1, 1), packed.code(2, 1), packed.code(2, 0)], [7, -7, -8, 0]);
}

#[test]
fn what_is_not_finite_stays_so() {
    let mut packed = Packed::zeros(Width::Eight, 1, 2);
    packed.set_column(0, &[1], |_, _| ());
    for bad in [f32::NAN, f32::INFINITY] {
        let mut outputs = [0.0];
        product(&packed, &Activations::new(&[bad, 1.0], &[1.0, 1.0]), &mut outputs, 1, 0);
        assert!(!outputs[0].is_finite());
    }
}
