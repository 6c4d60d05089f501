//! Hostile files: whatever is cut or flipped, opening and decoding ends in a named error or a sound model, without a
//! panic and without more memory than the good file takes.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test says what it measured, and panics where it cannot go on"
)]

mod counting;

use std::process::Command;

use lamella::codec::{Catalogue, TensorSource};
use lamella::file::File;
use lamella::weights::open::CodedModel;

/// SplitMix64.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) % bound as u64) as usize
    }
}

/// Opens, verifies, reads the side files and decodes every array. Arrays decoded, or the error.
fn read(bytes: &[u8], catalogue: &Catalogue) -> Result<usize, String> {
    let file = File::from_bytes(bytes).map_err(|error| error.to_string())?;
    let checked = file.verify(|_| {}).map_err(|error| error.to_string());
    let side = file.side_files().map_err(|error| error.to_string());
    let coded = CodedModel::new(file, catalogue).map_err(|error| error.to_string())?;
    let mut decoded = 0;
    let mut failed = None;
    for spec in coded.arrays() {
        match coded.array(&spec.name) {
            Ok(array) => {
                assert_eq!(&array.spec, spec);
                assert_eq!(array.first_non_finite(), None, "{}", spec.name);
                decoded += 1;
            }
            Err(error) => failed = failed.or(Some(describe(&error))),
        }
    }
    checked?;
    side?;
    failed.map_or(Ok(decoded), Err)
}

fn describe(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}

/// The model in one file of every recipe's arrays.
fn good() -> Vec<u8> {
    let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let path = directory.path().join("good.lam");
    let model = concat!(env!("CARGO_MANIFEST_DIR"), "/../../assets/stories260k");
    let rules = [
        "--rule",
        "*q_proj*=rtn(bits=4, group_size=32)",
        "--rule",
        "*k_proj*=gptq(bits=3, order=activation)",
    ];
    let ran = Command::new(env!("CARGO_BIN_EXE_lamella"))
        .args([
            "compress",
            model,
            "--size",
            "15%",
            "--tokens",
            "4096",
            "--allocate",
            "uniform",
            "--recipe",
            "house(trellis=3)",
            "--quiet",
            "-o",
        ])
        .arg(&path)
        .args(rules)
        .output()
        .unwrap();
    assert!(ran.status.success(), "{ran:?}");
    std::fs::read(&path).unwrap()
}

/// Whether an error says what is wrong: the file, an array, or a number.
fn names_something(error: &str) -> bool {
    error.contains('`') || error.chars().any(|c| c.is_ascii_digit())
}

#[test]
fn three_hundred_cuts_and_flips_end_in_an_error_or_a_model() {
    let catalogue = lamella::catalogue();
    let bytes = good();
    let smallest = File::from_bytes(&bytes[..]).unwrap().inspect().smallest_complete_bytes as usize;
    let (whole, peak) = counting::peak(|| read(&bytes, &catalogue));
    let arrays = whole.unwrap();
    assert_eq!(arrays, 47);
    let allowed = 2 * peak;
    let mut random = Random(2026);
    let (mut errors, mut models, mut highest) = (0, 0, 0);
    for case in 0..300 {
        let mut damaged = bytes.clone();
        let (what, is_cut) = match case % 3 {
            0 => {
                damaged.truncate(random.below(bytes.len()));
                (format!("cut to {} of {} bytes", damaged.len(), bytes.len()), true)
            }
            // Every other flip goes to the manifest, which stands first and says what all else is.
            place => {
                let at = random.below(if place == 1 { bytes.len() } else { 2048 });
                let bit = random.below(8);
                damaged[at] ^= 1 << bit;
                (format!("bit {bit} of byte {at} flipped"), false)
            }
        };
        let (result, peak) = counting::peak(|| read(&damaged, &catalogue));
        highest = highest.max(peak);
        assert!(peak <= allowed, "{what}: {peak} bytes at once, the good file takes {}", allowed / 2);
        match result {
            Ok(found) => {
                models += 1;
                assert_eq!(found, arrays, "{what}");
                assert!(is_cut && damaged.len() >= smallest, "{what}: read as if nothing had happened");
            }
            Err(error) => {
                errors += 1;
                assert!(names_something(&error), "{what}: `{error}` names nothing");
                assert!(
                    !is_cut || damaged.len() < smallest,
                    "{what}: {error}, though {smallest} bytes are enough"
                );
            }
        }
    }
    println!("300 cases: {errors} errors, {models} models; peak {peak} bytes whole, {highest} damaged");
}

/// With right checksums, so that the damage reaches the decoders: payloads flipped, then written anew.
#[test]
fn damage_below_the_checksums_ends_in_an_error_or_numbers() {
    let catalogue = lamella::catalogue();
    let bytes = good();
    let file = File::from_bytes(&bytes[..]).unwrap();
    let manifest = file.manifest().clone();
    let layout = file.layout();
    let side = bytes[layout.side.start as usize..layout.side.end as usize].to_vec();
    let payloads: Vec<Vec<u8>> = layout
        .extents
        .iter()
        .map(|extent| bytes[extent.start as usize..extent.end as usize].to_vec())
        .collect();
    let (_, whole_peak) = counting::peak(|| read(&bytes, &catalogue));
    let mut random = Random(7);
    let (mut errors, mut models) = (0, 0);
    for _ in 0..100 {
        let mut payloads = payloads.clone();
        let mut manifest = manifest.clone();
        let chosen = random.below(payloads.len());
        let payload = &mut payloads[chosen];
        let at = if random.below(2) == 0 {
            random.below(payload.len())
        } else {
            random.below(payload.len().min(8))
        };
        payload[at] ^= 1 << random.below(8);
        manifest.layers[chosen].crc32 = crc32(payload);
        let rewritten = lamella::file::to_bytes(&manifest, &side, &payloads).unwrap();
        let (result, peak) = counting::peak(|| read(&rewritten, &catalogue));
        assert!(
            peak <= 2 * whole_peak + (1 << 20),
            "byte {at} of layer {chosen}: {peak} against {whole_peak}"
        );
        match result {
            Ok(_) => models += 1,
            Err(error) => {
                assert!(names_something(&error), "{error}");
                errors += 1;
            }
        }
    }
    println!("100 payloads damaged under right checksums: {errors} errors, {models} other models");
}

/// CRC-32 as the format has it (polynomial 0xedb88320, reflected).
fn crc32(bytes: &[u8]) -> u32 {
    let step = |crc: u32| if crc & 1 == 1 { crc >> 1 ^ 0xedb8_8320 } else { crc >> 1 };
    !bytes.iter().fold(!0u32, |crc, &byte| (0..8).fold(crc ^ u32::from(byte), |crc, _| step(crc)))
}
