//! Matrix products: single-threaded kernels inside fixed parallel tiles.
//!
//! Every product is cut into tiles whose extents do not depend on the number of threads, and each tile is one
//! single-threaded call of the `gemm` crate. Results are therefore the same bits at any thread count on one
//! machine. Between machines they may differ in the last bits (kernels use what the CPU has), which is fine here:
//! nothing a decoder of files depends on is computed by these products.

#![allow(unsafe_code, reason = "calls the gemm kernels, whose interface is raw pointers")]

use gemm::{Parallelism, gemm};
use rayon::prelude::*;

use crate::elementwise::dot;

/// Tokens of a tile.
const TILE_TOKENS: usize = 256;
/// Output features of a tile.
const TILE_FEATURES: usize = 256;
/// Multiplications below which a product stays on the calling thread: waking others costs more.
const SERIAL_MULTIPLICATIONS: usize = 1 << 17;

/// A matrix inside a slice: element `(r, c)` lies at `offset + r * row_stride + c * column_stride`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Layout {
    pub(crate) offset: usize,
    pub(crate) row_stride: usize,
    pub(crate) column_stride: usize,
}

impl Layout {
    /// Rows `stride` apart, columns adjacent.
    pub(crate) fn rows(offset: usize, stride: usize) -> Self {
        Self { offset, row_stride: stride, column_stride: 1 }
    }
    /// The same matrix read with rows and columns exchanged.
    pub(crate) fn transposed(self) -> Self {
        Self { offset: self.offset, row_stride: self.column_stride, column_stride: self.row_stride }
    }
    /// One past the last element of a `rows` by `columns` matrix.
    fn end(self, rows: usize, columns: usize) -> usize {
        if rows == 0 || columns == 0 {
            return 0;
        }
        self.offset + (rows - 1) * self.row_stride + (columns - 1) * self.column_stride + 1
    }
}

/// `out = scale * left * right` for `left [m, k]`, `right [k, n]`, `out [m, n]`, on the calling thread.
///
/// # Panics
/// Where a matrix does not lie inside its slice.
pub(crate) fn multiply(
    (m, n, k): (usize, usize, usize),
    scale: f32,
    left: (&[f32], Layout),
    right: (&[f32], Layout),
    out: (&mut [f32], Layout),
) {
    assert!(left.1.end(m, k) <= left.0.len(), "left matrix exceeds its slice");
    assert!(right.1.end(k, n) <= right.0.len(), "right matrix exceeds its slice");
    assert!(out.1.end(m, n) <= out.0.len(), "product exceeds its slice");
    // SAFETY: the three assertions keep every element that the kernel touches inside its slice, and `out` is
    // borrowed exclusively.
    unsafe {
        multiply_raw((m, n, k), scale, left, right, out.0.as_mut_ptr().add(out.1.offset), out.1);
    }
}

/// # Safety
/// `out` points at element `(0, 0)` of an exclusively held `[m, n]` matrix of the given strides; `left` and `right`
/// lie inside their slices.
unsafe fn multiply_raw(
    (m, n, k): (usize, usize, usize),
    scale: f32,
    left: (&[f32], Layout),
    right: (&[f32], Layout),
    out: *mut f32,
    layout: Layout,
) {
    if m == 0 || n == 0 {
        return;
    }
    // SAFETY: as promised by the caller.
    unsafe {
        gemm(
            m,
            n,
            k,
            out,
            layout.column_stride as isize,
            layout.row_stride as isize,
            false,
            left.0.as_ptr().add(left.1.offset.min(left.0.len())),
            left.1.column_stride as isize,
            left.1.row_stride as isize,
            right.0.as_ptr().add(right.1.offset.min(right.0.len())),
            right.1.column_stride as isize,
            right.1.row_stride as isize,
            0.0,
            scale,
            false,
            false,
            false,
            Parallelism::None,
        );
    }
}

/// A pointer that tiles of one matrix share.
#[derive(Clone, Copy)]
struct Shared(*mut f32);
// SAFETY: only `linear` makes one, and its tiles are disjoint.
unsafe impl Send for Shared {}
// SAFETY: as above.
unsafe impl Sync for Shared {}
impl Shared {
    fn pointer(self) -> *mut f32 {
        self.0
    }
}

