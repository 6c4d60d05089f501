//! Second moments of a module's inputs.
//!
//! A linear module `y = W x` whose weights move from `W` to `V` changes its output by `(W - V) x`, and summed over
//! inputs that error is `trace((W - V) H (W - V)^T)` with `H = sum x x^T`. So `H` is all that a weight quantiser
//! needs to know of the data, and it is a sum: it streams, and parts taken on different machines add up.
//!
//! # Determinism
//! [`SecondMoment::accumulate`] cuts its rows into chunks of [`CHUNK_TOKENS`] in index order. Each chunk is one
//! matrix product per panel of [`PANEL`] features, single-threaded inside; panels run side by side, and which
//! thread takes which does not matter. The bits of the sum therefore depend on the rows and on where calls begin,
//! never on the number of threads. A caller whose batches vary collects whole chunks first.
//!
//! # Cost
//! `dimension^2` multiply-adds per token and half of that in memory traffic; `4 dimension^2` bytes held.
//!
//! ```
//! use lamella_math::SecondMoment;
//! let mut moment = SecondMoment::new(2);
//! moment.accumulate(&[1.0, 2.0, 3.0, -1.0]); // two inputs: (1, 2) and (3, -1)
//! assert_eq!(moment.tokens(), 2);
//! assert_eq!(moment.sum(), [10.0, -1.0, -1.0, 5.0]);
//! assert_eq!(moment.diagonal(), [10.0, 5.0]);
//! ```

use gemm::Parallelism;
use rayon::prelude::*;

/// Tokens whose products are summed in one matrix product.
pub(crate) const CHUNK_TOKENS: usize = 2048;
/// Rows of the sum that one thread works on.
pub(crate) const PANEL: usize = 128;

/// Sum of `x x^T` over the inputs `x` of a linear module, with the count of inputs.
///
/// Accumulation is streaming and mergeable; solvers only read. The matrix is symmetric, `[dimension, dimension]`
/// row-major, both triangles stored and bitwise equal.
#[derive(Debug, Clone, PartialEq)]
pub struct SecondMoment {
    dimension: usize,
    tokens: u64,
    sum: Vec<f32>,
}

impl SecondMoment {
    /// No inputs seen yet.
    pub fn new(dimension: usize) -> Self {
        Self { dimension, tokens: 0, sum: vec![0.0; dimension * dimension] }
    }

    /// From a stored sum, row-major `[dimension, dimension]`; `None` where the length does not fit.
    pub fn from_sum(dimension: usize, tokens: u64, sum: Vec<f32>) -> Option<Self> {
        (Some(sum.len()) == dimension.checked_mul(dimension)).then_some(Self { dimension, tokens, sum })
    }

    /// Number of input features.
    pub fn dimension(&self) -> usize {
        self.dimension
    }

    /// Number of inputs accumulated.
    pub fn tokens(&self) -> u64 {
        self.tokens
    }

    /// The sum of `x x^T`, row-major.
    pub fn sum(&self) -> &[f32] {
        &self.sum
    }

    /// The sums of squares, one per feature.
    pub fn diagonal(&self) -> Vec<f32> {
        self.sum.iter().step_by(self.dimension + 1).copied().collect()
    }

    /// The mean of the diagonal: what damping is a fraction of. Zero where nothing was accumulated.
    pub fn mean_diagonal(&self) -> f64 {
        let total: f64 = self.diagonal().iter().map(|&value| f64::from(value)).sum();
        if self.dimension == 0 { 0.0 } else { total / self.dimension as f64 }
    }

    /// Adds inputs: `rows` is `[tokens, dimension]` row-major, cut into chunks of 2,048 tokens from its start.
    ///
    /// # Panics
    /// Where `rows` is not a whole number of inputs: a programming error of the caller.
    pub fn accumulate(&mut self, rows: &[f32]) {
        let dimension = self.dimension;
        if dimension == 0 {
            assert!(rows.is_empty(), "inputs without features hold no numbers");
            return;
        }
        assert!(
            rows.len().is_multiple_of(dimension),
            "{} numbers are not whole inputs of {dimension} features",
            rows.len()
        );
        if rows.is_empty() {
            return;
        }
        for chunk in rows.chunks(CHUNK_TOKENS * dimension) {
            self.sum.par_chunks_mut(PANEL * dimension).enumerate().for_each(|(index, panel)| {
                add_panel(panel, chunk, dimension, index * PANEL);
            });
        }
        self.mirror();
        self.tokens += (rows.len() / dimension) as u64;
    }

