//! Texts to token sequences.

use std::ops::Range;

use super::StatisticsError;
use crate::{Family, LmError, Tokenizer};

/// Whether a token that begins a text is put before every window.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum BosRule {
    /// Where the tokenizer's own description puts one before a text.
    #[default]
    AsTokenizer,
    /// Always, where the tokenizer has such a token.
    Always,
    /// Never.
    Never,
}

/// How a text becomes sequences.
#[derive(Debug, Clone, PartialEq)]
pub struct SequenceOptions {
    /// Tokens taken in all, special ones included. Default 32,768.
    pub max_tokens: usize,
    /// Tokens of a window (decoders) or at most of a paragraph (encoders). Default 2,048; never more than the
    /// network's own context, which the caller puts here.
    pub context_length: usize,
    /// Beginning tokens of windows. Encoders always get what their tokenizer puts around a text.
    pub bos: BosRule,
    /// Paragraphs need more characters than this (Unicode scalar values, outer white space not counted).
    pub longer_than: usize,
    /// Which paragraphs are used, counted among those long enough; all where `None`. A decoder's text is then these
    /// paragraphs joined by line feeds.
    pub paragraphs: Option<Range<usize>>,
}

impl Default for SequenceOptions {
    fn default() -> Self {
        Self {
            max_tokens: 32_768,
            context_length: 2048,
            bos: BosRule::AsTokenizer,
            longer_than: 0,
            paragraphs: None,
        }
    }
}

/// Lines of a text with more than `longer_than` characters, outer white space removed.
///
/// ```
/// use lamella_lm::statistics::paragraphs;
/// assert_eq!(paragraphs(" = Title = \n \n A paragraph of some length . \n", 12).collect::<Vec<_>>(), [
///     "A paragraph of some length ."
/// ]);
/// ```
pub fn paragraphs(text: &str, longer_than: usize) -> impl Iterator<Item = &str> {
    text.lines().map(str::trim).filter(move |line| line.chars().count() > longer_than)
}

/// Cuts a text into token sequences: windows one after the other for decoders (the last may be shorter), one
/// sequence per paragraph for encoders, cut to `context_length` with the closing special tokens kept. There is no
/// padding.
///
/// # Errors
/// A text that gives no token, a paragraph range beyond its end, options that leave no room, a tokenizer that fails.
pub fn sequences(
    tokenizer: &Tokenizer,
    family: Family,
    text: &str,
    options: &SequenceOptions,
) -> Result<Vec<Vec<u32>>, StatisticsError> {
    let none = |message: String| StatisticsError::NoTokens { message };
    let chosen = match &options.paragraphs {
        None => None,
        Some(range) => {
            let chosen: Vec<&str> = paragraphs(text, options.longer_than)
                .skip(range.start)
                .take(range.end.saturating_sub(range.start))
                .collect();
            if chosen.len() < range.len() {
                return Err(none(format!(
                    "paragraphs {} to {} of more than {} characters were asked for, it holds {}",
                    range.start,
                    range.end,
                    options.longer_than,
                    paragraphs(text, options.longer_than).count()
                )));
            }
            Some(chosen)
        }
    };
    let sequences = match family {
        Family::Encoder => {
            let lines = chosen.unwrap_or_else(|| paragraphs(text, options.longer_than).collect());
            from_paragraphs(tokenizer, &lines, options)?
        }
        Family::Decoder => {
            let joined = match chosen {
                Some(lines) => Some(lines.join("\n")),
                None if options.longer_than > 0 => {
                    Some(paragraphs(text, options.longer_than).collect::<Vec<_>>().join("\n"))
                }
                None => None,
            };
            windows(tokenizer, joined.as_deref().unwrap_or(text), options)?
        }
    };
    if sequences.is_empty() {
        return Err(none(format!(
            "{} bytes, at most {} tokens in sequences of {}",
            text.len(),
            options.max_tokens,
            options.context_length
        )));
    }
    Ok(sequences)
}

fn windows(tokenizer: &Tokenizer, text: &str, options: &SequenceOptions) -> Result<Vec<Vec<u32>>, LmError> {
    let bos = match options.bos {
        BosRule::Never => None,
        BosRule::Always => tokenizer.bos(),
        BosRule::AsTokenizer => {
            let added = tokenizer.encode("", true)?;
            tokenizer.bos().filter(|bos| added.first() == Some(bos))
        }
    };
    let length = options.context_length.saturating_sub(usize::from(bos.is_some()));
    if length == 0 {
        return Ok(Vec::new());
    }
    let tokens = first_tokens(tokenizer, text, options.max_tokens)?;
    let mut room = options.max_tokens;
    let mut windows = Vec::new();
    for part in tokens.chunks(length) {
        let window: Vec<u32> = bos.iter().chain(part).copied().take(room).collect();
        room -= window.len();
        if window.len() > usize::from(bos.is_some()) {
            windows.push(window);
        }
    }
    Ok(windows)
}

