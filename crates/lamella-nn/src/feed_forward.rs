//! Feed-forward networks and mixtures of them, forwards and in reverse.
//!
//! A mixture: `p = softmax(router x)`; the `k` most probable experts answer, `y = sum w_e f_e(x)` with `w_e = p_e`, or
//! `p_e / S` where `S` is the chosen ones' sum. In reverse `dw_e = dy . f_e(x)`; rescaled, `dp_e = (dw_e - sum dw w) / S`
//! over the chosen; then `dlogit = p (dp - sum dp p)` over all.
//!
//! Left alone, routers send everything to a few experts. The *balance* `E sum_e f_e mean(p_e)`, with `f_e` the share
//! of choices that fell on expert `e` of `E`, is 1 where all are used alike; its gradient (of `mean(p_e)` only, shares
//! have none) pushes there. (Fedus, Zoph, Shazeer, arXiv 2101.03961, section 2.2.)

use crate::elementwise::{add, dot, exp, softmax};
use crate::network::{Gradient, Network};
use crate::parts::{Dense, Experts, FeedForward};

/// What the reverse pass of a dense network needs.
pub(crate) struct DenseTape {
    gate: Vec<f32>,
    up: Vec<f32>,
}

/// One expert's tokens, what it answered, and how.
struct Route {
    /// Tokens in order, each with its answer's weight.
    chosen: Vec<(usize, f32)>,
    answers: Vec<f32>,
    tape: DenseTape,
}

pub(crate) struct ExpertsTape {
    /// `[tokens, n_experts]`.
    probabilities: Vec<f32>,
    routes: Vec<Route>,
    shared: Option<(DenseTape, Vec<f32>, Vec<f32>)>,
}

pub(crate) enum FeedForwardTape {
    Dense(DenseTape),
    Experts(Box<ExpertsTape>),
}

impl ExpertsTape {
    /// `E sum_e f_e mean(p_e)`.
    pub(crate) fn balance(&self) -> f64 {
        let n_experts = self.routes.len();
        let tokens = self.probabilities.len() / n_experts.max(1);
        let sum: f64 = self
            .shares()
            .iter()
            .enumerate()
            .map(|(expert, &share)| {
                let probabilities = self.probabilities.iter().skip(expert).step_by(n_experts);
                share * probabilities.map(|&p| f64::from(p)).sum::<f64>()
            })
            .sum();
        n_experts as f64 * sum / tokens.max(1) as f64
    }

    /// Tokens that each expert answered.
    pub(crate) fn counts(&self) -> Vec<usize> {
        self.routes.iter().map(|route| route.chosen.len()).collect()
    }

    /// Share of all choices that fell on each expert.
    fn shares(&self) -> Vec<f64> {
        let counts = self.counts();
        let total: usize = counts.iter().sum();
        counts.iter().map(|&n| n as f64 / total.max(1) as f64).collect()
    }
}

impl Network {
    pub(crate) fn feed_forward(&self, part: &FeedForward, rows: &[f32]) -> (FeedForwardTape, Vec<f32>) {
        match part {
            FeedForward::Dense(part) => {
                let (tape, out) = self.dense(part, rows);
                (FeedForwardTape::Dense(tape), out)
            }
            FeedForward::Experts(part) => {
                let (tape, out) = self.experts(part, rows);
                (FeedForwardTape::Experts(Box::new(tape)), out)
            }
        }
    }

    /// Adds the gradient of `rows`, the inputs, to `out`. `balance` weighs a mixture's balance, per token.
    pub(crate) fn feed_forward_backward(
        &self,
        (part, tape): (&FeedForward, &FeedForwardTape),
        rows: &[f32],
        changes: &[f32],
        balance: f32,
        out: &mut [f32],
        gradient: &mut Gradient,
    ) {
        match (part, tape) {
            (FeedForward::Dense(part), FeedForwardTape::Dense(tape)) => {
                self.dense_backward((part, tape), rows, changes, out, gradient);
            }
            (FeedForward::Experts(part), FeedForwardTape::Experts(tape)) => {
                self.experts_backward((part, tape), rows, changes, balance, out, gradient);
            }
            // A tape is made by the same module.
            _ => {}
        }
    }

    fn dense(&self, part: &Dense, rows: &[f32]) -> (DenseTape, Vec<f32>) {
        let gate = part.gate.as_ref().map_or_else(Vec::new, |gate| self.linear(gate, rows));
        let up = self.linear(&part.up, rows);
        let out = self.linear(&part.down, &self.activated(&gate, &up));
        (DenseTape { gate, up }, out)
    }

    fn activated(&self, gate: &[f32], up: &[f32]) -> Vec<f32> {
        let activation = self.parts().activation;
        if gate.is_empty() {
            return up.iter().map(|&x| activation.with_derivative(x).0).collect();
        }
        gate.iter().zip(up).map(|(&g, &x)| activation.with_derivative(g).0 * x).collect()
    }

    fn dense_backward(
        &self,
        (part, tape): (&Dense, &DenseTape),
        rows: &[f32],
        changes: &[f32],
        out: &mut [f32],
        gradient: &mut Gradient,
    ) {
        let Dense { gate, up, down } = part;
        let product = if self.trains_matrices() { self.activated(&tape.gate, &tape.up) } else { Vec::new() };
        let mut wide = vec![0.0; tape.up.len()];
        self.linear_backward(down, &product, changes, &mut wide, gradient);
        let activation = self.parts().activation;
        if let Some(gate) = gate {
            let mut gate_changes = vec![0.0; wide.len()];
            for (((w, g), &x), &y) in wide.iter_mut().zip(&mut gate_changes).zip(&tape.gate).zip(&tape.up) {
                let (value, slope) = activation.with_derivative(x);
                *g = *w * y * slope;
                *w *= value;
            }
            self.linear_backward(gate, rows, &gate_changes, out, gradient);
        } else {
            wide.iter_mut().zip(&tape.up).for_each(|(w, &x)| *w *= activation.with_derivative(x).1);
        }
        self.linear_backward(up, rows, &wide, out, gradient);
    }

