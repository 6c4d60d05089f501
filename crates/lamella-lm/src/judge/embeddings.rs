//! Judging encoders.

use super::evaluation::{Evaluation, Intervals, NoiseFloor, Quantiles, SCHEMA};
use super::measure::mean;
use super::{JudgeError, Progress, Resampler};
use crate::Network;

/// Tokens that run side by side.
const GROUP_TOKENS: usize = 4096;

/// An encoder as the judge sees it.
pub trait Embedder: Sync {
    /// One vector per sequence, of any length other than zero: the judge normalises. No sequence is empty.
    ///
    /// # Errors
    /// Whatever keeps the model from running.
    fn embed(&self, sequences: &[Vec<u32>]) -> Result<Vec<Vec<f32>>, JudgeError>;
}

/// Make the network [resident](Network::resident) first: else every group of texts reads all weights again.
impl Embedder for Network {
    fn embed(&self, sequences: &[Vec<u32>]) -> Result<Vec<Vec<f32>>, JudgeError> {
        Ok(Network::embed(self, &self.forward(sequences)?))
    }
}

/// Distances and cosines of two encoders on the same texts.
struct Distances {
    squared: Vec<f64>,
    cosines: Vec<f64>,
}

/// Measures an encoder against a reference (the original) on token sequences: squared distance of unit-norm
/// embeddings, summed over dimensions, and cosine. `noise` is the reference computed in another numeric order
/// ([`reordered`](super::reordered)); `progress` counts texts.
///
/// # Errors
/// No texts, embeddings of different or no length, or not finite; models that cannot be run.
pub fn evaluate_embeddings(
    candidate: &dyn Embedder,
    reference: &dyn Embedder,
    noise: Option<&dyn Embedder>,
    sequences: &[Vec<u32>],
    resampler: &Resampler,
    progress: &Progress<'_>,
) -> Result<Evaluation, JudgeError> {
    if sequences.is_empty() || sequences.iter().any(Vec::is_empty) {
        let message = format!("{} texts, of which none may be empty", sequences.len());
        return Err(JudgeError::TooShort { message });
    }
    let found = distances(reference, candidate, sequences, progress)?;
    let tokens: usize = sequences.iter().map(Vec::len).sum();
    let noise_floor = match noise {
        None => None,
        Some(noise) => {
            let few = &sequences[..sequences.len().min(16)];
            let floor = distances(reference, noise, few, &|_, _, _| {})?;
            Some(NoiseFloor {
                embedding_mse: Some(mean(floor.squared.iter().copied())),
                tokens: few.iter().map(|sequence| sequence.len() as u64).sum(),
                ..NoiseFloor::default()
            })
        }
    };
    let interval =
        resampler.interval(sequences.len(), |drawn| mean(drawn.iter().map(|&text| found.squared[text])));
    Ok(Evaluation {
        schema: SCHEMA,
        embedding_mse: Some(mean(found.squared.iter().copied())),
        cosine: Some(mean(found.cosines.iter().copied())),
        embedding_mse_quantiles: Some(Quantiles::of(found.squared)),
        tokens: tokens as u64,
        texts: Some(sequences.len() as u64),
        noise_floor,
        intervals: interval.map(|interval| Intervals {
            confidence: resampler.confidence,
            resamples: resampler.resamples,
            embedding_mse: Some(interval),
            ..Intervals::default()
        }),
        ..Evaluation::default()
    })
}

fn distances(
    reference: &dyn Embedder,
    candidate: &dyn Embedder,
    sequences: &[Vec<u32>],
    progress: &Progress<'_>,
) -> Result<Distances, JudgeError> {
    let mut found = Distances { squared: Vec::new(), cosines: Vec::new() };
    let mut start = 0;
    while start < sequences.len() {
        let (mut end, mut tokens) = (start, 0);
        while end < sequences.len() && (end == start || tokens + sequences[end].len() <= GROUP_TOKENS) {
            tokens += sequences[end].len();
            end += 1;
        }
        let group = &sequences[start..end];
        let (ours, theirs) = (reference.embed(group)?, candidate.embed(group)?);
        for (index, (left, right)) in ours.iter().zip(&theirs).enumerate() {
            if left.len() != right.len() {
                return Err(JudgeError::Mismatch {
                    message: format!("embeddings of {} dimensions against {}", left.len(), right.len()),
                });
            }
            let left = unit(left, "reference", start + index)?;
            let right = unit(right, "candidate", start + index)?;
            found.squared.push(left.iter().zip(&right).map(|(a, b)| (a - b) * (a - b)).sum());
            found.cosines.push(left.iter().zip(&right).map(|(a, b)| a * b).sum());
        }
        start = end;
        progress(end as u64, sequences.len() as u64, "texts");
    }
    Ok(found)
}

fn unit(vector: &[f32], who: &str, text: usize) -> Result<Vec<f64>, JudgeError> {
    let length = vector.iter().map(|&x| f64::from(x) * f64::from(x)).sum::<f64>().sqrt();
    if !length.is_finite() || length == 0.0 {
        return Err(JudgeError::NonFinite {
            what: format!("the {who}'s embeddings"),
            place: format!("text {text}, length {length}"),
        });
    }
    Ok(vector.iter().map(|&x| f64::from(x) / length).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Turns the first token into an angle.
    struct Compass(f32);

    impl Embedder for Compass {
        fn embed(&self, sequences: &[Vec<u32>]) -> Result<Vec<Vec<f32>>, JudgeError> {
            let angle = |sequence: &Vec<u32>| sequence[0] as f32 + self.0;
            Ok(sequences.iter().map(angle).map(|a| vec![3.0 * a.cos(), 3.0 * a.sin()]).collect())
        }
    }

    fn evaluate(candidate: &Compass, texts: &[Vec<u32>]) -> Result<Evaluation, JudgeError> {
        let same = Compass(0.0);
        evaluate_embeddings(candidate, &same, Some(&same), texts, &Resampler::default(), &|_, _, _| {})
    }

    #[test]
    fn mse_is_two_minus_two_cosines() {
        let texts: Vec<Vec<u32>> = (0..50).map(|i| vec![i; 200]).collect();
        let found = evaluate(&Compass(0.1), &texts).unwrap();
        let (mse, cosine) = (found.embedding_mse.unwrap(), found.cosine.unwrap());
        assert!((mse - (2.0 - 2.0 * 0.1_f64.cos())).abs() < 1e-6);
        assert!((mse - (2.0 - 2.0 * cosine)).abs() < 1e-12);
        assert_eq!((found.texts, found.tokens), (Some(50), 10_000));
        assert_eq!(found.noise_floor.unwrap().embedding_mse, Some(0.0));
    }

    #[test]
    fn what_has_no_direction_is_an_error() {
        assert!(matches!(evaluate(&Compass(f32::NAN), &[vec![1]]), Err(JudgeError::NonFinite { .. })));
        assert!(matches!(evaluate(&Compass(0.0), &[]), Err(JudgeError::TooShort { .. })));
        assert!(matches!(evaluate(&Compass(0.0), &[vec![]]), Err(JudgeError::TooShort { .. })));
    }
}
