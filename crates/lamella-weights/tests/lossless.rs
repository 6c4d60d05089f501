//! Lossless coding through the public interface.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test panics where it cannot go on, and says what it measured"
)]

use lamella_codec::suite::{Cases, check_recipe};
use lamella_codec::{Array, ArraySpec, Catalogue, Dtype};
use lamella_weights::lossless::{Planes, decode_delta, encode, encode_delta};
use proptest::prelude::*;

fn catalogue() -> Catalogue {
    Catalogue::new(Vec::new(), lamella_weights::systems::codecs())
}

/// Gaussian numbers, the same on every run.
fn gaussian(n: usize, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut uniform = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 11) as f64 / (1u64 << 53) as f64
    };
    (0..n)
        .map(|_| {
            let (u, v) = (uniform().max(1e-300), uniform());
            ((-2.0 * u.ln()).sqrt() * (std::f64::consts::TAU * v).cos()) as f32
        })
        .collect()
}

fn of_dtype(dtype: Dtype, shape: Vec<usize>, values: &[f32]) -> Array<'static> {
    let spec = ArraySpec::new("w", shape, dtype);
    if dtype.is_float() {
        return Array::from_f32(spec, values).unwrap();
    }
    let width = dtype.size_bytes();
    let bytes: Vec<u8> =
        values.iter().flat_map(|v| ((v * 20.0) as i64).to_le_bytes()[..width].to_vec()).collect();
    Array::new(spec, bytes).unwrap()
}

#[test]
fn exact_keeps_the_laws_of_every_codec() {
    check_recipe(&catalogue(), "exact", &Cases::exact()).unwrap();
}

#[test]
fn every_dtype_returns_and_shrinks() {
    let values = gaussian(512 * 600, 7);
    for code in 0..=14 {
        let dtype = Dtype::from_code(code).unwrap();
        let array = of_dtype(dtype, vec![512, 600], &values);
        let payload = encode(&array.spec, &array.bytes).unwrap();
        let planes = Planes::parse(&array.spec, &payload).unwrap();
        assert_eq!(planes.decode().unwrap(), &array.bytes[..], "{}", dtype.name());
        assert_eq!(planes.n_blocks(), 2);
        let width = dtype.size_bytes();
        let range = planes.block_elements(1);
        assert_eq!(planes.decode_block(1).unwrap(), &array.bytes[range.start * width..range.end * width]);
        let share = payload.len() as f64 / array.bytes.len() as f64;
        let bound = match dtype {
            Dtype::BF16 => 0.661,
            Dtype::F16 => 0.86,
            Dtype::F32 => 0.83,
            Dtype::F64 => 0.99,
            _ => 0.97,
        };
        assert!(share < bound, "{}: {share}", dtype.name());
    }
}

#[test]
fn rows_of_different_scale_pay_for_tables_of_their_own() {
    let mut values = gaussian(256 * 1024, 3);
    let same = of_dtype(Dtype::BF16, vec![256, 1024], &values);
    for (index, value) in values.iter_mut().enumerate() {
        *value *= ((index / 1024) as f32 / 32.0).exp2();
    }
    let mixed = of_dtype(Dtype::BF16, vec![256, 1024], &values);
    let shapeless = of_dtype(Dtype::BF16, vec![256 * 1024], &values);
    let size = |array: &Array<'_>| encode(&array.spec, &array.bytes).unwrap().len();
    assert!(size(&mixed) < size(&same) * 102 / 100, "{} {}", size(&mixed), size(&same));
    assert!(size(&mixed) < size(&shapeless) * 95 / 100, "{} {}", size(&mixed), size(&shapeless));
}

#[test]
fn floats_rounded_once_cost_what_they_were() {
    let values = gaussian(1 << 16, 5);
    let half = of_dtype(Dtype::BF16, vec![1 << 16], &values);
    let wide = of_dtype(Dtype::F32, vec![1 << 16], &half.to_f32().unwrap());
    let (half, wide) =
        (encode(&half.spec, &half.bytes).unwrap().len(), encode(&wide.spec, &wide.bytes).unwrap().len());
    assert!(wide < half + half / 50, "{wide} {half}");
}

