//! What VPTQ claims, measured.

use lamella_codec::{Claim, ClaimContext};

use crate::claims::{ClaimBench, Error, Shown, worst};

/// Runs the claim.
///
/// # Errors
/// Files that cannot be read or written.
pub fn measure(context: &ClaimContext) -> Result<Claim, Error> {
    let (bench, mut shown) = (ClaimBench::new(context)?, Shown::default());
    // Codebooks of 256 vectors of 4 would take as much as a matrix of 64 x 64 does.
    let form = if bench.model == "wiki5m" { "vector=4, centroids=256" } else { "vector=2, centroids=16" };
    let recipe = |more: &str| format!("vptq({form}{more})");
    let mut headline = (0.0, 0.0, f64::NEG_INFINITY);
    let mut ratios: [Vec<f64>; 4] = Default::default();
    for seed in bench.seeds() {
        let system = bench.measure(seed, &recipe(""))?;
        let gptq = bench.gptq(seed, &system)?;
        let best = gptq.by_error();
        if seed == 0 {
            shown.note(&format!(
                "{}: {:.2} bits, KL {:.4}; {} in {:.2} bits, KL {:.4}",
                bench.scope(),
                system.linear_bits,
                system.kl,
                best.recipe,
                best.linear_bits,
                best.kl
            ));
        }
        ratios[0].push(system.mean_error() / best.mean_error());
        if ratios[0][seed] > headline.2 {
            headline = (system.mean_error(), best.mean_error(), ratios[0][seed]);
        }
        let plain = bench.measure(seed, &recipe(", tune=false"))?;
        for (index, without) in
            ["feedback=false, tune=false", "weighted=false, tune=false", "axis=inputs, tune=false"]
                .iter()
                .enumerate()
        {
            let other = bench.measure(seed, &recipe(&format!(", {without}")))?;
            ratios[index + 1].push(plain.mean_error() / other.mean_error());
        }
    }
    let names = [
        "(1) error over the best gptq's",
        "(1) error over that of k-means without feedback",
        "(2) error over that with unweighted k-means",
        "(3) error over that of v columns at once",
    ];
    for (name, ratios) in names.iter().zip(&ratios) {
        let (most, text) = worst(ratios);
        shown.line(most < 1.0, &format!("{name}: {text}"));
    }
    Ok(shown.claim(
        &crate::systems::vptq(),
        "mean relative output error",
        ("best of six gptq", headline.1),
        headline.0,
    ))
}
