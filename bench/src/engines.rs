//! Coders behind one interface: bytes out of symbols, symbols back into a buffer.

use crate::huff0;
use constriction::stream::Decode;
use constriction::stream::model::{
    SmallContiguousCategoricalEntropyModel, SmallContiguousLookupDecoderModel,
};
use constriction::stream::stack::SmallAnsCoder;
use lamella_entropy::{models, rans};

/// One coder.
pub struct Engine {
    pub name: String,
    pub encode: Box<dyn Fn(&[u8]) -> Vec<u8>>,
    pub decode: Box<dyn Fn(&[u8], &mut [u8])>,
}

fn engine(
    name: &str,
    encode: impl Fn(&[u8]) -> Vec<u8> + 'static,
    decode: impl Fn(&[u8], &mut [u8]) + 'static,
) -> Engine {
    Engine { name: name.to_owned(), encode: Box::new(encode), decode: Box::new(decode) }
}

/// Lamella's coder, at the level this process runs at.
pub fn lamella() -> Engine {
    let level = format!("{:?}", lamella_entropy::cpu::cpu_level()).to_lowercase();
    engine(
        &format!("lamella rans ({level})"),
        |symbols| rans::encode(symbols).expect("symbols are codable"),
        |bytes, out| rans::decode_into(bytes, out).expect("own bytes decode"),
    )
}

/// The peers.
pub fn peers() -> Vec<Engine> {
    let mut engines = vec![engine("constriction (table, 12 bits)", constriction_encode, constriction_decode)];
    for level in [1, 3, 19] {
        engines.push(engine(
            &format!("zstd -{level}"),
            move |symbols| zstd::bulk::compress(symbols, level).expect("zstd compresses"),
            |bytes, out| {
                zstd::bulk::decompress_to_buffer(bytes, out).expect("zstd decompresses");
            },
        ));
    }
    engines.push(engine("huff0 (of zstd)", huff0::huff0_encode, huff0::huff0_decode));
    engines.push(engine("fse (of zstd)", huff0::fse_encode, huff0::fse_decode));
    engines.push(engine("lz4_flex", lz4_flex::block::compress, |bytes, out| {
        lz4_flex::block::decompress_into(bytes, out).expect("lz4 decompresses");
    }));
    engines.push(engine(
        "pco (u8)",
        |symbols| {
            pco::standalone::simple_compress(symbols, &pco::ChunkConfig::default().with_enable_8_bit(true))
                .expect("pco compresses")
        },
        |bytes, out| {
            pco::standalone::simple_decompress_into(bytes, out).expect("pco decompresses");
        },
    ));
    engines
}

/// Header: first symbol, number of symbols minus one, 16-bit frequencies; then the compressed words.
fn constriction_encode(symbols: &[u8]) -> Vec<u8> {
    let mut counts = [0u64; 256];
    symbols.iter().for_each(|&symbol| counts[usize::from(symbol)] += 1);
    let first = counts.iter().position(|&c| c > 0).unwrap_or(0);
    let last = counts.iter().rposition(|&c| c > 0).unwrap_or(0);
    let span: Vec<u64> = counts[first..=last].iter().map(|&c| c.max(1)).collect();
    let table = models::normalize(&span, 12).expect("a table");
    let model = SmallContiguousCategoricalEntropyModel::from_nonzero_fixed_point_probabilities(
        table.as_slice().iter().copied(),
        false,
    )
    .expect("a model");
    let mut coder = SmallAnsCoder::new();
    coder
        .encode_iid_symbols_reverse(symbols.iter().map(|&symbol| usize::from(symbol) - first), &model)
        .expect("coded");
    let mut bytes = vec![first as u8, (last - first) as u8];
    bytes.extend(table.as_slice().iter().flat_map(|f| f.to_le_bytes()));
    bytes.extend(coder.into_compressed().expect("whole words").iter().flat_map(|word| word.to_le_bytes()));
    bytes
}

fn constriction_decode(bytes: &[u8], out: &mut [u8]) {
    let (first, size) = (bytes[0], usize::from(bytes[1]) + 1);
    let words = |bytes: &[u8]| -> Vec<u16> {
        bytes.chunks_exact(2).map(|pair| u16::from_le_bytes([pair[0], pair[1]])).collect()
    };
    let frequencies = words(&bytes[2..2 + 2 * size]);
    let model = SmallContiguousLookupDecoderModel::from_nonzero_fixed_point_probabilities(frequencies, false)
        .expect("a model");
    let mut coder = SmallAnsCoder::from_compressed(words(&bytes[2 + 2 * size..])).expect("words");
    let count = out.len();
    for (symbol, decoded) in out.iter_mut().zip(coder.decode_iid_symbols(count, &model)) {
        *symbol = decoded.expect("a symbol") as u8 + first;
    }
}
