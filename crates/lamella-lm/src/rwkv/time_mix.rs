//! RWKV's recurrent half of a block.

use lamella_codec::TensorSource;
use rayon::prelude::*;

use super::recurrence::{Step, additive, delta, run};
use super::{mixed, shifted};
use crate::LmError;
use crate::config::NormKind;
use crate::elementwise::{exp, map, multiply, sigmoid, tanh};
use crate::hidden::Hidden;
use crate::kv_cache::Cache;
use crate::linear::{Linear, OperatorLookup, read_vector};
use crate::norm::{Norm, NormPlan};
use crate::plan::{Needed, Shapes};
use crate::product::{Layout, multiply as matrix_product};
use crate::site::{LinearSite, Role, SiteMaker, Watch};

/// Version 7's token shifts in the order they stand in `x_rwkvag`; a checkpoint may have them one by one.
const SHIFTS: [&str; 6] = ["x_r", "x_w", "x_k", "x_v", "x_a", "x_g"];
/// Version 7 decays by at most this much in the exponent: `e^(-1/2)`.
const SLOWEST: f32 = 0.606_531;

/// Arrays of a time mix.
#[derive(Debug, Clone)]
pub(crate) struct TimeMixPlan {
    version: u8,
    /// Name of the module with a dot: `blocks.0.att.`.
    base: String,
    heads: usize,
    head_dim: usize,
    /// Whether this is the first block, whose values the others mix in (version 7).
    is_first: bool,
    has_gate: bool,
    /// Every linear by the name it has in this file: `key`, `w1`.
    sites: Vec<(&'static str, LinearSite)>,
    others: Vec<Needed>,
}

impl TimeMixPlan {
    /// `site(module, input, (in, out), role)` names a linear of the block; `shape` looks an array up.
    pub(crate) fn new(
        version: u8,
        block: usize,
        base: &str,
        (hidden, heads): (usize, usize),
        site: &SiteMaker<'_>,
        shape: &Shapes<'_>,
    ) -> Self {
        let base = format!("{base}att.");
        let is_first = block == 0;
        let has_gate = version != 5 || shape(&format!("{base}gate.weight")).is_some();
        let square = (hidden, hidden);
        let mut sites = Vec::new();
        let mut add = |name: &'static str, module: &str, input: &str, shape, role| {
            sites.push((
                name,
                site(&format!("att.{module}"), &format!("time_mix_{input}_input"), shape, role),
            ));
        };
        for (name, role) in [("receptance", Role::Receptance), ("key", Role::Key), ("value", Role::Value)] {
            add(name, &format!("{name}.weight"), name, square, role);
        }
        if has_gate && version < 7 {
            add("gate", "gate.weight", "gate", square, Role::Gate);
        }
        add("output", "output.weight", "output", square, Role::Output);
        let rank =
            |name: &str| shape(&format!("{base}{name}")).and_then(|s| s.first().copied()).unwrap_or(1).max(1);
        let mut needed: Vec<(&str, Vec<usize>)> = Vec::new();
        let wide = vec![hidden];
        match version {
            7 => {
                let letters: &[(char, &'static str, &'static str)] = if is_first {
                    &[('w', "w1", "w2"), ('a', "a1", "a2"), ('g', "g1", "g2")]
                } else {
                    &[('w', "w1", "w2"), ('a', "a1", "a2"), ('g', "g1", "g2"), ('v', "v1", "v2")]
                };
                for &(letter, down, up) in letters {
                    let input = match letter {
                        'w' => "decay",
                        'a' => "rate",
                        'g' => "gate",
                        _ => "value",
                    };
                    let rank = rank(down);
                    add(down, down, input, (hidden, rank), Role::LowRank);
                    add(up, up, &format!("{input}_inner"), (rank, hidden), Role::LowRank);
                }
                if shape(&format!("{base}x_rwkvag")).is_none() && shape(&format!("{base}x_r")).is_some() {
                    needed.extend(SHIFTS.map(|name| (name, wide.clone())));
                } else {
                    needed.push(("x_rwkvag", vec![6 * hidden]));
                }
                needed.extend(["w0", "a0", "r_k", "k_k", "k_a"].map(|name| (name, wide.clone())));
                if !is_first {
                    needed.push(("v0", wide.clone()));
                }
            }
            6 => {
                let rank_maa = (rank("time_maa_w1") / 5).max(1);
                add("maa", "time_maa_w1", "base", (hidden, 5 * rank_maa), Role::LowRank);
                let rank = rank("time_decay_w1");
                add("w1", "time_decay_w1", "decay", (hidden, rank), Role::LowRank);
                add("w2", "time_decay_w2", "decay_inner", (rank, hidden), Role::LowRank);
                needed.push(("time_maa_w2", vec![5, hidden, rank_maa]));
                let vectors = ["x", "w", "k", "v", "r", "g"].map(|letter| match letter {
                    "x" => "time_maa_x",
                    "w" => "time_maa_w",
                    "k" => "time_maa_k",
                    "v" => "time_maa_v",
                    "r" => "time_maa_r",
                    _ => "time_maa_g",
                });
                needed.extend(vectors.map(|name| (name, wide.clone())));
                needed.extend(["time_decay", "time_faaaa"].map(|name| (name, wide.clone())));
            }
            _ => {
                needed.extend(["time_mix_k", "time_mix_v", "time_mix_r"].map(|name| (name, wide.clone())));
                if has_gate {
                    needed.push(("time_mix_g", wide.clone()));
                    needed.extend(["time_decay", "time_faaaa"].map(|name| (name, wide.clone())));
                } else {
                    // Version 5.1: one number per head.
                    needed.extend(["time_decay", "time_first"].map(|name| (name, vec![heads])));
                }
            }
        }
        needed.extend(["ln_x.weight", "ln_x.bias"].map(|name| (name, wide.clone())));
        let others = needed.into_iter().map(|(name, shape)| (format!("{base}{name}"), shape)).collect();
        Self { version, base, heads, head_dim: hidden / heads, is_first, has_gate, sites, others }
    }

