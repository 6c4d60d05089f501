//! Generation and caches on the golden models.

use std::ops::ControlFlow;

use lamella_lm::generate::{GenerateOptions, SamplingOptions, StopReason, generate, generate_batch};
use lamella_lm::{Network, Tokenizer};

use crate::support::{golden, json, largest_difference, network, standard_deviation, tokens};

fn prompt(name: &str) -> Vec<u32> {
    tokens(&json(golden(name).join("tokens.json"))["tokens"])
}

/// Logits of the last token when the text arrives in parts.
fn in_parts(network: &Network, parts: &[&[u32]]) -> Vec<f32> {
    let mut caches = [network.cache()];
    let mut logits = Vec::new();
    for part in parts {
        let hidden = network.extend(&[part.to_vec()], &mut caches).unwrap();
        logits = network.logits_range(&hidden, part.len() - 1..part.len(), None).unwrap();
    }
    logits
}

#[test]
fn a_cache_changes_nothing_but_rounding() {
    for name in ["llama", "mistral", "qwen3", "gpt2", "mixtral", "llama_rope_yarn", "rwkv7"] {
        let network = network(&golden(name)).resident().unwrap();
        let text = prompt(name);
        let whole = in_parts(&network, &[&text]);
        let (head, tail) = text.split_at(text.len() - 3);
        let parts = in_parts(&network, &[&head[..20], &head[20..], &tail[..1], &tail[1..2], &tail[2..]]);
        let error = largest_difference(&whole, &parts) / standard_deviation(&whole);
        assert!(error < 1e-4, "{name}: {error}");
    }
}

#[test]
fn resident_weights_give_the_same_bits() {
    let text = vec![prompt("qwen3"), vec![], prompt("qwen3")[..7].to_vec()];
    let lazy = network(&golden("qwen3"));
    let expected = lazy.logits(&lazy.forward(&text).unwrap(), None).unwrap();
    let resident = network(&golden("qwen3")).resident().unwrap();
    assert_eq!(resident.logits(&resident.forward(&text).unwrap(), None).unwrap(), expected);
    assert_eq!(expected.len(), (text[0].len() + 7) * lazy.vocab_size());
}

#[test]
fn a_batch_writes_what_each_prompt_alone_would() {
    let network = network(&golden("llama")).resident().unwrap();
    let text = prompt("llama");
    let options = GenerateOptions {
        max_tokens: 12,
        sampling: SamplingOptions { temperature: 0.0, repetition_penalty: 1.3, ..Default::default() },
        ..Default::default()
    };
    let prompts = [text[..5].to_vec(), text[..19].to_vec(), text[10..13].to_vec()];
    let together =
        generate_batch(&network, None, &prompts, &options, &mut |_, _, _| ControlFlow::Continue(())).unwrap();
    for (prompt, text) in prompts.iter().zip(&together) {
        let mut n = 0;
        let alone = generate(&network, None, prompt, &options, &mut |_, _, _| {
            n += 1;
            ControlFlow::Continue(())
        })
        .unwrap();
        assert_eq!(alone.tokens, text.tokens);
        assert_eq!((alone.tokens.len(), n), (12, 12));
        assert_eq!(alone.reason, StopReason::MaxTokens);
    }
}

#[test]
fn texts_end_where_they_should() {
    let network = network(&golden("llama")).resident().unwrap();
    let tokenizer = Tokenizer::bytes();
    let text = prompt("llama")[..4].to_vec();
    let free = GenerateOptions { max_tokens: 500, ..Default::default() };
    let go = &mut |_: usize, _: &str, _: u32| ControlFlow::Continue(());
    let full = generate(&network, None, &text, &free, go).unwrap();
    assert_eq!(full.reason, StopReason::ContextFull);
    assert_eq!(full.tokens.len() + text.len(), network.context_length() + 1);
    let third = full.tokens[2];
    let ends = GenerateOptions { stop_tokens: vec![third], ..free.clone() };
    let stopped = generate(&network, None, &text, &ends, go).unwrap();
    assert_eq!(stopped.reason, StopReason::StopToken(third));
    assert!(stopped.tokens.len() <= 2);
    let broken = generate(&network, None, &text, &free, &mut |_, _, _| ControlFlow::Break(())).unwrap();
    assert_eq!((broken.reason, broken.tokens.len()), (StopReason::Interrupted, 1));
    let word = String::from(char::from_u32(full.tokens[5]).unwrap());
    let stops = GenerateOptions { stop_strings: vec![word.clone()], ..free };
    let stopped = generate(&network, Some(&tokenizer), &text, &stops, go).unwrap();
    assert!(!stopped.text.contains(&word));
    assert_eq!(stopped.reason, StopReason::StopString(word));
    assert!(generate(&network, None, &[], &stops, go).is_err());
}
