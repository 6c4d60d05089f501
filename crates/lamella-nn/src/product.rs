//! Matrix products on the calling thread.

#![allow(unsafe_code, reason = "calls the gemm kernels, whose interface is raw pointers")]

use gemm::{Parallelism, gemm};

/// A matrix inside a slice: element `(r, c)` lies at `offset + r * row_stride + c * column_stride`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Place {
    offset: usize,
    row_stride: usize,
    column_stride: usize,
}

impl Place {
    /// Rows `stride` apart from `offset` on.
    pub(crate) fn rows(offset: usize, stride: usize) -> Self {
        Self { offset, row_stride: stride, column_stride: 1 }
    }
    /// With rows and columns exchanged.
    pub(crate) fn transposed(self) -> Self {
        Self { offset: self.offset, row_stride: self.column_stride, column_stride: self.row_stride }
    }
    fn fits(self, rows: usize, columns: usize, length: usize) -> bool {
        rows == 0
            || columns == 0
            || self.offset + (rows - 1) * self.row_stride + (columns - 1) * self.column_stride < length
    }
}

/// `out = keep * out + scale * left * right` with `left [m, k]`, `right [k, n]`; `keep` is 0 or 1.
///
/// # Panics
/// Where a matrix does not lie inside its slice.
pub(crate) fn multiply(
    (m, n, k): (usize, usize, usize),
    scale: f32,
    left: (&[f32], Place),
    right: (&[f32], Place),
    out: (&mut [f32], Place),
    is_added: bool,
) {
    assert!(left.1.fits(m, k, left.0.len()), "left matrix exceeds its slice");
    assert!(right.1.fits(k, n, right.0.len()), "right matrix exceeds its slice");
    assert!(out.1.fits(m, n, out.0.len()), "product exceeds its slice");
    if m == 0 || n == 0 || k == 0 {
        return;
    }
    // SAFETY: the assertions above keep every element that the kernel touches inside its slice (`m`, `n` and `k` are
    // not zero, so each offset is inside too), and `out` is borrowed exclusively.
    unsafe {
        gemm(
            m,
            n,
            k,
            out.0.as_mut_ptr().add(out.1.offset),
            out.1.column_stride as isize,
            out.1.row_stride as isize,
            is_added,
            left.0.as_ptr().add(left.1.offset),
            left.1.column_stride as isize,
            left.1.row_stride as isize,
            right.0.as_ptr().add(right.1.offset),
            right.1.column_stride as isize,
            right.1.row_stride as isize,
            if is_added { 1.0 } else { 0.0 },
            scale,
            false,
            false,
            false,
            Parallelism::None,
        );
    }
}

/// `rows [n, in] * weight^T` for a weight `[out, in]`.
pub(crate) fn forward(rows: &[f32], weight: &[f32], inputs: usize, outputs: usize) -> Vec<f32> {
    let n = rows.len() / inputs;
    let mut out = vec![0.0; n * outputs];
    let right = Place::rows(0, inputs).transposed();
    multiply(
        (n, outputs, inputs),
        1.0,
        (rows, Place::rows(0, inputs)),
        (weight, right),
        (&mut out, Place::rows(0, outputs)),
        false,
    );
    out
}

/// `changes [n, out] * weight`: the gradient of the inputs of [`forward`], added to `out [n, in]`.
pub(crate) fn backward(changes: &[f32], weight: &[f32], inputs: usize, outputs: usize, out: &mut [f32]) {
    let n = changes.len() / outputs;
    multiply(
        (n, inputs, outputs),
        1.0,
        (changes, Place::rows(0, outputs)),
        (weight, Place::rows(0, inputs)),
        (out, Place::rows(0, inputs)),
        true,
    );
}

/// Adds `changes^T rows` to `out [out, in]`: the gradient of the weight of [`forward`].
pub(crate) fn outer(changes: &[f32], rows: &[f32], inputs: usize, outputs: usize, out: &mut [f32]) {
    let n = changes.len() / outputs;
    multiply(
        (outputs, inputs, n),
        1.0,
        (changes, Place::rows(0, outputs).transposed()),
        (rows, Place::rows(0, inputs)),
        (out, Place::rows(0, inputs)),
        true,
    );
}
