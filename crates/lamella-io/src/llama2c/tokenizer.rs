//! llama2.c's `tokenizer.bin` (SentencePiece-BPE: pieces with scores) as a Hugging Face `tokenizer.json`.
//!
//! SentencePiece merges the adjacent pair whose *joined piece* has the highest score; Hugging Face's BPE merges by
//! a list of pairs, best first. So every split of every piece into two pieces becomes a merge, ordered by the
//! joined piece's score (then its id, then the pair's ids). Characters outside the vocabulary fall back to the
//! pieces `<0x00>` to `<0xFF>`, and `▁` stands for a space, one of which is put before the text.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::{Value, json};

use crate::IoError;
use crate::cursor::Cursor;

/// Longest piece accepted. Splitting a piece costs its length squared, so this bounds hostile files.
const LONGEST_PIECE_BYTES: usize = 1024;

/// Pieces with their scores, by token id.
pub type ScoredPieces = Vec<(String, f32)>;

/// Reads `tokenizer.bin`: `i32` longest length, then per piece `f32` score, `i32` length, bytes.
///
/// Spaces become `▁`, and the line breaks that llama2.c writes around `<s>` and `</s>` are taken off.
///
/// # Errors
/// The bytes end inside a piece, or a piece is too long or no UTF-8.
pub fn llama2c_pieces(bytes: &[u8], path: &Path) -> Result<ScoredPieces, IoError> {
    let mut cursor = Cursor::new(bytes, path);
    cursor.u32("the longest length")?;
    let mut pieces = Vec::new();
    while cursor.remaining() > 0 {
        let score = cursor.f32("a score")?;
        let length = cursor.i32("a length")?;
        let length = usize::try_from(length).ok().filter(|&length| length <= LONGEST_PIECE_BYTES);
        let length = length
            .ok_or_else(|| cursor.damaged(format!("token {} is too long to be a piece", pieces.len())))?;
        let text = std::str::from_utf8(cursor.take(length, "a piece")?)
            .map_err(|error| cursor.damaged(format!("token {} is no UTF-8: {error}", pieces.len())))?;
        let text = match text {
            "\n<s>\n" => "<s>".to_owned(),
            "\n</s>\n" => "</s>".to_owned(),
            _ => text.replace(' ', "▁"),
        };
        pieces.push((text, score));
    }
    Ok(pieces)
}

/// A `tokenizer.json` for SentencePiece-BPE pieces in Llama's layout: token 0 unknown, 1 begin, 2 end of text.
pub fn llama2c_tokenizer_json(pieces: &[(String, f32)]) -> Value {
    let special = |id: usize| pieces.get(id).map_or("", |(text, _)| text.as_str());
    let added: Vec<_> = (0..pieces.len().min(3))
        .map(|id| {
            json!({
                "id": id, "content": special(id), "single_word": false, "lstrip": false, "rstrip": false,
                "normalized": false, "special": true
            })
        })
        .collect();
    let mut vocabulary = serde_json::Map::new();
    for (id, (text, _)) in pieces.iter().enumerate() {
        vocabulary.entry(text.clone()).or_insert(json!(id));
    }
    let begin = special(1);
    json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": added,
        "normalizer": {"type": "Sequence", "normalizers": [
            {"type": "Prepend", "prepend": "▁"},
            {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
        ]},
        "pre_tokenizer": null,
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": begin, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [
                {"SpecialToken": {"id": begin, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}},
                {"SpecialToken": {"id": begin, "type_id": 1}}, {"Sequence": {"id": "B", "type_id": 1}}
            ],
            "special_tokens": {begin: {"id": begin, "ids": [1], "tokens": [begin]}}
        },
        "decoder": {"type": "Sequence", "decoders": [
            {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
            {"type": "ByteFallback"},
            {"type": "Fuse"},
            {"type": "Strip", "content": " ", "start": 1, "stop": 0}
        ]},
        "model": {
            "type": "BPE",
            "dropout": null,
            "unk_token": special(0),
            "continuing_subword_prefix": null,
            "end_of_word_suffix": null,
            "fuse_unk": true,
            "byte_fallback": true,
            "ignore_merges": false,
            "vocab": vocabulary,
            "merges": merges(pieces)
        }
    })
}

