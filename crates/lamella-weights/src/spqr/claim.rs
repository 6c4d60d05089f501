//! What SpQR claims, measured.

use lamella_codec::{Array, ArraySpec, Catalogue, Claim, ClaimContext, ClaimSize, Dtype, Knowledge, Rate};

use super::form::SpqrForm;
use super::product::PackedSpqr;
use crate::claims::timing::{dense_product, median, numbers};
use crate::claims::{ClaimBench, Error, Shown, exceptions, worst};

/// A product with one vector from the coded form beside `f32`, on one thread.
fn timing(size: usize, catalogue: &Catalogue) -> Result<String, Error> {
    let mut next = numbers();
    let mut number = || (next() >> 40) as f32 / (1u64 << 23) as f32 - 1.0;
    let input: Vec<f32> = (0..size).map(|_| number()).collect();
    // Cubes have the tails that make outliers.
    let weights: Vec<f32> = (0..size * size).map(|_| number().powi(3)).collect();
    let array = Array::from_f32(ArraySpec::new("w", vec![size, size], Dtype::F32), &weights)?;
    let recipe = "spqr(leave_one_out=false, threshold=1)";
    let encoded = catalogue.codec(&recipe.parse()?)?.encode(&array, &Knowledge::default(), Rate::Recipe)?;
    let form = SpqrForm { rows: size, columns: size, bits: 3, group_size: 16, scale_bits: 3 };
    let matrix = form.decode(&encoded.layers[0].payload)?;
    let packed = PackedSpqr::new(&matrix).ok_or("this form has no coded product")?;
    let (mut coded, mut expanded) = (vec![0.0; size], vec![0.0; size]);
    let coded_time = median(9, || packed.multiply(&input, &mut coded));
    let dense = matrix.expand();
    let dense_time = median(9, || dense_product(&dense, &input, &mut expanded));
    let norm = |values: &[f32]| values.iter().map(|&y| f64::from(y).powi(2)).sum::<f64>().sqrt();
    let apart: Vec<f32> = coded.iter().zip(&expanded).map(|(a, b)| a - b).collect();
    Ok(format!(
        "{size} x {size}, one vector, one thread: coded {coded_time:.2} ms ({:.2} bits in memory, {:.2} in the file), \
         f32 {dense_time:.2} ms ({:.2} times); off by {:.1e}",
        packed.resident_bytes() as f64 * 8.0 / (size * size) as f64,
        encoded.size_bytes() as f64 * 8.0 / (size * size) as f64,
        dense_time / coded_time,
        norm(&apart) / norm(&expanded),
    ))
}

/// Runs the system and its baselines; the wing's tests and `lamella reproduce S056` call this.
///
/// # Errors
/// Files that cannot be read or written.
pub fn measure(context: &ClaimContext) -> Result<Claim, Error> {
    let (bench, mut shown) = (ClaimBench::new(context)?, Shown::default());
    let n = bench.linears().len();
    let (mut ratios, mut orders, mut without, mut fine) = (vec![], vec![], vec![], vec![]);
    let mut headline = (0.0, 0.0, f64::NEG_INFINITY);
    for seed in bench.seeds() {
        let system = bench.measure(seed, "spqr")?;
        let gptq = bench.gptq(seed, &system)?;
        let rtn = bench.measure(seed, &bench.next_form("rtn", "zero=float", system.linear_bytes)?)?;
        let (best, least) = (gptq.by_error(), gptq.by_kl());
        if seed == 0 {
            shown.note(&format!(
                "{}: {:.2} bits; gptq {:.2} bits (least error {}; least KL {})",
                bench.scope(),
                system.linear_bits,
                best.linear_bits,
                best.recipe,
                least.recipe
            ));
        }
        orders.push((system.n_better(best), best.n_better(&rtn), exceptions(&bench, &system, best)));
        ratios.push(system.mean_error() / best.mean_error());
        if system.kl / least.kl > headline.2 {
            headline = (system.kl, least.kl, system.kl / least.kl);
        }
        let dense = bench.measure(seed, "spqr(threshold=1000000)")?;
        let blind = bench.measure(seed, "spqr(leave_one_out=false)")?;
        without.push((system.mean_error() / dense.mean_error(), dense.linear_bits));
        without.push((system.mean_error() / blind.mean_error(), blind.linear_bits));
        let fine_system = bench.measure(seed, "spqr(bits=4)")?;
        fine.push((fine_system.perplexity / bench.original_perplexity - 1.0, fine_system.linear_bits));
    }
    let all = |of: &dyn Fn(&(usize, usize, String)) -> usize| orders.iter().map(of).min().unwrap_or(0);
    let (below, ordered) = (all(&|order| order.0), all(&|order| order.1));
    shown.line(
        below == n,
        &format!(
            "(1) error below gptq's on {below} of {n} linears, mean ratio {} {}",
            worst(&ratios).1,
            orders.iter().min_by_key(|order| order.0).map_or("", |order| order.2.as_str())
        ),
    );
    shown.line(ordered == n, &format!("(1) gptq's error below rounding's on {ordered} of {n} linears"));
    for (index, part) in ["outliers", "leaving one out"].into_iter().enumerate() {
        let of_part: Vec<f64> = without.iter().skip(index).step_by(2).map(|entry| entry.0).collect();
        let (most, text) = worst(&of_part);
        let bits = without[index].1;
        shown.line(most < 1.0, &format!("(2) error over that without {part} ({bits:.2} bits): {text}"));
    }
    let (most, text) = worst(&fine.iter().map(|entry| 100.0 * entry.0).collect::<Vec<_>>());
    shown.line(
        most < 1.0,
        &format!("(2) perplexity at {:.2} bits over the original's, percent: {text}", fine[0].1),
    );
    let size = if context.size == ClaimSize::Full { 4096 } else { 1024 };
    shown.note(&timing(size, &context.catalogue)?);
    Ok(shown.claim(
        &crate::systems::spqr(),
        "KL divergence, nats per token",
        ("best of six gptq", headline.1),
        headline.0,
    ))
}
