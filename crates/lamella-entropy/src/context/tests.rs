use super::*;
use proptest::prelude::*;

/// Codes whose spread is a product of a row's and a column's factor.
fn products(rows: usize, columns: usize, scale: f64, seed: u64) -> Vec<i32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut uniform = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 11) as f64 / (1u64 << 53) as f64
    };
    let row_factors: Vec<f64> = (0..rows).map(|_| (uniform() * 1.5 - 0.75).exp()).collect();
    let mut codes = Vec::new();
    for _ in 0..columns {
        for factor in &row_factors {
            let normal = (0..12).map(|_| uniform()).sum::<f64>() - 6.0;
            codes.push((normal * factor * scale).round() as i32);
        }
    }
    codes
}

#[test]
fn rows_of_different_spread_are_learned() {
    let codes = products(256, 200, 1.5, 1);
    let classes = [0; 200];
    let columns = Columns::new(&codes, 256, &classes).unwrap();
    let (context, fixed) = (encode(&columns).len(), crate::integers::encode(&columns).unwrap().len());
    println!("context {context}, static {fixed}");
    assert!(context * 100 < fixed * 95);
    assert_eq!(decode(&encode(&columns), 256, &classes, codes.len()).unwrap(), codes);
}

#[test]
fn nothing_to_learn_costs_little() {
    let mut codes = products(1, 200 * 256, 1.5, 2);
    codes.truncate(200 * 256);
    let columns = Columns::new(&codes, 256, &[3; 200]).unwrap();
    let (context, fixed) = (encode(&columns).len(), crate::integers::encode(&columns).unwrap().len());
    println!("context {context}, static {fixed}");
    assert!(context * 1000 < fixed * 1015);
}

#[test]
fn large_and_extreme_codes_return() {
    for scale in [0.0, 0.01, 20.0, 3000.0, 1e8] {
        let mut codes = products(64, 10, scale, 3);
        codes[7] = i32::MIN;
        codes[8] = i32::MAX;
        let classes: Vec<u8> = (0..10).map(|c| c * 20).collect();
        let bytes = encode(&Columns::new(&codes, 64, &classes).unwrap());
        assert_eq!(decode(&bytes, 64, &classes, 640).unwrap(), codes, "{scale}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn any_codes_return(codes in prop::collection::vec(prop_oneof![-3i32..4, any::<i32>()], 0..60), class in any::<u8>()) {
        let classes = [class];
        let columns = Columns::new(&codes, codes.len(), &classes).unwrap();
        let bytes = encode(&columns);
        prop_assert_eq!(decode(&bytes, codes.len(), &[class], 60).unwrap(), codes);
    }

    #[test]
    fn garbage_is_an_error_or_codes(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = decode(&bytes, 20, &[1, 2, 3, 1], 80);
        prop_assert!(decode(&bytes, 20, &[1, 2, 3, 1], 79).is_err());
    }
}
