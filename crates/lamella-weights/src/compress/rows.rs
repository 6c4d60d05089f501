//! Rows with a finer form, chosen over all arrays whose recipe asks for it (`mixllm`).

use std::sync::Arc;

use lamella_codec::Progress;
use lamella_lm::LinearSite;
use lamella_rate::{FeatureScores, TopBudget, global_top};

use super::{CompressError, Job};
use crate::mixllm::salience::{SalienceError, row_scores, spread, top_rows};
use crate::systems::mixllm::{Choice, MixLlm, NAME};

impl Job<'_> {
    /// Ranks the rows of all targets of one `mixllm` recipe together, by the gradients of the original model on the
    /// calibration text, and hands each its own; without gradients (which is warned of) each chooses for itself.
    pub(super) fn choose_rows(&mut self, progress: &dyn Progress) -> Result<(), CompressError> {
        let mut recipes: Vec<(MixLlm, Vec<usize>)> = Vec::new();
        for target in 0..self.targets.len() {
            let treatment = self.treatment(target);
            let is_linear = treatment.site.as_ref().is_some_and(|site| !site.is_transposed);
            if treatment.codec.recipe().name() != NAME || !is_linear {
                continue;
            }
            let codec = MixLlm::from_recipe(treatment.codec.recipe())?;
            if codec.choice == Choice::Random || codec.share <= 0.0 || codec.share >= 1.0 {
                continue;
            }
            match recipes.iter_mut().find(|(known, _)| known.is_same(&codec)) {
                Some((_, targets)) => targets.push(target),
                None => recipes.push((codec, vec![target])),
            }
        }
        for (codec, targets) in recipes {
            self.choose_rows_of(&codec, &targets, progress)?;
        }
        Ok(())
    }

    fn choose_rows_of(
        &mut self,
        codec: &MixLlm,
        targets: &[usize],
        progress: &dyn Progress,
    ) -> Result<(), CompressError> {
        let input = self.input;
        let (Some(model), Some(calibration)) = (&input.model, &self.calibration) else { return Ok(()) };
        let samples = spread(&calibration.sequences, codec.samples);
        let sites: Vec<&LinearSite> =
            targets.iter().filter_map(|&target| self.treatment(target).site.as_ref()).collect();
        let source = &*input.directory;
        let found = row_scores(&model.network, source, &sites, &samples, codec.group_size, progress);
        let scores = match found {
            Ok(scores) => scores,
            Err(SalienceError::Interrupted(interrupted)) => return Err(interrupted.into()),
            Err(error) => {
                let recipe = codec.recipe_text();
                let message =
                    format!("`{recipe}`: each array chooses its own rows, by output error: {error}");
                self.warn(progress, message);
                return Ok(());
            }
        };
        let scored: Vec<(usize, &Vec<f64>)> = targets
            .iter()
            .filter_map(|&target| Some((target, scores.get(&self.treatment(target).spec.name)?)))
            .collect();
        let chosen: Vec<Vec<bool>> = match codec.choice {
            Choice::Global => {
                let features: Vec<FeatureScores<'_>> = scored
                    .iter()
                    .map(|&(target, scores)| FeatureScores {
                        name: &self.treatment(target).spec.name,
                        scores,
                        extra_bytes: 0,
                    })
                    .collect();
                let rows = features.iter().map(|array| array.scores.len()).sum();
                global_top(&features, TopBudget::Count(codec.count(rows)))?
            }
            _ => scored.iter().map(|(_, scores)| top_rows(scores, codec.count(scores.len()))).collect(),
        };
        let of_target: Vec<usize> = scored.iter().map(|&(target, _)| target).collect();
        for (target, rows) in of_target.into_iter().zip(chosen) {
            let codec = Arc::new(codec.with_rows(rows));
            let stored = lamella_codec::Codec::stored_bytes(&*codec, &self.targets[target].spec);
            if let Some(bytes) = stored {
                self.predicted_bytes[target] = bytes as f64;
            }
            let member = self.targets[target].members[0];
            self.treatments[member].codec = codec;
        }
        Ok(())
    }
}
