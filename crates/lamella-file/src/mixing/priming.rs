//! What the mixing coder has read before it starts: the words that manifests and the small files beside a model use.
//!
//! Part of the file format: no byte of it may change within a format version (a test holds its checksum).

/// Names, numbers and punctuation of chat templates, tokenizers, configurations and manifests. The bytes `ff` and `fe`
/// are a number's place and the end in a manifest's name templates.
pub(crate) const PRIMING: &[u8] = include_bytes!("priming.bin");

#[cfg(test)]
mod tests {
    #[test]
    fn the_priming_text_never_changes() {
        assert_eq!((super::PRIMING.len(), crc32fast::hash(super::PRIMING)), (6805, 0x0df1bf24));
    }
}