/// Every split of every piece into two pieces, best joined score first.
fn merges(pieces: &[(String, f32)]) -> Vec<[&str; 2]> {
    let mut ids = BTreeMap::new();
    for (id, (text, _)) in pieces.iter().enumerate() {
        ids.entry(text.as_str()).or_insert(id);
    }
    let mut found = Vec::new();
    for (&text, &id) in &ids {
        // Control pieces and bytes are never the result of a merge.
        let is_byte = text.len() == 6 && text.starts_with("<0x") && text.ends_with('>');
        if id < 3 || is_byte {
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

#[cfg(test)]
mod tests {
    use super::*;
    use tokenizers::Tokenizer;

    /// llama2.c's own encoder: characters (or their bytes), then always the best-scored adjacent merge.
    fn greedy(pieces: &[(String, f32)], text: &str) -> Vec<u32> {
        let ids: BTreeMap<&str, usize> =
            pieces.iter().enumerate().rev().map(|(id, (text, _))| (text.as_str(), id)).collect();
        let mut tokens = Vec::new();
        if !text.is_empty() {
            tokens.push(ids["▁"]);
        }
        for c in text.chars() {
            let character = if c == ' ' { "▁".to_owned() } else { c.to_string() };
            match ids.get(character.as_str()) {
                Some(&id) => tokens.push(id),
                None => tokens.extend(character.bytes().map(|byte| usize::from(byte) + 3)),
            }
        }
        loop {
            let mut best: Option<(f32, usize, usize)> = None;
            for (at, pair) in tokens.windows(2).enumerate() {
                let joined = format!("{}{}", pieces[pair[0]].0, pieces[pair[1]].0);
                if let Some(&id) = ids.get(joined.as_str())
                    && best.is_none_or(|(score, _, _)| pieces[id].1 > score)
                {
                    best = Some((pieces[id].1, at, id));
                }
            }
            let Some((_, at, id)) = best else {
                return tokens.into_iter().map(|id| id as u32).collect();
            };
            tokens.splice(at..at + 2, [id]);
        }
    }

    const TEXTS: [&str; 8] = [
        "Once upon a time, there was a little girl named Lily.",
        "  two  spaces, and a tab\there\nand lines\n\n",
        "Ünïcödé 東京 🙂 <0x41> </x>",
        "",
        "a",
        "The dog said, \"Hello!\" They played all day long and were very happy.",
        "aaaaaaaaaaa bananananana ssssss mmmmmmmm     ",
        "It's 12:30 — don't shout!!! www.example.com/?q=1&r=2",
    ];

    fn check(file: &str) {
        let Some(path) = crate::test_data(file) else {
            return;
        };
        let pieces = llama2c_pieces(&fs_err::read(&path).unwrap(), &path).unwrap();
        let tokenizer: Tokenizer = llama2c_tokenizer_json(&pieces).to_string().parse().unwrap();
        for text in TEXTS {
            let encoded = tokenizer.encode(text, true).unwrap();
            let mut expected = vec![1];
            expected.extend(greedy(&pieces, text));
            assert_eq!(encoded.get_ids(), expected, "{text:?} in {file}");
            assert_eq!(tokenizer.decode(encoded.get_ids(), true).unwrap(), text);
        }
    }

    #[test]
    fn the_hugging_face_form_encodes_as_llama2c_does() {
        check("lm/stories260K/tokenizer.bin");
        check("lm/llama2_tokenizer_32000.bin");
    }

    #[test]
    fn cuts_are_errors_or_whole_pieces() {
        let Some(path) = crate::test_data("lm/stories260K/tokenizer.bin") else {
            return;
        };
        let bytes = fs_err::read(&path).unwrap();
        let whole = llama2c_pieces(&bytes, &path).unwrap().len();
        assert_eq!(whole, 512);
        for length in 0..bytes.len() {
            if let Ok(pieces) = llama2c_pieces(&bytes[..length], &path) {
                assert!(pieces.len() < whole);
            }
        }
        for bit in 32..bytes.len().min(400) * 8 {
            let mut flipped = bytes.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            if let Ok(pieces) = llama2c_pieces(&flipped, &path) {
                llama2c_tokenizer_json(&pieces);
            }
        }
    }
}