    /// Adds what another accumulation has seen. `false`, and nothing changes, where the dimensions differ.
    ///
    /// Sums of floats depend on their order: merge parts in a fixed order to get the same bits.
    #[must_use]
    pub fn merge(&mut self, other: &Self) -> bool {
        if self.dimension != other.dimension {
            return false;
        }
        for (sum, &value) in self.sum.iter_mut().zip(&other.sum) {
            *sum += value;
        }
        self.tokens += other.tokens;
        true
    }

    /// Bytes of [`SecondMoment::to_bytes`] for a dimension; `None` where they cannot be counted in a `usize`.
    pub fn stored_bytes(dimension: usize) -> Option<usize> {
        let triangle = dimension.checked_add(1)?.checked_mul(dimension)? / 2;
        triangle.checked_mul(4)?.checked_add(16)
    }

    /// Dimension (u64), tokens (u64), then the upper triangle row by row (f32), little endian.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(Self::stored_bytes(self.dimension).unwrap_or(0));
        bytes.extend_from_slice(&(self.dimension as u64).to_le_bytes());
        bytes.extend_from_slice(&self.tokens.to_le_bytes());
        for row in 0..self.dimension {
            for value in &self.sum[row * self.dimension + row..(row + 1) * self.dimension] {
                bytes.extend_from_slice(&value.to_le_bytes());
            }
        }
        bytes
    }

    /// Reads [`SecondMoment::to_bytes`]. `None` where the length does not fit the dimension or a sum is not finite;
    /// at most about twice the input's length is allocated.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let (dimension, rest) = bytes.split_first_chunk::<8>()?;
        let (tokens, triangle) = rest.split_first_chunk::<8>()?;
        let dimension = usize::try_from(u64::from_le_bytes(*dimension)).ok()?;
        if Self::stored_bytes(dimension)? != bytes.len() {
            return None;
        }
        let (mut moment, mut values) = (Self::new(dimension), triangle.chunks_exact(4));
        for row in 0..dimension {
            for column in row..dimension {
                let value = values.next()?;
                let value = f32::from_le_bytes([value[0], value[1], value[2], value[3]]);
                if !value.is_finite() {
                    return None;
                }
                moment.sum[row * dimension + column] = value;
            }
        }
        moment.mirror();
        moment.tokens = u64::from_le_bytes(*tokens);
        Some(moment)
    }

    /// Copies the upper triangle onto the lower one, in tiles so that both sides stay in cache.
    fn mirror(&mut self) {
        const TILE: usize = 32;
        let dimension = self.dimension;
        for row_tile in (0..dimension).step_by(TILE) {
            for column_tile in (row_tile..dimension).step_by(TILE) {
                for row in row_tile..dimension.min(row_tile + TILE) {
                    for column in column_tile.max(row + 1)..dimension.min(column_tile + TILE) {
                        self.sum[column * dimension + row] = self.sum[row * dimension + column];
                    }
                }
            }
        }
    }
}

