//! The diagonal of the Fisher information of one array.

use super::StatisticsError;

/// Sums over a text of an array's squared gradients of `-ln p(next token)`, element by element in the array's order.
#[derive(Debug, Clone, PartialEq)]
pub struct FisherDiagonal {
    tokens: u64,
    sums: Vec<f64>,
}

impl FisherDiagonal {
    /// Sums over `tokens` predicted tokens.
    pub fn new(tokens: u64, sums: Vec<f64>) -> Self {
        Self { tokens, sums }
    }

    /// Tokens that were predicted.
    pub fn tokens(&self) -> u64 {
        self.tokens
    }

    /// The sums.
    pub fn sums(&self) -> &[f64] {
        &self.sums
    }

    /// Fisher information per token of each element; zeros where no token was predicted.
    pub fn means(&self) -> Vec<f64> {
        self.sums.iter().map(|sum| sum / self.tokens.max(1) as f64).collect()
    }

    /// Adds what another text gave.
    ///
    /// # Errors
    /// Another number of elements.
    pub fn merge(&mut self, other: &Self) -> Result<(), StatisticsError> {
        if self.sums.len() != other.sums.len() {
            return Err(StatisticsError::Mismatch {
                message: format!("{} elements against {}", self.sums.len(), other.sums.len()),
            });
        }
        self.sums.iter_mut().zip(&other.sums).for_each(|(sum, theirs)| *sum += theirs);
        self.tokens += other.tokens;
        Ok(())
    }
}
