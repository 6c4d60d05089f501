//! Global top set: the features of all arrays that gain most from a finer form, in one pass over one ranking.
//!
//! Where an array need not be coded at one point as a whole (rows of a matrix are independent sub-problems), the
//! choice is which *features* get the finer form. Every feature of every array stands in one ranking by its score,
//! so that arrays take shares as different as their features are (MixLLM, S065). One sort, no iteration.

use std::cmp::Ordering;

use super::AllocationError;

/// The features of one array that may get the finer form.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct FeatureScores<'a> {
    /// The array's name, for errors.
    pub name: &'a str,
    /// What the finer form of each feature saves, in a unit common to all arrays. Finite.
    pub scores: &'a [f64],
    /// Bytes that the finer form costs more, for one feature. Zero is allowed.
    pub extra_bytes: u64,
}

/// How many features may be chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TopBudget {
    /// So many features of all arrays together, ranked by score.
    Count(usize),
    /// Features whose extra bytes together come to at most this, ranked by score per byte; one that no longer fits is
    /// passed over.
    Bytes(u64),
}

/// Chooses the features with the highest scores over all arrays; the result has one flag for each feature of each
/// array. Of equal scores the earlier array's, then the earlier feature, is taken.
///
/// ```
/// use lamella_rate::{FeatureScores, TopBudget, global_top};
/// let array = |name, scores, extra_bytes| FeatureScores { name, scores, extra_bytes };
/// let arrays = [array("v", &[9.0, 1.0, 8.0][..], 64), array("q", &[2.0, 0.5][..], 64)];
/// assert_eq!(global_top(&arrays, TopBudget::Count(3))?, [vec![true, false, true], vec![true, false]]);
/// assert_eq!(global_top(&arrays, TopBudget::Bytes(100))?, [vec![true, false, false], vec![false, false]]);
/// # Ok::<(), lamella_rate::AllocationError>(())
/// ```
///
/// # Errors
/// [`AllocationError::BadOffer`] where a score is not a finite number.
pub fn global_top(arrays: &[FeatureScores], budget: TopBudget) -> Result<Vec<Vec<bool>>, AllocationError> {
    let mut ranking: Vec<(f64, usize, usize)> = Vec::new();
    for (index, array) in arrays.iter().enumerate() {
        if array.scores.iter().any(|score| !score.is_finite()) {
            let (name, reason) = (array.name.to_owned(), "a score is not a finite number");
            return Err(AllocationError::BadOffer { name, reason });
        }
        let unit = match budget {
            TopBudget::Count(_) => 1.0,
            // What costs nothing comes first, by its score.
            TopBudget::Bytes(_) => array.extra_bytes.max(1) as f64,
        };
        ranking.extend(
            array.scores.iter().enumerate().map(|(feature, &score)| (score / unit + 0.0, index, feature)),
        );
    }
    ranking.sort_by(|a, b| match b.0.total_cmp(&a.0) {
        Ordering::Equal => (a.1, a.2).cmp(&(b.1, b.2)),
        other => other,
    });
    let mut chosen: Vec<Vec<bool>> = arrays.iter().map(|array| vec![false; array.scores.len()]).collect();
    match budget {
        TopBudget::Count(count) => {
            for &(_, array, feature) in ranking.iter().take(count) {
                chosen[array][feature] = true;
            }
        }
        TopBudget::Bytes(mut left) => {
            for &(_, array, feature) in &ranking {
                if let Some(rest) = left.checked_sub(arrays[array].extra_bytes) {
                    left = rest;
                    chosen[array][feature] = true;
                }
            }
        }
    }
    Ok(chosen)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn arrays<'a>(scores: &'a [Vec<f64>], extra_bytes: &[u64]) -> Vec<FeatureScores<'a>> {
        let all = scores.iter().zip(extra_bytes);
        all.map(|(scores, &extra_bytes)| FeatureScores { name: "w", scores, extra_bytes }).collect()
    }

    #[test]
    fn a_count_takes_the_best_sum_there_is() {
        let scores: Vec<Vec<f64>> =
            (0..3).map(|i| (0..5).map(|j| f64::from((i * 7 + j * 5) % 11)).collect()).collect();
        for count in 0..=16 {
            let chosen = global_top(&arrays(&scores, &[1, 2, 3]), TopBudget::Count(count)).unwrap();
            let flags = || scores.iter().flatten().zip(chosen.iter().flatten());
            assert_eq!(flags().filter(|(_, chosen)| **chosen).count(), count.min(15));
            let sum: f64 = flags().filter(|(_, chosen)| **chosen).map(|(score, _)| score).sum();
            let mut sorted: Vec<f64> = scores.iter().flatten().copied().collect();
            sorted.sort_by(|a, b| b.total_cmp(a));
            assert_eq!(sum, sorted.iter().take(count).sum::<f64>());
        }
    }

    #[test]
    fn bytes_are_kept_and_ties_go_to_the_earlier() {
        let scores = vec![vec![1.0, 1.0], vec![-0.0, 1.0, 0.0]];
        let found = |budget| global_top(&arrays(&scores, &[10, 10]), budget).unwrap();
        assert_eq!(found(TopBudget::Count(2)), [vec![true, true], vec![false, false, false]]);
        assert_eq!(found(TopBudget::Count(4)), [vec![true, true], vec![true, true, false]]);
        assert_eq!(found(TopBudget::Bytes(29)), [vec![true, true], vec![false, false, false]]);
        // A dear feature that no longer fits makes room for a cheap one with a smaller score.
        let scores = vec![vec![9.0, 8.0], vec![0.5]];
        let chosen = global_top(&arrays(&scores, &[8, 3]), TopBudget::Bytes(12)).unwrap();
        assert_eq!(chosen, [vec![true, false], vec![true]]);
        assert_eq!(
            global_top(&arrays(&[vec![f64::NAN]], &[1]), TopBudget::Count(1)).unwrap_err().to_string(),
            "array `w`: a score is not a finite number"
        );
        assert!(global_top(&[], TopBudget::Bytes(1)).unwrap().is_empty());
    }
}
