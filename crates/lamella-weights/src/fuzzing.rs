//! What the fuzz targets call: a layer of every kind, with an array's shape and type in front of the payload.
//!
//! Each decodes arbitrary bytes and must return; what comes back must be an array of the spec. An ordinary test replays
//! the committed corpus and all that once broke something.

use std::sync::{Arc, LazyLock};

use lamella_codec::{Array, ArraySpec, Codec, Dtype, Recipe, Registration};

use crate::lossless::{Planes, decode_delta, encode_delta};
use crate::matrix::largest_finite;
use crate::progressive::state::State;
use crate::systems::codecs;

/// Shapes stay under this many elements: enough for every form, small enough for thousands of runs a second.
const MOST_ELEMENTS: usize = 1 << 14;

/// Types an array may have.
const DTYPES: [Dtype; 9] = [
    Dtype::F32,
    Dtype::BF16,
    Dtype::F16,
    Dtype::F64,
    Dtype::F8E4M3,
    Dtype::F8E5M2,
    Dtype::I8,
    Dtype::U8,
    Dtype::I32,
];

/// One codec for each way the grouped and the free-rate forms are read.
const RECIPES: [&str; 7] = [
    "house",
    "house(trellis=0)",
    "house(trellis=3)",
    "rtn(bits=3, group_size=32, zero=integer)",
    "rtn(bits=8, group_size=1)",
    "gptq(bits=4, group_size=16, groups=dynamic, order=activation)",
    "gptq(bits=2, group_size=32, zero=integer)",
];

static CODECS: LazyLock<Vec<Arc<dyn Codec>>> =
    LazyLock::new(|| RECIPES.iter().map(|text| codec(text)).collect());

static PROGRESSIVE: LazyLock<Arc<dyn Codec>> = LazyLock::new(|| codec("progressive"));

#[allow(clippy::unwrap_used, reason = "fixed texts, which a test builds")]
fn codec(text: &str) -> Arc<dyn Codec> {
    let recipe: Recipe = text.parse().unwrap();
    let codecs: Vec<Registration> = codecs();
    let registration = codecs.iter().find(|codec| codec.name == recipe.name()).unwrap();
    (registration.build)(&recipe).unwrap()
}

/// A matrix's spec from the first five bytes: type, rows, columns.
fn spec(data: &mut &[u8]) -> Option<ArraySpec> {
    let (head, rest) = data.split_at_checked(5)?;
    *data = rest;
    let dtype = DTYPES[usize::from(head[0]) % DTYPES.len()];
    let (rows, columns) = (
        usize::from(u16::from_le_bytes([head[1], head[2]])),
        usize::from(u16::from_le_bytes([head[3], head[4]])),
    );
    (rows * columns <= MOST_ELEMENTS).then(|| ArraySpec::new("w", vec![rows, columns], dtype))
}

#[cfg(test)]
fn head(spec: &ArraySpec) -> Vec<u8> {
    let dtype = DTYPES.iter().position(|&dtype| dtype == spec.dtype).unwrap_or(0);
    let mut bytes = vec![dtype as u8];
    bytes.extend(spec.shape.iter().flat_map(|&length| (length as u16).to_le_bytes()));
    bytes
}

fn check(spec: &ArraySpec, array: &Array<'_>) {
    assert_eq!(array.spec.shape, spec.shape);
    assert_eq!(Some(array.bytes.len()), array.spec.checked_size_bytes());
}

/// A layer of the house recipe.
pub fn house(data: &[u8]) {
    lossy(data, 0..3);
}

/// A layer of codes with a grid per group: `rtn` and `gptq`.
pub fn groups(data: &[u8]) {
    lossy(data, 3..RECIPES.len());
}

