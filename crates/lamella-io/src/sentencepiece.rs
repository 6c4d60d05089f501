//! SentencePiece-BPE (pieces with scores) as a Hugging Face `tokenizer.json`.
//!
//! SentencePiece merges the adjacent pair whose *joined piece* has the highest score; Hugging Face's BPE merges by
//! a list of pairs, best first. So every split of every piece into two pieces becomes a merge, ordered by the
//! joined piece's score (then its id, then the pair's ids). Characters outside the vocabulary fall back to the
//! pieces `<0x00>` to `<0xFF>`, and `▁` stands for a space, one of which is put before the text.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};

/// Longest piece accepted. Splitting a piece costs its length squared, so this bounds hostile files.
pub(crate) const LONGEST_PIECE_BYTES: usize = 1024;

/// What beside its pieces makes a tokenizer.
pub(crate) struct Layout<'a> {
    /// Token for what has no piece.
    pub(crate) unknown: usize,
    /// Token put before every text.
    pub(crate) begin: Option<usize>,
    /// Tokens that are never the result of a merge but matched whole, and whether they are control tokens that
    /// decoding leaves out.
    pub(crate) added: &'a [(usize, bool)],
    /// Whether a space is put before the text.
    pub(crate) prepends_space: bool,
}

/// A `tokenizer.json` of these pieces, by token id.
pub(crate) fn sentencepiece_json(pieces: &[(String, f32)], layout: &Layout<'_>) -> Value {
    let piece = |id: usize| pieces.get(id).map_or("", |(text, _)| text.as_str());
    let mut vocabulary = serde_json::Map::new();
    for (id, (text, _)) in pieces.iter().enumerate() {
        vocabulary.entry(text.clone()).or_insert(json!(id));
    }
    let replace = json!({"type": "Replace", "pattern": {"String": " "}, "content": "▁"});
    let normalizer = if layout.prepends_space {
        json!({"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "▁"}, replace]})
    } else {
        replace
    };
    let mut decoders = vec![
        json!({"type": "Replace", "pattern": {"String": "▁"}, "content": " "}),
        json!({"type": "ByteFallback"}),
        json!({"type": "Fuse"}),
    ];
    if layout.prepends_space {
        decoders.push(json!({"type": "Strip", "content": " ", "start": 1, "stop": 0}));
    }
    json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": added_tokens(layout.added, piece),
        "normalizer": normalizer,
        "pre_tokenizer": null,
        "post_processor": begin_template(layout.begin, piece),
        "decoder": {"type": "Sequence", "decoders": decoders},
        "model": {
            "type": "BPE",
            "dropout": null,
            "unk_token": piece(layout.unknown),
            "continuing_subword_prefix": null,
            "end_of_word_suffix": null,
            "fuse_unk": true,
            "byte_fallback": true,
            "ignore_merges": false,
            "vocab": vocabulary,
            "merges": merges(pieces, layout.added)
        }
    })
}

/// The `added_tokens` of a `tokenizer.json`.
pub(crate) fn added_tokens<'a>(added: &[(usize, bool)], piece: impl Fn(usize) -> &'a str) -> Vec<Value> {
    let token = |&(id, is_control): &(usize, bool)| {
        json!({
            "id": id, "content": piece(id), "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false, "special": is_control
        })
    };
    added.iter().map(token).collect()
}

/// A post-processor that puts the begin token before each text; nothing without such a token.
pub(crate) fn begin_template<'a>(begin: Option<usize>, piece: impl Fn(usize) -> &'a str) -> Value {
    let Some(id) = begin else {
        return Value::Null;
    };
    let text = piece(id);
    let special = |type_id: u32| json!({"SpecialToken": {"id": text, "type_id": type_id}});
    let sequence = |name: &str, type_id: u32| json!({"Sequence": {"id": name, "type_id": type_id}});
    json!({
        "type": "TemplateProcessing",
        "single": [special(0), sequence("A", 0)],
        "pair": [special(0), sequence("A", 0), special(1), sequence("B", 1)],
        "special_tokens": {text: {"id": text, "ids": [id], "tokens": [text]}}
    })
}

/// Every split of every piece into two pieces, best joined score first.
fn merges<'a>(pieces: &'a [(String, f32)], added: &[(usize, bool)]) -> Vec<[&'a str; 2]> {
    let never: BTreeSet<usize> = added.iter().map(|&(id, _)| id).collect();
    let mut ids = BTreeMap::new();
    for (id, (text, _)) in pieces.iter().enumerate() {
        ids.entry(text.as_str()).or_insert(id);
    }
    let mut found = Vec::new();
    for (&text, &id) in &ids {
        // Added pieces and bytes are never the result of a merge.
        let is_byte = text.len() == 6 && text.starts_with("<0x") && text.ends_with('>');
        if is_byte || never.contains(&id) || text.len() > LONGEST_PIECE_BYTES {
            continue;
        }
        for (at, _) in text.char_indices().skip(1) {
            let (left, right) = text.split_at(at);
            if let (Some(&left_id), Some(&right_id)) = (ids.get(left), ids.get(right)) {
                found.push((pieces[id].1, id, left_id, right_id, [left, right]));
            }
        }
    }
    found.sort_by(|a, b| {
        // Adding zero makes both zeros one; NaN, which only a damaged file has, gets a fixed place.
        let by_score = (b.0 + 0.0).total_cmp(&(a.0 + 0.0));
        by_score.then((a.1, a.2, a.3).cmp(&(b.1, b.2, b.3)))
    });
    found.into_iter().map(|(_, _, _, _, pair)| pair).collect()
}
