//! What the user is willing to spend, or to lose.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A limit on a file.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Budget {
    /// Every byte of the file.
    Bytes(u64),
    /// All bytes but copied side files, times eight, over all weights; tied weights count once.
    BitsPerWeight(f64),
    /// The smallest file whose measured loss is within a bound.
    Quality {
        /// What is measured.
        metric: Metric,
        /// The most (for `cosine`: the least) allowed.
        bound: f64,
    },
}

/// A measure of what compression cost.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Metric {
    /// Kullback-Leibler divergence from the original's predictions, nats per token.
    Kl,
    /// Perplexity on the evaluation text.
    Perplexity,
    /// Squared distance of unit-norm embeddings, summed over dimensions, mean over texts.
    EmbeddingMse,
    /// Mean cosine between embeddings; more is better.
    Cosine,
}

/// Why a text is no budget, or a budget makes no sense.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct BudgetError {
    /// What was found and what is allowed.
    pub message: String,
}

impl Metric {
    const ALL: [Self; 4] = [Self::Kl, Self::Perplexity, Self::EmbeddingMse, Self::Cosine];

    /// The name in texts and reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::Kl => "kl",
            Self::Perplexity => "perplexity",
            Self::EmbeddingMse => "embedding_mse",
            Self::Cosine => "cosine",
        }
    }
    /// Whether smaller values are better ones.
    pub fn is_loss(self) -> bool {
        self != Self::Cosine
    }
    /// Whether `measured` keeps to `bound`. Never where it is NaN.
    pub fn meets(self, measured: f64, bound: f64) -> bool {
        if self.is_loss() { measured <= bound } else { measured >= bound }
    }
}

impl Budget {
    /// Bits per weight.
    ///
    /// # Errors
    /// Not a number above 0 and at most 64.
    pub fn bits_per_weight(bits: f64) -> Result<Self, BudgetError> {
        if bits > 0.0 && bits <= 64.0 {
            return Ok(Self::BitsPerWeight(bits));
        }
        Err(BudgetError {
            message: format!("`{bits}` bits per weight: it takes a number above 0 and at most 64"),
        })
    }
    /// A bound on a loss, from `metric=bound`.
    ///
    /// ```
    /// use lamella_rate::{Budget, Metric};
    /// assert_eq!(Budget::quality("kl=0.02"), Ok(Budget::Quality { metric: Metric::Kl, bound: 0.02 }));
    /// assert!(Budget::quality("kl").unwrap_err().to_string().contains("such as `kl=0.02`"));
    /// ```
    ///
    /// # Errors
    /// Another form, an unknown metric, a bound no file can be measured against.
    pub fn quality(text: &str) -> Result<Self, BudgetError> {
        let refuse = |message: String| BudgetError { message };
        let (name, bound) = text.split_once('=').ok_or_else(|| {
            refuse(format!("`{text}` is no bound; write a metric and a number, such as `kl=0.02`"))
        })?;
        let metric: Metric = name.trim().parse()?;
        let bound: f64 = bound.trim().parse().map_err(|_| {
            refuse(format!("`{}` in `{text}` is no number; write `{metric}=0.02`", bound.trim()))
        })?;
        let (low, high) = match metric {
            Metric::Kl | Metric::EmbeddingMse => (0.0, f64::MAX),
            Metric::Perplexity => (1.0, f64::MAX),
            Metric::Cosine => (-1.0, 1.0),
        };
        if !(low..=high).contains(&bound) || bound == 0.0 && metric.is_loss() {
            return Err(refuse(format!(
                "`{text}` cannot be met: `{metric}` is above {low}, in its own unit"
            )));
        }
        Ok(Self::Quality { metric, bound })
    }
    /// The most bytes this allows for `n_weights` weights, `None` where only a measurement can tell.
    pub fn max_bytes(self, n_weights: u64) -> Option<u64> {
        match self {
            Self::Bytes(bytes) => Some(bytes),
            Self::BitsPerWeight(bits) => Some((bits * n_weights as f64 / 8.0) as u64),
            Self::Quality { .. } => None,
        }
    }
}

impl FromStr for Metric {
    type Err = BudgetError;
    fn from_str(text: &str) -> Result<Self, BudgetError> {
        Self::ALL.into_iter().find(|metric| metric.name() == text).ok_or_else(|| {
            let known = Self::ALL.map(|metric| format!("`{metric}`")).join(", ");
            BudgetError { message: format!("`{text}` is no metric; known are {known}") }
        })
    }
}

impl fmt::Display for Metric {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounds_are_read_and_checked() {
        assert_eq!(
            Budget::quality(" cosine = 0.99 "),
            Ok(Budget::Quality { metric: Metric::Cosine, bound: 0.99 })
        );
        for (text, part) in [
            ("0.02", "such as `kl=0.02`"),
            ("loss=1", "known are `kl`, `perplexity`, `embedding_mse`, `cosine`"),
            ("kl=low", "`low` in `kl=low` is no number"),
            ("kl=0", "`kl` is above 0"),
            ("kl=NaN", "`kl` is above 0"),
            ("perplexity=0.5", "`perplexity` is above 1"),
            ("cosine=1.5", "cannot be met"),
        ] {
            let error = Budget::quality(text).unwrap_err().to_string();
            assert!(error.contains(part), "{text}: {error}");
        }
        assert!(Budget::bits_per_weight(f64::NAN).is_err() && Budget::bits_per_weight(0.0).is_err());
    }

    #[test]
    fn budgets_in_bytes() {
        assert_eq!(Budget::Bytes(7).max_bytes(1), Some(7));
        assert_eq!(Budget::BitsPerWeight(2.5).max_bytes(1_000), Some(312));
        assert_eq!(Budget::quality("kl=1").unwrap().max_bytes(1), None);
        assert!(
            Metric::Kl.meets(0.1, 0.1) && Metric::Cosine.meets(0.9, 0.8) && !Metric::Kl.meets(f64::NAN, 1.0)
        );
    }
}