    pub(crate) fn sites(&self) -> impl Iterator<Item = &LinearSite> {
        self.sites.iter().map(|(_, site)| site)
    }

    pub(crate) fn others(&self) -> Vec<Needed> {
        self.others.clone()
    }
}

/// A token shift's weights: version 5 stores the share of the row itself, later ones that of the row before.
pub(super) fn read_mu(
    source: &dyn TensorSource,
    name: &str,
    width: usize,
    version: u8,
) -> Result<Vec<f32>, LmError> {
    let mut mu = read_vector(source, name, width)?;
    if version == 5 {
        mu.iter_mut().for_each(|x| *x = 1.0 - *x);
    }
    Ok(mu)
}

/// A projection through a narrow middle, with something added.
struct LowRank {
    down: Linear,
    up: Linear,
    base: Vec<f32>,
}

impl LowRank {
    /// `base + up(inner(down(rows)))`.
    fn apply(&self, rows: &[f32], inner: impl Fn(f32) -> f32, watch: &mut Watch<'_>) -> Vec<f32> {
        watch.see(&self.down.site, rows);
        self.apply_seen(rows, inner, watch)
    }

    /// As `apply` for rows that another linear has shown.
    fn apply_seen(&self, rows: &[f32], inner: impl Fn(f32) -> f32, watch: &mut Watch<'_>) -> Vec<f32> {
        let mut narrow = self.down.apply(rows);
        map(&mut narrow, inner);
        watch.see(&self.up.site, &narrow);
        let mut wide = self.up.apply(&narrow);
        if !self.base.is_empty() {
            for row in wide.chunks_exact_mut(self.base.len()) {
                row.iter_mut().zip(&self.base).for_each(|(x, b)| *x += b);
            }
        }
        wide
    }
}

/// What differs between versions.
enum Version {
    /// Constant decay and shifts.
    Five { decay: Vec<f32>, bonus: Vec<f32> },
    /// Both depend on the data: `maa [5 * rank, hidden]`, `maa_up [5, hidden, rank]`, in the order w, k, v, r, g.
    Six { base: Vec<f32>, maa: Box<Linear>, maa_up: Vec<f32>, decay: Box<LowRank>, bonus: Vec<f32> },
    /// The delta rule.
    Seven(Box<DeltaRule>),
}

