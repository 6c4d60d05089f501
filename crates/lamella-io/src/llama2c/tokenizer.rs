//! llama2.c's `tokenizer.bin`: SentencePiece-BPE pieces with scores.

use std::path::Path;

use serde_json::Value;

use crate::IoError;
use crate::cursor::Cursor;
use crate::sentencepiece::{LONGEST_PIECE_BYTES, Layout, sentencepiece_json};

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
    let special: Vec<_> = (0..pieces.len().min(3)).map(|id| (id, true)).collect();
    let layout =
        Layout { unknown: 0, begin: (pieces.len() > 1).then_some(1), added: &special, prepends_space: true };
    sentencepiece_json(pieces, &layout)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;
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
