//! Second moments of a module's inputs.

/// Sum of `x x^T` over the inputs `x` of a linear module, with the count of inputs.
///
/// Accumulation is streaming and mergeable; solvers only read. The matrix is symmetric, `[dimension, dimension]`
/// row-major, both triangles stored.
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
    /// From a stored sum, row-major `[dimension, dimension]`.
    pub fn from_sum(dimension: usize, tokens: u64, sum: Vec<f32>) -> Option<Self> {
        (sum.len() == dimension * dimension).then_some(Self { dimension, tokens, sum })
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
}
