//! The feed-forward half of a block: one network, or a few of many chosen by a router.

use lamella_codec::TensorSource;
use rayon::prelude::*;

use crate::LmError;
use crate::elementwise::{Activation, add, multiply, sigmoid, softmax};
use crate::hidden::Hidden;
use crate::kv_cache::Cache;
use crate::linear::{Linear, OperatorLookup};
use crate::plan::{DensePlan, FeedForwardPlan};
use crate::rwkv::ChannelMix;
use crate::site::Watch;

/// Tokens that go through at a time: bounds the wide activations of long batches.
const TOKENS: usize = 2048;
/// Elements a thread takes at a time.
const ELEMENTS: usize = 1 << 14;

/// `down(activation(gate x) * up x)`, or `down(activation(up x))` without a gate.
pub(crate) struct Dense {
    gate: Option<Linear>,
    up: Linear,
    down: Linear,
    activation: Activation,
}

impl Dense {
    fn load(
        plan: &DensePlan,
        activation: Activation,
        source: &dyn TensorSource,
        operators: &OperatorLookup<'_>,
    ) -> Result<Self, LmError> {
        Ok(Self {
            gate: plan.gate.as_ref().map(|site| Linear::load(site, source, operators)).transpose()?,
            up: Linear::load(&plan.up, source, operators)?,
            down: Linear::load(&plan.down, source, operators)?,
            activation,
        })
    }

    fn for_each_linear(&self, show: &mut dyn FnMut(&Linear)) {
        self.gate.iter().chain([&self.up, &self.down]).for_each(show);
    }

    fn forward(&self, inputs: &[f32], watch: &mut Watch<'_>) -> Vec<f32> {
        let mut outputs = Vec::with_capacity(inputs.len());
        for part in inputs.chunks(TOKENS * self.up.site.in_features) {
            watch.see(&self.up.site, part);
            let mut wide = self.up.apply(part);
            match &self.gate {
                Some(gate) => {
                    let mut gates = gate.apply(part);
                    let step = |gates: &mut [f32], wide: &mut [f32]| {
                        self.activation.apply(gates);
                        multiply(wide, gates);
                    };
                    if wide.len() <= ELEMENTS {
                        step(&mut gates, &mut wide);
                    } else {
                        gates
                            .par_chunks_mut(ELEMENTS)
                            .zip(wide.par_chunks_mut(ELEMENTS))
                            .for_each(|(gates, wide)| step(gates, wide));
                    }
                }
                None if wide.len() <= ELEMENTS => self.activation.apply(&mut wide),
                None => wide.par_chunks_mut(ELEMENTS).for_each(|part| self.activation.apply(part)),
            }
            watch.see(&self.down.site, &wide);
            outputs.extend(self.down.apply(&wide));
        }
        outputs
    }
}

/// The feed-forward half with its weights.
pub(crate) enum FeedForward {
    Dense(Dense),
    ChannelMix(ChannelMix),
    Experts {
        router: Linear,
        experts: Vec<Dense>,
        shared: Option<(Dense, Linear)>,
        experts_per_token: usize,
        is_normalized: bool,
    },
}

impl FeedForward {
    pub(crate) fn load(
        plan: &FeedForwardPlan,
        activation: Activation,
        source: &dyn TensorSource,
        operators: &OperatorLookup<'_>,
    ) -> Result<Self, LmError> {
        let dense = |plan: &DensePlan| Dense::load(plan, activation, source, operators);
        Ok(match plan {
            FeedForwardPlan::Dense(plan) => Self::Dense(dense(plan)?),
            FeedForwardPlan::ChannelMix(plan) => Self::ChannelMix(ChannelMix::load(plan, source, operators)?),
            FeedForwardPlan::Experts { router, experts, shared, experts_per_token, is_normalized } => {
                Self::Experts {
                    router: Linear::load(router, source, operators)?,
                    experts: experts.iter().map(dense).collect::<Result<_, _>>()?,
                    shared: match shared {
                        Some((plan, gate)) => Some((dense(plan)?, Linear::load(gate, source, operators)?)),
                        None => None,
                    },
                    experts_per_token: *experts_per_token,
                    is_normalized: *is_normalized,
                }
            }
        })
    }

