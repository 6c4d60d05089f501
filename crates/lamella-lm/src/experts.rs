//! Mixtures of experts: a router sends every token through a few of many feed-forward networks.
//!
//! The router's logits become probabilities over all experts; the most probable few answer, weighted by their
//! probability (rescaled to sum to one in some families), and are summed in the experts' order. Qwen's older mixtures
//! add one network that sees every token behind a sigmoid gate.

use lamella_codec::TensorSource;

use crate::LmError;
use crate::elementwise::{Activation, add, sigmoid, softmax};
use crate::feed_forward::Dense;
use crate::linear::{Linear, OperatorLookup};
use crate::plan::{DensePlan, ExpertsPlan};
use crate::site::Watch;

/// Networks of which every token goes through a few.
pub(crate) struct Experts {
    router: Linear,
    experts: Vec<Dense>,
    /// The network for every token, and its gate.
    shared: Option<(Dense, Linear)>,
    experts_per_token: usize,
    is_normalized: bool,
}

impl Experts {
    pub(crate) fn load(
        plan: &ExpertsPlan,
        activation: Activation,
        source: &dyn TensorSource,
        operators: &OperatorLookup<'_>,
    ) -> Result<Self, LmError> {
        let dense = |plan: &DensePlan| Dense::load(plan, activation, source, operators);
        Ok(Self {
            router: Linear::load(&plan.router, source, operators)?,
            experts: plan.experts.iter().map(dense).collect::<Result<_, _>>()?,
            shared: match &plan.shared {
                Some((plan, gate)) => Some((dense(plan)?, Linear::load(gate, source, operators)?)),
                None => None,
            },
            experts_per_token: plan.experts_per_token,
            is_normalized: plan.is_normalized,
        })
    }

    pub(crate) fn for_each_linear(&self, show: &mut dyn FnMut(&Linear)) {
        show(&self.router);
        self.experts.iter().for_each(|network| network.for_each_linear(show));
        if let Some((network, gate)) = &self.shared {
            network.for_each_linear(show);
            show(gate);
        }
    }

    pub(crate) fn forward(&self, inputs: &[f32], watch: &mut Watch<'_>) -> Vec<f32> {
        watch.see(&self.router.site, inputs);
        let width = self.router.site.in_features;
        let logits = self.router.apply(inputs);
        let routes = route(&logits, self.experts.len(), self.experts_per_token, self.is_normalized);
        let mut outputs = vec![0.0; inputs.len()];
        for (network, chosen) in self.experts.iter().zip(routes) {
            if chosen.is_empty() {
                continue;
            }
            let rows: Vec<f32> =
                chosen.iter().flat_map(|&(token, _)| &inputs[token * width..][..width]).copied().collect();
            let answers = network.forward(&rows, watch);
            for ((token, weight), answer) in chosen.into_iter().zip(answers.chunks_exact(width)) {
                let row = &mut outputs[token * width..][..width];
                row.iter_mut().zip(answer).for_each(|(sum, x)| *sum += weight * x);
            }
        }
        if let Some((network, gate)) = &self.shared {
            // The router has shown these rows.
            let mut answers = network.forward_seen(inputs, watch);
            let gates = gate.apply(inputs);
            for (answer, gate) in answers.chunks_exact_mut(width).zip(gates) {
                let gate = sigmoid(gate);
                answer.iter_mut().for_each(|x| *x *= gate);
            }
            add(&mut outputs, &answers);
        }
        outputs
    }
}

/// For every expert the tokens it answers, ascending, each with the answer's weight. Of equally probable experts the
/// first is taken.
fn route(
    logits: &[f32],
    n_experts: usize,
    experts_per_token: usize,
    is_normalized: bool,
) -> Vec<Vec<(usize, f32)>> {
    let mut routes = vec![Vec::new(); n_experts];
    for (token, logits) in logits.chunks_exact(n_experts).enumerate() {
        let mut probabilities = logits.to_vec();
        softmax(&mut probabilities);
        let mut order: Vec<usize> = (0..n_experts).collect();
        order.sort_by(|&a, &b| probabilities[b].total_cmp(&probabilities[a]).then(a.cmp(&b)));
        order.truncate(experts_per_token);
        let sum: f32 = if is_normalized { order.iter().map(|&e| probabilities[e]).sum() } else { 1.0 };
        for expert in order {
            routes[expert].push((token, probabilities[expert] / sum));
        }
    }
    routes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn routing_takes_the_best_and_normalises() {
        let routes = route(&[0.0, 2.0, 1.0, 2.0], 4, 2, true);
        assert_eq!(routes.iter().map(Vec::len).collect::<Vec<_>>(), [0, 1, 0, 1]);
        assert!((routes[1][0].1 - 0.5).abs() < 1e-6);
        let plain = route(&[0.0, 0.0], 2, 1, false);
        assert_eq!(plain[0].len(), 1, "ties go to the first");
        assert!((plain[0][0].1 - 0.5).abs() < 1e-6);
    }
}
