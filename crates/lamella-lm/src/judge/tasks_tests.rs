use std::ops::Range;

use super::*;
use crate::judge::{Predictions, read_items};

/// Thinks after byte `b` that byte `b + 1` comes with logit 2, all others 0.
struct Alphabet;
struct AlphabetRows(Vec<Window>);

impl Predictor for Alphabet {
    fn vocab_size(&self) -> usize {
        256
    }
    fn run(&self, windows: &[Window]) -> Result<Box<dyn Predictions + '_>, JudgeError> {
        Ok(Box::new(AlphabetRows(windows.to_vec())))
    }
}

impl Predictions for AlphabetRows {
    fn logits(&self, window: usize, rows: Range<usize>) -> Result<Vec<f32>, JudgeError> {
        let window = &self.0[window];
        let mut logits = Vec::new();
        for &token in &window.tokens[window.scored.clone()][rows] {
            let first = logits.len();
            logits.resize(first + 256, 0.0);
            logits[first + (token as usize + 1) % 256] = 2.0;
        }
        Ok(logits)
    }
}

fn quiet(_: u64, _: u64, _: &str) {}

fn options() -> TaskOptions {
    TaskOptions { delimiter: String::new(), ..TaskOptions::default() }
}

#[test]
fn sums_and_byte_lengths_choose() {
    // Behind "abc" every token of "d" and "defgh" is likely (3.57 nats each), "x" is not (5.57).
    let likely = (255.0 + 2.0_f64.exp()).ln() - 2.0;
    let items: Vec<ChoiceItem> = read_items(concat!(
        r#"{"context": "abc", "choices": ["defgx", "d"], "gold": 1}"#,
        "\n",
        r#"{"context": "abc", "choices": ["x", "defgh"], "gold": 1}"#,
    ))
    .unwrap();
    let report = multiple_choice(&Alphabet, &Tokenizer::bytes(), &items, &options(), &quiet).unwrap();
    // Five likely tokens cost 5 * 3.57, one unlikely 5.57: the plain sum takes "x", the sum per byte "defgh".
    assert!(likely > 3.5 && likely < 3.6);
    assert_eq!(report.outcomes["acc"], [1.0, 0.0]);
    assert_eq!(report.outcomes["acc_norm"], [1.0, 1.0]);
    assert_eq!(report.measures["acc"], 0.5);
}

#[test]
fn long_contexts_lose_their_beginning_and_white_space_moves() {
    let options = TaskOptions { max_length: 4, ..options() };
    let window = request(&Tokenizer::bytes(), "abcdefgh ", "ij", &options, 0).unwrap();
    assert_eq!(window.tokens, b"gh ij".map(u32::from));
    assert_eq!(window.scored, 1..4, "the space is scored with the continuation");
    let error = request(&Tokenizer::bytes(), "a", "bcdef", &options, 2).unwrap_err();
    assert!(error.to_string().starts_with("line 3: "), "{error}");
    assert!(matches!(request(&Tokenizer::bytes(), "", "a", &options, 0), Err(JudgeError::Option { .. })));
    let prefixed = TaskOptions { prefix_token: Some(0), ..options };
    assert_eq!(request(&Tokenizer::bytes(), "", "a", &prefixed, 0).unwrap().tokens, [0, 97]);
}

#[test]
fn cloze_wants_every_token() {
    let items: Vec<ClozeItem> = read_items(concat!(
        "{\"context\": \"ab\", \"target\": \"cde\"}\n",
        "{\"context\": \"ab\", \"target\": \"cdx\"}\n",
    ))
    .unwrap();
    let report = cloze(&Alphabet, &Tokenizer::bytes(), &items, &options(), &quiet).unwrap();
    assert_eq!(report.outcomes["acc"], [1.0, 0.0]);
    let normalizer = (255.0 + 2.0_f64.exp()).ln();
    let expected = ((6.0 * normalizer - 5.0 * 2.0) / 2.0).exp();
    assert!((report.measures["perplexity"] / expected - 1.0).abs() < 1e-9);
}

#[test]
fn answers_end_at_the_first_stop() {
    let items: Vec<GenerationItem> = read_items(concat!(
        "{\"prompt\": \"ab\", \"answers\": [\"CDE\"]}\n",
        "{\"prompt\": \"ab\", \"answers\": [\"cdef\"]}\n",
    ))
    .unwrap();
    let options = TaskOptions { stop: vec!["f".to_owned()], is_case_ignored: true, ..options() };
    let report = exact_match(&Alphabet, &Tokenizer::bytes(), &items, &options, &quiet).unwrap();
    assert_eq!(report.outcomes["exact_match"], [1.0, 0.0]);
    let options = TaskOptions { stop_tokens: vec![u32::from(b'f')], is_case_ignored: false, ..options };
    let report = exact_match(&Alphabet, &Tokenizer::bytes(), &items, &options, &quiet).unwrap();
    assert_eq!(report.measures["exact_match"], 0.0);
}

#[test]
fn items_that_do_not_fit_name_their_line() {
    let error = read_items::<ChoiceItem>("\n{\"context\": 3}").unwrap_err();
    assert!(error.to_string().starts_with("line 2: "), "{error}");
    assert!(matches!(read_items::<ClozeItem>(" \n"), Err(JudgeError::TooShort { .. })));
    let items = [ChoiceItem { context: "a".into(), choices: vec!["b".into()], gold: 1 }];
    let error = multiple_choice(&Alphabet, &Tokenizer::bytes(), &items, &options(), &quiet).unwrap_err();
    assert!(error.to_string().contains("choice 1"), "{error}");
}
