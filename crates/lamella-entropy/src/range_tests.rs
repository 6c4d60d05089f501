use super::*;
use proptest::prelude::*;

#[test]
fn nothing_costs_nothing() {
    assert!(RangeEncoder::new().finish().is_empty());
}

proptest! {
    #[test]
    fn bits_with_any_probabilities_return(bits in prop::collection::vec((any::<bool>(), any::<u16>()), 0..600)) {
        let mut encoder = RangeEncoder::new();
        let mut ideal = 0.0;
        for &(bit, probability) in &bits {
            encoder.encode_bit(bit, probability);
            let p = f64::from(probability.max(1)) / 65536.0;
            ideal -= if bit { p.log2() } else { (1.0 - p).log2() };
        }
        let bytes = encoder.finish();
        prop_assert!(bytes.len() as f64 <= ideal * 1.001 / 8.0 + 2.0);
        let mut decoder = RangeDecoder::new(&bytes);
        for &(bit, probability) in &bits {
            prop_assert_eq!(decoder.decode_bit(probability), bit);
        }
        prop_assert!(decoder.overrun() <= 4);
    }

    #[test]
    fn mixed_models_return(values in prop::collection::vec((any::<u32>(), 0usize..17, any::<bool>()), 0..200)) {
        let mut encoder = RangeEncoder::new();
        let (mut golomb, mut symbol, mut bit) = (AdaptiveGolomb::new(), AdaptiveSymbol::new(17), AdaptiveBit::new());
        for &(number, choice, flag) in &values {
            golomb.encode(&mut encoder, number);
            encoder.encode_symbol(&mut symbol, choice);
            encoder.encode_adaptive(&mut bit, flag);
        }
        let bytes = encoder.finish();
        let mut decoder = RangeDecoder::new(&bytes);
        let (mut golomb, mut symbol, mut bit) = (AdaptiveGolomb::new(), AdaptiveSymbol::new(17), AdaptiveBit::new());
        for &(number, choice, flag) in &values {
            prop_assert_eq!(golomb.decode(&mut decoder), number);
            prop_assert_eq!(decoder.decode_symbol(&mut symbol), choice);
            prop_assert_eq!(decoder.decode_adaptive(&mut bit), flag);
        }
    }

    #[test]
    fn garbage_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..100)) {
        let mut decoder = RangeDecoder::new(&bytes);
        let (mut golomb, mut symbol, mut bit) = (AdaptiveGolomb::new(), AdaptiveSymbol::new(5), AdaptiveBit::new());
        for _ in 0..200 {
            golomb.decode(&mut decoder);
            decoder.decode_symbol(&mut symbol);
            decoder.decode_adaptive(&mut bit);
            decoder.decode_bit(7);
        }
    }
}

#[test]
fn adaptive_symbols_learn() {
    let mut encoder = RangeEncoder::new();
    let mut model = AdaptiveSymbol::new(16);
    for index in 0..10_000usize {
        encoder.encode_symbol(&mut model, if index % 10 == 0 { 7 } else { 3 });
    }
    // The entropy is 0.469 bits a symbol: 586 bytes.
    let size = encoder.finish().len();
    assert!(size < 700, "{size}");
}