#[test]
fn a_delta_is_a_third_and_refuses_what_does_not_fit() {
    let values = gaussian(1 << 18, 1);
    let moved: Vec<f32> = values.iter().zip(gaussian(1 << 18, 2)).map(|(a, b)| a + 0.01 * b).collect();
    for dtype in [Dtype::BF16, Dtype::F16, Dtype::F32, Dtype::F8E4M3] {
        let array = of_dtype(dtype, vec![512, 512], &moved);
        for base_dtype in [Dtype::F32, dtype, Dtype::F64] {
            let base = of_dtype(base_dtype, vec![512, 512], &values);
            let payload = encode_delta(&array, &base).unwrap().unwrap();
            assert_eq!(decode_delta(&array.spec, &payload, &base).unwrap(), &array.bytes[..]);
            let alone = encode(&array.spec, &array.bytes).unwrap().len();
            assert!(payload.len() < alone, "{}: {} {alone}", dtype.name(), payload.len());
            if dtype == Dtype::BF16 {
                assert!(payload.len() * 2 < alone, "{} {alone}", payload.len());
            }
            let other = of_dtype(base_dtype, vec![256, 1024], &values);
            assert!(encode_delta(&array, &other).unwrap().is_none());
            assert!(decode_delta(&array.spec, &payload, &other).is_err());
            for cut in (0..payload.len()).step_by(payload.len() / 50 + 1) {
                assert!(decode_delta(&array.spec, &payload[..cut], &base).is_err());
            }
        }
    }
    let base = of_dtype(Dtype::F32, vec![512, 512], &values);
    let same = of_dtype(Dtype::BF16, vec![512, 512], &values);
    assert!(encode_delta(&same, &base).unwrap().unwrap().len() < 8);
}

#[test]
fn threads_change_no_byte() {
    let array = of_dtype(Dtype::BF16, vec![700, 1000], &gaussian(700_000, 9));
    let base = of_dtype(Dtype::F32, vec![700, 1000], &gaussian(700_000, 10));
    let with = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| (encode(&array.spec, &array.bytes).unwrap(), encode_delta(&array, &base).unwrap()))
    };
    assert_eq!(with(1), with(3));
}

fn any_dtype() -> impl Strategy<Value = Dtype> {
    (0u8..15).prop_map(|code| Dtype::from_code(code).unwrap())
}

proptest! {
    #[test]
    fn any_bytes_return(dtype in any_dtype(), bytes in prop::collection::vec(any::<u8>(), 0..600), few in any::<bool>()) {
        let width = dtype.size_bytes();
        let bytes: Vec<u8> = bytes[..bytes.len() / width * width].iter().map(|b| if few { b & 3 } else { *b }).collect();
        let spec = ArraySpec::new("x", vec![bytes.len() / width], dtype);
        let payload = encode(&spec, &bytes).unwrap();
        prop_assert!(payload.len() <= bytes.len() + 16 + 2 * width);
        prop_assert_eq!(Planes::parse(&spec, &payload).unwrap().decode().unwrap(), &bytes[..]);
    }

    #[test]
    fn any_delta_returns(
        words in prop::collection::vec((any::<u32>(), any::<u32>()), 1..200), dtype in 1u8..6, base_dtype in 0u8..6,
    ) {
        let (dtype, base_dtype) = (Dtype::from_code(dtype).unwrap(), Dtype::from_code(base_dtype).unwrap());
        let bytes = |dtype: Dtype, second: bool| -> Vec<u8> {
            words.iter().flat_map(|w| {
                let word = if second { w.1 } else { w.0 };
                (u64::from(word) * 0x1_0001).to_le_bytes()[..dtype.size_bytes()].to_vec()
            }).collect()
        };
        let array = Array::new(ArraySpec::new("x", vec![words.len()], dtype), bytes(dtype, false)).unwrap();
        let base = Array::new(ArraySpec::new("x", vec![words.len()], base_dtype), bytes(base_dtype, true)).unwrap();
        let payload = encode_delta(&array, &base).unwrap().unwrap();
        prop_assert_eq!(decode_delta(&array.spec, &payload, &base).unwrap(), &array.bytes[..]);
    }

    #[test]
    fn hostile_deltas_are_errors(payload in prop::collection::vec(any::<u8>(), 0..80), form in 1u8..3) {
        let base = of_dtype(Dtype::F32, vec![40], &gaussian(40, 4));
        let spec = ArraySpec::new("w", vec![40], Dtype::BF16);
        let payload = [&[form, 40][..], &payload].concat();
        let _ = decode_delta(&spec, &payload, &base);
    }
}

