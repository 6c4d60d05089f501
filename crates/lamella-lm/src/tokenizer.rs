//! Text to tokens and back.

use std::path::Path;

use crate::LmError;

enum Kind {
    /// A `tokenizer.json`.
    Trained(Box<tokenizers::Tokenizer>),
    /// One token per byte.
    Bytes,
}

/// Turns texts into tokens and tokens into texts.
pub struct Tokenizer {
    kind: Kind,
    bos: Option<u32>,
    eos: Option<u32>,
}

impl std::fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tokenizer")
            .field("vocab_size", &self.vocab_size())
            .field("bos", &self.bos)
            .field("eos", &self.eos)
            .finish_non_exhaustive()
    }
}

/// Names that models give to the token that begins a text, in the order tried.
const BEGIN: [&str; 5] = ["<s>", "<|begin_of_text|>", "<bos>", "[CLS]", "<|endoftext|>"];
/// Names that models give to the token that ends a text, in the order tried.
const END: [&str; 6] = ["</s>", "<|end_of_text|>", "<|im_end|>", "<eos>", "[SEP]", "<|endoftext|>"];

/// The token between texts of vocabularies that are learned here.
const ENDOFTEXT: &str = "<|endoftext|>";

fn failed(error: impl std::fmt::Display) -> LmError {
    LmError::Tokenizer { message: error.to_string() }
}

impl Tokenizer {
    /// Reads a `tokenizer.json`.
    ///
    /// # Errors
    /// A file that cannot be read; a description the tokenizer library refuses.
    pub fn from_file(path: impl AsRef<Path>) -> Result<Self, LmError> {
        Self::from_bytes(&fs_err::read(path.as_ref()).map_err(failed)?)
    }

    /// Reads the bytes of a `tokenizer.json`. Padding and truncation it may ask for are switched off.
    ///
    /// # Errors
    /// A description the tokenizer library refuses.
    pub fn from_bytes(json: &[u8]) -> Result<Self, LmError> {
        let mut inner = tokenizers::Tokenizer::from_bytes(json).map_err(failed)?;
        inner.with_padding(None);
        inner.with_truncation(None).map_err(failed)?;
        let first = |names: &[&str]| names.iter().find_map(|name| inner.token_to_id(name));
        let (bos, eos) = (first(&BEGIN), first(&END));
        Ok(Self { kind: Kind::Trained(Box::new(inner)), bos, eos })
    }

    /// Learns a byte-level BPE vocabulary from texts and returns its `tokenizer.json`: `<|endoftext|>` is token 0, all
    /// bytes follow, then merges, the most frequent first. With 257 tokens every byte is one token. The same texts
    /// give the same vocabulary at any thread count.
    ///
    /// # Errors
    /// Fewer than 257 tokens; what the tokenizer library refuses.
    pub fn train(texts: &[&str], vocab_size: usize) -> Result<String, LmError> {
        use tokenizers::models::bpe::{BPE, BpeTrainer};
        use tokenizers::pre_tokenizers::byte_level::ByteLevel;
        use tokenizers::{
            AddedToken, DecoderWrapper, NormalizerWrapper, PostProcessorWrapper, PreTokenizerWrapper,
            TokenizerImpl,
        };
        if vocab_size < 257 {
            return Err(failed(format!(
                "a vocabulary of {vocab_size} tokens is too small: 256 bytes and `{ENDOFTEXT}` need 257"
            )));
        }
        let mut trainer = BpeTrainer::builder()
            .show_progress(false)
            .vocab_size(vocab_size)
            .min_frequency(2)
            .initial_alphabet(ByteLevel::alphabet().into_iter().collect())
            .special_tokens(vec![AddedToken::from(ENDOFTEXT, true)])
            .build();
        type Learner =
            TokenizerImpl<BPE, NormalizerWrapper, PreTokenizerWrapper, PostProcessorWrapper, DecoderWrapper>;
        let mut learner = Learner::new(BPE::default());
        learner.with_pre_tokenizer(Some(ByteLevel::new(false, true, true)));
        learner.with_decoder(Some(ByteLevel::default()));
        let lines = texts.iter().flat_map(|text| text.split_inclusive('\n'));
        learner.train(&mut trainer, lines).map_err(failed)?;
        learner.to_string(true).map_err(failed)
    }

