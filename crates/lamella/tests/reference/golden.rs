//! What the golden files hold: small synthetic models, one for each thing the format can say.

use std::sync::Arc;

use lamella::codec::{Array, Dtype, Knowledge, Rate};
use lamella::file::{ArrayEntry, LayerEntry, Manifest, Shard, SideFiles, Storage, to_bytes};
use lamella::math::SecondMoment;

use crate::spec;

/// Sums of four uniform numbers, of growing spread over the columns; the same on every machine.
fn weights(seed: u64, rows: usize, columns: usize) -> Vec<f32> {
    let mut state = seed;
    let mut uniform = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1u32 << 24) as f32 - 0.5
    };
    let mut value = |index: usize| {
        let spread =
            0.02 + 0.2 * (index % columns) as f32 / columns as f32 + 0.01 * (index / columns % 5) as f32;
        spread * (uniform() + uniform() + uniform() + uniform())
    };
    (0..rows * columns).map(&mut value).collect()
}

fn knowledge(columns: usize) -> Knowledge {
    let mut moment = SecondMoment::new(columns);
    let mut inputs = weights(7, 3 * columns, columns);
    // Neighbours resemble each other, so that error feedback has something to do.
    for index in 1..inputs.len() {
        inputs[index] += 0.6 * inputs[index - 1];
    }
    moment.accumulate(&inputs);
    Knowledge::of_inputs(Arc::new(moment))
}

/// A file in the making.
struct Builder {
    manifest: Manifest,
    payloads: Vec<Vec<u8>>,
    /// What is coded: recipe and array of each target.
    coded: Vec<(String, Array<'static>, Knowledge, Rate)>,
}

impl Builder {
    fn new() -> Self {
        let metadata = vec![("format".to_owned(), "pt".to_owned())];
        let shards = vec![Shard { name: "model.safetensors".to_owned(), metadata }];
        let manifest = Manifest { shards, budget: "--size 4KB".to_owned(), ..Manifest::default() };
        Self { manifest, payloads: Vec::new(), coded: Vec::new() }
    }

    fn entry(&mut self, recipe: &str, name: &str, shape: &[usize], dtype: Dtype, storage: Storage) {
        let recipe = lamella::catalogue().codec(&recipe.parse().unwrap()).unwrap().recipe().to_string();
        let known = self.manifest.recipes.iter().position(|known| *known == recipe);
        let recipe = known.unwrap_or_else(|| {
            self.manifest.recipes.push(recipe);
            self.manifest.recipes.len() - 1
        });
        self.manifest.arrays.push(ArrayEntry { spec: spec(name, shape, dtype), recipe, shard: 0, storage });
    }

    fn array(mut self, recipe: &str, name: &str, shape: &[usize], dtype: Dtype) -> Self {
        self.entry(recipe, name, shape, dtype, Storage::Own);
        let columns = shape.get(1..).map_or(1, |rest| rest.iter().product::<usize>());
        let values = weights(name.len() as u64, shape.iter().product::<usize>() / columns.max(1), columns);
        let array = Array::from_f32(spec(name, shape, dtype), &values).unwrap();
        self.coded.push((recipe.to_owned(), array, knowledge(columns), Rate::Recipe));
        self
    }

    fn with(mut self, change: impl FnOnce(&mut Knowledge, &mut Rate)) -> Self {
        let (_, _, knowledge, rate) = self.coded.last_mut().unwrap();
        change(knowledge, rate);
        self
    }

    fn finish(mut self, side: &SideFiles, mapped: usize) -> Vec<u8> {
        for (target, (recipe, array, knowledge, rate)) in self.coded.iter().enumerate() {
            let codec = lamella::catalogue().codec(&recipe.parse().unwrap()).unwrap();
            let mut encoded = codec.encode(array, knowledge, *rate).unwrap();
            encoded.layers[0].is_mapped = target == mapped;
            self.manifest.layers.push(LayerEntry::of(target, &encoded.layers[0]));
            self.payloads.push(encoded.layers.remove(0).payload);
        }
        self.manifest.side = side.table.clone();
        to_bytes(&self.manifest, &side.bytes, &self.payloads).unwrap()
    }

