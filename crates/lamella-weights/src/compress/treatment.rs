//! Which recipe each array gets, and why.

use std::collections::BTreeMap;
use std::sync::Arc;

use globset::{Glob, GlobMatcher};
use lamella_codec::{ArraySpec, Catalogue, Codec, Recipe, TensorSource};
use lamella_lm::{LinearSite, Role};

use super::{CompressError, Input};

/// Exact arrays of at most this many bytes share one payload.
const BUNDLED_BYTES: usize = 16 << 10;
/// Arrays smaller than this are not worth a look for a twin.
const SMALLEST_TWIN_BYTES: usize = 4096;
/// Matrices with the same inputs are stacked up to so many weights: beyond, what they share is small beside them, and
/// whole stacks are read to get at one of them.
const STACKED_WEIGHTS: usize = 16 << 20;

/// `--rule GLOB=RECIPE`.
#[derive(Debug, Clone)]
pub struct Rule {
    /// Pattern over whole array names.
    pub pattern: String,
    /// What matching arrays get.
    pub recipe: Recipe,
}

/// How an array is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// By itself.
    Own,
    /// With the other small exact arrays of its dtype, or stacked with those that have the same inputs. Bundles count
    /// in the order of their first arrays.
    Bundle(usize),
    /// As the array with this index, which has the same bytes.
    TwinOf(usize),
}

/// One array's treatment.
#[derive(Clone)]
pub struct Treatment {
    /// Name, shape, dtype.
    pub spec: ArraySpec,
    /// The codec.
    pub codec: Arc<dyn Codec>,
    /// Why this recipe, in words, where it is not simply the default.
    pub reason: String,
    /// How it is stored.
    pub place: Place,
    /// Where it stands in the network.
    pub site: Option<LinearSite>,
    /// Its own step over the step common to all arrays.
    pub step_ratio: f64,
}

impl Treatment {
    /// Whether [`lamella_codec::Rate::Step`] chooses its rate.
    pub fn is_free(&self) -> bool {
        !matches!(self.place, Place::TwinOf(_)) && self.codec.has_free_rate()
    }
    /// Whether it is a linear of a block: what `linear_bits_per_weight` counts.
    pub fn is_block_linear(&self) -> bool {
        self.site.as_ref().is_some_and(|site| site.block.is_some())
    }
}

/// The step of embeddings and heads over that of the blocks' linears. Their errors reach every token's prediction
/// directly: on a small language model with tied embeddings 0.28 was best of those tried (KL .1084 at 2.45 bits,
/// .1101 with 0.35, .1208 with 0.5).
const EMBEDDING_STEP_RATIO: f64 = 0.28;

/// Decides for every array. With `stacks`, arrays with the same inputs are stacked where their codec wants that: they
/// then have one step, so it is for plans that measure none.
///
/// # Errors
/// A pattern that is not a glob or matches nothing; a recipe without a codec; a rule whose recipe refuses an array.
pub fn treat(
    input: &Input,
    default: &Recipe,
    rules: &[Rule],
    stacks: bool,
    catalogue: &Catalogue,
) -> Result<Vec<Treatment>, CompressError> {
    let exact = catalogue.codec(&Recipe::new("exact"))?;
    let default = catalogue.codec(default)?;
    let rules = rules.iter().map(|rule| Matcher::new(rule, catalogue)).collect::<Result<Vec<_>, _>>()?;
    let specs = input.directory.arrays();
    for rule in &rules {
        if !specs.iter().any(|spec| rule.glob.is_match(&spec.name)) {
            let nearest =
                specs.iter().map(|spec| spec.name.as_str()).take(3).collect::<Vec<_>>().join("`, `");
            return Err(CompressError::PatternMatchesNothing {
                pattern: rule.pattern.clone(),
                examples: nearest,
            });
        }
    }
    let sites: BTreeMap<&str, &LinearSite> = input
        .model
        .iter()
        .flat_map(|model| model.network.linears())
        .map(|site| (site.weight.as_str(), site))
        .collect();
    let embeddings: Vec<String> = input.model.iter().flat_map(|model| model.network.embeddings()).collect();
    let mut treatments = Vec::with_capacity(specs.len());
    for spec in specs {
        let site = sites.get(spec.name.as_str()).map(|&site| site.clone());
        let ruled = rules.iter().rev().find(|rule| rule.glob.is_match(&spec.name));
        let (codec, reason) = match ruled {
            Some(rule) => {
                rule.codec.accepts(spec).map_err(|refusal| CompressError::RuleRefused {
                    array: spec.name.clone(),
                    recipe: rule.codec.recipe().to_string(),
                    refusal,
                })?;
                (&rule.codec, format!("rule `{}`", rule.pattern))
            }
            None => match default.accepts(spec) {
                Err(refusal) => (&exact, refusal.reason),
                Ok(()) if is_not_finite(&*input.directory, spec)? => {
                    (&exact, "holds values that are not finite".to_owned())
                }
                Ok(()) => (&default, String::new()),
            },
        };
        let is_head = site.as_ref().is_some_and(|site| site.role == Role::Head);
        let is_embedding = is_head || embeddings.contains(&spec.name);
        treatments.push(Treatment {
            spec: spec.clone(),
            codec: Arc::clone(codec),
            reason,
            place: Place::Own,
            site,
            step_ratio: if is_embedding { EMBEDDING_STEP_RATIO } else { 1.0 },
        });
    }
    find_twins(input, &mut treatments)?;
    bundle(&mut treatments, stacks);
    Ok(treatments)
}

