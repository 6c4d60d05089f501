use super::assignment::Part;
use super::plain;
use super::*;
use crate::cpu::{CpuLevel, detected_level};
use crate::models::{Frequencies, normalize};
use proptest::prelude::*;

fn levels() -> Vec<CpuLevel> {
    let mut levels = vec![CpuLevel::Plain, CpuLevel::Avx2, CpuLevel::Avx512];
    levels.retain(|&level| level <= detected_level());
    levels
}

fn encode_part(
    level: CpuLevel,
    symbols: &[u8],
    lanes: Lanes,
    tables: &EncodeTables,
    part: &Part<'_>,
) -> Result<Vec<u8>> {
    let mut writer = Writer::new(lanes);
    kernel::encode_at(level, symbols, tables, part, &mut writer)?;
    Ok(writer.payload().to_vec())
}

/// Decodes the payload twice side by side and once alone.
fn decode_part(
    level: CpuLevel,
    payload: &[u8],
    lanes: Lanes,
    tables: &DecodeTables,
    part: &Part<'_>,
    out: &mut [u8],
) -> Result<()> {
    let mut other = vec![0; out.len()];
    let mut jobs = [
        kernel::DecodeJob { payload, part: *part, out: &mut other },
        kernel::DecodeJob { payload, part: *part, out },
    ];
    kernel::decode_at(level, &mut jobs, lanes, tables)?;
    let joint = out.to_vec();
    assert_eq!(joint, other);
    kernel::decode_at(level, &mut [kernel::DecodeJob { payload, part: *part, out }], lanes, tables)?;
    assert_eq!(joint, out);
    Ok(())
}

fn plain_encode(symbols: &[u8], lanes: Lanes, tables: &EncodeTables, part: &Part<'_>) -> Result<Vec<u8>> {
    let mut writer = Writer::new(lanes);
    plain::encode(symbols, tables, part, &mut writer)?;
    Ok(writer.payload().to_vec())
}

fn noise(count: usize, spread: u32, mut seed: u64) -> Vec<u8> {
    (0..count)
        .map(|_| {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            ((0..4).map(|i| (seed >> (16 + 12 * i)) as u32 % spread.max(1)).sum::<u32>() % 256) as u8
        })
        .collect()
}

fn table_of(symbols: &[u8], bits: u32) -> Frequencies {
    let mut counts = vec![0u64; 256];
    for &symbol in symbols {
        counts[usize::from(symbol)] += 1;
    }
    if symbols.is_empty() {
        counts[0] = 1;
    }
    normalize(&counts, bits).unwrap()
}

/// Lengths: empty, around each lane count, around two rounds, long enough for the vector loop and its tail.
const LENGTHS: [usize; 16] = [0, 1, 3, 4, 5, 7, 8, 9, 31, 32, 33, 63, 64, 65, 1000, 5003];

#[test]
fn every_kernel_agrees_with_plain() {
    for bits in 8..=12 {
        for length in LENGTHS {
            for spread in [1, 2, 12, 64] {
                let symbols = noise(length, spread, length as u64 + 1);
                let table = table_of(&symbols, bits);
                let encode = EncodeTables::new(std::slice::from_ref(&table)).unwrap();
                let decode = DecodeTables::new(&[table]).unwrap();
                for lanes in Lanes::ALL {
                    let part = Assignment::One(0).whole();
                    let expected = plain_encode(&symbols, lanes, &encode, &part).unwrap();
                    for level in levels() {
                        assert_eq!(encode_part(level, &symbols, lanes, &encode, &part).unwrap(), expected);
                        let mut out = vec![0; length];
                        decode_part(level, &expected, lanes, &decode, &part, &mut out).unwrap();
                        assert_eq!(out, symbols, "{level:?} {lanes:?} {bits} {length} {spread}");
                    }
                }
            }
        }
    }
}

#[test]
fn chunks_return_and_are_small() {
    let symbols = noise(3 * CHUNK_SYMBOLS + 17, 20, 9);
    let bytes = encode(&symbols).unwrap();
    assert_eq!(decode(&bytes, symbols.len()).unwrap(), symbols);
    let table = table_of(&symbols, 12);
    let mut counts = [0u64; 256];
    symbols.iter().for_each(|&s| counts[usize::from(s)] += 1);
    let ideal = table.cost_fixed(&counts).unwrap() as f64 / 65536.0 / 8.0;
    assert!((bytes.len() as f64) < ideal * 1.001, "{} {ideal}", bytes.len());
    assert!(decode(&bytes[..bytes.len() - 2], symbols.len()).is_err());
}

