//! One of several recipes for each array: points of bytes and loss, measured one array at a time, and an allocator.
//!
//! A free-rate recipe offers its step at halves of an octave around the plan's: bytes from its measured curve, loss from
//! its measured sensitivity, which grows with the square of the step. Every other recipe is coded in full, decoded and
//! put into the otherwise original model; its bytes are exact. Measured points can be kept in a file, so that a plan
//! that was killed goes on and another budget measures nothing again.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;

use lamella_codec::{Catalogue, Progress, Rate, Recipe, TensorMap, TensorSource};
use lamella_lm::statistics::text_hash;
use lamella_rate::{Allocator, Offer, Problem, RatePoint};
use serde::{Deserialize, Serialize};

use super::measure::Bench;
use super::{CompressError, Job};

/// Octaves around the plan's step that free recipes offer, in halves.
const HALF_OCTAVES: std::ops::RangeInclusive<i32> = -6..=4;

/// What was chosen: a recipe or a step for each array that has a choice.
#[derive(Debug, Clone, PartialEq)]
pub struct Choice {
    /// The arrays that leave the default recipe, by name.
    pub recipes: BTreeMap<String, Recipe>,
    /// Steps over the common one of the arrays that keep it.
    pub steps: BTreeMap<String, f64>,
    /// Bytes of the chosen points.
    pub bytes: u64,
    /// Sum of their losses.
    pub loss: f64,
}

/// One measured point, as the file of points keeps it: a line of JSON.
#[derive(Debug, Serialize, Deserialize)]
struct Kept {
    key: String,
    bytes: u64,
    loss: f64,
}

/// Points known from earlier runs, and the file that new ones are added to.
struct Points {
    known: BTreeMap<String, RatePoint>,
    file: Option<fs_err::File>,
}

impl Points {
    /// Reads a file of points; a line cut short by a kill is passed over.
    fn open(path: Option<&Path>) -> Result<Self, CompressError> {
        let mut known = BTreeMap::new();
        let Some(path) = path else { return Ok(Self { known, file: None }) };
        let text = if path.exists() { fs_err::read_to_string(path)? } else { String::new() };
        for kept in text.lines().filter_map(|line| serde_json::from_str::<Kept>(line).ok()) {
            known.insert(kept.key, RatePoint { bytes: kept.bytes, loss: kept.loss });
        }
        let mut file = fs_err::OpenOptions::new().create(true).append(true).open(path)?;
        if !text.is_empty() && !text.ends_with('\n') {
            file.write_all(b"\n")?;
        }
        Ok(Self { known, file: Some(file) })
    }

    fn add(&mut self, key: String, point: RatePoint) -> Result<(), CompressError> {
        if let Some(file) = &mut self.file {
            let kept = Kept { key: key.clone(), bytes: point.bytes, loss: point.loss };
            let line = serde_json::to_string(&kept).map_err(std::io::Error::from)?;
            file.write_all(format!("{line}\n").as_bytes())?;
        }
        self.known.insert(key, point);
        Ok(())
    }
}