mod files {
    use std::path::Path;

    use lamella_codec::Silent;
    use lamella_file::File;
    use lamella_weights::lossless::{LosslessError, compress, expand};

    use super::*;

    fn safetensors(path: &Path, header: &str, arrays: &[&Array<'_>]) {
        let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
        bytes.extend_from_slice(header.as_bytes());
        arrays.iter().for_each(|array| bytes.extend_from_slice(&array.bytes));
        std::fs::write(path, bytes).unwrap();
    }

    /// A directory with an unusual header, a text, an empty file, a binary file and a damaged safetensors file.
    fn model(root: &Path, values: &[f32]) {
        std::fs::create_dir_all(root.join("sub")).unwrap();
        let (a, b) =
            (of_dtype(Dtype::BF16, vec![64, 64], values), of_dtype(Dtype::F32, vec![16], &values[..16]));
        let header = r#"{ "b": {"dtype":"F32","shape":[16],"data_offsets":[8192,8256]},"__metadata__":{"k":"v"},
            "a": {"shape":[64,64],"dtype":"BF16","data_offsets":[0,8192]}}   "#;
        safetensors(&root.join("model.safetensors"), header, &[&a, &b]);
        std::fs::write(root.join("config.json"), "{\"a\": 1}\n").unwrap();
        std::fs::write(root.join("sub/empty"), "").unwrap();
        std::fs::write(root.join("sub/broken.safetensors"), b"no header").unwrap();
        let noise: Vec<u8> = (0..100_000u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
        std::fs::write(root.join("noise.bin"), noise).unwrap();
    }

    fn assert_same(a: &Path, b: &Path) {
        for name in ["model.safetensors", "config.json", "sub/empty", "sub/broken.safetensors", "noise.bin"] {
            assert_eq!(std::fs::read(a.join(name)).unwrap(), std::fs::read(b.join(name)).unwrap(), "{name}");
        }
    }

    #[test]
    fn every_file_comes_back() {
        let root = tempfile::tempdir().unwrap();
        let (input, output) = (root.path().join("in"), root.path().join("out"));
        model(&input, &gaussian(4096, 1));
        let lam = root.path().join("m.lam");
        let report = compress(input.to_str().unwrap(), &lam, None, &Silent).unwrap();
        assert_eq!((report.files, report.arrays), (5, 3));
        std::fs::create_dir(&output).unwrap();
        let file = File::open(&lam).unwrap();
        expand(&file, &output, None, &Silent).unwrap();
        assert_same(&input, &output);
        let error = expand(&file, &output, Some("x"), &Silent).unwrap_err();
        assert!(matches!(error, LosslessError::NoBaseNeeded { .. }), "{error}");
    }

    #[test]
    fn a_delta_needs_its_own_base() {
        let root = tempfile::tempdir().unwrap();
        let path = |name: &str| root.path().join(name);
        let values = gaussian(4096, 1);
        let moved: Vec<f32> = values.iter().zip(gaussian(4096, 2)).map(|(a, b)| a + 0.004 * b).collect();
        model(&path("base"), &values);
        model(&path("tuned"), &moved);
        model(&path("other"), &gaussian(4096, 3));
        let text = |name: &str| path(name).to_str().unwrap().to_owned();
        let report = compress(&text("tuned"), &path("m.lam"), Some(&text("base")), &Silent).unwrap();
        assert!(report.deltas >= 1);
        let file = File::open(path("m.lam")).unwrap();
        std::fs::create_dir(path("out")).unwrap();
        let error = expand(&file, &path("out"), None, &Silent).unwrap_err();
        assert!(matches!(error, LosslessError::NeedsBase { .. }), "{error}");
        let error = expand(&file, &path("out"), Some(&text("other")), &Silent).unwrap_err();
        assert!(matches!(error, LosslessError::WrongBase { .. }), "{error}");
        expand(&file, &path("out"), Some(&text("base")), &Silent).unwrap();
        assert_same(&path("tuned"), &path("out"));
    }
}
