//! What MixLLM claims, measured.

use std::collections::BTreeMap;

use lamella_codec::{Claim, ClaimContext};
use lamella_file::File;

use crate::claims::{ClaimBench, Error, Shown, worst};

/// The paper's share of 8-bit rows.
const SHARE: f64 = 0.1;
/// Steps in which the baselines' share rises until their file is no smaller.
const STEP: f64 = 0.005;

/// Runs the claim: files run on packed integers with 8-bit activations.
///
/// # Errors
/// Files that cannot be read or written, a model without gradients.
pub fn measure(context: &ClaimContext) -> Result<Claim, Error> {
    let (bench, mut shown) = (ClaimBench::new(context)?, Shown::default());
    let mut ratios: [Vec<f64>; 3] = Default::default();
    let (mut closed, mut spans, mut highest) = (Vec::new(), Vec::new(), 0);
    let mut headline = (0.0, 0.0, f64::NEG_INFINITY);
    for seed in bench.seeds() {
        let system = bench.measure(seed, &format!("mixllm(share={SHARE})"))?;
        let (shares, all) = shares(&bench)?;
        let [four, eight] =
            [0.0, 1.0].map(|share| bench.measure(seed, &format!("mixllm(share={share}, choice=array)")));
        let (four, eight) = (four?, eight?);
        let mut others = Vec::new();
        for choice in ["array", "random"] {
            let mut share = SHARE;
            // The same share of rows takes fewer bytes where the chosen rows are shorter.
            while bench.stored_bytes(&format!("mixllm(share={share}, choice={choice})"))?
                < system.linear_bytes
            {
                share = ((share + STEP) / STEP).round() * STEP;
            }
            others.push(bench.measure(seed, &format!("mixllm(share={share:.3}, choice={choice})"))?);
        }
        if seed == 0 {
            shown.note(&format!(
                "{}: perplexity {:.4} at {:.2} bits (original {:.4}; 4 bits {:.4} at {:.2}, 8 bits {:.4} at {:.2}; KL \
                 {:.5}, {:.5}, {:.5})",
                bench.scope(),
                system.perplexity,
                system.linear_bits,
                bench.original_perplexity,
                four.perplexity,
                four.linear_bits,
                eight.perplexity,
                eight.linear_bits,
                system.kl,
                four.kl,
                eight.kl,
            ));
            let by_role: Vec<String> =
                shares.iter().map(|(role, share)| format!("{role} {:.0} %", 100.0 * share)).collect();
            shown.note(&format!("8-bit rows by kind of linear: {}", by_role.join(", ")));
            for other in &others {
                shown.note(&format!(
                    "{} at {:.2} bits: perplexity {:.4}, KL {:.5}",
                    other.recipe, other.linear_bits, other.perplexity, other.kl
                ));
            }
        }
        for (ratios, other) in ratios.iter_mut().zip([&others[0], &others[1], &four]) {
            ratios.push(system.perplexity / other.perplexity);
        }
        closed.push((four.perplexity - system.perplexity) / (four.perplexity - eight.perplexity));
        if system.perplexity / others[0].perplexity > headline.2 {
            headline = (system.perplexity, others[0].perplexity, system.perplexity / others[0].perplexity);
        }
        let most = all.iter().copied().fold(0.0, f64::max);
        let least = all.iter().copied().fold(1.0, f64::min);
        spans.push((least, most));
        let mut order: Vec<(&String, &f64)> = shares.iter().collect();
        order.sort_by(|a, b| b.1.total_cmp(a.1));
        let top: Vec<&str> = order.iter().take(2).map(|(role, _)| role.as_str()).collect();
        highest += usize::from(top.contains(&"v_proj") && top.contains(&"down_proj"));
    }
    let names = [
        "(1) perplexity over that of the same rule inside each linear",
        "(1) perplexity over that of random rows",
        "(1) perplexity over that of 4 bits alone",
    ];
    for (name, ratios) in names.iter().zip(&ratios) {
        let (most, text) = worst(ratios);
        let fine: Vec<String> = ratios.iter().map(|ratio| format!("{ratio:.5}")).collect();
        shown.line(most < 1.0, &format!("{name}: {text}; {}", fine.join(", ")));
    }
    let least = closed.iter().copied().fold(f64::INFINITY, f64::min);
    shown.line(least > 0.5, &format!("(1) share of the way from 4 to 8 bits, at least {least:.3}"));
    let differs = spans.iter().all(|&(least, most)| most > 2.0 * SHARE && least < 0.5 * SHARE);
    let text: Vec<String> =
        spans.iter().map(|(least, most)| format!("{:.0} to {:.0} %", 100.0 * least, 100.0 * most)).collect();
    shown.line(differs, &format!("(2) shares of single linears: {}", text.join(", ")));
    shown.line(
        highest == bench.seeds().len(),
        &format!(
            "(2) values and down projections have the largest shares in {highest} of {} seeds",
            bench.seeds().len()
        ),
    );
    Ok(shown.claim(
        &crate::systems::mixllm::system(),
        "perplexity",
        ("the same rule inside each linear", headline.1),
        headline.0,
    ))
}

/// Shares of 8-bit rows in the file measured last: by kind of linear, and of each linear.
fn shares(bench: &ClaimBench) -> Result<(BTreeMap<String, f64>, Vec<f64>), Error> {
    // The mask lies behind the shape.
    let file = File::open(bench.file())?;
    let (mut by_role, mut all) = (BTreeMap::<String, (usize, usize)>::new(), Vec::new());
    for site in bench.linears() {
        let layers = file.layers_of(&site.weight)?;
        let rows = site.out_features;
        let mask = layers.first().and_then(|layer| layer.get(8..8 + rows.div_ceil(8)));
        let fine: u32 =
            mask.ok_or("a linear has no mask of rows")?.iter().map(|byte| byte.count_ones()).sum();
        let name = site.weight.trim_end_matches(".weight").rsplit('.').next().unwrap_or(&site.weight);
        let counts = by_role.entry(name.to_owned()).or_default();
        *counts = (counts.0 + fine as usize, counts.1 + rows);
        all.push(f64::from(fine) / rows as f64);
    }
    let shares = by_role.into_iter().map(|(role, (fine, rows))| (role, fine as f64 / rows as f64)).collect();
    Ok((shares, all))
}
