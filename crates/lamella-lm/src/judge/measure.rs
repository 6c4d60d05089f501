//! From logits to numbers.

use rayon::prelude::*;

use super::distribution::{divergence, log_sum_exp};
use super::predict::most_probable;

/// One model's score of one token.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Scores {
    /// Negative log-likelihood of the token that came, in nats.
    pub negative_log_likelihood: f64,
    /// Whether it was the most probable one.
    pub is_greedy: bool,
}

/// Two models' predictions at one position.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Comparison {
    /// Kullback-Leibler divergence of the candidate from the reference, in nats.
    pub kl_divergence: f64,
    /// Whether both think the same token the most probable.
    pub agrees: bool,
    /// The reference's score.
    pub reference: Scores,
    /// The candidate's score.
    pub candidate: Scores,
}

fn score(logits: &[f32], normalizer: f64, greedy: usize, target: usize) -> Scores {
    Scores { negative_log_likelihood: normalizer - f64::from(logits[target]), is_greedy: greedy == target }
}

/// Scores rows of logits against the tokens that came, `logits` being `[targets, vocab_size]`.
///
/// `Err` gives the first row with a logit that makes probabilities meaningless.
///
/// # Errors
/// The index of a row that holds NaN or `+inf`, or only `-inf`.
pub fn score_logits(logits: &[f32], targets: &[u32]) -> Result<Vec<Scores>, usize> {
    let vocab_size = logits.len() / targets.len().max(1);
    let scores: Vec<Scores> = logits
        .par_chunks(vocab_size.max(1))
        .zip(targets)
        .map(|(row, &target)| score(row, log_sum_exp(row), most_probable(row), target as usize))
        .collect();
    match scores.iter().position(|score| score.negative_log_likelihood.is_nan()) {
        Some(row) => Err(row),
        None => Ok(scores),
    }
}

/// Compares rows of logits, both `[targets, vocab_size]`.
///
/// # Errors
/// Which model (`true`: the reference) and which row holds NaN or `+inf`, or only `-inf`.
pub fn compare_logits(
    reference: &[f32],
    candidate: &[f32],
    targets: &[u32],
) -> Result<Vec<Comparison>, (bool, usize)> {
    let vocab_size = (reference.len() / targets.len().max(1)).max(1);
    let compared: Vec<(bool, bool, Comparison)> = reference
        .par_chunks(vocab_size)
        .zip(candidate.par_chunks(vocab_size))
        .zip(targets)
        .map(|((reference, candidate), &target)| {
            let (own, other) = (log_sum_exp(reference), log_sum_exp(candidate));
            let (first, second) = (most_probable(reference), most_probable(candidate));
            let comparison = Comparison {
                kl_divergence: divergence(reference, candidate, own, other),
                agrees: first == second,
                reference: score(reference, own, first, target as usize),
                candidate: score(candidate, other, second, target as usize),
            };
            (own.is_finite(), other.is_finite(), comparison)
        })
        .collect();
    if let Some(row) = compared.iter().position(|(own, other, _)| !own || !other) {
        return Err((!compared[row].0, row));
    }
    Ok(compared.into_iter().map(|(_, _, comparison)| comparison).collect())
}

/// Mean of numbers summed in order, 0 of none.
pub(super) fn mean(values: impl ExactSizeIterator<Item = f64>) -> f64 {
    let count = values.len();
    if count == 0 { 0.0 } else { values.sum::<f64>() / count as f64 }
}

/// The value below which a fraction of sorted values lies, interpolated between neighbours.
pub(super) fn quantile(sorted: &[f64], fraction: f64) -> f64 {
    let Some(last) = sorted.len().checked_sub(1) else { return 0.0 };
    let position = fraction.clamp(0.0, 1.0) * last as f64;
    let below = position.floor() as usize;
    let above = (below + 1).min(last);
    sorted[below] + (sorted[above] - sorted[below]) * (position - below as f64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn by_hand() {
        // p = (1/2, 1/2), q = (3/4, 1/4): KL = 1/2 ln(4/3).
        let found = compare_logits(&[1.0, 1.0], &[3.0_f32.ln(), 0.0], &[1]).unwrap()[0];
        assert!((found.kl_divergence - 0.5 * (4.0_f64 / 3.0).ln()).abs() < 1e-7);
        assert!((found.reference.negative_log_likelihood - 2.0_f64.ln()).abs() < 1e-12);
        assert!((found.candidate.negative_log_likelihood - 4.0_f64.ln()).abs() < 1e-7);
        assert!(found.agrees && !found.candidate.is_greedy);
    }

    #[test]
    fn logits_without_meaning_are_named() {
        let good = [0.0, 1.0, 2.0, 3.0];
        assert_eq!(compare_logits(&[0.0, 1.0, f32::NAN, 3.0], &good, &[0, 0]), Err((true, 1)));
        assert_eq!(compare_logits(&good, &[f32::INFINITY, 0.0, 0.0, 0.0], &[0, 0]), Err((false, 0)));
        assert_eq!(score_logits(&[f32::NEG_INFINITY; 2], &[0]), Err(0));
        assert!(
            compare_logits(&[0.0, f32::NEG_INFINITY], &[0.0, 1.0], &[0]).is_ok(),
            "a banned token is fine"
        );
    }

    #[test]
    fn quantiles_interpolate() {
        let sorted = [0.0, 1.0, 2.0, 3.0, 4.0];
        assert_eq!(quantile(&sorted, 0.5), 2.0);
        assert!((quantile(&sorted, 0.9) - 3.6).abs() < 1e-12);
        assert_eq!(quantile(&[], 0.5), 0.0);
    }

    proptest! {
        #[test]
        fn divergence_is_zero_of_equals_and_ignores_shifts(
            logits in prop::collection::vec(-30.0_f32..30.0, 2..40),
            shift in -16_i32..16,
        ) {
            let shifted: Vec<f32> = logits.iter().map(|logit| logit + shift as f32).collect();
            let found = compare_logits(&logits, &shifted, &[0]).unwrap()[0];
            prop_assert!(found.kl_divergence < 1e-9);
            let reversed: Vec<f32> = logits.iter().rev().copied().collect();
            prop_assert!(compare_logits(&logits, &reversed, &[0]).unwrap()[0].kl_divergence >= 0.0);
        }
    }
}
