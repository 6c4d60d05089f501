//! `tokenizer.json` out of GGUF's tokenizer arrays.
//!
//! `tokenizer.ggml.model` is `llama` (SentencePiece-BPE: pieces and scores) or `gpt2` (byte-level BPE: tokens and
//! merges, the way to cut text named by `tokenizer.ggml.pre`). Others, and cuts that are not listed here, give a
//! reason instead of a guess.

use serde_json::{Value, json};

use super::GgufFile;
use crate::sentencepiece::{Layout, added_tokens, begin_template, sentencepiece_json};

const CONTROL: f64 = 3.0;
const USER_DEFINED: f64 = 4.0;
const UNKNOWN: f64 = 2.0;

pub(super) fn tokenizer(file: &GgufFile) -> Result<Value, String> {
    let kind = file.text("tokenizer.ggml.model").ok_or("has no tokenizer")?;
    let tokens = file.strings("tokenizer.ggml.tokens").ok_or("has no list of tokens in UTF-8")?;
    let types = file.numbers("tokenizer.ggml.token_type").unwrap_or_default();
    let is_type = |id: usize, kind: f64| types.get(id) == Some(&kind);
    let added: Vec<(usize, bool)> = (0..tokens.len())
        .filter(|&id| is_type(id, CONTROL) || is_type(id, UNKNOWN) || is_type(id, USER_DEFINED))
        .map(|id| (id, !is_type(id, USER_DEFINED)))
        .collect();
    let id_of = |key: &str| {
        let id = file.unsigned(&format!("tokenizer.ggml.{key}_token_id"))?;
        usize::try_from(id).ok().filter(|&id| id < tokens.len())
    };
    let begin = id_of("bos");
    match kind {
        "llama" => {
            let scores = file.numbers("tokenizer.ggml.scores").ok_or("has no scores for its pieces")?;
            if scores.len() != tokens.len() {
                return Err(format!("has {} scores for {} pieces", scores.len(), tokens.len()));
            }
            let pieces: Vec<(String, f32)> =
                tokens.iter().zip(&scores).map(|(&text, &score)| (text.to_owned(), score as f32)).collect();
            let adds_begin = file.bool("tokenizer.ggml.add_bos_token").unwrap_or(true);
            let layout = Layout {
                unknown: id_of("unknown").unwrap_or(0),
                begin: begin.filter(|_| adds_begin),
                added: &added,
                prepends_space: file.bool("tokenizer.ggml.add_space_prefix").unwrap_or(true),
            };
            Ok(sentencepiece_json(&pieces, &layout))
        }
        "gpt2" => byte_level(file, &tokens, &added, begin),
        other => Err(format!("has a tokenizer of the kind `{other}`, which is not converted")),
    }
}

/// How a family cuts text before merging: the pattern (GPT-2's own where there is none), whether text is brought
/// to Unicode's composed form, whether whole tokens win over merges, and whether a begin token is the rule.
struct Cut {
    pattern: Option<&'static str>,
    composes: bool,
    ignores_merges: bool,
    adds_begin: bool,
}

fn cut(pre: &str) -> Option<Cut> {
    let llama3 = concat!(
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|",
        r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    );
    let qwen2 = concat!(
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}|",
        r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    );
    Some(match pre {
        "gpt-2" => Cut { pattern: None, composes: false, ignores_merges: false, adds_begin: false },
        "llama-bpe" | "llama3" | "llama-v3" => {
            Cut { pattern: Some(llama3), composes: false, ignores_merges: true, adds_begin: true }
        }
        "qwen2" | "deepseek-r1-qwen" => {
            Cut { pattern: Some(qwen2), composes: true, ignores_merges: false, adds_begin: false }
        }
        _ => return None,
    })
}

fn byte_level(
    file: &GgufFile,
    tokens: &[&str],
    added: &[(usize, bool)],
    begin: Option<usize>,
) -> Result<Value, String> {
    let pre = file.text("tokenizer.ggml.pre").unwrap_or("gpt-2");
    let cut = cut(pre).ok_or_else(|| format!("cuts text in the way `{pre}`, which is not converted"))?;
    let merges = file.strings("tokenizer.ggml.merges").ok_or("has no merges")?;
    let merges: Option<Vec<[&str; 2]>> =
        merges.iter().map(|merge| merge.split_once(' ').map(|(left, right)| [left, right])).collect();
    let merges = merges.ok_or("has a merge that is no pair")?;
    let mut vocabulary = serde_json::Map::new();
    for (id, &token) in tokens.iter().enumerate() {
        vocabulary.entry(token).or_insert(json!(id));
    }
    let byte_level = |splits: bool| json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": splits});
    let pre_tokenizer = match cut.pattern {
        None => byte_level(true),
        Some(pattern) => json!({"type": "Sequence", "pretokenizers": [
            {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": false},
            byte_level(false)
        ]}),
    };
    let adds_begin = file.bool("tokenizer.ggml.add_bos_token").unwrap_or(cut.adds_begin);
    let piece = |id: usize| tokens.get(id).copied().unwrap_or("");
    Ok(json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": added_tokens(added, piece),
        "normalizer": if cut.composes { json!({"type": "NFC"}) } else { Value::Null },
        "pre_tokenizer": pre_tokenizer,
        "post_processor": begin_template(begin.filter(|_| adds_begin), piece),
        "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true},
        "model": {
            "type": "BPE",
            "dropout": null,
            "unk_token": null,
            "continuing_subword_prefix": null,
            "end_of_word_suffix": null,
            "fuse_unk": false,
            "byte_fallback": false,
            "ignore_merges": cut.ignores_merges,
            "vocab": vocabulary,
            "merges": merges
        }
    }))
}
