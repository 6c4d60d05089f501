//! What the fuzz targets call, one function each; tests replay the committed corpus through the same functions.
//!
//! Each decodes arbitrary bytes: it must return, and where two ways of decoding exist they must agree. Outputs are
//! limited to 64 Ki symbols, so that memory is bounded by a constant.

use crate::bits::{self, BitReader, golomb};
use crate::huffman::Code;
use crate::integers::{self, Columns};
use crate::models::header::HeaderModel;
use crate::models::{CellRange, Frequencies, Parametric, Shape, normalize};
use crate::range::{AdaptiveGolomb, AdaptiveSymbol, RangeDecoder};
use crate::rans::{self, Assignment, DecodeTables, Lanes};
use crate::{context, varint};

/// Splits a 16-bit number off the front.
fn number(data: &mut &[u8]) -> usize {
    match *data {
        [low, high, rest @ ..] => {
            *data = rest;
            usize::from(u16::from_le_bytes([*low, *high]))
        }
        _ => 0,
    }
}

/// Column length and classes from the front of the data: at most 4,096 codes.
fn shape(data: &mut &[u8]) -> (usize, Vec<u8>) {
    let (length, count) = (number(data) & 255, number(data) & 15);
    let split = count.min(data.len());
    let (classes, rest) = data.split_at(split);
    *data = rest;
    (length, classes.to_vec())
}

/// rANS: the self-contained array, and payloads of every lane count at every instruction set of this machine.
pub fn fuzz_rans(mut data: &[u8]) {
    let count = number(&mut data);
    if let Ok(symbols) = rans::decode(data, count) {
        let again = rans::encode(&symbols).and_then(|bytes| rans::decode(&bytes, count));
        assert_eq!(again.as_deref(), Ok(symbols.as_slice()));
    }
    let indexes: Vec<u8> = (0..count).map(|index| (index / 40 % 2) as u8).collect();
    let Ok(tables) = two_tables() else { return };
    for lanes in Lanes::ALL {
        rans::assert_levels_agree(data, lanes, &tables, &Assignment::One(1), count);
        rans::assert_levels_agree(data, lanes, &tables, &Assignment::PerSymbol(&indexes), count);
    }
}

fn two_tables() -> crate::Result<DecodeTables> {
    let wide: Vec<u64> = (0..256u64).map(|symbol| 1 + symbol * symbol).collect();
    DecodeTables::new(&[normalize(&wide, 11)?, normalize(&[5000, 30, 1], 11)?])
}

/// Signed integers in columns.
pub fn fuzz_integers(mut data: &[u8]) {
    let (length, classes) = shape(&mut data);
    let limit = length * classes.len();
    assert!(limit == 0 || integers::decode(data, length, &classes, limit - 1).is_err());
    let Ok(codes) = integers::decode(data, length, &classes, limit) else { return };
    let Ok(columns) = Columns::new(&codes, length, &classes) else { return };
    let again =
        integers::encode(&columns).and_then(|bytes| integers::decode(&bytes, length, &classes, limit));
    assert_eq!(again, Ok(codes));
}

/// Codes under contexts.
pub fn fuzz_context(mut data: &[u8]) {
    let (length, classes) = shape(&mut data);
    let limit = length * classes.len();
    let Ok(codes) = context::decode(data, length, &classes, limit) else { return };
    let Ok(columns) = Columns::new(&codes, length, &classes) else { return };
    assert_eq!(context::decode(&context::encode(&columns), length, &classes, limit), Ok(codes));
}

/// Headers of tables and models, and adaptive range coding.
pub fn fuzz_models(mut data: &[u8]) {
    let head = number(&mut data);
    let (size, bits) = (2 + head % 255, 8 + (head / 256 % 5) as u32);
    let mut decoder = RangeDecoder::new(data);
    let mut model = HeaderModel::new();
    for _ in 0..3 {
        if let Ok(table) = model.read(&mut decoder, size, bits, None) {
            assert!(Frequencies::new(table.as_slice(), bits).is_ok());
        }
    }
    let parametric = Parametric {
        shape: Shape::ALL[head % 8],
        scale_index: (head >> 3) as u8,
        dead_zone: (head >> 11) as u8,
        location: number(&mut data) as i32 - 32_768,
    };
    let cells =
        CellRange { first: number(&mut data) as i64 - 32_768, count: size, shift: (head >> 11) as u32 & 31 };
    if let Ok(base) = parametric.frequencies(cells, size < 256, bits) {
        let _ = model.read(&mut decoder, base.alphabet_size(), bits, Some(&base));
    }
    let (mut numbers, mut symbols) = (AdaptiveGolomb::new(), AdaptiveSymbol::new(head % 70));
    for _ in 0..200 {
        numbers.decode(&mut decoder);
        decoder.decode_symbol(&mut symbols);
    }
}

/// Codes without models: Huffman, Golomb, Elias, packing, varints.
pub fn fuzz_bits(mut data: &[u8]) {
    let _ = varint::read_varint(&mut { data });
    let (head, count) = (number(&mut data), number(&mut data));
    for width in [1, 3, 8, 13, 16, head as u32] {
        if let Ok(values) = bits::unpack(data, width, count) {
            assert!(bits::pack(&values, width).is_ok());
        }
        bits::unpack_at(data, width, count);
    }
    let (lengths, rest) = data.split_at((head & 255).min(data.len()));
    if let Ok(decoder) = Code::from_lengths(lengths).and_then(|code| code.decoder()) {
        let _ = decoder.decode(rest, count);
    }
    let mut reader = BitReader::new(data);
    for _ in 0..50 {
        let _ = golomb::read_golomb(&mut reader, head as u32);
        let _ = golomb::read_exp_golomb(&mut reader, head as u32 & 31);
        let _ = golomb::read_delta(&mut reader);
        let _ = golomb::read_gamma(&mut reader);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    type Target = (&'static str, fn(&[u8]));

    /// Every target with the harness it calls.
    const TARGETS: [Target; 5] = [
        ("entropy_rans", fuzz_rans),
        ("entropy_integers", fuzz_integers),
        ("entropy_context", fuzz_context),
        ("entropy_models", fuzz_models),
        ("entropy_bits", fuzz_bits),
    ];

    #[test]
    fn the_committed_corpus_replays() {
        let root = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../../fuzz"));
        for (name, harness) in TARGETS {
            let mut seen = 0;
            for folder in ["corpus", "regressions"] {
                let Ok(entries) = std::fs::read_dir(root.join(folder).join(name)) else { continue };
                for entry in entries {
                    harness(&std::fs::read(entry.unwrap().path()).unwrap());
                    seen += 1;
                }
            }
            if seen == 0 {
                println!("no corpus for {name}: fuzz/corpus is not part of this checkout");
            }
        }
    }

    #[test]
    fn damaged_streams_return() {
        let mut state = 7u64;
        let mut random = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (state >> 33) as u32
        };
        for (_, harness) in TARGETS {
            for length in [0, 1, 2, 5, 30, 300] {
                for _ in 0..20 {
                    let data: Vec<u8> = (0..length).map(|_| random() as u8).collect();
                    harness(&data);
                }
            }
        }
    }
}