/// The projections and vectors of version 7.
struct DeltaRule {
    decay: LowRank,
    rate: LowRank,
    gate: LowRank,
    value: Option<LowRank>,
    removal: Vec<f32>,
    key_rate: Vec<f32>,
    bonus: Vec<f32>,
}

/// A time mix with its weights.
pub(crate) struct TimeMix {
    heads: usize,
    head_dim: usize,
    receptance: Linear,
    key: Linear,
    value: Linear,
    gate: Option<Linear>,
    output: Linear,
    /// Token shifts of w, k, v, r, g, a; empty where a version has none.
    mu: [Vec<f32>; 6],
    group_norm: Norm,
    version: Version,
}

impl TimeMix {
    pub(crate) fn load(
        plan: &TimeMixPlan,
        source: &dyn TensorSource,
        operators: &OperatorLookup<'_>,
    ) -> Result<Self, LmError> {
        let width = plan.heads * plan.head_dim;
        let read = |name: &str| {
            let name = format!("{}{name}", plan.base);
            let needed = plan.others.iter().find(|(known, _)| *known == name);
            read_vector(source, &name, needed.map_or(width, |(_, shape)| shape.iter().product()))
        };
        let linear = |name: &str| -> Result<Linear, LmError> {
            let found = plan.sites.iter().find(|(known, _)| *known == name);
            let (_, site) = found.ok_or_else(|| LmError::MissingArray {
                architecture: format!("rwkv{}", plan.version),
                name: format!("{}{name}", plan.base),
            })?;
            Linear::load(site, source, operators)
        };
        let low_rank = |down: &str, up: &str, base: &str| -> Result<LowRank, LmError> {
            let base = if base.is_empty() { Vec::new() } else { read(base)? };
            Ok(LowRank { down: linear(down)?, up: linear(up)?, base })
        };
        let mu = |name: &str| read_mu(source, &format!("{}{name}", plan.base), width, plan.version);
        let (mu, version) = match plan.version {
            7 => {
                let is_joined = plan.others.iter().any(|(name, _)| name.ends_with(".x_rwkvag"));
                let all = match is_joined {
                    true => read("x_rwkvag")?,
                    false => SHIFTS.iter().map(|name| read(name)).collect::<Result<Vec<_>, _>>()?.concat(),
                };
                let part = |index: usize| all[index * width..(index + 1) * width].to_vec();
                let mu = [part(1), part(2), part(3), part(0), part(5), part(4)];
                let version = Version::Seven(Box::new(DeltaRule {
                    decay: low_rank("w1", "w2", "w0")?,
                    rate: low_rank("a1", "a2", "a0")?,
                    gate: low_rank("g1", "g2", "")?,
                    value: if plan.is_first { None } else { Some(low_rank("v1", "v2", "v0")?) },
                    removal: read("k_k")?,
                    key_rate: read("k_a")?,
                    bonus: read("r_k")?,
                }));
                (mu, version)
            }
            6 => {
                let mu = [
                    mu("time_maa_w")?,
                    mu("time_maa_k")?,
                    mu("time_maa_v")?,
                    mu("time_maa_r")?,
                    mu("time_maa_g")?,
                    Vec::new(),
                ];
                let version = Version::Six {
                    base: read("time_maa_x")?,
                    maa: Box::new(linear("maa")?),
                    maa_up: read("time_maa_w2")?,
                    decay: Box::new(low_rank("w1", "w2", "time_decay")?),
                    bonus: read("time_faaaa")?,
                };
                (mu, version)
            }
            _ => {
                let gate = if plan.has_gate { mu("time_mix_g")? } else { Vec::new() };
                let mu =
                    [Vec::new(), mu("time_mix_k")?, mu("time_mix_v")?, mu("time_mix_r")?, gate, Vec::new()];
                let spread = |numbers: Vec<f32>| -> Vec<f32> {
                    let copies = (plan.heads * plan.head_dim / numbers.len().max(1)).max(1);
                    numbers.into_iter().flat_map(|x| std::iter::repeat_n(x, copies)).collect()
                };
                let bonus = read(if plan.has_gate { "time_faaaa" } else { "time_first" })?;
                (mu, Version::Five { decay: spread(read("time_decay")?), bonus: spread(bonus) })
            }
        };
        let norm = NormPlan {
            weight: format!("{}ln_x.weight", plan.base),
            bias: Some(format!("{}ln_x.bias", plan.base)),
        };
        let epsilon = if plan.version == 5 { 1e-5 } else { 64e-5 };
        Ok(Self {
            heads: plan.heads,
            head_dim: plan.head_dim,
            receptance: linear("receptance")?,
            key: linear("key")?,
            value: linear("value")?,
            gate: if plan.has_gate && plan.version < 7 { Some(linear("gate")?) } else { None },
            output: linear("output")?,
            mu,
            group_norm: Norm::load(&norm, NormKind::Layer, epsilon, width, source)?,
            version,
        })
    }

