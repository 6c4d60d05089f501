use std::ops::Range;

use super::*;
use crate::judge::{LanguageOptions, Predictions, Predictor, Resampler, Window, evaluate_language};

/// A bigram table: the logits after token `t` are row `t`.
struct Bigram(Vec<Vec<f32>>);

struct BigramRows<'a>(&'a Bigram, Vec<Window>);

impl Predictor for Bigram {
    fn vocab_size(&self) -> usize {
        self.0.len()
    }
    fn run(&self, windows: &[Window]) -> Result<Box<dyn Predictions + '_>, JudgeError> {
        Ok(Box::new(BigramRows(self, windows.to_vec())))
    }
}

impl Predictions for BigramRows<'_> {
    fn logits(&self, window: usize, rows: Range<usize>) -> Result<Vec<f32>, JudgeError> {
        let window = &self.1[window];
        let tokens = &window.tokens[window.scored.clone()][rows];
        Ok(tokens.iter().flat_map(|&token| self.0.0[token as usize].clone()).collect())
    }
}

fn bigram(scale: f32) -> Bigram {
    Bigram((0..4).map(|i| (0..4).map(|j| ((i * 5 + j * 3) % 7) as f32 * scale).collect()).collect())
}

fn text() -> Vec<u32> {
    (0..103).map(|i: u32| i * i % 7 % 4).collect()
}

#[test]
fn every_window_scores_its_last_tokens() {
    let options = LanguageOptions { context: 10, stride: 4, ..LanguageOptions::default() };
    let windows = options.windows(&text()).unwrap();
    assert_eq!(windows.len(), (103 - 10) / 4 + 1);
    assert_eq!(windows[2].tokens, text()[8..18]);
    assert!(windows.iter().all(|window| window.scored == (5..9)));
    let with_bos = LanguageOptions { bos: Some(3), ..options.clone() }.windows(&text()).unwrap();
    assert_eq!((with_bos[0].tokens.len(), with_bos[0].scored.clone()), (11, 6..10));
    let whole = LanguageOptions { context: 4, stride: 4, ..options.clone() };
    assert_eq!(whole.windows(&text()).unwrap()[0].scored, 0..3);
    let whole = LanguageOptions { bos: Some(3), ..whole };
    assert_eq!(whole.windows(&text()).unwrap()[0].scored, 0..4);
    let long = LanguageOptions { context: 500, stride: 128, ..options };
    assert_eq!(long.windows(&text()).unwrap().len(), 1);
    assert_eq!(long.windows(&text()).unwrap()[0].scored, 0..102);
}

#[test]
fn options_out_of_range_are_named() {
    let options = |context, stride| LanguageOptions { context, stride, ..LanguageOptions::default() };
    for (context, stride, name) in [(1, 1, "context"), (8, 0, "stride"), (8, 9, "stride")] {
        let error = options(context, stride).windows(&text()).unwrap_err();
        assert!(error.to_string().contains(&format!("`{name}`")), "{error}");
    }
    assert!(matches!(options(8, 4).windows(&[1]), Err(JudgeError::TooShort { .. })));
}

#[test]
fn perplexity_equals_the_sum_by_hand() {
    let model = bigram(0.5);
    let options = LanguageOptions { context: 10, stride: 4, ..LanguageOptions::default() };
    let found = evaluate_language(&model, None, None, &text(), &options, &|_, _, _| {}).unwrap();
    let (mut sum, mut count) = (0.0, 0);
    for window in options.windows(&text()).unwrap() {
        for target in window.scored.start + 1..=window.scored.end {
            let row = &model.0[window.tokens[target - 1] as usize];
            let normalizer: f64 = row.iter().map(|&logit| f64::from(logit).exp()).sum();
            sum += normalizer.ln() - f64::from(row[window.tokens[target] as usize]);
            count += 1;
        }
    }
    assert_eq!(found.tokens, count);
    assert!((found.perplexity.unwrap() - (sum / count as f64).exp()).abs() < 1e-9);
    assert_eq!((found.kl, found.reference_perplexity), (None, None));
}

#[test]
fn a_model_does_not_diverge_from_itself_and_others_lie_in_their_interval() {
    let (one, two) = (bigram(0.5), bigram(0.6));
    let options = LanguageOptions { context: 10, stride: 4, ..LanguageOptions::default() };
    let same = evaluate_language(&one, Some(&one), Some(&one), &text(), &options, &|_, _, _| {}).unwrap();
    assert_eq!((same.kl, same.top1_agreement), (Some(0.0), Some(1.0)));
    assert_eq!(same.perplexity, same.reference_perplexity);
    assert_eq!(same.noise_floor.unwrap().kl, Some(0.0));
    let other = evaluate_language(&two, Some(&one), None, &text(), &options, &|_, _, _| {}).unwrap();
    let (kl, intervals) = (other.kl.unwrap(), other.intervals.unwrap());
    let interval = intervals.kl.unwrap();
    assert!(0.0 < interval.low && interval.low < kl && kl < interval.high);
    let ratio = other.perplexity.unwrap() / other.reference_perplexity.unwrap();
    let interval = intervals.perplexity_ratio.unwrap();
    assert!(interval.low < ratio && ratio < interval.high);
    assert!(other.kl_quantiles.unwrap().max >= kl);
    let none = LanguageOptions { resampler: Resampler { resamples: 0, ..Resampler::default() }, ..options };
    let bare = evaluate_language(&two, Some(&one), None, &text(), &none, &|_, _, _| {}).unwrap();
    assert_eq!(bare.intervals, None);
}

#[test]
fn what_cannot_be_compared_is_an_error() {
    let small = Bigram(vec![vec![0.0; 2]; 2]);
    let options = LanguageOptions { context: 10, stride: 4, ..LanguageOptions::default() };
    let run = |reference: &Bigram, candidate: &Bigram| {
        evaluate_language(candidate, Some(reference), None, &text(), &options, &|_, _, _| {}).unwrap_err()
    };
    assert!(matches!(run(&small, &bigram(1.0)), JudgeError::Mismatch { .. }));
    assert!(matches!(run(&small, &small), JudgeError::Mismatch { .. }), "tokens beyond the vocabulary");
    let error = run(&bigram(1.0), &bigram(f32::NAN));
    assert_eq!(error.to_string(), "the candidate's logits are not finite (window 0, position 5)");
}

#[test]
fn the_default_greedy_follows_the_table() {
    let model = Bigram(vec![vec![0.0, 1.0, 0.0], vec![0.0, 0.0, 1.0], vec![1.0, 0.0, 0.0]]);
    assert_eq!(model.greedy(&[0], 5, &mut |_| false).unwrap(), [1, 2, 0, 1, 2]);
    assert_eq!(model.greedy(&[0], 5, &mut |made| made.ends_with(&[0])).unwrap(), [1, 2, 0]);
}
