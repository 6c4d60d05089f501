//! Products on packed integers: weights of 4 or 8 bits, activations of 8, sums exact.
//!
//! # Idea
//! A quantised linear is `y_i = f_i sum_j c_ij (s_j x_j)` with integer codes `c`, a step `s_j` per column and a factor
//! `f_i` per row. The steps fold into the activations, so the inner sum is one of small integers: activations are cut
//! into blocks of [`BLOCK`] features, each rounded to 8 bits with a scale of its own ([`Activations`]), and a block's
//! products add up exactly in integers. Only the blocks' sums become floats.
//!
//! # Definition
//! `y_i = (((0 + d_0 a_0) + d_1 a_1) + …)` over blocks `b` from the first to the last, in `f32`, nothing fused, with
//! `d_b` the block's scale and `a_b = sum_j c_ij q_j` over its features. [`plain`] is this text; the vector kernels
//! give the same bits, because integers do not care for order and floats are added in this one.
//!
//! # Grids
//! A matrix whose rows have a scale `s_ig` and a zero point `z_ig` for every group `g` of features ([`Grids`]) is
//! multiplied by [`product_grouped`]: `a_b = sum_j (q_ij - z_ig) q_j`, exact as before, `u_g` the sum of a group's
//! `d_b a_b` from its first block to its last, and `y_i = (((0 + s_i0 u_0) + s_i1 u_1) + …)`.
//!
//! # Layout
//! Rows are taken sixteen at a time (a *tile*), so that a vector of sixteen 32-bit sums is one block's result. A *line*
//! of 64 bytes holds, for each row of a tile, 4 bytes: of 8 features with 4 bits (the first four in the low halves),
//! of 4 features with 8 bits. Codes are stored plus 8, or plus 128, so that they are unsigned, which is what byte
//! multiplication wants; `sum q_j` times that much is taken off again. Rows and features are filled up with zeros to
//! whole tiles and blocks.
//!
//! # Cost
//! 4 or 8 bits a weight. One token is bound by memory; several tokens share the unpacking ([`TOKENS`] at a time).

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(target_arch = "x86_64")]
mod avx512_sparse;
mod grids;
mod plain;
mod product;
mod sparse;
#[cfg(test)]
mod tests;

pub use grids::Grids;
use grids::{Grid, TileGrids};
pub use product::{product, product_grouped};
use rayon::prelude::*;
pub use sparse::Sparse;

/// Features that share a scale of the activations.
pub const BLOCK: usize = 32;
/// Rows of a tile.
pub const TILE: usize = 16;
/// Tokens that share the unpacking of a line.
pub const TOKENS: usize = 8;

/// Bits of a packed weight.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Width {
    /// Codes from -8 to 7.
    Four,
    /// Codes from -128 to 127.
    Eight,
}

impl Width {
    /// Bits of a code.
    pub fn bits(self) -> u32 {
        match self {
            Self::Four => 4,
            Self::Eight => 8,
        }
    }
    /// The largest magnitude that is used on both sides of zero.
    pub fn largest(self) -> i32 {
        self.bias() - 1
    }
    /// What is added to a code to make it unsigned.
    fn bias(self) -> i32 {
        1 << (self.bits() - 1)
    }
    /// Features of a line.
    fn features(self) -> usize {
        32 / self.bits() as usize
    }
    /// Lines of a block.
    fn lines(self) -> usize {
        BLOCK / self.features()
    }
}

/// 64 bytes on a cache line of their own.
#[derive(Debug, Clone, Copy)]
#[repr(C, align(64))]
struct Line([u8; 64]);

/// Integer codes of a matrix, `[rows, columns]`, packed in tiles.
#[derive(Clone)]
pub struct Packed {
    width: Width,
    rows: usize,
    columns: usize,
    /// `[tiles, blocks, lines of a block]`.
    lines: Vec<Line>,
}

impl std::fmt::Debug for Packed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Packed({} x {}, {} bits)", self.rows, self.columns, self.width.bits())
    }
}