    pub(crate) fn for_each_linear(&self, show: &mut dyn FnMut(&Linear)) {
        [&self.receptance, &self.key, &self.value].into_iter().for_each(&mut *show);
        self.gate.iter().chain([&self.output]).for_each(&mut *show);
        let mut low_rank = |rank: &LowRank| {
            show(&rank.down);
            show(&rank.up);
        };
        match &self.version {
            Version::Five { .. } => {}
            Version::Six { maa, decay, .. } => {
                low_rank(decay);
                show(maa);
            }
            Version::Seven(rule) => {
                [&rule.decay, &rule.rate, &rule.gate].into_iter().chain(&rule.value).for_each(low_rank);
            }
        }
    }

    /// From normalised rows to what is added to the residual stream.
    pub(crate) fn forward(
        &self,
        inputs: &[f32],
        hidden: &mut Hidden,
        index: usize,
        mut caches: Option<&mut [Cache]>,
        watch: &mut Watch<'_>,
    ) -> Vec<f32> {
        let differences =
            shifted(inputs, hidden, index, caches.as_deref_mut(), |state| &mut state.time_shift);
        let [w, k, v, r, g, a] = self.shifts(inputs, &differences, watch);
        let project = |linear: &Linear, rows: &[f32], watch: &mut Watch<'_>| {
            watch.see(&linear.site, rows);
            linear.apply(rows)
        };
        let receptance = project(&self.receptance, &r, watch);
        let mut key = project(&self.key, &k, watch);
        let mut value = project(&self.value, &v, watch);
        let d = self.head_dim;
        let width = self.heads * d;
        let rows_of = |head: usize, token: usize| token * width + head * d..token * width + (head + 1) * d;
        let mut outputs;
        let mut gate = self.gate.as_ref().map(|linear| {
            let mut gate = project(linear, &g, watch);
            map(&mut gate, |x| x * sigmoid(x));
            gate
        });
        match &self.version {
            Version::Five { bonus, .. } | Version::Six { bonus, .. } => {
                let changing = match &self.version {
                    Version::Six { decay, .. } => {
                        let mut rates = decay.apply(&w, tanh, watch);
                        map(&mut rates, |x| exp(-exp(x)));
                        rates
                    }
                    _ => Vec::new(),
                };
                outputs = run(hidden, index, caches, (self.heads, d), &|head, token, state, out| {
                    let at = rows_of(head, token);
                    let lane = head * d..(head + 1) * d;
                    let decay = match &self.version {
                        Version::Five { decay, .. } => &decay[lane.clone()],
                        _ => &changing[at.clone()],
                    };
                    let step = Step {
                        receptance: &receptance[at.clone()],
                        key: &key[at.clone()],
                        value: &value[at],
                        decay,
                    };
                    additive(&step, &bonus[lane], state, out);
                });
                self.normalize_heads(&mut outputs);
            }
            Version::Seven(rule) => {
                let DeltaRule { decay, rate, gate: gates, value: mix, removal, key_rate, bonus } = &**rule;
                gate = Some(gates.apply(&g, sigmoid, watch));
                let mut rate = rate.apply(&a, |x| x, watch);
                map(&mut rate, sigmoid);
                let mut decay = decay.apply(&w, tanh, watch);
                map(&mut decay, |x| exp(-SLOWEST * sigmoid(x)));
                let (read, write) = self.removals(&key, removal, &rate);
                for (row, rate) in key.chunks_exact_mut(width).zip(rate.chunks_exact(width)) {
                    for ((x, a), scale) in row.iter_mut().zip(rate).zip(key_rate) {
                        *x += *x * scale * (a - 1.0);
                    }
                }
                match mix {
                    None => hidden.first_values.clone_from(&value),
                    Some(mix) => {
                        let mut share = mix.apply_seen(&v, |x| x, watch);
                        map(&mut share, sigmoid);
                        for ((x, first), share) in value.iter_mut().zip(&hidden.first_values).zip(share) {
                            *x += (first - *x) * share;
                        }
                    }
                }
                outputs = run(hidden, index, caches, (self.heads, d), &|head, token, state, out| {
                    let at = rows_of(head, token);
                    let step = Step {
                        receptance: &receptance[at.clone()],
                        key: &key[at.clone()],
                        value: &value[at.clone()],
                        decay: &decay[at.clone()],
                    };
                    delta(&step, (&read[at.clone()], &write[at]), state, out);
                });
                self.normalize_heads(&mut outputs);
                for (at, out) in outputs.chunks_exact_mut(d).enumerate() {
                    let (head, at) = (at % self.heads, at * d..(at + 1) * d);
                    let weights = &bonus[head * d..(head + 1) * d];
                    let products = key[at.clone()].iter().zip(&receptance[at.clone()]).zip(weights);
                    let sum: f32 = products.map(|((k, r), b)| k * r * b).sum();
                    out.iter_mut().zip(&value[at]).for_each(|(x, v)| *x += sum * v);
                }
            }
        }
        if let Some(gate) = gate {
            multiply(&mut outputs, &gate);
        }
        project(&self.output, &outputs, watch)
    }

    /// Shifted rows for w, k, v, r, g, a.
    fn shifts(&self, inputs: &[f32], differences: &[f32], watch: &mut Watch<'_>) -> [Vec<f32>; 6] {
        let mut rows: [Vec<f32>; 6] = Default::default();
        if let Version::Six { base, maa, maa_up, .. } = &self.version {
            let first = mixed(inputs, differences, base);
            watch.see(&maa.site, &first);
            let mut narrow = maa.apply(&first);
            map(&mut narrow, tanh);
            let (tokens, hidden) = (inputs.len() / base.len(), base.len());
            let rank = maa.site.out_features / 5;
            for (part, (rows, mu)) in rows.iter_mut().zip(&self.mu).take(5).enumerate() {
                let mut shares = vec![0.0; inputs.len()];
                matrix_product(
                    (tokens, hidden, rank),
                    1.0,
                    (&narrow, Layout::rows(part * rank, 5 * rank)),
                    (maa_up, Layout::rows(part * hidden * rank, rank).transposed()),
                    (&mut shares, Layout::rows(0, hidden)),
                );
                for (at, share) in shares.iter_mut().enumerate() {
                    *share = inputs[at] + (*share + mu[at % hidden]) * differences[at];
                }
                *rows = shares;
            }
            return rows;
        }
        for (rows, mu) in rows.iter_mut().zip(&self.mu) {
            if !mu.is_empty() {
                *rows = mixed(inputs, differences, mu);
            }
        }
        rows
    }

    /// What the delta rule reads and takes out: minus the unit vector of `key * removal`, and that vector times the
    /// rate.
    fn removals(&self, key: &[f32], removal: &[f32], rate: &[f32]) -> (Vec<f32>, Vec<f32>) {
        let mut read = key.to_vec();
        let width = removal.len();
        for row in read.chunks_exact_mut(width) {
            row.iter_mut().zip(removal).for_each(|(x, scale)| *x *= scale);
            for head in row.chunks_exact_mut(self.head_dim) {
                let length = head.iter().map(|x| x * x).sum::<f32>().sqrt().max(1e-12);
                head.iter_mut().for_each(|x| *x /= -length);
            }
        }
        let write = read.iter().zip(rate).map(|(x, a)| -x * a).collect();
        (read, write)
    }

    /// Normalises every head by itself, then scales and shifts the whole row.
    fn normalize_heads(&self, rows: &mut [f32]) {
        let width = self.heads * self.head_dim;
        rows.par_chunks_exact_mut(width).for_each(|row| self.group_norm.groups(row, self.head_dim));
    }
}
