//! The report.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::Interval;
use super::measure::quantile;

/// Number of the report's form, raised when a field changes its meaning.
pub const SCHEMA: u32 = 1;

/// Where the values of single positions (or texts) lie.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Quantiles {
    /// Half lie below.
    pub p50: f64,
    /// 90 % lie below.
    pub p90: f64,
    /// 99 % lie below.
    pub p99: f64,
    /// 99.9 % lie below.
    pub p999: f64,
    /// The largest.
    pub max: f64,
}

impl Quantiles {
    /// Of values in any order; all zero of none.
    pub(super) fn of(mut values: Vec<f64>) -> Self {
        values.sort_unstable_by(f64::total_cmp);
        let at = |fraction| quantile(&values, fraction);
        Self { p50: at(0.5), p90: at(0.9), p99: at(0.99), p999: at(0.999), max: at(1.0) }
    }
}

/// The original against itself, computed in another numeric order: what no figure can be trusted below.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct NoiseFloor {
    /// Mean KL, nats per token.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kl: Option<f64>,
    /// Fraction of positions with the same most probable token.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub top1_agreement: Option<f64>,
    /// Mean squared distance of unit-norm embeddings.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub embedding_mse: Option<f64>,
    /// Tokens it was measured on.
    pub tokens: u64,
}

/// Bootstrap intervals over windows (language models) or texts (encoders), the same draws for both models.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Intervals {
    /// Probability covered.
    pub confidence: f64,
    /// Samples drawn.
    pub resamples: usize,
    /// Of `kl`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kl: Option<Interval>,
    /// Of `perplexity`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub perplexity: Option<Interval>,
    /// Of `perplexity / reference_perplexity`, paired.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub perplexity_ratio: Option<Interval>,
    /// Of `top1_agreement`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub top1_agreement: Option<Interval>,
    /// Of `embedding_mse`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub embedding_mse: Option<Interval>,
}

/// What judging found. Fields that do not apply are absent from the JSON; the caller fills in the sizes.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Evaluation {
    /// [`SCHEMA`].
    pub schema: u32,
    /// Bytes of the candidate's file or weight files.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes: Option<u64>,
    /// Weights of the model, tied ones once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weights: Option<u64>,
    /// All bytes but copied side files, over all weights.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bits_per_weight: Option<f64>,
    /// Coded bytes of the blocks' linears, over their weights.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub linear_bits_per_weight: Option<f64>,
    /// Bytes of the candidate's weights in memory, as it runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resident_bytes: Option<u64>,
    /// Tokens a second of one window of the candidate, logits included.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tokens_per_second: Option<f64>,
    /// Mean KL divergence of the candidate from the original, nats per token.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kl: Option<f64>,
    /// KL of single positions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kl_quantiles: Option<Quantiles>,
    /// `exp` of the mean negative log-likelihood of the scored tokens.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub perplexity: Option<f64>,
    /// The original's, on the same tokens.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reference_perplexity: Option<f64>,
    /// Fraction of positions where both models think the same token the most probable.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub top1_agreement: Option<f64>,
    /// Squared distance of unit-norm embeddings, summed over dimensions, mean over texts: `2 - 2 cosine`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub embedding_mse: Option<f64>,
    /// Squared distance of single texts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub embedding_mse_quantiles: Option<Quantiles>,
    /// Mean cosine between the two embeddings of a text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cosine: Option<f64>,
    /// Tokens scored (language models) or read (encoders); padding is never counted.
    pub tokens: u64,
    /// Texts embedded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub texts: Option<u64>,
    /// Tokens of a window.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub context: Option<usize>,
    /// Tokens between windows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stride: Option<usize>,
    /// Windows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub windows: Option<u64>,
    /// Token put before every window.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bos: Option<u32>,
    /// The original against itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub noise_floor: Option<NoiseFloor>,
    /// Bootstrap intervals.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub intervals: Option<Intervals>,
}

/// Six places where that says something, else scientific notation.
fn number(value: f64) -> String {
    match value.abs() {
        0.0 => "0".to_owned(),
        size if size < 1e-4 => format!("{value:.3e}"),
        size if size < 10.0 => format!("{value:.5}"),
        _ => format!("{value:.3}"),
    }
}