fn lossy(mut data: &[u8], choices: std::ops::Range<usize>) {
    let Some((&choice, rest)) = data.split_first() else { return };
    data = rest;
    let Some(spec) = spec(&mut data) else { return };
    let codec = &CODECS[choices.start + usize::from(choice) % choices.len()];
    if codec.accepts(&spec).is_ok()
        && let Ok(array) = codec.decode(&spec, &[data])
    {
        check(&spec, &array);
    }
}

/// Layers of `progressive`, each behind its length: at one go, and one after the other.
pub fn progressive(mut data: &[u8]) {
    let Some(spec) = spec(&mut data) else { return };
    let mut layers = Vec::new();
    while let Some((&[low, high], rest)) = data.split_first_chunk::<2>() {
        let (layer, rest) = rest.split_at(usize::from(u16::from_le_bytes([low, high])).min(rest.len()));
        layers.push(layer);
        data = rest;
    }
    let [rows, columns] = spec.shape[..] else { return };
    let whole = PROGRESSIVE.decode(&spec, &layers);
    let Some((first, rest)) = layers.split_first().filter(|_| rows > 0 && columns > 0) else { return };
    let mut state = match State::read(first, rows, columns) {
        Ok(state) => state,
        Err(_) => return assert!(whole.is_err(), "a first layer that cannot be read fails the whole"),
    };
    if rest.iter().any(|layer| state.apply(layer).is_err()) {
        return assert!(whole.is_err(), "a refinement that cannot be read fails the whole");
    }
    let Ok(whole) = whole else { return assert!(PROGRESSIVE.accepts(&spec).is_err()) };
    check(&spec, &whole);
    let grown = Array::from_f32(spec, &state.values(largest_finite(whole.spec.dtype)));
    assert!(grown.is_ok_and(|grown| grown.bytes == whole.bytes), "an upgrade equals a fresh load");
}

/// A layer of `exact`: whole and block by block.
pub fn planes(mut data: &[u8]) {
    let Some(spec) = spec(&mut data) else { return };
    let Ok(planes) = Planes::parse(&spec, data) else { return };
    let whole = planes.decode();
    let mut parts = Vec::new();
    for block in 0..planes.n_blocks() {
        match planes.decode_block(block) {
            Ok(bytes) => parts.extend_from_slice(&bytes),
            Err(_) => {
                assert!(whole.is_err(), "a block that does not decode fails the whole");
                return;
            }
        }
    }
    assert_eq!(whole.as_ref(), Ok(&parts), "blocks make the whole");
    let again =
        crate::lossless::encode(&spec, &parts).and_then(|payload| Planes::parse(&spec, &payload)?.decode());
    assert_eq!(again, whole, "an array returns");
}

/// A base of this shape; the same on every run.
fn base(spec: &ArraySpec) -> Option<Array<'static>> {
    let mut state = 1u32;
    let values: Vec<f32> = (0..spec.len())
        .map(|_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            ((state >> 16) as f32 - 32_768.0) / 500_000.0
        })
        .collect();
    Array::from_f32(ArraySpec::new("w", spec.shape.clone(), Dtype::F32), &values).ok()
}

