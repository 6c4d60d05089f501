//! The text that is learned, and its end, which is not.

use std::path::{Path, PathBuf};

use lamella_lm::Tokenizer;

use super::TrainError;

/// One part in so many of every file is held out.
const HELD_OUT: usize = 20;
/// Bytes that go through the tokenizer at a time.
const PIECE_BYTES: usize = 1 << 16;

/// Files' texts, each in a part to learn and a part to judge by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Texts {
    /// By file, in the order of names.
    pub learned: Vec<String>,
    /// The last twentieth of each file, from a line's beginning on.
    pub held_out: Vec<String>,
}

impl Texts {
    /// Reads a file, or all files of a directory (not of those below it) that are UTF-8 text.
    ///
    /// # Errors
    /// What cannot be read; no text at all.
    pub fn read(path: &Path) -> Result<Self, TrainError> {
        let mut files: Vec<PathBuf> = vec![path.to_owned()];
        if path.is_dir() {
            let entries = fs_err::read_dir(path)?.collect::<Result<Vec<_>, _>>()?;
            files = entries.into_iter().map(|entry| entry.path()).filter(|path| path.is_file()).collect();
            files.sort();
        }
        let mut texts = Self { learned: Vec::new(), held_out: Vec::new() };
        for file in files {
            match String::from_utf8(fs_err::read(&file)?) {
                Ok(text) => texts.push(&text),
                Err(_) if path.is_dir() => {}
                Err(_) => return Err(TrainError::NoText { path: file }),
            }
        }
        match texts.learned.iter().all(String::is_empty) {
            true => Err(TrainError::NoText { path: path.to_owned() }),
            false => Ok(texts),
        }
    }

    fn push(&mut self, text: &str) {
        let mut cut = text.len() - text.len() / HELD_OUT;
        while !text.is_char_boundary(cut) {
            cut += 1;
        }
        let cut = text[cut..].find('\n').map_or(cut, |line| cut + line + 1);
        self.learned.push(text[..cut].to_owned());
        self.held_out.push(text[cut..].to_owned());
    }

    /// Tokens of what is learned and of what is held out, files set apart by the tokenizer's last token of a text.
    ///
    /// # Errors
    /// Text the tokenizer refuses.
    pub fn tokens(&self, tokenizer: &Tokenizer) -> Result<(Vec<u32>, Vec<u32>), TrainError> {
        let all = |texts: &[String]| -> Result<Vec<u32>, TrainError> {
            let mut tokens = Vec::new();
            for text in texts.iter().filter(|text| !text.is_empty()) {
                tokens.extend(tokenizer.eos());
                for piece in pieces(text) {
                    tokens.extend(tokenizer.encode(piece, false)?);
                }
            }
            Ok(tokens)
        };
        Ok((all(&self.learned)?, all(&self.held_out)?))
    }
}

/// Parts of a text that end with lines.
fn pieces(text: &str) -> Vec<&str> {
    let (mut pieces, mut start) = (Vec::new(), 0);
    for (at, _) in text.match_indices('\n') {
        if at + 1 - start >= PIECE_BYTES {
            pieces.push(&text[start..=at]);
            start = at + 1;
        }
    }
    if start < text.len() {
        pieces.push(&text[start..]);
    }
    pieces
}

/// A text's beginning of about so many bytes, to the end of a line.
pub(super) fn beginning(text: &str, bytes: usize) -> &str {
    match text.char_indices().find(|&(at, letter)| at + 1 >= bytes && letter == '\n') {
        Some((at, _)) => &text[..=at],
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_a_text_is_held_out_and_nothing_is_lost() {
        let text: String = (0..400).map(|line| format!("line ü {line}\n")).collect();
        let mut texts = Texts { learned: Vec::new(), held_out: Vec::new() };
        texts.push(&text);
        assert_eq!(format!("{}{}", texts.learned[0], texts.held_out[0]), text);
        assert!(texts.held_out[0].starts_with("line") && texts.held_out[0].len() > text.len() / 25);
        let long = text.repeat(40);
        assert_eq!(pieces(&long).concat(), long);
        assert!(pieces(&long).len() > 2);
        assert_eq!(beginning("ab\ncd\nef", 4), "ab\ncd\n");
    }
}
