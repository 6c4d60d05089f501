//! One token times a coded matrix, beside `f32` and candle's kernels on llama.cpp's block types.
//!
//! `cargo run --release` (in `bench/execution/`) prints the table and writes `docs/results/weights-execution.md`. Every
//! product is compared with that of the decoded matrix before anything is timed. Times are wall time on one thread, the
//! median of all turns, engines taking turns so that a slow moment hits all.

use std::fmt::Write;
use std::sync::Arc;
use std::time::Instant;

use candle_core::quantized::{GgmlDType, QMatMul, QTensor};
use candle_core::{Device, Module, Tensor};
use lamella_codec::{Array, ArraySpec, Catalogue, Dtype, Knowledge, Rate};
use lamella_weights::claims::timing::{dense_product, numbers};
use lamella_weights::elutq::form::PlaneForm;
use lamella_weights::elutq::product::PackedPlanes;
use lamella_weights::spqr::form::SpqrForm;
use lamella_weights::spqr::product::PackedSpqr;

type Error = Box<dyn std::error::Error + Send + Sync>;

const SIZE: usize = 4096;
const TURNS: usize = 21;

/// Something that multiplies the matrix by one vector.
struct Engine {
    name: String,
    multiply: Box<dyn Fn(&[f32], &mut [f32])>,
    /// The matrix it stands for.
    decoded: Vec<f32>,
    resident_bytes: usize,
    file_bytes: Option<usize>,
}

fn coded(recipe: &str, rate: Rate, array: &Array<'_>, catalogue: &Catalogue) -> Result<Engine, Error> {
    let codec = catalogue.codec(&recipe.parse()?)?;
    let encoded = codec.encode(array, &Knowledge::default(), rate)?;
    let payload = &encoded.layers[0].payload;
    let decoded = codec.decode(&array.spec, &[payload])?.to_f32()?;
    let engine = |multiply: Box<dyn Fn(&[f32], &mut [f32])>, resident_bytes| Engine {
        name: format!("`{recipe}`"),
        multiply,
        decoded,
        resident_bytes,
        file_bytes: Some(encoded.size_bytes()),
    };
    if recipe.starts_with("spqr") {
        let form = SpqrForm { rows: SIZE, columns: SIZE, bits: 3, group_size: 16, scale_bits: 3 };
        let packed = PackedSpqr::new(&form.decode(payload)?).ok_or("this form has no product")?;
        let bytes = packed.resident_bytes();
        return Ok(engine(Box::new(move |input, out| packed.multiply(input, out)), bytes));
    }
    if let Some(bits) = recipe.strip_prefix("elutq(bits=").and_then(|rest| rest.strip_suffix(")")) {
        let form = PlaneForm { rows: SIZE, columns: SIZE, bits: bits.parse()?, group_size: 128 };
        let packed = PackedPlanes::new(&form.decode(payload)?);
        let bytes = packed.resident_bytes();
        return Ok(engine(Box::new(move |input, out| packed.multiply(input, out)), bytes));
    }
    let linear =
        codec.execute(&array.spec, &[payload])?.ok_or("the recipe is not executed as it is coded")?;
    let bytes = linear.resident_bytes();
    Ok(engine(Box::new(move |input, out| linear.apply(input, 1, out, SIZE, 0)), bytes))
}

fn peer(name: &str, dtype: GgmlDType, weights: &Tensor) -> Result<Engine, Error> {
    let quantized = QTensor::quantize(weights, dtype)?;
    let resident_bytes = quantized.storage_size_in_bytes();
    let decoded = quantized.dequantize(&Device::Cpu)?.flatten_all()?.to_vec1()?;
    let product = QMatMul::from_arc(Arc::new(quantized))?;
    let multiply = move |input: &[f32], out: &mut [f32]| {
        let input = Tensor::from_slice(input, (1, SIZE), &Device::Cpu).expect("a tensor");
        let found = product.forward(&input).and_then(|found| found.flatten_all()?.to_vec1::<f32>());
        out.copy_from_slice(&found.expect("a product"));
    };
    Ok(Engine {
        name: format!("candle {name}"),
        multiply: Box::new(multiply),
        decoded,
        resident_bytes,
        file_bytes: None,
    })
}