#[test]
fn one_lane_wastes_nearly_nothing() {
    assert_eq!(encode(&[]).unwrap(), []);
    assert_eq!(encode(&[7; 100]).unwrap(), [KIND_CONSTANT_BYTE, 7]);
    let symbols = noise(400, 5, 3);
    let table = table_of(&symbols, 12);
    let mut counts = [0u64; 256];
    symbols.iter().for_each(|&s| counts[usize::from(s)] += 1);
    let ideal = table.cost_fixed(&counts).unwrap() as f64 / 65536.0 / 8.0;
    let tables = EncodeTables::new(&[table]).unwrap();
    let bytes = encode_payload(&symbols, &tables, &Assignment::One(0)).unwrap();
    assert!((bytes.len() as f64) < ideal + 3.0, "{} {ideal}", bytes.len());
}
const KIND_CONSTANT_BYTE: u8 = 1;

#[test]
fn constriction_agrees_on_the_size() {
    use constriction::stream::model::DefaultContiguousCategoricalEntropyModel;
    use constriction::stream::stack::DefaultAnsCoder;
    let symbols = noise(20_000, 9, 5);
    let table = table_of(&symbols, 12);
    let probabilities: Vec<f64> = table.as_slice().iter().map(|&f| f64::from(f) / 4096.0).collect();
    let model = DefaultContiguousCategoricalEntropyModel::from_floating_point_probabilities_fast(
        &probabilities,
        None,
    )
    .unwrap();
    let mut coder = DefaultAnsCoder::new();
    coder.encode_iid_symbols_reverse(symbols.iter().map(|&s| usize::from(s)), &model).unwrap();
    let theirs = 4 * coder.into_compressed().unwrap().len();
    let encode = EncodeTables::new(&[table]).unwrap();
    let ours = encode_payload(&symbols, &encode, &Assignment::One(0)).unwrap().len();
    assert!((ours as f64 - theirs as f64).abs() < 0.003 * theirs as f64, "{ours} {theirs}");
}

