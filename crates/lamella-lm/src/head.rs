//! What follows the last block of a decoder: a norm and the projection to the vocabulary.

use std::ops::Range;

use lamella_codec::TensorSource;

use crate::LmError;
use crate::config::TransformerConfig;
use crate::embedding::Table;
use crate::hidden::Hidden;
use crate::linear::{Linear, OperatorLookup};
use crate::norm::Norm;
use crate::plan::TransformerPlan;
use crate::site::Watch;

/// The last norm and the projection to the vocabulary; encoders have neither.
pub(crate) struct Head {
    norm: Option<Norm>,
    pub(crate) linear: Option<Linear>,
}

impl Head {
    /// `tied` is the table that the projection shares, where it is in memory already.
    pub(crate) fn load(
        plan: &TransformerPlan,
        config: &TransformerConfig,
        tied: Option<&Table<'static>>,
        source: &dyn TensorSource,
        operators: &OperatorLookup<'_>,
    ) -> Result<Self, LmError> {
        let linear = match (&plan.head, tied) {
            (None, _) => None,
            (Some(site), Some(Table::Resident(numbers))) => {
                Some(Linear::from_dense(site.clone(), numbers.clone()))
            }
            (Some(site), Some(Table::Coded(operator))) => {
                Some(Linear::from_coded(site.clone(), operator.clone()))
            }
            (Some(site), _) => Some(Linear::load(site, source, operators)?),
        };
        Ok(Self { norm: Self::load_norm(plan, config, source)?, linear })
    }

    pub(crate) fn load_norm(
        plan: &TransformerPlan,
        config: &TransformerConfig,
        source: &dyn TensorSource,
    ) -> Result<Option<Norm>, LmError> {
        let load = |plan| Norm::load(plan, config.norm, config.norm_epsilon, config.hidden_size, source);
        plan.final_norm.as_ref().map(load).transpose()
    }

    /// Logits after the tokens of a range, `None` without a projection.
    pub(crate) fn logits(
        &self,
        hidden: &Hidden,
        range: Range<usize>,
        watch: &mut Watch<'_>,
    ) -> Option<Vec<f32>> {
        let linear = self.linear.as_ref()?;
        let rows = normed(self.norm.as_ref(), hidden, range);
        watch.see(&linear.site, &rows);
        Some(linear.apply(&rows))
    }
}

/// Normalised rows of a range, or of the part of it that exists.
pub(crate) fn normed(norm: Option<&Norm>, hidden: &Hidden, range: Range<usize>) -> Vec<f32> {
    let end = range.end.min(hidden.n_tokens());
    let start = range.start.min(end);
    let mut rows = hidden.values[start * hidden.hidden_size..end * hidden.hidden_size].to_vec();
    if let Some(norm) = norm {
        norm.rows(&mut rows);
    }
    rows
}