fn between(interval: Option<Interval>) -> String {
    interval.map_or(String::new(), |found| format!("  [{}, {}]", number(found.low), number(found.high)))
}

impl fmt::Display for Evaluation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let line = |f: &mut fmt::Formatter<'_>, name: &str, text: String| writeln!(f, "{name:<24}{text}");
        let none = Intervals::default();
        let intervals = self.intervals.as_ref().unwrap_or(&none);
        if let Some(bytes) = self.bytes {
            line(f, "bytes", bytes.to_string())?;
        }
        if let Some(weights) = self.weights {
            line(f, "weights", weights.to_string())?;
        }
        for (name, value) in
            [("bits per weight", self.bits_per_weight), ("  of the linears", self.linear_bits_per_weight)]
        {
            if let Some(value) = value {
                line(f, name, format!("{value:.4}"))?;
            }
        }
        if let Some(bytes) = self.resident_bytes {
            let speed =
                self.tokens_per_second.map_or(String::new(), |speed| format!(", {speed:.1} tokens/s"));
            line(f, "bytes in memory", format!("{bytes}{speed}"))?;
        }
        if let Some(kl) = self.kl {
            line(f, "KL to the original", format!("{} nats/token{}", number(kl), between(intervals.kl)))?;
        }
        for (name, quantiles) in
            [("  by position", self.kl_quantiles), ("  by text", self.embedding_mse_quantiles)]
        {
            if name == "  by text"
                && let Some(mse) = self.embedding_mse
            {
                let text = format!("{}{}", number(mse), between(intervals.embedding_mse));
                line(f, "embedding mse", text)?;
            }
            if let Some(q) = quantiles {
                let text = format!(
                    "median {}, 90 % {}, 99 % {}, 99.9 % {}, max {}",
                    number(q.p50),
                    number(q.p90),
                    number(q.p99),
                    number(q.p999),
                    number(q.max)
                );
                line(f, name, text)?;
            }
        }
        if let Some(cosine) = self.cosine {
            line(f, "cosine", format!("{cosine:.6}"))?;
        }
        if let Some(noise) = &self.noise_floor {
            let value = noise.kl.or(noise.embedding_mse).unwrap_or(0.0);
            line(f, "  noise floor", format!("{} (over {} tokens)", number(value), noise.tokens))?;
        }
        if let Some(agreement) = self.top1_agreement {
            let interval = intervals.top1_agreement.map_or(String::new(), |found| {
                format!("  [{:.2} %, {:.2} %]", 100.0 * found.low, 100.0 * found.high)
            });
            line(f, "top-1 agreement", format!("{:.2} %{interval}", 100.0 * agreement))?;
        }
        if let Some(perplexity) = self.perplexity {
            line(f, "perplexity", format!("{}{}", number(perplexity), between(intervals.perplexity)))?;
        }
        if let Some(reference) = self.reference_perplexity {
            let ratio = between(intervals.perplexity_ratio);
            let ratio = if ratio.is_empty() { ratio } else { format!("  (ratio in{ratio})") };
            line(f, "  of the original", format!("{}{ratio}", number(reference)))?;
        }
        let mut scope = format!("{} tokens", self.tokens);
        if let Some(texts) = self.texts {
            scope = format!("{texts} texts, {scope}");
        }
        if let (Some(context), Some(stride), Some(windows)) = (self.context, self.stride, self.windows) {
            scope += &format!(" scored in {windows} windows of {context}, one every {stride}");
        }
        line(f, "measured on", scope)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_holds_what_applies_and_returns() {
        let report = Evaluation {
            schema: SCHEMA,
            kl: Some(0.04),
            perplexity: Some(38.0),
            reference_perplexity: Some(36.9),
            tokens: 128,
            context: Some(256),
            stride: Some(128),
            windows: Some(1),
            kl_quantiles: Some(Quantiles::of(vec![0.04])),
            ..Evaluation::default()
        };
        let json = serde_json::to_string(&report).unwrap();
        assert!(json.starts_with(r#"{"schema":1,"kl":0.04,"#), "{json}");
        assert!(!json.contains("embedding_mse"));
        assert_eq!(serde_json::from_str::<Evaluation>(&json).unwrap(), report);
        let text = report.to_string();
        assert!(text.contains("128 tokens scored in 1 windows of 256, one every 128"), "{text}");
    }
}