    fn experts(&self, part: &Experts, rows: &[f32]) -> (ExpertsTape, Vec<f32>) {
        let (width, n_experts) = (self.parts().hidden_size, part.experts.len());
        let mut probabilities = self.linear(&part.router, rows);
        let mut chosen = vec![Vec::new(); n_experts];
        for (token, row) in probabilities.chunks_exact_mut(n_experts).enumerate() {
            softmax(row);
            let mut order: Vec<usize> = (0..n_experts).collect();
            order.sort_by(|&a, &b| row[b].total_cmp(&row[a]).then(a.cmp(&b)));
            order.truncate(part.experts_per_token);
            let sum: f32 = if part.is_normalized { order.iter().map(|&e| row[e]).sum() } else { 1.0 };
            order.iter().for_each(|&expert| chosen[expert].push((token, row[expert] / sum)));
        }
        let mut out = vec![0.0; rows.len()];
        let mut routes = Vec::with_capacity(n_experts);
        for (expert, chosen) in part.experts.iter().zip(chosen) {
            let (tape, answers) = self.dense(expert, &taken(rows, &chosen, width));
            for (&(token, weight), answer) in chosen.iter().zip(answers.chunks_exact(width)) {
                let row = &mut out[token * width..][..width];
                row.iter_mut().zip(answer).for_each(|(sum, x)| *sum += weight * x);
            }
            routes.push(Route { chosen, answers, tape });
        }
        let shared = part.shared.as_ref().map(|(dense, gate)| {
            let (tape, answers) = self.dense(dense, rows);
            let gates: Vec<f32> = self.linear(gate, rows).iter().map(|&x| 1.0 / (1.0 + exp(-x))).collect();
            for ((row, answer), gate) in
                out.chunks_exact_mut(width).zip(answers.chunks_exact(width)).zip(&gates)
            {
                row.iter_mut().zip(answer).for_each(|(sum, x)| *sum += gate * x);
            }
            (tape, answers, gates)
        });
        (ExpertsTape { probabilities, routes, shared }, out)
    }

    fn experts_backward(
        &self,
        (part, tape): (&Experts, &ExpertsTape),
        rows: &[f32],
        changes: &[f32],
        balance: f32,
        out: &mut [f32],
        gradient: &mut Gradient,
    ) {
        let (width, n_experts) = (self.parts().hidden_size, part.experts.len());
        // First the gradient of the answers' weights (zero where an expert did not answer), then of probabilities.
        let mut slopes = vec![0.0; tape.probabilities.len()];
        let mut weights = vec![0.0; tape.probabilities.len()];
        for (index, (expert, route)) in part.experts.iter().zip(&tape.routes).enumerate() {
            if route.chosen.is_empty() {
                continue;
            }
            let mut answer_changes = taken(changes, &route.chosen, width);
            for (i, &(token, weight)) in route.chosen.iter().enumerate() {
                let row = &mut answer_changes[i * width..][..width];
                slopes[token * n_experts + index] = dot(row, &route.answers[i * width..][..width]);
                weights[token * n_experts + index] = weight;
                row.iter_mut().for_each(|x| *x *= weight);
            }
            let mut inner = vec![0.0; answer_changes.len()];
            let inputs = taken(rows, &route.chosen, width);
            self.dense_backward((expert, &route.tape), &inputs, &answer_changes, &mut inner, gradient);
            for (&(token, _), change) in route.chosen.iter().zip(inner.chunks_exact(width)) {
                add(&mut out[token * width..][..width], change);
            }
        }
        let pushes: Vec<f32> =
            tape.shares().iter().map(|share| balance * n_experts as f32 * *share as f32).collect();
        for ((slopes, weights), p) in slopes
            .chunks_exact_mut(n_experts)
            .zip(weights.chunks_exact(n_experts))
            .zip(tape.probabilities.chunks_exact(n_experts))
        {
            if part.is_normalized {
                let sum: f32 = p.iter().zip(weights).filter(|(_, w)| **w > 0.0).map(|(p, _)| p).sum();
                let mean = dot(slopes, weights);
                for (slope, weight) in slopes.iter_mut().zip(weights) {
                    *slope = if *weight > 0.0 { (*slope - mean) / sum } else { 0.0 };
                }
            }
            add(slopes, &pushes);
            let mean = dot(slopes, p);
            slopes.iter_mut().zip(p).for_each(|(slope, p)| *slope = p * (*slope - mean));
        }
        self.linear_backward(&part.router, rows, &slopes, out, gradient);
        if let (Some((dense, gate)), Some((dense_tape, answers, gates))) = (&part.shared, &tape.shared) {
            let mut answer_changes = changes.to_vec();
            let mut gate_changes = Vec::with_capacity(gates.len());
            for ((row, answer), g) in
                answer_changes.chunks_exact_mut(width).zip(answers.chunks_exact(width)).zip(gates)
            {
                gate_changes.push(dot(row, answer) * g * (1.0 - g));
                row.iter_mut().for_each(|x| *x *= g);
            }
            self.dense_backward((dense, dense_tape), rows, &answer_changes, out, gradient);
            self.linear_backward(gate, rows, &gate_changes, out, gradient);
        }
    }
}

/// Rows of the chosen tokens.
fn taken(rows: &[f32], chosen: &[(usize, f32)], width: usize) -> Vec<f32> {
    chosen.iter().flat_map(|&(token, _)| &rows[token * width..][..width]).copied().collect()
}
