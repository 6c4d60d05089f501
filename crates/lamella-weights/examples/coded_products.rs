//! One token times a coded matrix, beside `f32`.
//!
//! `cargo run --release -p lamella-weights --example coded_products [FILE]` prints the table and writes it to FILE
//! (docs/results/weights-execution.md). Every product is compared with that of the decoded matrix before anything is timed.
//! Times are wall time on one thread, the median of all turns, engines taking turns so that a slow moment hits all.

#![allow(clippy::print_stdout, reason = "a program that prints its table")]

use std::fmt::Write;
use std::time::Instant;

use lamella_codec::{Array, ArraySpec, Catalogue, Dtype, Knowledge, Rate};
use lamella_weights::claims::timing::{dense_product, numbers};

type Error = Box<dyn std::error::Error + Send + Sync>;

const SIZE: usize = 4096;
const TURNS: usize = 21;

/// A product of the matrix with one vector: input, output.
type Product = Box<dyn Fn(&[f32], &mut [f32])>;

/// Something that multiplies the matrix by one vector.
struct Engine {
    name: String,
    multiply: Product,
    /// The matrix it stands for.
    decoded: Vec<f32>,
    resident_bytes: usize,
    file_bytes: usize,
}

fn coded(recipe: &str, rate: Rate, array: &Array<'_>, catalogue: &Catalogue) -> Result<Engine, Error> {
    let codec = catalogue.codec(&recipe.parse()?)?;
    let encoded = codec.encode(array, &Knowledge::default(), rate)?;
    let layers = [&encoded.layers[0].payload[..]];
    let decoded = codec.decode(&array.spec, &layers)?.to_f32()?;
    let linear = codec.execute(&array.spec, &layers)?.ok_or("the recipe does not run from its codes")?;
    Ok(Engine {
        name: format!("`{recipe}`"),
        decoded,
        resident_bytes: linear.resident_bytes(),
        file_bytes: encoded.size_bytes(),
        multiply: Box::new(move |input, out| linear.apply(input, 1, out, SIZE, 0)),
    })
}

fn engines() -> Result<Vec<Engine>, Error> {
    let mut next = numbers();
    // Cubes have the tails that make outliers.
    let weights: Vec<f32> =
        (0..SIZE * SIZE).map(|_| ((next() >> 40) as f32 / (1u64 << 23) as f32 - 1.0).powi(3)).collect();
    let catalogue = Catalogue::new(Vec::new(), lamella_weights::systems::codecs());
    let array = Array::from_f32(ArraySpec::new("w", vec![SIZE, SIZE], Dtype::F32), &weights)?;
    let held = weights.clone();
    let mut all = vec![Engine {
        name: "f32".to_owned(),
        multiply: Box::new(move |input, out| dense_product(&held, input, out)),
        decoded: weights,
        resident_bytes: 4 * SIZE * SIZE,
        file_bytes: 4 * SIZE * SIZE,
    }];
    for (recipe, rate) in [
        ("spqr(execute=codes, leave_one_out=false, threshold=1)", Rate::Recipe),
        ("elutq(execute=codes, bits=2)", Rate::Recipe),
        ("elutq(execute=codes, bits=4)", Rate::Recipe),
        ("mixllm(share=10%)", Rate::Recipe),
        ("house(execute=int4)", Rate::Step(0.35)),
    ] {
        all.push(coded(recipe, rate, &array, &catalogue)?);
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
    times.iter_mut().for_each(|times| times.sort_by(f64::total_cmp));
    let bits = |bytes: usize| bytes as f64 * 8.0 / (SIZE * SIZE) as f64;
    let mut text = format!(
        "# Products on coded weights\n\nWritten by `cargo run --release -p lamella-weights --example coded_products`. {SIZE} x \
         {SIZE}, one token, one thread, {TURNS} turns that alternate; weights are cubes of uniform numbers, coded without \
         statistics. *Off*: distance from the product with the decoded matrix over its norm (8-bit activations where there \
         are any). *Least* is the quickest turn: other jobs ran beside. Machine: {}.\n\n\
         | engine | bits in memory | bits in a file | median ms | least ms | times f32 (median) | times f32 (least) | off |\n\
         |---|---|---|---|---|---|---|---|\n",
        machine()
    );
    let (median, least) = (times[0][TURNS / 2], times[0][0]);
    for ((engine, times), off) in engines.iter().zip(&times).zip(off) {
        writeln!(
            text,
            "| {} | {:.2} | {:.2} | {:.2} | {:.2} | {:.2} | {:.2} | {off:.1e} |",
            engine.name,
            bits(engine.resident_bytes),
            bits(engine.file_bytes),
            times[TURNS / 2],
            times[0],
            median / times[TURNS / 2],
            least / times[0],
        )?;
    }
    Ok(text)
}

fn machine() -> String {
    let info = fs_err::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let name = info.lines().find_map(|line| line.strip_prefix("model name")?.split(':').nth(1));
    name.unwrap_or("unknown").trim().to_owned()
}

fn main() -> Result<(), Error> {
    rayon::ThreadPoolBuilder::new().num_threads(1).build_global()?;
    let text = table()?;
    println!("{text}");
    if let Some(path) = std::env::args().nth(1) {
        fs_err::write(path, text)?;
    }
    Ok(())
}
