//! The catalogue: every system, every codec, as one value.
//!
//! Each wing offers a plain list; the roof joins them ([`Catalogue::new`]) and hands the value down.

use std::path::PathBuf;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::{Codec, CodecError, Recipe, RecipeError};

/// A family of systems.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[allow(missing_docs, reason = "the variants are the wings of the house")]
pub enum Wing {
    Weights,
    Kv,
    Vectors,
    Gradients,
    Context,
    Audio,
    Image,
    Video,
    Space,
    Codes,
    Representation,
}

impl Wing {
    /// Every wing, in the order of the house.
    pub const ALL: [Self; 11] = [
        Self::Weights,
        Self::Kv,
        Self::Vectors,
        Self::Gradients,
        Self::Context,
        Self::Audio,
        Self::Image,
        Self::Video,
        Self::Space,
        Self::Codes,
        Self::Representation,
    ];
    /// The name in lists and on the command line: `weights`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Weights => "weights",
            Self::Kv => "kv",
            Self::Vectors => "vectors",
            Self::Gradients => "gradients",
            Self::Context => "context",
            Self::Audio => "audio",
            Self::Image => "image",
            Self::Video => "video",
            Self::Space => "space",
            Self::Codes => "codes",
            Self::Representation => "representation",
        }
    }
    /// The wing with this name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|wing| wing.name() == name)
    }
}

impl std::fmt::Display for Wing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// How much work a claim may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClaimSize {
    /// Seconds; what continuous integration runs.
    Quick,
    /// Minutes.
    Full,
}

/// What a claim may use.
#[derive(Debug, Clone)]
pub struct ClaimContext {
    /// Quick or full.
    pub size: ClaimSize,
    /// The project's own `assets` directory.
    pub assets: PathBuf,
    /// Directory of test data, where there is one.
    pub data: Option<PathBuf>,
    /// The catalogue itself, for baselines.
    pub catalogue: Arc<Catalogue>,
}

/// The answer of one claim: system against named baseline, measured in one run.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Claim {
    /// Catalogue id, `S056`.
    pub id: String,
    /// Short name, `SpQR`.
    pub name: String,
    /// Wing.
    pub wing: Wing,
    /// The promise in one sentence.
    pub claim: String,
    /// What is measured, with unit.
    pub metric: String,
    /// What it is compared with.
    pub baseline_name: String,
    /// The baseline's figure.
    pub baseline: f64,
    /// The system's figure.
    pub measured: f64,
    /// Whether the promise holds.
    pub holds: bool,
    /// Why, or why not.
    pub reason: String,
    /// Seconds the measurement took.
    pub seconds: f64,
}

/// Runs a claim.
pub type Measure = fn(&ClaimContext) -> Result<Claim, Box<dyn std::error::Error + Send + Sync>>;

/// One published system of the catalogue.
#[derive(Debug, Clone)]
pub struct System {
    /// Catalogue id, `S056`.
    pub id: &'static str,
    /// Short name.
    pub name: &'static str,
    /// Wing.
    pub wing: Wing,
    /// What it compresses, a few words.
    pub compresses: &'static str,
    /// The recipe that runs it, `None` while planned.
    pub recipe: Option<&'static str>,
    /// The measurable promise, `None` while planned.
    pub claim: Option<&'static str>,
    /// Measures the promise, `None` while planned.
    pub measure: Option<Measure>,
}

/// One codec that recipes can name.
#[derive(Clone, Copy)]
pub struct Registration {
    /// Name in recipes.
    pub name: &'static str,
    /// One line for help texts.
    pub summary: &'static str,
    /// Each argument: name, default, meaning with unit and range.
    pub arguments: &'static [(&'static str, &'static str, &'static str)],
    /// Builds the codec, checking every argument.
    pub build: fn(&Recipe) -> Result<Arc<dyn Codec>, CodecError>,
}

/// Why a recipe has no codec.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CatalogueError {
    /// No codec has this name.
    #[error("no codec is named `{name}`; known are {known}")]
    Unknown {
        /// Name asked for.
        name: String,
        /// Names there are.
        known: String,
    },
    /// The recipe chains parts, and no codec is registered that runs a chain.
    #[error("`{recipe}` chains parts with `|`; a codec stands alone, known are {known}")]
    Pipeline {
        /// Recipe text.
        recipe: String,
        /// Names there are.
        known: String,
    },
    /// An argument is given twice, once without its name.
    #[error(transparent)]
    Recipe(#[from] RecipeError),
    /// The codec refused its arguments.
    #[error(transparent)]
    Codec(#[from] CodecError),
}

/// Every system and every codec.
#[derive(Clone, Default)]
pub struct Catalogue {
    systems: Vec<System>,
    codecs: Vec<Registration>,
}

impl std::fmt::Debug for Catalogue {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Catalogue({} systems, {} codecs)", self.systems.len(), self.codecs.len())
    }
}

impl Catalogue {
    /// Joins the wings' lists; systems are sorted by id.
    pub fn new(mut systems: Vec<System>, codecs: Vec<Registration>) -> Self {
        systems.sort_by_key(|system| system.id);
        Self { systems, codecs }
    }
    /// Every system, by id.
    pub fn systems(&self) -> &[System] {
        &self.systems
    }
    /// The system with this id (`S056`, upper or lower case).
    pub fn system(&self, id: &str) -> Option<&System> {
        self.systems.iter().find(|system| system.id.eq_ignore_ascii_case(id))
    }
    /// Every codec.
    pub fn codecs(&self) -> &[Registration] {
        &self.codecs
    }
    /// The codec with this name in recipes.
    pub fn registration(&self, name: &str) -> Option<&Registration> {
        self.codecs.iter().find(|codec| codec.name == name)
    }
    /// Builds the codec a recipe names. An argument without a name is taken for the first one the codec declares.
    ///
    /// # Errors
    /// Unknown name, a chain of parts, arguments out of range.
    pub fn codec(&self, recipe: &Recipe) -> Result<Arc<dyn Codec>, CatalogueError> {
        let known = || self.codecs.iter().map(|codec| codec.name).collect::<Vec<_>>().join(", ");
        let Some(registration) = self.registration(recipe.name()) else {
            return Err(CatalogueError::Unknown { name: recipe.name().to_owned(), known: known() });
        };
        if recipe.is_pipeline() {
            return Err(CatalogueError::Pipeline { recipe: recipe.to_string(), known: known() });
        }
        Ok(match registration.arguments.first() {
            Some((first, _, _)) => (registration.build)(&recipe.clone().name_positional(first)?)?,
            None => (registration.build)(recipe)?,
        })
    }
}
