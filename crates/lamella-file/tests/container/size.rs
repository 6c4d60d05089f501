//! Sizes: stated beforehand, and small.

use lamella_file::{File, Manifest, size_of};
use proptest::prelude::*;

use crate::sample::{language_model, noise, small};

#[test]
fn size_is_known_before_checksums_are() {
    for sample in [small(), language_model(5, 1), language_model(5, 4)] {
        let mut early = sample.manifest.clone();
        early.layers.iter_mut().for_each(|layer| (layer.crc32, layer.distortion) = (0, 0.0));
        assert_eq!(size_of(&early).unwrap(), sample.bytes().len() as u64);
    }
}

#[test]
fn overhead_stays_small() {
    for (layers, most_bytes) in [(1, 900), (4, 2000)] {
        let bytes = language_model(5, layers).bytes();
        let report = File::from_bytes(bytes).unwrap().inspect();
        let side: Vec<_> = report.side_files.iter().map(|file| file.length_bytes).collect();
        println!(
            "47 arrays, {} layers: manifest {} bytes, side files {} of {side:?}, file {}",
            report.layers, report.manifest_bytes, report.side_bytes, report.file_bytes
        );
        assert!(report.overhead_bytes < most_bytes, "{}", report.overhead_bytes);
    }
}

#[test]
fn a_large_model_costs_little_more_than_its_layer_table() {
    let sample = language_model(400, 1);
    let report = File::from_bytes(sample.bytes()).unwrap().inspect();
    println!("{} arrays: manifest {} bytes", report.arrays.len(), report.manifest_bytes);
    assert!(report.manifest_bytes < 2000 + 10 * report.layers as u64, "{}", report.manifest_bytes);
}

#[test]
fn an_empty_file_is_a_file() {
    let bytes = lamella_file::to_bytes(&Manifest::default(), &[], &[] as &[&[u8]]).unwrap();
    let file = File::from_bytes(bytes.clone()).unwrap();
    assert_eq!((file.arrays().len(), file.whole_layers()), (0, 0));
    assert_eq!(file.side_files().unwrap(), []);
    file.verify(|_| {}).unwrap();
    assert!(bytes.len() < 40);
}

#[test]
fn what_is_written_returns() {
    for sample in [small(), language_model(3, 2)] {
        let bytes = sample.bytes();
        let file = File::from_bytes(bytes.clone()).unwrap();
        assert_eq!(*file.manifest(), sample.manifest);
        assert_eq!(file.side_files().unwrap(), sample.side.unpack().unwrap());
        for (layer, payload) in sample.payloads.iter().enumerate() {
            assert_eq!(file.layer(layer).unwrap(), *payload);
            let extent = &file.layout().extents[layer];
            assert!(!sample.manifest.layers[layer].is_mapped || extent.start.is_multiple_of(64));
        }
        assert_eq!(sample.bytes(), bytes, "same input, same bytes");
        let report = file.inspect();
        assert_eq!(report.arrays.iter().map(|array| array.bytes).sum::<u64>(), report.payload_bytes);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn any_layers_return(layers in proptest::collection::vec((0usize..3, 0usize..200, 0.0f64..1e30, any::<bool>()), 0..30)) {
        let mut sample = small();
        sample.manifest.layers.clear();
        sample.payloads.clear();
        let all_once = (0..3).map(|target| (target, 5, 0.0, false));
        for (index, (target, length, distortion, is_mapped)) in layers.into_iter().chain(all_once).enumerate() {
            sample.push(target, noise(index as u64, length), distortion, is_mapped);
        }
        let file = File::from_bytes(sample.bytes()).unwrap();
        prop_assert_eq!(file.manifest(), &sample.manifest);
        prop_assert_eq!(size_of(&sample.manifest).unwrap(), file.length_bytes());
        file.verify(|_| {}).unwrap();
        let of_first: Vec<_> = sample.manifest.layers.iter().zip(&sample.payloads)
            .filter(|(layer, _)| layer.target == 0).map(|(_, payload)| payload.clone()).collect();
        prop_assert_eq!(file.layers_of("head.weight").unwrap(), of_first);
    }
}
