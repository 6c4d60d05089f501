//! What ELUTQ claims, measured.

use lamella_codec::{Claim, ClaimContext, ClaimSize};

use super::timing::{self, Timing};
use crate::claims::{ClaimBench, Error, Shown, exceptions, worst};

/// Runs the system and its baselines; the wing's tests and `lamella reproduce S138` call this.
///
/// # Errors
/// Files that cannot be read or written.
pub fn measure(context: &ClaimContext) -> Result<Claim, Error> {
    let (bench, mut shown) = (ClaimBench::new(context)?, Shown::default());
    let n = bench.linears().len();
    let (mut below, mut squared, mut misses) = (n, n, Vec::new());
    let (mut errors, mut perplexities, mut fixed, mut gradient) = (vec![], vec![], vec![], vec![]);
    let mut headline = (0.0, 0.0, f64::NEG_INFINITY);
    for seed in bench.seeds() {
        let system = bench.measure(seed, "elutq")?;
        let gptq = bench.gptq(seed, &system)?;
        let rtn = bench.measure(seed, &bench.next_form("rtn", "zero=float", system.linear_bytes)?)?;
        let (best, least) = (gptq.by_error(), gptq.by_kl());
        if seed == 0 {
            shown.note(&format!(
                "{}: {:.3} bits; gptq {:.3} bits (least error {}; least KL {})",
                bench.scope(),
                system.linear_bits,
                best.linear_bits,
                best.recipe,
                least.recipe
            ));
        }
        below = below.min(system.n_better(best));
        misses.push(exceptions(&bench, &system, best));
        errors.push(system.mean_error() / best.mean_error());
        // The fit by itself: without statistics no error moves.
        let plain = bench.plain_squared_errors("elutq")?;
        squared =
            squared.min(plain.iter().zip(&rtn.squared_errors).filter(|(own, other)| own < other).count());
        perplexities.push(system.perplexity / least.perplexity);
        if system.kl / least.kl > headline.2 {
            headline = (system.kl, least.kl, system.kl / least.kl);
        }
        fixed.push(system.mean_error() / bench.measure(seed, "elutq(repick=false)")?.mean_error());
        gradient.push(system.mean_error() / bench.measure(seed, "elutq(fit=gradient)")?.mean_error());
    }
    misses.retain(|text| !text.is_empty());
    shown.line(squared == n, &format!("(1) squared error below rounding's on {squared} of {n} linears"));
    let ratio = worst(&errors).1;
    shown.line(
        below == n,
        &format!(
            "(1) error below gptq's on {below} of {n} linears, mean ratio {ratio} {}",
            misses.join("; ")
        ),
    );
    let (most, text) = worst(&perplexities);
    shown.line(most < 0.9, &format!("(2) perplexity at 2 bits over the best gptq's, below 0.9: {text}"));
    let (size, runs) = if context.size == ClaimSize::Full { (4096, 9) } else { (2048, 5) };
    let Timing { look_up, expanding, dense, off, resident_bits } = timing::measure(size, runs);
    shown.line(
        off < 1e-4 && look_up < expanding,
        &format!(
            "(3) {size} x {size}, one vector, one thread: look-ups {look_up:.2} ms ({resident_bits:.2} bits in memory), \
             expanding {expanding:.2} ms, f32 {dense:.2} ms ({:.2} times); off by {off:.1e}",
            dense / look_up
        ),
    );
    shown.note(&format!("error over that with codes fixed before the group: {}", worst(&fixed).1));
    shown.note(&format!("error over that of the gradient fit: {}", worst(&gradient).1));
    Ok(shown.claim(
        &crate::systems::elutq(),
        "KL divergence, nats per token",
        ("best of six gptq", headline.1),
        headline.0,
    ))
}