/// `outputs[t, column + o] = sum_i inputs[t, i] * weight[o, i]`.
///
/// `inputs [tokens, in_features]` and `weight [out_features, in_features]` are row-major; `outputs` has rows
/// `stride` apart, of which columns `column .. column + out_features` are written.
///
/// # Panics
/// Where a slice is too short for its shape.
pub(crate) fn linear(
    inputs: &[f32],
    weight: &[f32],
    (tokens, in_features, out_features): (usize, usize, usize),
    outputs: &mut [f32],
    stride: usize,
    column: usize,
) {
    let layout = Layout::rows(column, stride);
    assert!(inputs.len() >= tokens * in_features, "inputs are too short");
    assert!(weight.len() >= out_features * in_features, "weight is too short");
    assert!(column + out_features <= stride && layout.end(tokens, out_features) <= outputs.len());
    if tokens == 0 || out_features == 0 {
        return;
    }
    let is_serial = tokens * in_features * out_features <= SERIAL_MULTIPLICATIONS;
    if tokens == 1 {
        let row = &inputs[..in_features];
        let outputs = &mut outputs[column..column + out_features];
        let chunk = |index: usize, outputs: &mut [f32]| {
            for (o, output) in outputs.iter_mut().enumerate() {
                let at = (index * TILE_FEATURES + o) * in_features;
                *output = dot(row, &weight[at..at + in_features]);
            }
        };
        if is_serial {
            outputs.chunks_mut(TILE_FEATURES).enumerate().for_each(|(index, part)| chunk(index, part));
        } else {
            outputs.par_chunks_mut(TILE_FEATURES).enumerate().for_each(|(index, part)| chunk(index, part));
        }
        return;
    }
    let feature_tiles = out_features.div_ceil(TILE_FEATURES);
    let tiles = tokens.div_ceil(TILE_TOKENS) * feature_tiles;
    let shared = Shared(outputs.as_mut_ptr());
    let tile = |index: usize| {
        let (token, feature) = (index / feature_tiles * TILE_TOKENS, index % feature_tiles * TILE_FEATURES);
        let m = TILE_TOKENS.min(tokens - token);
        let n = TILE_FEATURES.min(out_features - feature);
        let left = (inputs, Layout::rows(token * in_features, in_features));
        let right = (weight, Layout::rows(feature * in_features, in_features).transposed());
        // SAFETY: the tile lies inside `outputs` (asserted above) and tiles do not overlap; inputs and weight hold
        // the rows of the tile (asserted above).
        unsafe {
            let corner = shared.pointer().add(token * stride + column + feature);
            multiply_raw((m, n, in_features), 1.0, left, right, corner, Layout::rows(0, stride));
        }
    };
    if is_serial {
        (0..tiles).for_each(tile);
    } else {
        (0..tiles).into_par_iter().for_each(tile);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbers(n: usize, seed: u32) -> Vec<f32> {
        let mut state = seed;
        (0..n)
            .map(|_| {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                (state >> 8) as f32 / (1 << 23) as f32 - 1.0
            })
            .collect()
    }

    #[test]
    fn products_agree_with_the_definition_at_every_tile_edge() {
        for (tokens, inputs, outputs) in [(1, 7, 5), (1, 300, 700), (3, 17, 300), (257, 33, 259), (0, 4, 4)] {
            let x = numbers(tokens * inputs, 1);
            let w = numbers(outputs * inputs, 2);
            let (stride, column) = (outputs + 3, 2);
            let mut y = vec![9.0; tokens * stride];
            linear(&x, &w, (tokens, inputs, outputs), &mut y, stride, column);
            for t in 0..tokens {
                assert_eq!(y[t * stride], 9.0, "columns outside the range stay");
                for o in 0..outputs {
                    let exact: f64 = (0..inputs)
                        .map(|i| f64::from(x[t * inputs + i]) * f64::from(w[o * inputs + i]))
                        .sum();
                    assert!((f64::from(y[t * stride + column + o]) - exact).abs() < 1e-4);
                }
            }
        }
    }

    #[test]
    fn the_thread_count_does_not_change_a_bit() {
        let (x, w) = (numbers(300 * 200, 3), numbers(500 * 200, 4));
        let run = |threads: usize| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            let mut y = vec![0.0; 300 * 500];
            pool.install(|| linear(&x, &w, (300, 200, 500), &mut y, 500, 0));
            y
        };
        assert_eq!(run(1), run(3));
    }
}
