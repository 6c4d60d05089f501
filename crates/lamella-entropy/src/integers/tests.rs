use super::*;
use proptest::prelude::*;

/// Nearly Gaussian codes of a given spread: a sum of twelve uniform numbers.
fn gaussian(count: usize, spread: f64, seed: u64) -> Vec<i32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut uniform = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 11) as f64 / (1u64 << 53) as f64
    };
    (0..count)
        .map(|_| ((0..12).map(|_| uniform()).sum::<f64>() - 6.0) * spread)
        .map(|x| x.round() as i32)
        .collect()
}

fn entropy_bits(codes: &[i32]) -> f64 {
    let mut sorted = codes.to_vec();
    sorted.sort_unstable();
    sorted
        .chunk_by(|a, b| a == b)
        .map(|run| -(run.len() as f64) * (run.len() as f64 / codes.len() as f64).log2())
        .sum()
}

#[test]
fn a_small_tensor_pays_ten_bytes() {
    let codes = gaussian(64 * 64, 1.2, 3);
    let classes = [0u8; 64];
    let columns = Columns::new(&codes, 64, &classes).unwrap();
    let bytes = encode(&columns).unwrap();
    let ideal = entropy_bits(&codes) / 8.0;
    println!("{} bytes, entropy {ideal:.1}", bytes.len());
    assert!((bytes.len() as f64) < ideal + 12.0);
    assert_eq!(decode(&bytes, 64, &classes, codes.len()).unwrap(), codes);
    let estimate = estimate_bits(&columns).unwrap() / 8.0;
    assert!((estimate - bytes.len() as f64).abs() < 12.0, "{estimate}");
}

#[test]
fn classes_that_differ_get_models_and_equal_ones_share() {
    let mut codes = Vec::new();
    let mut classes = Vec::new();
    for column in 0..32u8 {
        codes.extend(gaussian(512, f64::from(1 + column / 8 % 2 * 7), u64::from(column)));
        classes.push(column / 8);
    }
    let columns = Columns::new(&codes, 512, &classes).unwrap();
    let fitted = fit(&columns).unwrap();
    let bytes = encode_with(&columns, &fitted).unwrap();
    assert_eq!(decode(&bytes, 512, &classes, codes.len()).unwrap(), codes);
    assert!((fitted.estimated_bits() / 8.0 - bytes.len() as f64).abs() < 24.0);
    let same = vec![3u8; 32];
    let merged = encode(&Columns::new(&codes, 512, &same).unwrap()).unwrap();
    assert!(bytes.len() * 100 < merged.len() * 97);
    let equal = gaussian(32 * 512, 2.0, 5);
    let fitted = fit(&Columns::new(&equal, 512, &classes).unwrap()).unwrap();
    assert_eq!(fitted.models().len(), 1);
}

#[test]
fn zero_columns_are_free() {
    let mut codes = vec![0i32; 1000];
    codes.extend(gaussian(1000, 1.0, 1));
    let bytes = encode(&Columns::new(&codes, 1000, &[0, 1]).unwrap()).unwrap();
    let alone = encode(&Columns::new(&codes[1000..], 1000, &[1]).unwrap()).unwrap();
    assert!(bytes.len() <= alone.len() + 1);
    assert_eq!(decode(&bytes, 1000, &[0, 1], 2000).unwrap(), codes);
    let zeros = encode(&Columns::new(&codes[..1000], 10, &[0; 100]).unwrap()).unwrap();
    assert!(zeros.len() <= 2, "{zeros:?}");
    assert_eq!(decode(&zeros, 10, &[0; 100], 1000).unwrap(), codes[..1000]);
}

#[test]
fn code_lengths_are_what_coding_costs() {
    let codes = gaussian(40_000, 1.5, 7);
    let columns = Columns::new(&codes, 400, &[4; 100]).unwrap();
    let fitted = code_lengths(&columns).unwrap();
    let lengths = fitted.code_lengths(4, 20);
    let sum: f32 = codes.iter().map(|&code| lengths[(code + 20) as usize]).sum();
    let bytes = encode(&columns).unwrap();
    assert!((f64::from(sum) / 8.0 - bytes.len() as f64).abs() < 0.005 * bytes.len() as f64);
    assert!(fitted.bits(4, 1000) > 12.0 && fitted.bits(9, 1).is_finite());
}

#[test]
fn wide_codes_keep_low_bits_raw() {
    for spread in [30.0, 200.0, 5000.0, 1e6] {
        let codes = gaussian(20_000, spread, 11);
        let classes = [0u8; 20];
        let bytes = encode(&Columns::new(&codes, 1000, &classes).unwrap()).unwrap();
        assert_eq!(decode(&bytes, 1000, &classes, 20_000).unwrap(), codes);
        // Differential entropy of a Gaussian: log2(spread * sqrt(2 pi e)).
        let ideal = (spread * 4.1327).log2() * 20_000.0 / 8.0;
        assert!((bytes.len() as f64) < ideal * 1.01 + 40.0, "{spread}: {} {ideal}", bytes.len());
    }
}

#[test]
fn large_matrices_are_near_the_entropy() {
    let codes = gaussian(1 << 21, 1.3, 5);
    let classes = vec![0u8; 2048];
    let bytes = encode(&Columns::new(&codes, 1024, &classes).unwrap()).unwrap();
    assert!((bytes.len() as f64) < entropy_bits(&codes) / 8.0 * 1.002);
    assert_eq!(decode(&bytes, 1024, &classes, codes.len()).unwrap(), codes);
}

#[test]
fn too_much_output_is_refused_before_reading() {
    assert!(matches!(decode(&[], 1 << 40, &[0; 100], 1000), Err(Error::OutputTooLarge { .. })));
    assert!(decode(&[], usize::MAX, &[0; 3], 1000).is_err());
    assert_eq!(decode(&[], 0, &[0; 3], 1000).unwrap(), [0i32; 0]);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]
    #[test]
    fn any_codes_return(column_length in 0usize..40, classes in prop::collection::vec(0u8..6, 0..20), seed in any::<u64>(),
                        widths in prop::array::uniform6(0u32..32)) {
        let mut codes = Vec::new();
        let mut state = seed | 1;
        for &class in &classes {
            for _ in 0..column_length {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(99);
                let random = (state >> 32) as i32;
                codes.push(if state >> 20 & 63 == 0 { random } else { random >> widths[usize::from(class)] });
            }
        }
        let columns = Columns::new(&codes, column_length, &classes).unwrap();
        let bytes = encode(&columns).unwrap();
        prop_assert_eq!(decode(&bytes, column_length, &classes, codes.len()).unwrap(), codes.clone());
        prop_assert!(estimate_bits(&columns).unwrap().is_finite());
    }

    #[test]
    fn damage_is_an_error_or_other_codes(position in any::<usize>(), bit in 0u8..8, cut in any::<usize>()) {
        let mut codes = gaussian(300, 2.0, 1);
        codes.extend(gaussian(300, 300.0, 2));
        codes[5] = i32::MIN;
        let bytes = encode(&Columns::new(&codes, 100, &[0, 0, 0, 7, 7, 7]).unwrap()).unwrap();
        let mut flipped = bytes.clone();
        flipped[position % bytes.len()] ^= 1 << bit;
        let _ = decode(&flipped, 100, &[0, 0, 0, 7, 7, 7], 600);
        prop_assert!(decode(&bytes[..cut % bytes.len()], 100, &[0, 0, 0, 7, 7, 7], 600).is_err());
    }
}