fn three_tables() -> Vec<Frequencies> {
    [2, 9, 40]
        .iter()
        .map(|&spread| {
            let mut counts = vec![1u64; 256];
            noise(5000, spread, 1).iter().for_each(|&s| counts[usize::from(s)] += 1000);
            normalize(&counts, 12).unwrap()
        })
        .collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn runs_and_indexes_return(lengths in prop::collection::vec((0usize..200, 0usize..3), 0..40), factor in 1usize..30) {
        let tables = three_tables();
        let encode = EncodeTables::new(&tables).unwrap();
        let decode = DecodeTables::new(&tables).unwrap();
        let runs: Vec<Run> = lengths.iter().map(|&(length, table)| Run { length: length * factor, table }).collect();
        let indexes: Vec<u8> = runs.iter().flat_map(|run| vec![run.table as u8; run.length]).collect();
        let symbols = noise(indexes.len(), 30, 77);
        let as_runs = encode_payload(&symbols, &encode, &Assignment::Runs(&runs)).unwrap();
        let as_indexes = encode_payload(&symbols, &encode, &Assignment::PerSymbol(&indexes)).unwrap();
        prop_assert_eq!(&as_runs, &as_indexes);
        for level in levels() {
            for assignment in [Assignment::Runs(&runs), Assignment::PerSymbol(&indexes)] {
                let payload = encode_part(level, &symbols, Lanes::ThirtyTwo, &encode, &assignment.whole()).unwrap();
                prop_assert_eq!(&payload, &plain_encode(&symbols, Lanes::ThirtyTwo, &encode, &assignment.whole()).unwrap());
                let mut out = vec![0; symbols.len()];
                decode_part(level, &payload, Lanes::ThirtyTwo, &decode, &assignment.whole(), &mut out).unwrap();
                prop_assert_eq!(&out, &symbols);
            }
        }
        let mut out = vec![0; symbols.len()];
        decode_payload(&as_runs, &decode, &Assignment::Runs(&runs), &mut out).unwrap();
        prop_assert_eq!(&out, &symbols);
    }

    #[test]
    fn splitting_keeps_the_tables(lengths in prop::collection::vec((0usize..20, 0usize..3), 0..20), chunk in 1usize..40) {
        let runs: Vec<Run> = lengths.iter().map(|&(length, table)| Run { length, table }).collect();
        let indexes: Vec<u8> = runs.iter().flat_map(|run| vec![run.table as u8; run.length]).collect();
        let parts = Assignment::Runs(&runs).split(indexes.len(), chunk);
        prop_assert_eq!(parts.len(), indexes.len().div_ceil(chunk).max(1));
        let mut seen = Vec::new();
        for (index, part) in parts.iter().enumerate() {
            let length = (indexes.len() - index * chunk).min(chunk);
            let (mut forward, mut backward) = (Vec::new(), Vec::new());
            part.for_each_run(length, |start, n, table| {
                assert_eq!(start, forward.len());
                forward.extend(vec![table as u8; n]);
                Ok(())
            }).unwrap();
            part.for_each_run_reversed(length, |start, n, table| {
                let mut run = vec![table as u8; n];
                run.append(&mut backward);
                backward = run;
                assert_eq!(start + backward.len(), length);
                Ok(())
            }).unwrap();
            prop_assert_eq!(&forward, &backward);
            seen.extend(forward);
        }
        prop_assert_eq!(seen, indexes);
    }

    #[test]
    fn arrays_return(symbols in prop::collection::vec(any::<u8>(), 0..3000), mask in any::<u8>()) {
        let symbols: Vec<u8> = symbols.iter().map(|s| s & mask).collect();
        let bytes = encode(&symbols).unwrap();
        prop_assert!(bytes.len() <= symbols.len() + 1);
        prop_assert_eq!(decode(&bytes, symbols.len()).unwrap(), symbols);
    }

    #[test]
    fn kernels_agree_on_damaged_bytes(position in 0usize..60_000, bit in 0u8..8, cut in 0usize..70_000) {
        let symbols = noise(60_000, 30, 4);
        let mut bytes = encode(&symbols).unwrap();
        bytes.truncate(cut.max(1));
        let index = position % bytes.len();
        bytes[index] ^= 1 << bit;
        let _ = decode(&bytes, symbols.len());
        let tables = three_tables();
        let decode = DecodeTables::new(&tables).unwrap();
        let expected = {
            let mut out = vec![0; 5000];
            plain::decode(&bytes, Lanes::ThirtyTwo, &decode, &Assignment::One(1).whole(), &mut out).map(|()| out)
        };
        for level in levels() {
            let mut out = vec![0; 5000];
            let found = decode_part(level, &bytes, Lanes::ThirtyTwo, &decode, &Assignment::One(1).whole(), &mut out);
            prop_assert_eq!(found.map(|()| out), expected.clone());
        }
    }
}

#[test]
fn a_symbol_without_frequency_is_an_error() {
    let table = normalize(&[1, 1, 0], 8).unwrap();
    let tables = EncodeTables::new(&[table]).unwrap();
    for length in [3, 5000] {
        let mut symbols = vec![0; length];
        symbols[length / 2] = 2;
        for lanes in Lanes::ALL {
            for level in levels() {
                let error =
                    encode_part(level, &symbols, lanes, &tables, &Assignment::One(0).whole()).unwrap_err();
                assert_eq!(error, Error::UncodableSymbol { symbol: 2, position: length / 2 });
                let indexes = vec![0; length];
                let part = Assignment::PerSymbol(&indexes).whole();
                assert_eq!(encode_part(level, &symbols, lanes, &tables, &part).unwrap_err(), error);
            }
        }
    }
}