impl Job<'_> {
    /// Chooses for each free array between its own recipe at several steps and the candidates, within the plan's
    /// budget. Tied arrays take the same point. With `points`, measured points are read from and added to that file,
    /// by a hash of model, text, array and recipe.
    ///
    /// # Errors
    /// A plan without measured sensitivities; recipes without a codec; budgets below the smallest points.
    pub fn choose(
        &self,
        candidates: &[Recipe],
        catalogue: &Catalogue,
        allocator: &dyn Allocator,
        points: Option<&Path>,
        progress: &dyn Progress,
    ) -> Result<Choice, CompressError> {
        let nothing = |reason: &str| CompressError::NothingMeasured { reason: reason.to_owned() };
        let known = self.sensitivities.as_ref();
        let known = known.ok_or_else(|| {
            nothing("sensitivities were not measured (that needs a budget, a known architecture and a text)")
        })?;
        let model = self.input.model.as_ref().ok_or_else(|| nothing("the architecture is not known"))?;
        let bench = self.bench(model, known.tokens)?;
        let text = self.request.calibration.fingerprint(self.input)?;
        let prefix = format!("{} {text} {}", self.input.content_hash()?, bench.tokens());
        let mut kept = Points::open(points)?;
        let codecs =
            candidates.iter().map(|recipe| catalogue.codec(recipe)).collect::<Result<Vec<_>, _>>()?;
        let targets: Vec<usize> =
            self.free_targets().into_iter().filter(|target| known.losses.contains_key(target)).collect();
        let total = (targets.len() * codecs.len()) as u64;
        let mut offers = Vec::with_capacity(targets.len());
        let mut meanings: Vec<Vec<Option<usize>>> = Vec::with_capacity(targets.len());
        for (done, &target) in targets.iter().enumerate() {
            let spec = &self.targets[target].spec;
            let (mut offer, mut meaning) = (Vec::new(), Vec::new());
            for half in HALF_OCTAVES {
                let log2_step = self.log2_step + 0.5 * f64::from(half);
                let bytes =
                    self.curves.get(&target).map_or(0.0, |curve| curve.bytes(log2_step)).ceil() as u64;
                let own = log2_step + self.treatment(target).step_ratio.log2();
                offer.push(RatePoint { bytes, loss: self.model_loss(target, own).unwrap_or(0.0) });
                meaning.push(None);
            }
            for (index, codec) in codecs.iter().enumerate() {
                progress.check()?;
                progress.advance("measure points", (done * codecs.len() + index) as u64, total, &spec.name);
                if codec.accepts(spec).is_err() {
                    continue;
                }
                let key = text_hash(&format!("{prefix} {} {}", spec.name, codec.recipe()));
                let point = match kept.known.get(&key).copied() {
                    Some(point) => point,
                    None => {
                        let point = self.point(target, &**codec, &bench)?;
                        kept.add(key, point)?;
                        point
                    }
                };
                offer.push(point);
                meaning.push(Some(index));
            }
            offers.push(Offer::new(spec.name.clone(), offer));
            meanings.push(meaning);
        }
        let mut problem = Problem::new(offers)?;
        for tied in self.ties()? {
            let at = |target: &usize| targets.iter().position(|known| known == target);
            problem = problem.tied(&tied.iter().filter_map(at).collect::<Vec<_>>())?;
        }
        let rest: f64 = (self.free_targets().iter().filter(|target| !targets.contains(target)))
            .map(|&target| self.predicted_bytes[target])
            .sum();
        // Tables and manifest grow a little with more recipes.
        let budget = ((self.allowed()? * 0.998 - rest).max(0.0)) as u64;
        let found = allocator.allocate(&problem, budget)?;
        let mut choice =
            Choice { recipes: BTreeMap::new(), steps: BTreeMap::new(), bytes: found.bytes, loss: found.loss };
        for ((&target, meaning), &picked) in targets.iter().zip(&meanings).zip(&found.choices) {
            for name in self.names(target) {
                match meaning[picked] {
                    Some(index) => {
                        choice.recipes.insert(name.to_owned(), candidates[index].clone());
                    }
                    None => {
                        let half = HALF_OCTAVES.start() + picked as i32;
                        let ratio = self.treatment(target).step_ratio * (0.5 * f64::from(half)).exp2();
                        choice.steps.insert(name.to_owned(), ratio);
                    }
                }
            }
        }
        Ok(choice)
    }

    /// A target coded by another recipe: its bytes and the loss of the model with it alone.
    fn point(
        &self,
        target: usize,
        codec: &dyn lamella_codec::Codec,
        bench: &Bench<'_>,
    ) -> Result<RatePoint, CompressError> {
        let mut decoded = TensorMap::default();
        let bytes = self.code_into(&mut decoded, target, codec, Rate::Recipe)?;
        let own = self.array(target)?;
        let is_same = decoded.array(&own.spec.name).is_ok_and(|array| array.bytes == own.bytes);
        self.release(target);
        if is_same {
            return Ok(RatePoint { bytes, loss: 0.0 });
        }
        let model = self.input.model.as_ref().ok_or(CompressError::NoTokenizer)?;
        let embeddings = model.network.embeddings();
        let embeds = self.names(target).any(|name| embeddings.iter().any(|known| known == name));
        let block = self.treatment(target).site.as_ref().and_then(|site| site.block);
        let from = if embeds { 0 } else { block.unwrap_or(model.network.n_blocks()) };
        Ok(RatePoint { bytes, loss: bench.loss(&decoded, from, embeds)? })
    }
}