    /// One token per byte: token `b` is byte `b`.
    pub fn bytes() -> Self {
        Self { kind: Kind::Bytes, bos: None, eos: None }
    }

    /// Names the tokens that begin and end a text, where the model's configuration knows them (or knows that there
    /// are none) instead of the guess by usual names.
    #[must_use]
    pub fn with_special(mut self, bos: Option<u32>, eos: Option<u32>) -> Self {
        (self.bos, self.eos) = (bos, eos);
        self
    }

    /// Tokens of a text. With `add_special`, what the description puts around a text is added (`[CLS]` and `[SEP]`,
    /// a beginning token), else nothing.
    ///
    /// # Errors
    /// Text the description has no token for.
    pub fn encode(&self, text: &str, add_special: bool) -> Result<Vec<u32>, LmError> {
        match &self.kind {
            Kind::Trained(inner) => {
                Ok(inner.encode_fast(text, add_special).map_err(failed)?.get_ids().to_vec())
            }
            Kind::Bytes => Ok(text.bytes().map(u32::from).collect()),
        }
    }

    /// Text of tokens, special ones left out.
    ///
    /// # Errors
    /// What the tokenizer library refuses.
    pub fn decode(&self, tokens: &[u32]) -> Result<String, LmError> {
        match &self.kind {
            Kind::Trained(inner) => inner.decode(tokens, true).map_err(failed),
            Kind::Bytes => {
                let bytes: Vec<u8> = tokens.iter().filter_map(|&token| u8::try_from(token).ok()).collect();
                Ok(String::from_utf8_lossy(&bytes).into_owned())
            }
        }
    }

    /// Token with this exact name.
    pub fn token_id(&self, name: &str) -> Option<u32> {
        match &self.kind {
            Kind::Trained(inner) => inner.token_to_id(name),
            Kind::Bytes => None,
        }
    }
    /// Token that begins a text.
    pub fn bos(&self) -> Option<u32> {
        self.bos
    }
    /// Token that ends a text.
    pub fn eos(&self) -> Option<u32> {
        self.eos
    }
    /// Tokens there are, added ones included.
    pub fn vocab_size(&self) -> usize {
        match &self.kind {
            Kind::Trained(inner) => inner.get_vocab_size(true),
            Kind::Bytes => 256,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_return() {
        let tokenizer = Tokenizer::bytes();
        let tokens = tokenizer.encode("Grüße", true).unwrap();
        assert_eq!(tokens.len(), 7);
        assert_eq!(tokenizer.decode(&tokens).unwrap(), "Grüße");
    }

    #[test]
    fn a_learned_vocabulary_returns_every_text() {
        let text = "to be or not to be, that is the question\n".repeat(8);
        let json = Tokenizer::train(&[&text], 280).unwrap();
        assert_eq!(Tokenizer::train(&[&text], 280).unwrap(), json);
        let tokenizer = Tokenizer::from_bytes(json.as_bytes()).unwrap();
        assert!(tokenizer.vocab_size() <= 280 && tokenizer.vocab_size() > 257);
        assert_eq!(tokenizer.eos(), Some(0));
        for text in [&text[..], "Grüße 🐌\r\n\t x"] {
            let tokens = tokenizer.encode(text, false).unwrap();
            assert_eq!(tokenizer.decode(&tokens).unwrap(), text);
        }
        assert!(tokenizer.encode("to be", false).unwrap().len() < 5);
        let bytes = Tokenizer::from_bytes(Tokenizer::train(&[&text], 257).unwrap().as_bytes()).unwrap();
        assert_eq!((bytes.vocab_size(), bytes.encode("to be", false).unwrap().len()), (257, 5));
        assert!(Tokenizer::train(&[&text], 256).is_err());
    }

    #[test]
    fn a_damaged_description_is_an_error() {
        assert!(Tokenizer::from_bytes(b"{\"model\": 3}").is_err());
    }
}
