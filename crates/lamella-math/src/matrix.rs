//! Matrix products on slices, checked at the door.
//!
//! One safe wrapper around the `gemm` kernels, so that no other crate needs `unsafe` to multiply. Products run on
//! the calling thread: callers split work into fixed chunks, which keeps results independent of the number of
//! threads.

#![allow(unsafe_code, reason = "the kernels take raw pointers; lengths are checked first")]

use gemm::Parallelism;

/// A view of a matrix inside a slice: element `(i, j)` stands at `offset + i * row_stride + j * column_stride`.
#[derive(Debug, Clone, Copy)]
pub struct Layout {
    /// Rows.
    pub rows: usize,
    /// Columns.
    pub columns: usize,
    /// Position of element (0, 0).
    pub offset: usize,
    /// Distance of two rows.
    pub row_stride: usize,
    /// Distance of two columns.
    pub column_stride: usize,
}

impl Layout {
    /// A whole row-major matrix.
    pub fn row_major(rows: usize, columns: usize) -> Self {
        Self { rows, columns, offset: 0, row_stride: columns, column_stride: 1 }
    }
    /// The same elements read as the transposed matrix.
    pub fn transposed(self) -> Self {
        Self {
            rows: self.columns,
            columns: self.rows,
            row_stride: self.column_stride,
            column_stride: self.row_stride,
            ..self
        }
    }
    /// `rows` x `columns` elements from `(row, column)` on.
    pub fn block(self, row: usize, column: usize, rows: usize, columns: usize) -> Self {
        let offset = self.offset + row * self.row_stride + column * self.column_stride;
        Self { rows, columns, offset, ..self }
    }
    fn end(&self) -> usize {
        if self.rows == 0 || self.columns == 0 {
            return 0;
        }
        self.offset + (self.rows - 1) * self.row_stride + (self.columns - 1) * self.column_stride + 1
    }
}

/// `out = keep * out + factor * left * right`, single-threaded, `f32`.
///
/// With `keep` 0 the old contents are not read.
///
/// # Panics
/// Where shapes do not fit or a layout reaches beyond its slice: a caller's mistake, never the data's.
pub fn multiply_add(
    out: &mut [f32],
    out_layout: Layout,
    keep: f32,
    left: &[f32],
    left_layout: Layout,
    right: &[f32],
    right_layout: Layout,
    factor: f32,
) {
    assert!(
        left_layout.columns == right_layout.rows
            && out_layout.rows == left_layout.rows
            && out_layout.columns == right_layout.columns,
        "shapes must fit"
    );
    assert!(
        out_layout.end() <= out.len() && left_layout.end() <= left.len() && right_layout.end() <= right.len(),
        "layouts must lie inside their slices"
    );
    if out_layout.rows == 0 || out_layout.columns == 0 {
        return;
    }
    // SAFETY: every index the strides reach lies below `end()` of its layout, which is at most the slice's length,
    // and `out` is borrowed mutably, so it overlaps neither input.
    unsafe {
        gemm::gemm(
            out_layout.rows,
            out_layout.columns,
            left_layout.columns,
            out.as_mut_ptr().add(out_layout.offset),
            out_layout.column_stride as isize,
            out_layout.row_stride as isize,
            keep != 0.0,
            left.as_ptr().add(left_layout.offset.min(left.len())),
            left_layout.column_stride as isize,
            left_layout.row_stride as isize,
            right.as_ptr().add(right_layout.offset.min(right.len())),
            right_layout.column_stride as isize,
            right_layout.row_stride as isize,
            keep,
            factor,
            false,
            false,
            false,
            Parallelism::None,
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_of_a_product_by_hand() {
        let left = [1.0, 2.0, 3.0, 4.0];
        let right = [5.0, 6.0, 7.0, 8.0];
        let mut out = [1.0; 4];
        let square = Layout::row_major(2, 2);
        multiply_add(&mut out, square, 1.0, &left, square, &right, square.transposed(), -1.0);
        assert_eq!(out, [1.0 - 17.0, 1.0 - 23.0, 1.0 - 39.0, 1.0 - 53.0]);
        multiply_add(
            &mut out,
            square.block(1, 1, 1, 1),
            0.0,
            &left,
            square.block(0, 0, 1, 2),
            &right,
            square.block(0, 1, 2, 1),
            1.0,
        );
        assert_eq!(out[3], 6.0 + 16.0);
    }

    #[test]
    #[should_panic(expected = "inside")]
    fn a_layout_beyond_its_slice_is_refused() {
        let square = Layout::row_major(2, 2);
        multiply_add(&mut [0.0; 3], square, 0.0, &[0.0; 4], square, &[0.0; 4], square, 1.0);
    }
}