    fn plain(self) -> Vec<u8> {
        self.finish(&SideFiles::default(), usize::MAX)
    }
}

/// Name and bytes of each golden file.
pub(crate) fn files() -> Vec<(&'static str, Vec<u8>)> {
    let scalar = "house(bits=2.2, trellis=0)";
    let usage: Vec<f64> = (0..70).map(|row| 1000.0 / f64::from(1 + row * row)).collect();
    vec![
        (
            "v0_1_0_exact_floats.lam",
            Builder::new()
                .array("exact", "f32", &[24, 20], Dtype::F32)
                .array("exact", "bf16", &[40, 31], Dtype::BF16)
                .array("exact", "f16", &[9, 50], Dtype::F16)
                .array("exact", "f64", &[60], Dtype::F64)
                .array("exact", "scalar", &[], Dtype::F32)
                .array("exact", "none", &[0, 4], Dtype::F32)
                .plain(),
        ),
        ("v0_1_0_exact_bytes.lam", bytes()),
        (
            "v0_1_0_rtn.lam",
            Builder::new()
                .array("rtn(bits=3, group_size=32)", "float.zero", &[17, 70], Dtype::F32)
                .array("rtn(bits=5, group_size=16, zero=integer)", "integer.zero", &[17, 70], Dtype::BF16)
                .array("rtn(bits=8)", "f8_e4m3", &[5, 40], Dtype::F8E4M3)
                .array("rtn(bits=8)", "f8_e5m2.", &[5, 40], Dtype::F8E5M2)
                .array("rtn(bits=6)", "f64", &[3, 40], Dtype::F64)
                .array("rtn(bits=4, group_size=4)", "kernels", &[6, 2, 3, 3], Dtype::F32)
                .plain(),
        ),
        (
            "v0_1_0_gptq.lam",
            Builder::new()
                .array("gptq(bits=3, group_size=16)", "natural", &[18, 40], Dtype::F16)
                .array("gptq(bits=2, group_size=16, order=activation)", "static", &[18, 40], Dtype::F32)
                .array(
                    "gptq(bits=4, group_size=16, groups=dynamic, zero=integer, order=activation)",
                    "dynamic",
                    &[18, 40],
                    Dtype::BF16,
                )
                .plain(),
        ),
        (
            "v0_1_0_house_trellis.lam",
            Builder::new()
                .array("house(bits=2.5)", "six", &[150, 24], Dtype::F32)
                .array("house(bits=3, trellis=2)", "two", &[20, 30], Dtype::F16)
                .array("house(bits=3, trellis=8, passes=1)", "eight", &[20, 30], Dtype::BF16)
                .plain(),
        ),
        (
            "v0_1_0_house_scalar.lam",
            Builder::new()
                .array(scalar, "low", &[66, 24], Dtype::F32)
                .array("house(bits=11, trellis=0)", "high", &[20, 16], Dtype::F32)
                .array("house(bits=1)", "fine", &[9, 14], Dtype::F32)
                .with(|_, rate| *rate = Rate::Step(0.000_02))
                .plain(),
        ),
        (
            "v0_1_0_house_rows.lam",
            Builder::new()
                .array("house(bits=2)", "embed", &[70, 20], Dtype::BF16)
                .with(|knowledge, _| knowledge.row_usage = Some(Arc::new(usage)))
                .plain(),
        ),
        ("v0_1_0_whole.lam", whole()),
        ("v0_1_0_stack.lam", stack()),
    ]
}

/// Types that are stored by their bytes.
fn bytes() -> Vec<u8> {
    let mut builder = Builder::new();
    let noise = weights(99, 1, 4096);
    for (name, dtype) in [("i8", Dtype::I8), ("i32", Dtype::I32), ("u8", Dtype::U8), ("e4m3", Dtype::F8E4M3)]
    {
        builder.entry("exact", name, &[12, 40], dtype, Storage::Own);
        let bytes: Vec<u8> =
            (0..480 * dtype.size_bytes()).map(|index| (noise[index] * 60.0).abs() as u8).collect();
        let array = Array::new(spec(name, &[12, 40], dtype), bytes).unwrap();
        builder.coded.push(("exact".to_owned(), array, Knowledge::default(), Rate::Recipe));
    }
    builder.entry("exact", "same", &[300], Dtype::Bool, Storage::Own);
    let same = Array::new(spec("same", &[300], Dtype::Bool), vec![1; 300]).unwrap();
    builder.coded.push(("exact".to_owned(), same, Knowledge::default(), Rate::Recipe));
    builder.plain()
}

/// Matrices that are coded as one, and one between them that is not.
fn stack() -> Vec<u8> {
    let recipe = "house(bits=3)";
    let mut builder = Builder::new();
    builder.entry(recipe, "layers.0.query.weight", &[12, 16], Dtype::BF16, Storage::Bundle(0));
    let whole = spec("layers.0.query.weight", &[32, 16], Dtype::BF16);
    let whole = Array::from_f32(whole, &weights(5, 32, 16)).unwrap();
    builder.coded.push((recipe.to_owned(), whole, knowledge(16), Rate::Recipe));
    let mut builder =
        builder.array("rtn(bits=4, group_size=16)", "layers.0.output.weight", &[16, 32], Dtype::BF16);
    builder.entry(recipe, "layers.0.key.weight", &[20, 16], Dtype::BF16, Storage::Bundle(0));
    builder.plain()
}

/// A model with everything: several recipes, a bundle, a tied array, a mapped layer, side files.
fn whole() -> Vec<u8> {
    let mut builder =
        Builder::new().array("house(bits=3)", "model.embed_tokens.weight", &[48, 16], Dtype::F32);
    builder.manifest.metadata.push(("seed".to_owned(), "0".to_owned()));
    builder.entry("exact", "model.layers.0.input_layernorm.weight", &[16], Dtype::F32, Storage::Bundle(0));
    let norms = spec("model.layers.0.input_layernorm.weight", &[48], Dtype::F32);
    let norms = Array::from_f32(norms, &weights(3, 3, 16)).unwrap();
    builder.coded.push(("exact".to_owned(), norms, Knowledge::default(), Rate::Recipe));
    let mut builder =
        builder.array("rtn(bits=4, group_size=16)", "model.layers.0.up.weight", &[32, 16], Dtype::F32);
    builder.entry("exact", "model.layers.1.input_layernorm.weight", &[16], Dtype::F32, Storage::Bundle(0));
    let mut builder =
        builder.array("gptq(bits=4, group_size=16)", "model.layers.1.up.weight", &[32, 16], Dtype::F32);
    builder.entry("exact", "model.norm.weight", &[16], Dtype::F32, Storage::Bundle(0));
    builder.entry("house(bits=3)", "lm_head.weight", &[48, 16], Dtype::F32, Storage::AliasOf(0));
    let side = SideFiles::pack(&[
        (
            "config.json".to_owned(),
            br#"{"model_type": "llama", "hidden_size": 16, "tie_word_embeddings": true}"#.to_vec(),
        ),
        (
            "tokenizer/merges.txt".to_owned(),
            (0..60).flat_map(|i| format!("t{i} {}\n", 7 * i).into_bytes()).collect(),
        ),
    ])
    .unwrap();
    builder.finish(&side, 2)
}

/// Name and bytes of files that are refused; the name begins with the reason.
pub(crate) fn errors() -> Vec<(&'static str, Vec<u8>)> {
    let matrix = |recipe: &str, change: &dyn Fn(&mut Vec<u8>)| {
        let mut builder = Builder::new().array(recipe, "w", &[8, 12], Dtype::F32);
        let (recipe, array, knowledge, rate) = builder.coded.remove(0);
        let codec = lamella::catalogue().codec(&recipe.parse().unwrap()).unwrap();
        let mut layer = codec.encode(&array, &knowledge, rate).unwrap().layers.remove(0);
        change(&mut layer.payload);
        builder.manifest.layers.push(LayerEntry::of(0, &layer));
        to_bytes(&builder.manifest, &[], &[layer.payload]).unwrap()
    };
    let unknown = |recipe: &str| {
        let mut builder = Builder::new().array("exact", "w", &[8, 12], Dtype::F32);
        builder.manifest.recipes[0] = recipe.to_owned();
        builder.plain()
    };
    let activation = "gptq(bits=4, group_size=4, order=activation)";
    vec![
        ("damaged.rtn-short.lam", matrix("rtn(bits=4)", &|payload| payload.truncate(50))),
        ("damaged.rtn-infinite-scale.lam", matrix("rtn(bits=4)", &|payload| payload[1] = 0x7c)),
        ("damaged.gptq-order.lam", matrix(activation, &|payload| payload[96] = payload[98])),
        ("damaged.house-flags.lam", matrix("house(bits=3)", &|payload| payload[0] |= 0x20)),
        ("damaged.house-shape.lam", matrix("house(bits=3)", &|payload| payload[1] ^= 1)),
        ("damaged.house-base.lam", matrix("house(bits=3)", &|payload| payload[5] = 0x7f)),
        ("damaged.exact-long.lam", matrix("exact", &|payload| payload.push(0))),
        ("recipe.unknown.lam", unknown("papyrus(bits=3)")),
    ]
}