fn is_not_finite(source: &dyn TensorSource, spec: &ArraySpec) -> Result<bool, CompressError> {
    let found = source.array(&spec.name)?.first_non_finite().is_some();
    source.release(&spec.name);
    Ok(found)
}

/// An array with the same shape, dtype, bytes and recipe as an earlier one is stored once.
fn find_twins(input: &Input, treatments: &mut [Treatment]) -> Result<(), CompressError> {
    for later in 0..treatments.len() {
        let spec = treatments[later].spec.clone();
        if spec.checked_size_bytes().unwrap_or(0) < SMALLEST_TWIN_BYTES {
            continue;
        }
        for earlier in 0..later {
            let other = &treatments[earlier];
            let is_alike = other.place == Place::Own
                && other.spec.shape == spec.shape
                && other.spec.dtype == spec.dtype
                && other.codec.recipe() == treatments[later].codec.recipe();
            if is_alike
                && input.directory.array(&other.spec.name)?.bytes == input.directory.array(&spec.name)?.bytes
            {
                treatments[later].reason = format!("the same numbers as `{}`", other.spec.name);
                treatments[later].place = Place::TwinOf(earlier);
                break;
            }
        }
    }
    Ok(())
}

/// What arrays share a payload by.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
enum Shared {
    /// Small exact arrays of a dtype.
    Exact(u8),
    /// Matrices of a dtype with the same inputs (of the same expert) and recipe.
    Inputs(u8, String, Option<usize>, String),
}

/// Small exact arrays share payloads, and matrices with the same inputs where their codec wants that; none for a single
/// array.
fn bundle(treatments: &mut [Treatment], stacks: bool) {
    let mut groups: BTreeMap<Shared, Vec<usize>> = BTreeMap::new();
    for (index, treatment) in treatments.iter().enumerate().filter(|(_, t)| t.place == Place::Own) {
        let dtype = treatment.spec.dtype.code();
        let is_small = treatment.spec.checked_size_bytes().is_some_and(|bytes| bytes <= BUNDLED_BYTES);
        let recipe = treatment.codec.recipe();
        if recipe.name() == "exact" && is_small {
            groups.entry(Shared::Exact(dtype)).or_default().push(index);
        } else if let Some(site) = &treatment.site
            && stacks
            && treatment.codec.stacks()
            && !site.is_transposed
            && site.block.is_some()
        {
            let shared = Shared::Inputs(dtype, site.input.clone(), site.expert, recipe.to_string());
            groups.entry(shared).or_default().push(index);
        }
    }
    let weights =
        |members: &[usize]| -> usize { members.iter().map(|&index| treatments[index].spec.len()).sum() };
    let is_shared = |shared: &Shared, members: &[usize]| match shared {
        Shared::Exact(_) => members.len() > 1,
        Shared::Inputs(..) => members.len() > 1 && weights(members) <= STACKED_WEIGHTS,
    };
    let found = groups.into_iter().filter(|(shared, members)| is_shared(shared, members));
    let mut groups: Vec<Vec<usize>> = found.map(|(_, members)| members).collect();
    groups.sort_unstable();
    for (number, members) in groups.into_iter().enumerate() {
        for index in members {
            treatments[index].place = Place::Bundle(number);
        }
    }
}

struct Matcher {
    pattern: String,
    glob: GlobMatcher,
    codec: Arc<dyn Codec>,
}

impl Matcher {
    fn new(rule: &Rule, catalogue: &Catalogue) -> Result<Self, CompressError> {
        let glob = Glob::new(&rule.pattern).map_err(|error| CompressError::BadPattern {
            pattern: rule.pattern.clone(),
            message: error.kind().to_string(),
        })?;
        Ok(Self {
            pattern: rule.pattern.clone(),
            glob: glob.compile_matcher(),
            codec: catalogue.codec(&rule.recipe)?,
        })
    }
}