/// Adds `X_p^T X` to the rows of the sum that start at feature `first`, from column `first` on.
#[expect(unsafe_code, reason = "the matrix product takes pointers and strides")]
fn add_panel(panel: &mut [f32], rows: &[f32], dimension: usize, first: usize) {
    let (height, width, tokens) = (panel.len() / dimension, dimension - first, rows.len() / dimension);
    let stride = dimension as isize;
    debug_assert!(height <= width && tokens > 0);
    // SAFETY: `panel` holds `height` whole rows of `dimension` floats, of which columns `first..dimension` are
    // written: the last index is (height - 1) * dimension + dimension - 1. `rows` holds `tokens` whole rows, read at
    // columns `first..first + height` and `first..dimension`, both within a row. The two slices cannot overlap:
    // `panel` is borrowed mutably.
    unsafe {
        gemm::gemm(
            height,
            width,
            tokens,
            panel.as_mut_ptr().add(first),
            1,
            stride,
            true,
            rows.as_ptr().add(first),
            stride,
            1,
            rows.as_ptr().add(first),
            1,
            stride,
            1.0_f32,
            1.0_f32,
            false,
            false,
            false,
            Parallelism::None,
        );
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn noise(length: usize) -> Vec<f32> {
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        (0..length)
            .map(|_| {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
            })
            .collect()
    }

    fn naive(rows: &[f32], dimension: usize) -> Vec<f64> {
        let mut sum = vec![0.0; dimension * dimension];
        for row in rows.chunks(dimension) {
            for i in 0..dimension {
                for j in 0..dimension {
                    sum[i * dimension + j] += f64::from(row[i]) * f64::from(row[j]);
                }
            }
        }
        sum
    }

    #[test]
    fn equals_the_naive_sum_across_panels_and_chunks() {
        for (tokens, dimension) in [(1, 1), (3, 5), (17, 127), (9, 128), (5, 300), (2100, 33)] {
            let rows = noise(tokens * dimension);
            let mut moment = SecondMoment::new(dimension);
            moment.accumulate(&rows);
            let expected = naive(&rows, dimension);
            let scale = expected.iter().fold(0.0_f64, |peak, value| peak.max(value.abs()));
            for (found, expected) in moment.sum().iter().zip(&expected) {
                assert!(
                    (f64::from(*found) - expected).abs() <= 1e-5 * scale,
                    "{tokens} x {dimension}: {found} against {expected}"
                );
            }
            for i in 0..dimension {
                for j in 0..dimension {
                    assert_eq!(moment.sum[i * dimension + j], moment.sum[j * dimension + i]);
                }
            }
        }
    }

    #[test]
    fn thread_count_leaves_no_trace() {
        let rows = noise(2500 * 200);
        let sum = |threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| {
                let mut moment = SecondMoment::new(200);
                moment.accumulate(&rows);
                moment
            })
        };
        assert_eq!(sum(1), sum(4));
    }

    #[test]
    fn whole_chunks_may_come_in_any_number_of_calls() {
        let rows = noise(3 * CHUNK_TOKENS * 8);
        let (mut once, mut thrice) = (SecondMoment::new(8), SecondMoment::new(8));
        once.accumulate(&rows);
        rows.chunks(CHUNK_TOKENS * 8).for_each(|chunk| thrice.accumulate(chunk));
        assert_eq!(once, thrice);
    }

    #[test]
    fn merging_adds_sums_and_tokens() {
        let rows = noise(40 * 6);
        let (mut whole, mut left, mut right) =
            (SecondMoment::new(6), SecondMoment::new(6), SecondMoment::new(6));
        whole.accumulate(&rows);
        left.accumulate(&rows[..60]);
        right.accumulate(&rows[60..]);
        assert!(left.merge(&right));
        assert_eq!(left.tokens(), 40);
        for (a, b) in whole.sum().iter().zip(left.sum()) {
            assert!((a - b).abs() < 1e-5);
        }
        assert!(!left.merge(&SecondMoment::new(5)));
    }

    #[test]
    fn cut_or_lengthened_bytes_are_refused() {
        let mut moment = SecondMoment::new(7);
        moment.accumulate(&noise(21));
        let mut bytes = moment.to_bytes();
        for end in 0..bytes.len() {
            assert_eq!(SecondMoment::from_bytes(&bytes[..end]), None);
        }
        assert_eq!(Some(&moment), SecondMoment::from_bytes(&bytes).as_ref());
        bytes.push(0);
        assert_eq!(SecondMoment::from_bytes(&bytes), None);
        bytes[..8].copy_from_slice(&u64::MAX.to_le_bytes());
        assert_eq!(SecondMoment::from_bytes(&bytes), None);
        assert_eq!(SecondMoment::from_sum(usize::MAX, 0, Vec::new()), None);
    }

    proptest! {
        #[test]
        fn bytes_round_trip(dimension in 0_usize..20, tokens in 0_usize..30) {
            let mut moment = SecondMoment::new(dimension);
            if dimension > 0 {
                moment.accumulate(&noise(dimension * tokens));
            }
            prop_assert_eq!(SecondMoment::from_bytes(&moment.to_bytes()), Some(moment));
        }
    }
}