/// A layer of `exact(base=…)`.
pub fn delta(mut data: &[u8]) {
    let Some(spec) = spec(&mut data) else { return };
    let Some(base) = base(&spec) else { return };
    let Ok(bytes) = decode_delta(&spec, data, &base) else { return };
    let array = Array::new(spec, bytes).expect("a decoded array fills its spec");
    if let Ok(Some(payload)) = encode_delta(&array, &base) {
        let again = decode_delta(&array.spec, &payload, &base).expect("what was written can be read");
        assert!(again == array.bytes[..], "an array returns");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use lamella_codec::{Knowledge, Rate};
    use lamella_math::SecondMoment;
    use std::path::Path;

    type Target = (&'static str, fn(&[u8]));
    const TARGETS: [Target; 5] = [
        ("layer_house", house),
        ("layer_groups", groups),
        ("layer_planes", planes),
        ("layer_delta", delta),
        ("layer_progressive", progressive),
    ];

    #[test]
    fn the_committed_corpus_replays() {
        let root = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../../fuzz"));
        for (name, target) in TARGETS {
            let mut seen = 0;
            for folder in ["corpus", "regressions"] {
                let Ok(entries) = fs_err::read_dir(root.join(folder).join(name)) else { continue };
                for entry in entries {
                    target(&fs_err::read(entry.unwrap().path()).unwrap());
                    seen += 1;
                }
            }
            if seen == 0 {
                println!("no corpus for {name}: fuzz/corpus is not part of this checkout");
            }
        }
    }

    /// Seeds of every kind, written to `LAMELLA_WRITE_SEEDS`, pass the targets and are accepted by the decoders.
    #[test]
    fn what_encoders_write_passes_every_target() {
        let mut seeds: Vec<(&str, Vec<u8>)> = Vec::new();
        let matrix = ArraySpec::new("w", vec![12, 40], Dtype::F32);
        let values = base(&matrix).unwrap();
        for (index, codec) in CODECS.iter().enumerate() {
            let rate = if codec.has_free_rate() { Rate::Step(0.3) } else { Rate::Recipe };
            let encoded = codec.encode(&values, &Knowledge::default(), rate).unwrap();
            let payload = &encoded.layers[0].payload[..];
            check(&matrix, &codec.decode(&matrix, &[payload]).unwrap());
            let (name, choice) = if index < 3 { ("layer_house", index) } else { ("layer_groups", index - 3) };
            seeds.push((name, [&[choice as u8][..], &head(&matrix), payload].concat()));
        }
        let mut moment = SecondMoment::new(40);
        let inputs = base(&ArraySpec::new("x", vec![60, 40], Dtype::F32)).unwrap().to_f32().unwrap();
        moment.accumulate(&inputs);
        for text in ["progressive(tables=adaptive)", "progressive(tables=static)"] {
            let encoded =
                codec(text).encode(&values, &Knowledge::of_inputs(Arc::new(moment.clone())), Rate::Step(0.1));
            let mut seed = head(&matrix);
            for layer in encoded.unwrap().layers {
                seed.extend((layer.payload.len() as u16).to_le_bytes());
                seed.extend(layer.payload);
            }
            seeds.push(("layer_progressive", seed));
        }
        for dtype in DTYPES {
            let spec = ArraySpec::new("w", vec![16, 64], dtype);
            let base = base(&spec).unwrap();
            let array = match Array::from_f32(spec.clone(), &base.to_f32().unwrap()) {
                Ok(array) if dtype.is_float() => array,
                _ => Array::new(spec.clone(), vec![3; spec.checked_size_bytes().unwrap()]).unwrap(),
            };
            let payload = crate::lossless::encode(&spec, &array.bytes).unwrap();
            assert_eq!(Planes::parse(&spec, &payload).unwrap().decode().unwrap(), &array.bytes[..]);
            seeds.push(("layer_planes", [head(&spec), payload].concat()));
            let mut moved = array.bytes.to_vec();
            moved.iter_mut().step_by(12).for_each(|byte| *byte ^= 1);
            let moved = Array::new(spec.clone(), moved).unwrap();
            if let Some(payload) = encode_delta(&moved, &base).unwrap() {
                assert!(decode_delta(&spec, &payload, &base).unwrap() == moved.bytes[..]);
                seeds.push(("layer_delta", [head(&spec), payload].concat()));
            }
        }
        for (index, (name, seed)) in seeds.iter().enumerate() {
            let target = TARGETS.iter().find(|target| target.0 == *name).unwrap().1;
            target(seed);
            if let Some(folder) = std::env::var_os("LAMELLA_WRITE_SEEDS") {
                let folder = Path::new(&folder).join(name);
                fs_err::create_dir_all(&folder).unwrap();
                fs_err::write(folder.join(format!("golden_{index:02}")), seed).unwrap();
            }
        }
    }
}