    pub(crate) fn for_each_linear(&self, show: &mut dyn FnMut(&Linear)) {
        match self {
            Self::Dense(network) => network.for_each_linear(show),
            Self::ChannelMix(network) => network.for_each_linear(show),
            Self::Experts { router, experts, shared, .. } => {
                show(router);
                experts.iter().for_each(|network| network.for_each_linear(show));
                if let Some((network, gate)) = shared {
                    network.for_each_linear(show);
                    show(gate);
                }
            }
        }
    }

    /// From normalised rows to what is added to the residual stream.
    pub(crate) fn forward(
        &self,
        inputs: &[f32],
        hidden: &Hidden,
        index: usize,
        caches: Option<&mut [Cache]>,
        watch: &mut Watch<'_>,
    ) -> Vec<f32> {
        match self {
            Self::Dense(network) => network.forward(inputs, watch),
            Self::ChannelMix(network) => network.forward(inputs, hidden, index, caches, watch),
            Self::Experts { router, experts, shared, experts_per_token, is_normalized } => {
                watch.see(&router.site, inputs);
                let width = router.site.in_features;
                let routes = route(&router.apply(inputs), experts.len(), *experts_per_token, *is_normalized);
                let mut outputs = vec![0.0; inputs.len()];
                for (expert, network) in experts.iter().enumerate() {
                    let chosen: Vec<(usize, f32)> = routes
                        .iter()
                        .filter(|route| route.expert == expert)
                        .map(|route| (route.token, route.weight))
                        .collect();
                    if chosen.is_empty() {
                        continue;
                    }
                    let rows: Vec<f32> = chosen
                        .iter()
                        .flat_map(|&(token, _)| &inputs[token * width..][..width])
                        .copied()
                        .collect();
                    let answers = network.forward(&rows, watch);
                    for ((token, weight), answer) in chosen.into_iter().zip(answers.chunks_exact(width)) {
                        let row = &mut outputs[token * width..][..width];
                        row.iter_mut().zip(answer).for_each(|(sum, x)| *sum += weight * x);
                    }
                }
                if let Some((network, gate)) = shared {
                    // The router has shown these rows already; the watcher gets them once.
                    let mut answers = network.forward_unseen(inputs, watch);
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
    }
}

impl Dense {
    /// As `forward`, but only the inner activations are shown: somebody else showed the inputs.
    fn forward_unseen(&self, inputs: &[f32], watch: &mut Watch<'_>) -> Vec<f32> {
        struct Inner<'a, 'b>(&'a str, &'a mut Watch<'b>);
        impl crate::site::Observer for Inner<'_, '_> {
            fn observe(&mut self, input: &str, features: usize, rows: &[f32]) {
                if input != self.0
                    && let Some(observer) = &mut self.1.0
                {
                    observer.observe(input, features, rows);
                }
            }
        }
        let mut inner = Inner(&self.up.site.input, watch);
        self.forward(inputs, &mut Watch(Some(&mut inner)))
    }
}

struct Route {
    token: usize,
    expert: usize,
    weight: f32,
}

/// Chooses the most probable experts of every token; ties go to the lower index.
fn route(logits: &[f32], n_experts: usize, experts_per_token: usize, is_normalized: bool) -> Vec<Route> {
    let mut routes = Vec::new();
    for (token, logits) in logits.chunks_exact(n_experts).enumerate() {
        let mut probabilities = logits.to_vec();
        softmax(&mut probabilities);
        let mut order: Vec<usize> = (0..n_experts).collect();
        order.sort_by(|&a, &b| probabilities[b].total_cmp(&probabilities[a]).then(a.cmp(&b)));
        order.truncate(experts_per_token);
        let sum: f32 = if is_normalized { order.iter().map(|&e| probabilities[e]).sum() } else { 1.0 };
        routes.extend(order.into_iter().map(|expert| Route {
            token,
            expert,
            weight: probabilities[expert] / sum,
        }));
    }
    routes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn routing_takes_the_best_and_normalises() {
        let routes = route(&[0.0, 2.0, 1.0, 2.0], 4, 2, true);
        assert_eq!(routes.iter().map(|r| r.expert).collect::<Vec<_>>(), [1, 3]);
        assert!((routes[0].weight - 0.5).abs() < 1e-6);
        let plain = route(&[0.0, 0.0], 2, 1, false);
        assert!((plain[0].weight - 0.5).abs() < 1e-6 && plain[0].expert == 0);
    }
}