impl Packed {
    /// A matrix of zeros.
    pub fn zeros(width: Width, rows: usize, columns: usize) -> Self {
        let zero = match width {
            Width::Four => 0x88,
            Width::Eight => 0x80,
        };
        let lines = rows.div_ceil(TILE) * columns.div_ceil(BLOCK) * width.lines();
        Self { width, rows, columns, lines: vec![Line([zero; 64]); lines] }
    }

    /// Bits of a code.
    pub fn width(&self) -> Width {
        self.width
    }
    /// Rows.
    pub fn rows(&self) -> usize {
        self.rows
    }
    /// Columns.
    pub fn columns(&self) -> usize {
        self.columns
    }
    /// Bytes in memory.
    pub fn size_bytes(&self) -> usize {
        size_of_val(&self.lines[..])
    }

    /// Line, byte and shift of a code.
    fn place(&self, row: usize, column: usize) -> (usize, usize, u32) {
        let features = self.width.features();
        let blocks = self.columns.div_ceil(BLOCK);
        let block = (row / TILE * blocks + column / BLOCK) * self.width.lines();
        let line = block + column % BLOCK / features;
        let within = column % features;
        (line, row % TILE * 4 + within % 4, 4 * (within as u32 / 4))
    }

    /// Sets a column's codes, one per row; codes outside the width's range are cut to it, and shown with what is
    /// missing.
    ///
    /// # Panics
    /// Where the column does not exist or there is not one code per row.
    pub fn set_column(&mut self, column: usize, codes: &[i32], mut missing: impl FnMut(usize, i32)) {
        assert!(column < self.columns && codes.len() == self.rows, "one code per row of an existing column");
        let bias = self.width.bias();
        let blocks = self.columns.div_ceil(BLOCK) * self.width.lines();
        let (first, byte, shift) = self.place(0, column);
        let mask = if self.width == Width::Four { 15u8 } else { 255 };
        for (tile, codes) in codes.chunks(TILE).enumerate() {
            let line = &mut self.lines[first + tile * blocks].0;
            for (row, &code) in codes.iter().enumerate() {
                let kept = code.clamp(-bias, bias - 1);
                if kept != code {
                    missing(tile * TILE + row, code.wrapping_sub(kept));
                }
                let slot = &mut line[byte + 4 * row];
                *slot = *slot & !(mask << shift) | ((kept + bias) as u8) << shift;
            }
        }
    }

    /// Sets a row's codes as they are stored, unsigned: 0 to 15, or 0 to 255.
    ///
    /// # Panics
    /// Where the row does not exist or there is not one code per column.
    pub fn set_row_unsigned(&mut self, row: usize, codes: &[u8]) {
        assert!(row < self.rows && codes.len() == self.columns, "one code per column of an existing row");
        let mask = if self.width == Width::Four { 15u8 } else { 255 };
        for (column, &code) in codes.iter().enumerate() {
            let (line, byte, shift) = self.place(row, column);
            let slot = &mut self.lines[line].0[byte];
            *slot = *slot & !(mask << shift) | (code & mask) << shift;
        }
    }

    /// One code.
    ///
    /// # Panics
    /// Where there is none.
    pub fn code(&self, row: usize, column: usize) -> i32 {
        assert!(row < self.rows && column < self.columns, "no such code");
        let (line, byte, shift) = self.place(row, column);
        let mask = if self.width == Width::Four { 15 } else { 255 };
        i32::from(self.lines[line].0[byte] >> shift & mask) - self.width.bias()
    }
}

/// Rows of activations, rounded to 8 bits.
#[derive(Debug, Clone, Default)]
pub struct Activations {
    columns: usize,
    /// `[tokens, blocks * BLOCK]`, within -127 to 127.
    codes: Vec<i8>,
    /// `[tokens, blocks]`.
    scales: Vec<f32>,
    /// Sum of each block's codes, `[tokens, blocks]`.
    sums: Vec<i32>,
}