fn engines() -> Result<Vec<Engine>, Error> {
    let mut next = numbers();
    // Cubes have the tails that make outliers.
    let weights: Vec<f32> =
        (0..SIZE * SIZE).map(|_| (((next() >> 40) as f32 / (1u64 << 23) as f32) - 1.0).powi(3)).collect();
    let catalogue = Catalogue::new(Vec::new(), lamella_weights::systems::codecs());
    let array = Array::from_f32(ArraySpec::new("w", vec![SIZE, SIZE], Dtype::F32), &weights)?;
    let held = weights.clone();
    let mut all = vec![Engine {
        name: "f32".to_owned(),
        multiply: Box::new(move |input, out| dense_product(&held, input, out)),
        decoded: weights.clone(),
        resident_bytes: 4 * SIZE * SIZE,
        file_bytes: None,
    }];
    for (recipe, rate) in [
        ("spqr(leave_one_out=false, threshold=1)", Rate::Recipe),
        ("elutq(bits=2)", Rate::Recipe),
        ("elutq(bits=3)", Rate::Recipe),
        ("elutq(bits=4)", Rate::Recipe),
        ("mixllm(share=10%)", Rate::Recipe),
        ("house(execute=int4)", Rate::Step(0.35)),
    ] {
        all.push(coded(recipe, rate, &array, &catalogue)?);
        eprintln!("coded by {recipe}");
    }
    let tensor = Tensor::from_vec(weights, (SIZE, SIZE), &Device::Cpu)?;
    for (name, dtype) in [
        ("Q4_0", GgmlDType::Q4_0),
        ("Q4_K", GgmlDType::Q4K),
        ("Q3_K", GgmlDType::Q3K),
        ("Q2_K", GgmlDType::Q2K),
    ] {
        all.push(peer(name, dtype, &tensor)?);
    }
    Ok(all)
}

fn norm(values: impl Iterator<Item = f32>) -> f64 {
    values.map(|value| f64::from(value) * f64::from(value)).sum::<f64>().sqrt()
}

fn table() -> Result<String, Error> {
    let engines = engines()?;
    let mut next = numbers();
    let input: Vec<f32> = (0..SIZE).map(|_| (next() >> 40) as f32 / (1u64 << 23) as f32 - 1.0).collect();
    let (mut out, mut exact) = (vec![0.0f32; SIZE], vec![0.0f32; SIZE]);
    let mut off = Vec::new();
    for engine in &engines {
        (engine.multiply)(&input, &mut out);
        dense_product(&engine.decoded, &input, &mut exact);
        let apart = norm(out.iter().zip(&exact).map(|(a, b)| a - b)) / norm(exact.iter().copied());
        if apart > 0.05 {
            return Err(format!("{} is off by {apart:.3} of its decoded matrix", engine.name).into());
        }
        off.push(apart);
    }
    let mut times = vec![Vec::new(); engines.len()];
    for _ in 0..TURNS {
        for (engine, times) in engines.iter().zip(&mut times) {
            let started = Instant::now();
            (engine.multiply)(std::hint::black_box(&input), &mut out);
            times.push(started.elapsed().as_secs_f64() * 1e3);
        }
    }
    let medians: Vec<f64> = times
        .iter_mut()
        .map(|times| {
            times.sort_by(f64::total_cmp);
            times[TURNS / 2]
        })
        .collect();
    let bits = |bytes: usize| bytes as f64 * 8.0 / (SIZE * SIZE) as f64;
    let mut text = format!(
        "# Products on coded weights\n\nWritten by `cargo run --release` in `bench/execution/`. {SIZE} x {SIZE}, one token, one \
         thread, median of {TURNS} turns that alternate; candle is compiled for this processor, ours chooses at run time; \
         weights are cubes of uniform numbers, coded without statistics. *Off*: \
         distance from the product with the decoded matrix over its norm (8-bit activations where there are any). Machine: {}.\n\n\
         | engine | bits in memory | bits in a file | ms | times f32 | off |\n|---|---|---|---|---|---|\n",
        machine()
    );
    for ((engine, &median), off) in engines.iter().zip(&medians).zip(off) {
        let file = engine.file_bytes.map_or(String::new(), |bytes| format!("{:.2}", bits(bytes)));
        writeln!(
            text,
            "| {} | {:.2} | {file} | {median:.2} | {:.2} | {off:.1e} |",
            engine.name,
            bits(engine.resident_bytes),
            medians[0] / median,
        )?;
    }
    Ok(text)
}

fn machine() -> String {
    let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let name = info.lines().find_map(|line| line.strip_prefix("model name")?.split(':').nth(1));
    name.unwrap_or("unknown").trim().to_owned()
}

fn main() -> Result<(), Error> {
    // One thread for everybody: ours and candle's.
    rayon::ThreadPoolBuilder::new().num_threads(1).build_global()?;
    let text = table()?;
    print!("{text}");
    std::fs::write(concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/results/weights-execution.md"), text)?;
    Ok(())
}
