//! Tokens to text while they come, and the strings that end it.

use crate::{LmError, Tokenizer};

/// Prompt tokens kept as context: detokenizers treat the first token of a text in their own way.
const CONTEXT: usize = 8;

/// Text of a growing list of tokens.
#[derive(Debug, Clone)]
pub(crate) struct TextStream<'a> {
    tokenizer: &'a Tokenizer,
    stops: &'a [String],
    tokens: Vec<u32>,
    /// Tokens from here are decoded again each time.
    first: usize,
    /// Tokens from here have not given text yet.
    next: usize,
    /// Text so far; the last `held` bytes may be the beginning of a stop string.
    text: String,
    shown: usize,
}

impl<'a> TextStream<'a> {
    pub(crate) fn new(tokenizer: &'a Tokenizer, stops: &'a [String], prompt: &[u32]) -> Self {
        let tokens = prompt[prompt.len().saturating_sub(CONTEXT)..].to_vec();
        let next = tokens.len();
        Self { tokenizer, stops, tokens, first: 0, next, text: String::new(), shown: 0 }
    }

    /// Adds a token. Returns what may be shown, and the stop string that ends the text, where one appeared.
    pub(crate) fn push(&mut self, token: u32) -> Result<(String, Option<String>), LmError> {
        self.tokens.push(token);
        let before = self.tokenizer.decode(&self.tokens[self.first..self.next])?;
        let after = self.tokenizer.decode(&self.tokens[self.first..])?;
        // An unfinished character shows as a replacement character: wait for its other bytes, five at most.
        if after.ends_with('\u{fffd}') && self.tokens.len() - self.next < 6 {
            return Ok((String::new(), None));
        }
        self.add(&before, &after);
        self.first = self.next;
        self.next = self.tokens.len();
        let found = self
            .stops
            .iter()
            .filter(|stop| !stop.is_empty())
            .filter_map(|stop| Some((self.text[self.scan_start(stop)..].find(&stop[..])?, stop)))
            .map(|(at, stop)| (at + self.scan_start(stop), stop))
            .min_by_key(|(at, _)| *at);
        if let Some((at, stop)) = found {
            self.text.truncate(at);
            return Ok((self.show(at), Some(stop.clone())));
        }
        let held = self.stops.iter().map(|stop| overlap(&self.text, stop)).max().unwrap_or(0);
        Ok((self.show(self.text.len() - held), None))
    }

    /// What was held back, at the end of the text.
    pub(crate) fn finish(&mut self) -> Result<String, LmError> {
        let before = self.tokenizer.decode(&self.tokens[self.first..self.next])?;
        let after = self.tokenizer.decode(&self.tokens[self.first..])?;
        self.add(&before, &after);
        self.next = self.tokens.len();
        Ok(self.show(self.text.len()))
    }

    pub(crate) fn text(&self) -> &str {
        &self.text
    }

    fn add(&mut self, before: &str, after: &str) {
        self.text.push_str(after.get(before.len()..).unwrap_or(""));
    }

    /// A stop string cannot begin before what has been shown.
    fn scan_start(&self, _stop: &str) -> usize {
        self.shown.min(self.text.len())
    }

    fn show(&mut self, end: usize) -> String {
        let piece = self.text.get(self.shown..end).unwrap_or("").to_owned();
        self.shown = self.shown.max(end);
        piece
    }
}

/// Bytes at the end of `text` that `stop` begins with.
fn overlap(text: &str, stop: &str) -> usize {
    stop.char_indices()
        .map(|(at, _)| at)
        .filter(|&length| length > 0 && text.ends_with(&stop[..length]))
        .max()
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn characters_appear_whole_and_stops_never() {
        let tokenizer = Tokenizer::bytes();
        let stops = ["END".to_owned()];
        let mut stream = TextStream::new(&tokenizer, &stops, b"prompt".map(u32::from).as_slice());
        let mut shown = String::new();
        let mut stopped = None;
        for byte in "aüE ENENDx".bytes() {
            let (piece, stop) = stream.push(u32::from(byte)).unwrap();
            assert!(!piece.contains('\u{fffd}'));
            shown.push_str(&piece);
            if stop.is_some() {
                stopped = stop;
                break;
            }
        }
        assert_eq!(shown, "aüE EN");
        assert_eq!(stream.text(), "aüE EN");
        assert_eq!(stopped.as_deref(), Some("END"));
    }

    #[test]
    fn the_end_shows_what_was_held_back() {
        let tokenizer = Tokenizer::bytes();
        let stops = ["END".to_owned()];
        let mut stream = TextStream::new(&tokenizer, &stops, &[]);
        for byte in *b"EN" {
            assert_eq!(stream.push(u32::from(byte)).unwrap().0, "");
        }
        assert_eq!(stream.finish().unwrap(), "EN");
    }
}
