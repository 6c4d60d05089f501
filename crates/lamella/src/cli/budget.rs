//! `--size`, `--bits` and `--quality`.

use clap::Args;
use lamella::weights::compress::Budget;

use super::CliError;

/// What may be spent.
#[derive(Debug, Clone, Args)]
#[group(multiple = false)]
pub(crate) struct BudgetOptions {
    /// Size of the whole file: `60MB`, `4GiB`, `160000`, or `40%` of the input's weight files
    #[arg(long, value_name = "SIZE")]
    pub(crate) size: Option<String>,
    /// Bits per weight: all bytes but copied side files, over all weights
    #[arg(long, value_name = "BITS")]
    pub(crate) bits: Option<f64>,
    /// The smallest file that is this good: `kl=0.02` (nats per token) or `mse=0.05` (embeddings)
    #[arg(long, value_name = "METRIC=BOUND")]
    pub(crate) quality: Option<String>,
}

/// What `--quality` asks.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Quality {
    /// Mean KL divergence to the original, nats per token.
    Kl(f64),
    /// Mean squared distance of unit-norm embeddings.
    EmbeddingMse(f64),
}

impl BudgetOptions {
    /// Whether any of them was given.
    pub(crate) fn is_given(&self) -> bool {
        self.size.is_some() || self.bits.is_some() || self.quality.is_some()
    }

    /// The budget, and the text that is stored in the file.
    pub(crate) fn budget(&self, weight_bytes: u64) -> Result<(Budget, String), CliError> {
        if let Some(text) = &self.size {
            let size: lamella::rate::Size = text.parse()?;
            let bytes = size.bytes(weight_bytes);
            return Ok((Budget::Bytes(bytes), format!("--size {text}")));
        }
        if let Some(bits) = self.bits {
            if !(bits > 0.0 && bits <= 64.0) {
                return Err(CliError::usage(format!("`--bits {bits}` is not between 0 and 64")));
            }
            return Ok((Budget::Bits(bits), format!("--bits {bits}")));
        }
        Ok((Budget::Recipe, String::new()))
    }

    /// The quality bound, where one is asked for.
    pub(crate) fn quality(&self) -> Result<Option<Quality>, CliError> {
        let Some(text) = &self.quality else { return Ok(None) };
        let wrong = || {
            CliError::usage(format!(
                "`--quality {text}` is neither `kl=BOUND` nor `mse=BOUND` with a bound above 0"
            ))
        };
        let (metric, bound) = text.split_once('=').ok_or_else(wrong)?;
        let bound: f64 = bound.parse().map_err(|_| wrong())?;
        if !(bound > 0.0 && bound.is_finite()) {
            return Err(wrong());
        }
        match metric {
            "kl" => Ok(Some(Quality::Kl(bound))),
            "mse" | "embedding_mse" => Ok(Some(Quality::EmbeddingMse(bound))),
            _ => Err(wrong()),
        }
    }
}
