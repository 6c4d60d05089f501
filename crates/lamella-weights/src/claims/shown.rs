//! What a claim says at the end: its lines, each held or not, with figures.

use std::collections::BTreeMap;
use std::time::Instant;

use lamella_codec::{Claim, System};

use super::{ClaimBench, Measured};

/// The lines of a claim: what was to be shown, and whether it was.
#[derive(Debug)]
pub struct Shown {
    started: Instant,
    lines: Vec<String>,
    holds: bool,
}

impl Default for Shown {
    fn default() -> Self {
        Self { started: Instant::now(), lines: Vec::new(), holds: true }
    }
}

impl Shown {
    /// One line of the card: whether it holds on the worst seed, with its figures.
    pub fn line(&mut self, holds: bool, figures: &str) {
        self.holds &= holds;
        self.lines.push(format!("{} {figures}", if holds { "[yes]" } else { "[NO]" }));
    }
    /// A figure that decides nothing.
    pub fn note(&mut self, figures: &str) {
        self.lines.push(figures.to_owned());
    }
    /// The claim with its headline figures, those of the worst seed.
    pub fn claim(self, system: &System, metric: &str, baseline: (&str, f64), measured: f64) -> Claim {
        Claim {
            id: system.id.to_owned(),
            name: system.name.to_owned(),
            wing: system.wing,
            claim: system.claim.unwrap_or_default().to_owned(),
            metric: metric.to_owned(),
            baseline_name: baseline.0.to_owned(),
            baseline: baseline.1,
            measured,
            holds: self.holds,
            reason: self.lines.join("\n            "),
            seconds: self.started.elapsed().as_secs_f64(),
        }
    }
}

/// The largest of the seeds' figures, and all of them in words.
pub fn worst(values: &[f64]) -> (f64, String) {
    let worst = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let all: Vec<String> = values.iter().map(|value| format!("{value:.3}")).collect();
    (worst, format!("{worst:.3} at worst ({})", all.join(", ")))
}

/// Names of the linears on which `system` is not better than `baseline`, with how much more; at most two by name.
pub fn exceptions(bench: &ClaimBench, system: &Measured, baseline: &Measured) -> String {
    let mut found: BTreeMap<usize, String> = BTreeMap::new();
    for (index, site) in bench.linears().iter().enumerate() {
        let (own, other) = (system.errors[index], baseline.errors[index]);
        if own >= other {
            found.insert(index, format!("{} ({:+.1} %)", site.weight, 100.0 * (own / other - 1.0)));
        }
    }
    let n = found.len();
    let mut text: Vec<String> = found.into_values().take(2).collect();
    if n > 2 {
        text.push(format!("and {} more", n - 2));
    }
    text.join(", ")
}