/// Three tables of at most 32 symbols each: what is searched, not looked up.
fn small_tables(bits: u32) -> Vec<Frequencies> {
    let of = |spread: u8| {
        let every: Vec<u8> = (0..=4 * (spread - 1)).collect();
        table_of(&[noise(5000, spread.into(), 1), every].concat(), bits)
    };
    [2, 5, 8].map(of).to_vec()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn small_tables_decode_side_by_side(
        lengths in prop::collection::vec((1usize..40, 0usize..3), 1..12), factor in 1usize..64, unit in 1usize..33,
        bits in 8u32..13, part in 1usize..40, cut in 0usize..40_000,
    ) {
        let tables = small_tables(bits);
        let (encode, decode) = (EncodeTables::new(&tables).unwrap(), DecodeTables::new(&tables).unwrap());
        prop_assert_eq!(decode.searched().len(), 3);
        let runs: Vec<Run> =
            lengths.iter().map(|&(length, table)| Run { length: length * factor * (unit & 32 | 1), table }).collect();
        let symbols: Vec<u8> =
            runs.iter().flat_map(|run| noise(run.length, [2, 5, 8][run.table], run.length as u64)).collect();
        let assignments = [Assignment::Runs(&runs), Assignment::One(2), Assignment::One(2)];
        let texts = [&symbols[..], &noise(symbols.len() + 100, 8, 3), &noise(77, 8, 4)];
        let mut payloads: Vec<Vec<u8>> = Vec::new();
        for (symbols, assignment) in texts.iter().zip(&assignments) {
            let coded =
                encode_part(CpuLevel::Plain, symbols, Lanes::ThirtyTwo, &encode, &assignment.whole()).unwrap();
            assert_levels_agree(&coded, Lanes::ThirtyTwo, &decode, assignment, symbols.len());
            assert_levels_agree(&coded[..cut % coded.len()], Lanes::ThirtyTwo, &decode, assignment, symbols.len());
            payloads.push([&[Lanes::ThirtyTwo.index()], &coded[..]].concat());
        }
        let joint: Vec<JointPayload<'_>> = (0..3)
            .map(|i| JointPayload { bytes: &payloads[i], assignment: assignments[i], symbols: texts[i].len() })
            .collect();
        for level in levels() {
            let mut decoder = JointDecoder::at(level, &joint, &decode).unwrap();
            let mut found = vec![Vec::new(); 3];
            loop {
                let sizes: Vec<usize> = (0..3).map(|i| (texts[i].len() - found[i].len()).min(part * 64)).collect();
                if sizes.iter().all(|&size| size == 0) {
                    break;
                }
                let mut rooms: Vec<Vec<u8>> = sizes.iter().map(|&size| vec![0; size]).collect();
                decoder.decode(&mut rooms.iter_mut().map(|room| &mut room[..]).collect::<Vec<_>>()).unwrap();
                found.iter_mut().zip(&rooms).for_each(|(found, room)| found.extend_from_slice(room));
            }
            prop_assert!(decoder.decode(&mut [&mut [0][..], &mut [], &mut []]).is_err());
            decoder.finish().unwrap();
            for (found, text) in found.iter().zip(&texts) {
                prop_assert_eq!(&found[..], *text);
            }
        }
    }
}

#[test]
fn appended_payloads_and_pairs_return() {
    let tables = three_tables();
    let (encode, decode) = (EncodeTables::new(&tables).unwrap(), DecodeTables::new(&tables).unwrap());
    let (mut workspace, mut bytes) = (Workspace::default(), Vec::new());
    // One lane, many lanes, more than one chunk; equal and unequal neighbours.
    for (left, right) in [(10, 90), (70_000, 70_000), (64, 70_001), (CHUNK_SYMBOLS + 1, 70_000)] {
        let symbols = [noise(left, 30, 1), noise(right, 30, 2)];
        let indexes: Vec<u8> = (0..right).map(|index| (index / 7 % 3) as u8).collect();
        let assignments = [Assignment::One(2), Assignment::PerSymbol(&indexes)];
        let payloads = [0, 1].map(|index| {
            bytes.clear();
            let (symbols, assignment) = (&symbols[index], &assignments[index]);
            let length = append_payload(symbols, &encode, assignment, &mut workspace, &mut bytes).unwrap();
            assert_eq!(length, bytes.len());
            assert_eq!(bytes, encode_payload(symbols, &encode, assignment).unwrap());
            bytes.clone()
        });
        let mut out = [vec![0; left], vec![0; right]];
        let [first, second] = &mut out;
        let jobs = [
            PayloadJob { bytes: &payloads[0], assignment: assignments[0], out: first },
            PayloadJob { bytes: &payloads[1], assignment: assignments[1], out: second },
        ];
        decode_pair(jobs, &decode).unwrap();
        assert_eq!(out, symbols);
        let [first, second] = &mut out;
        let jobs = [
            PayloadJob { bytes: &payloads[0], assignment: assignments[0], out: first },
            PayloadJob { bytes: &payloads[1][..right / 3], assignment: assignments[1], out: second },
        ];
        assert!(decode_pair(jobs, &decode).is_err());
    }
}
