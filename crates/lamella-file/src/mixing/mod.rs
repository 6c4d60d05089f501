//! A small context-mixing coder for texts: JSON, tokenizers, manifests.
//!
//! Beside a 100 KB model even its tokenizer is large, and general compressors need more data than that to learn from.
//! This coder predicts each bit from several contexts at once (the last one to six bytes, the current word, the byte
//! above, where the last bytes occurred before, and what a list that counts upwards would say next), lets the contexts
//! that have been right speak louder (logistic mixing), and codes the bit with the resulting probability. It is slow
//! (about half a megabyte a second, both ways), so it is for texts of at most [`MAX_MIXED_BYTES`](crate::limits::MAX_MIXED_BYTES).
//!
//! Everything is integer arithmetic: encoder and decoder do exactly the same on every machine.
//!
//! # The model
//! * Before the first bit it reads a fixed text with the words such texts use, so that it need not learn
//!   them from the text itself: worth 600 bytes on a small model's side files and 100 on its manifest.
//! * A *counter* is a 16-bit probability that the next bit is 1 and the number of times it was used; it moves towards
//!   each coded bit by `1 / (uses + 1.5)`, by 1/32 at least.
//! * Each of the eight contexts, together with the bits of the byte read so far, picks a counter from a table
//!   of its own, sixteen neighbours for each half of a byte. A table has a power of two entries, at least four and
//!   less than eight per byte of text and at most 2^19, so memory is bounded by the text: 256 bytes a byte, 16 MiB.
//! * `stretch(p) = ln(p / (1 - p))` of every counter is weighted and summed; `squash`, its inverse, gives the
//!   probability. Weights move along the gradient of the coding cost. Two sets of weights, chosen by how many contexts
//!   are known and by the bits of the byte so far, are mixed and their sums averaged.
//!
//! The idea, published by Mahoney as PAQ, is in the public literature ("Adaptive Weighing of Context Models for
//! Lossless Data Compression", Florida Tech CS-2005-16); this design is much smaller.

mod model;
mod priming;
mod tables;

use self::model::Model;
use self::priming::PRIMING;

/// Codes a text.
pub(crate) fn encode(text: &[u8]) -> Vec<u8> {
    let mut model = Model::new(text.len());
    let (mut low, mut high, mut out) = (0u32, u32::MAX, Vec::new());
    for &byte in text {
        for shift in (0..8).rev() {
            let bit = byte >> shift & 1 == 1;
            let middle = split(low, high, model.predict());
            if bit {
                high = middle
            } else {
                low = middle + 1
            }
            model.update(bit);
            while (low ^ high) >> 24 == 0 {
                out.push((high >> 24) as u8);
                (low, high) = (low << 8, high << 8 | 0xff);
            }
        }
    }
    // The decoder reads zeros past the end, so the shortest number within [low, high] with zeros behind it is enough.
    for bytes in 0..=4u32 {
        let kept = u32::MAX.checked_shl(32 - 8 * bytes).unwrap_or(0);
        let number = if low & !kept == 0 { low } else { (low & kept).wrapping_add((!kept).wrapping_add(1)) };
        if number >= low && number <= high {
            out.extend_from_slice(&number.to_be_bytes()[..bytes as usize]);
            break;
        }
    }
    while out.last() == Some(&0) {
        out.pop();
    }
    out
}

/// The last number of the part of `[low, high]` that stands for a 1.
fn split(low: u32, high: u32, p: u32) -> u32 {
    low + ((u64::from(high - low) * u64::from(p)) >> 16) as u32
}

/// Decodes a text of `length` bytes. Any bytes decode to some text; a checksum tells whether it is the right one.
pub(crate) fn decode(stored: &[u8], length: usize) -> Vec<u8> {
    let mut model = Model::new(length);
    let mut bytes = stored.iter().copied().chain(std::iter::repeat(0));
    let mut next = || u32::from(bytes.next().unwrap_or(0));
    let (mut low, mut high) = (0u32, u32::MAX);
    let mut code = (0..4).fold(0, |sum, _| sum << 8 | next());
    let end = PRIMING.len() + length;
    while model.text.len() < end {
        let middle = split(low, high, model.predict());
        let bit = code <= middle;
        if bit {
            high = middle
        } else {
            low = middle + 1
        }
        model.update(bit);
        while (low ^ high) >> 24 == 0 {
            (low, high) = (low << 8, high << 8 | 0xff);
            code = code << 8 | next();
        }
    }
    model.text.split_off(PRIMING.len())
}

#[cfg(test)]
mod tests {
    use super::tables::{squash, stretch};
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]
        #[test]
        fn texts_return(text in proptest::collection::vec(any::<u8>(), 0..600), low in any::<u8>()) {
            for text in [text.iter().map(|&byte| byte & low).collect(), text] {
                prop_assert_eq!(decode(&encode(&text), text.len()), text);
            }
        }
        #[test]
        fn any_bytes_decode(stored in proptest::collection::vec(any::<u8>(), 0..60), length in 0usize..900) {
            prop_assert_eq!(decode(&stored, length).len(), length);
        }
    }

    #[test]
    fn the_tables_are_inverse_and_symmetric() {
        assert_eq!(squash(0), 32768);
        // 65536 / (1 + exp(-1)) and 65536 / (1 + exp(-4)), rounded down.
        assert_eq!((squash(256), squash(1024)), (47910, 64357));
        for x in -1200..=1200i32 {
            assert_eq!(squash(x) + squash(-x), 65536);
            assert!((stretch(u16::try_from(squash(x)).unwrap()) - x).abs() <= 10, "{x}");
        }
    }

    #[test]
    fn side_files_of_a_model_come_out_smaller_than_zstd() {
        let data = std::env::var("LAMELLA_DATA")
            .unwrap_or(concat!(env!("CARGO_MANIFEST_DIR"), "/../../../shared/data").to_owned());
        let model = std::path::Path::new(&data).join("lm/wiki5m");
        if !model.exists() {
            println!("skipped: no test data at {}", model.display());
            return;
        }
        let names = ["config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"];
        let text: Vec<u8> = names.iter().flat_map(|name| fs_err::read(model.join(name)).unwrap()).collect();
        let zstd = zstd::bulk::compress(&text, 19).unwrap();
        let start = std::time::Instant::now();
        let coded = encode(&text);
        println!(
            "{} bytes: zstd -19 {}, mixed {} in {:?}",
            text.len(),
            zstd.len(),
            coded.len(),
            start.elapsed()
        );
        assert_eq!(decode(&coded, text.len()), text);
        assert!(coded.len() * 10 < zstd.len() * 8, "{}", coded.len());
    }
}
