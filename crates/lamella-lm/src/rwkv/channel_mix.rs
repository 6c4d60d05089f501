//! RWKV's feed-forward network.

use lamella_codec::TensorSource;

use super::{mixed, shifted};
use crate::LmError;
use crate::elementwise::{map, multiply, sigmoid};
use crate::hidden::Hidden;
use crate::kv_cache::Cache;
use crate::linear::{Linear, OperatorLookup};
use crate::plan::Needed;
use crate::site::{LinearSite, Role, SiteMaker, Watch};

/// Arrays of a channel mix.
#[derive(Debug, Clone)]
pub(crate) struct ChannelMixPlan {
    pub(crate) key: LinearSite,
    pub(crate) value: LinearSite,
    pub(crate) receptance: Option<LinearSite>,
    mu_key: String,
    mu_receptance: Option<String>,
    version: u8,
}

impl ChannelMixPlan {
    /// `site(module, input, (in, out), role)` names a linear of this block; `base` is the block with a dot.
    pub(crate) fn new(
        version: u8,
        base: &str,
        (hidden, intermediate): (usize, usize),
        site: &SiteMaker<'_>,
    ) -> Self {
        let mu = |letter: char| match version {
            7 => format!("{base}ffn.x_{letter}"),
            6 => format!("{base}ffn.time_maa_{letter}"),
            _ => format!("{base}ffn.time_mix_{letter}"),
        };
        let has_receptance = version < 7;
        Self {
            key: site("ffn.key.weight", "channel_mix_key_input", (hidden, intermediate), Role::Up),
            value: site("ffn.value.weight", "channel_mix_value_input", (intermediate, hidden), Role::Down),
            receptance: has_receptance.then(|| {
                let input = "channel_mix_receptance_input";
                site("ffn.receptance.weight", input, (hidden, hidden), Role::Receptance)
            }),
            mu_key: mu('k'),
            mu_receptance: has_receptance.then(|| mu('r')),
            version,
        }
    }

    pub(crate) fn sites(&self) -> impl Iterator<Item = &LinearSite> {
        self.receptance.iter().chain([&self.key, &self.value])
    }

    pub(crate) fn others(&self) -> Vec<Needed> {
        let names = [Some(&self.mu_key), self.mu_receptance.as_ref()];
        names.into_iter().flatten().map(|name| (name.clone(), vec![self.key.in_features])).collect()
    }
}

/// `sigmoid(receptance x_r) * value(relu(key x_k)^2)`; version 7 has no receptance.
pub(crate) struct ChannelMix {
    key: Linear,
    value: Linear,
    receptance: Option<(Linear, Vec<f32>)>,
    mu_key: Vec<f32>,
}

impl ChannelMix {
    pub(crate) fn load(
        plan: &ChannelMixPlan,
        source: &dyn TensorSource,
        operators: &OperatorLookup<'_>,
    ) -> Result<Self, LmError> {
        let mu = |name: &String| super::time_mix::read_mu(source, name, plan.key.in_features, plan.version);
        let receptance = match (&plan.receptance, &plan.mu_receptance) {
            (Some(site), Some(name)) => Some((Linear::load(site, source, operators)?, mu(name)?)),
            _ => None,
        };
        Ok(Self {
            key: Linear::load(&plan.key, source, operators)?,
            value: Linear::load(&plan.value, source, operators)?,
            receptance,
            mu_key: mu(&plan.mu_key)?,
        })
    }

    pub(crate) fn for_each_linear(&self, show: &mut dyn FnMut(&Linear)) {
        let receptance = self.receptance.iter().map(|(linear, _)| linear);
        receptance.chain([&self.key, &self.value]).for_each(show);
    }

    pub(crate) fn forward(
        &self,
        inputs: &[f32],
        hidden: &Hidden,
        index: usize,
        caches: Option<&mut [Cache]>,
        watch: &mut Watch<'_>,
    ) -> Vec<f32> {
        let differences = shifted(inputs, hidden, index, caches, |state| &mut state.channel_shift);
        let rows = mixed(inputs, &differences, &self.mu_key);
        watch.see(&self.key.site, &rows);
        let mut wide = self.key.apply(&rows);
        map(&mut wide, |x| x.max(0.0) * x.max(0.0));
        watch.see(&self.value.site, &wide);
        let mut outputs = self.value.apply(&wide);
        if let Some((receptance, mu)) = &self.receptance {
            let rows = mixed(inputs, &differences, mu);
            watch.see(&receptance.site, &rows);
            let mut gates = receptance.apply(&rows);
            map(&mut gates, sigmoid);
            multiply(&mut outputs, &gates);
        }
        outputs
    }
}