/// The first tokens of a text, at least `wanted` of them where it holds so many: a long text is not tokenised whole.
fn first_tokens(tokenizer: &Tokenizer, text: &str, wanted: usize) -> Result<Vec<u32>, LmError> {
    let mut bytes = wanted.saturating_mul(8);
    loop {
        // A prefix that ends behind a line feed, so that its last token is hardly another than in the whole text.
        let cut = text.as_bytes().get(bytes..).and_then(|rest| rest.iter().position(|&byte| byte == b'\n'));
        let prefix = cut.and_then(|position| text.get(..bytes + position + 1)).unwrap_or(text);
        let tokens = tokenizer.encode(prefix, false)?;
        if tokens.len() >= wanted || prefix.len() == text.len() {
            return Ok(tokens);
        }
        bytes = bytes.saturating_mul(2).max(1);
    }
}

fn from_paragraphs(
    tokenizer: &Tokenizer,
    lines: &[&str],
    options: &SequenceOptions,
) -> Result<Vec<Vec<u32>>, LmError> {
    let mut room = options.max_tokens;
    let mut sequences = Vec::new();
    for line in lines {
        let sequence = encode_cut(tokenizer, line, options.context_length)?;
        if sequence.len() > room {
            break;
        }
        room -= sequence.len();
        if !sequence.is_empty() {
            sequences.push(sequence);
        }
    }
    Ok(sequences)
}

/// Encodes with special tokens, in at most `length` tokens: what the tokenizer puts behind the text stays.
pub(crate) fn encode_cut(tokenizer: &Tokenizer, text: &str, length: usize) -> Result<Vec<u32>, LmError> {
    let whole = tokenizer.encode(text, true)?;
    if whole.len() <= length {
        return Ok(whole);
    }
    let plain = tokenizer.encode(text, false)?;
    let n_special = whole.len().saturating_sub(plain.len());
    let before = (0..=n_special).find(|&first| whole[first..].starts_with(&plain)).unwrap_or(n_special);
    let kept = length.saturating_sub(n_special).min(plain.len());
    let behind = whole.get(before + plain.len()..).unwrap_or(&[]);
    let cut: Vec<u32> = whole[..before].iter().chain(&plain[..kept]).chain(behind).copied().collect();
    Ok(cut.into_iter().take(length).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(max_tokens: usize, context_length: usize) -> SequenceOptions {
        SequenceOptions { max_tokens, context_length, ..SequenceOptions::default() }
    }

    #[test]
    fn windows_tile_the_text_up_to_the_cap() {
        let tokenizer = Tokenizer::bytes();
        let cut =
            |cap, context| sequences(&tokenizer, Family::Decoder, "abcdefg", &options(cap, context)).unwrap();
        assert_eq!(cut(100, 3).iter().map(Vec::len).collect::<Vec<_>>(), [3, 3, 1]);
        assert_eq!(cut(5, 3).iter().map(Vec::len).collect::<Vec<_>>(), [3, 2]);
        assert_eq!(cut(5, 3).concat(), b"abcde".map(u32::from));
    }

    #[test]
    fn a_capped_text_begins_as_the_whole() {
        let tokenizer = Tokenizer::bytes();
        let text = "line of text\n".repeat(100);
        let capped = sequences(&tokenizer, Family::Decoder, &text, &options(50, 20)).unwrap().concat();
        assert_eq!(capped.len(), 50);
        assert!(text.bytes().map(u32::from).zip(capped).all(|(a, b)| a == b));
    }

    #[test]
    fn paragraphs_are_counted_among_the_long_ones() {
        let tokenizer = Tokenizer::bytes();
        let text = "long line 0\n\nx\n long line 1 \nlong line 2\n";
        let mut options = SequenceOptions { longer_than: 5, paragraphs: Some(1..3), ..options(100, 8) };
        let found = sequences(&tokenizer, Family::Encoder, text, &options).unwrap();
        assert_eq!(found, [b"long lin".map(u32::from), b"long lin".map(u32::from)]);
        options.paragraphs = Some(1..4);
        let error = sequences(&tokenizer, Family::Encoder, text, &options).unwrap_err();
        assert!(error.to_string().contains("it holds 3"), "{error}");
    }

    #[test]
    fn nothing_to_take_is_an_error() {
        let tokenizer = Tokenizer::bytes();
        for (text, cap, context) in [("", 10, 10), ("abc", 0, 10), ("abc", 10, 0)] {
            assert!(sequences(&tokenizer, Family::Decoder, text, &options(cap, context)).is_err());
        }
    }
}