impl Activations {
    /// Rounds `inputs [tokens, columns]`, each multiplied by its column's `step`.
    ///
    /// A block's scale is its largest magnitude over 127; codes are rounded to nearest, ties to even. What is not
    /// finite becomes 0 of a scale that is not finite, and with it the product.
    ///
    /// # Panics
    /// Where the inputs are not whole rows.
    pub fn new(inputs: &[f32], steps: &[f32]) -> Self {
        let columns = steps.len();
        if columns == 0 {
            return Self::default();
        }
        assert_eq!(inputs.len() % columns, 0, "whole rows are needed");
        let (tokens, blocks) = (inputs.len() / columns, columns.div_ceil(BLOCK));
        let mut new = Self {
            columns,
            codes: vec![0; tokens * blocks * BLOCK],
            scales: vec![0.0; tokens * blocks],
            sums: vec![0; tokens * blocks],
        };
        if tokens <= TOKENS {
            let per_row = new.codes.chunks_exact_mut(blocks * BLOCK);
            let side = new.scales.chunks_exact_mut(blocks).zip(new.sums.chunks_exact_mut(blocks));
            for ((row, codes), (scales, sums)) in inputs.chunks_exact(columns).zip(per_row).zip(side) {
                product::round_row(row, steps, codes, scales, sums);
            }
        } else {
            let per_row = new.codes.par_chunks_exact_mut(blocks * BLOCK);
            let side = new.scales.par_chunks_exact_mut(blocks).zip(new.sums.par_chunks_exact_mut(blocks));
            let rows = inputs.par_chunks_exact(columns).zip(per_row).zip(side);
            rows.for_each(|((row, codes), (scales, sums))| {
                product::round_row(row, steps, codes, scales, sums)
            });
        }
        new
    }

    /// Rows.
    pub fn tokens(&self) -> usize {
        self.scales.len() / self.columns.div_ceil(BLOCK).max(1)
    }

    /// One row as the kernels want it.
    fn row(&self, token: usize) -> Row<'_> {
        let blocks = self.columns.div_ceil(BLOCK);
        Row {
            codes: &self.codes[token * blocks * BLOCK..][..blocks * BLOCK],
            scales: &self.scales[token * blocks..][..blocks],
            sums: &self.sums[token * blocks..][..blocks],
        }
    }
}

/// A row of activations.
#[derive(Debug, Clone, Copy)]
struct Row<'a> {
    codes: &'a [i8],
    scales: &'a [f32],
    sums: &'a [i32],
}

/// Multiplies one tile with `N` rows of activations.
type Kernel<const N: usize> = fn(Width, &[Line], [Row<'_>; N]) -> [[f32; TILE]; N];
/// The same with a grid for every row and group.
type GroupedKernel<const N: usize> = fn(Width, &[Line], TileGrids<'_>, [Row<'_>; N]) -> [[f32; TILE]; N];

/// An instruction set: how one token, and how [`TOKENS`] tokens, are multiplied.
#[derive(Clone, Copy)]
struct Kernels {
    name: &'static str,
    one: Kernel<1>,
    many: Kernel<TOKENS>,
    one_grouped: GroupedKernel<1>,
    many_grouped: GroupedKernel<TOKENS>,
    sparse_one: sparse::One,
    sparse_many: sparse::Many,
}

/// The kernels of this machine, least first; the first is [`plain`].
fn all_kernels() -> Vec<Kernels> {
    #[allow(unused_mut, reason = "other machines have the plain one only")]
    let mut all = vec![Kernels {
        name: "plain",
        one: plain::tile,
        many: plain::tile,
        one_grouped: plain::grouped,
        many_grouped: plain::grouped,
        sparse_one: sparse::one,
        sparse_many: sparse::many,
    }];
    #[cfg(target_arch = "x86_64")]
    {
        all.extend(avx2::kernels());
        all.extend(avx512::kernels());
        all.extend(avx512::kernels_vnni());
    }
    all
}

/// The best kernels, or those that `LAMELLA_CPU=plain|avx2|avx512` leaves.
fn kernels() -> Kernels {
    static CHOSEN: std::sync::OnceLock<Kernels> = std::sync::OnceLock::new();
    *CHOSEN.get_or_init(|| {
        let all = all_kernels();
        let wanted = std::env::var("LAMELLA_CPU").unwrap_or_default();
        let named = all.iter().find(|kernels| kernels.name == wanted);
        *named.unwrap_or(&all[all.len() - 1])
    })
}
