//! The test-suite that every registered recipe inherits.
//!
//! A codec's own tests show what is special about it. What must hold for *all* codecs is here, once, as laws;
//! a wing's `tests/every_system.rs` runs them for each recipe it registers, so a new one gets them free:
//!
//! ```
//! use lamella_codec::Catalogue;
//! use lamella_codec::suite::{Cases, Violation, check_recipe};
//!
//! fn every_recipe_keeps_the_laws(catalogue: &Catalogue) -> Result<(), Violation> {
//!     check_recipe(catalogue, "exact", &Cases::exact())?;
//!     for recipe in ["rtn(bits=2)", "rtn(bits=4, group_size=32)"] {
//!         check_recipe(catalogue, recipe, &Cases::default())?;
//!     }
//!     Ok(())
//! }
//! ```
//!
//! | law | what it says |
//! |---|---|
//! | `recipe` | the codec's recipe text reads back as the same recipe |
//! | `accepts` | some matrix is accepted; what is not, encoding refuses with `Refused` or `Array`, not otherwise |
//! | `round trip` | decoding has the spec asked for and finite values; exact codecs return the same bytes |
//! | `error` | the weighted squared error is within the bound and is what the layer reports |
//! | `zeros` | an array of zeros returns as zeros |
//! | `layers` | each prefix of the layers decodes, none worse than a shorter one; no layer at all is an error |
//! | `estimate` | one point per rate, finite, the same when asked again |
//! | `threads` | one and four threads write the same bytes and read the same array |
//! | `non-finite` | the error names the first NaN or infinity (exact codecs keep it) |
//! | `extremes` | constant, huge and subnormal values: a finite array or an error |
//! | `knowledge` | a second moment of the wrong dimension is no panic |
//! | `execution` | a linear that runs from its codes has the decoded matrix's rows and products |
//! | `cut`, `longer` | a payload cut at any byte, or with a byte more, is an error |
//! | `bit flips` | an error, or an array of the spec asked for; the same of a linear made from the codes |
//! | `wrong spec` | another number of elements (and bytes) is an error, also where no memory would hold it |
//!
//! A panic anywhere is a failure of the test that runs the suite. Arrays are synthetic and the same on every
//! run: Gaussian with a few outliers, correlated inputs, one input that is always zero.

mod execution;
mod hostile;
mod laws;
mod synthetic;
#[cfg(test)]
mod tests;

pub use execution::check_product;

use crate::{Catalogue, Codec, Dtype, Rate, Recipe};

/// What the suite runs a codec on, and what it asks of it.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Cases {
    /// Shapes of the arrays; those that the codec does not accept are checked to be refused.
    pub shapes: Vec<Vec<usize>>,
    /// Element types.
    pub dtypes: Vec<Dtype>,
    /// Rates, used where the codec has a free rate; otherwise [`Rate::Recipe`] is.
    pub rates: Vec<Rate>,
    /// Whether arrays must return bit by bit.
    pub is_exact: bool,
    /// Largest distortion allowed, as a share of what storing nothing would cause.
    pub max_relative_distortion: f64,
    /// How far, relatively, a reported distortion may be from the measured one.
    pub distortion_tolerance: f64,
    /// How far products from codes may be from the decoded matrix's, see [`check_product`].
    pub execution_tolerance: f32,
}

impl Default for Cases {
    fn default() -> Self {
        let matrices = [[24, 40], [5, 3], [1, 64], [64, 1], [1, 1], [0, 16], [16, 0]];
        let mut shapes: Vec<Vec<usize>> = matrices.map(Vec::from).into();
        shapes.extend([vec![], vec![0], vec![7], vec![2, 3, 4]]);
        Self {
            shapes,
            dtypes: vec![Dtype::F32, Dtype::F16, Dtype::BF16],
            rates: vec![Rate::Step(0.05), Rate::Step(0.5)],
            is_exact: false,
            max_relative_distortion: 1.0,
            distortion_tolerance: 0.05,
            execution_tolerance: 1e-5,
        }
    }
}

impl Cases {
    /// For codecs that return the same bytes, whatever the element type.
    pub fn exact() -> Self {
        let dtypes =
            vec![Dtype::F32, Dtype::BF16, Dtype::F64, Dtype::F8E4M3, Dtype::I8, Dtype::I64, Dtype::Bool];
        Self { is_exact: true, max_relative_distortion: 0.0, dtypes, ..Self::default() }
    }
    /// Asks for a distortion of at most `share` of what storing nothing would cause.
    pub fn with_max_relative_distortion(mut self, share: f64) -> Self {
        self.max_relative_distortion = share;
        self
    }
    /// Allows for activations that are rounded on the way.
    pub fn with_execution_tolerance(mut self, tolerance: f32) -> Self {
        self.execution_tolerance = tolerance;
        self
    }
    /// Runs free-rate codecs at `rates`.
    pub fn with_rates(mut self, rates: Vec<Rate>) -> Self {
        self.rates = rates;
        self
    }
}

/// What a run of the suite covered.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Checked {
    /// Arrays encoded and decoded.
    pub n_arrays: usize,
    /// Damaged payloads or specs handed to the decoder.
    pub n_damaged: usize,
    /// Arrays the codec refused, as it said it would.
    pub n_refused: usize,
    /// Linears that ran from their codes.
    pub n_executed: usize,
}

/// A law that a codec breaks.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{recipe}` breaks the law `{law}` on {case}: {message}")]
#[non_exhaustive]
pub struct Violation {
    /// Recipe of the codec.
    pub recipe: String,
    /// Name of the law, as in the table of [this module](self).
    pub law: &'static str,
    /// Array, rate and what was done to it.
    pub case: String,
    /// What was found.
    pub message: String,
}

/// Checks every law on every case.
///
/// # Errors
/// The first law broken.
pub fn check(codec: &dyn Codec, cases: &Cases) -> Result<Checked, Violation> {
    let mut run = Run { codec, cases, checked: Checked::default() };
    run.recipe()?;
    run.arrays()?;
    run.extremes()?;
    run.non_finite()?;
    run.knowledge()?;
    run.threads()?;
    run.execution()?;
    run.damaged()?;
    Ok(run.checked)
}

/// Builds the codec a recipe names and checks it, and that a codec built from the *stored* recipe
/// ([`Codec::recipe`], as files keep it) decodes the same.
///
/// # Errors
/// A recipe that names no codec, or the first law broken.
pub fn check_recipe(catalogue: &Catalogue, recipe: &str, cases: &Cases) -> Result<Checked, Violation> {
    let build = |text: &str, case: &str| {
        let broken = |message: String| Violation {
            recipe: text.to_owned(),
            law: "recipe",
            case: case.to_owned(),
            message,
        };
        let recipe: Recipe = text.parse().map_err(|error: crate::RecipeError| broken(error.to_string()))?;
        catalogue.codec(&recipe).map_err(|error| broken(error.to_string()))
    };
    let codec = build(recipe, "the recipe given")?;
    let stored = build(&codec.recipe().to_string(), "the recipe files keep")?;
    Run { codec: &*codec, cases, checked: Checked::default() }.decodes_as(&*stored)?;
    check(&*codec, cases)
}

/// One run of the suite.
struct Run<'a> {
    codec: &'a dyn Codec,
    cases: &'a Cases,
    checked: Checked,
}

impl Run<'_> {
    fn rates(&self) -> Vec<Rate> {
        if self.codec.has_free_rate() { self.cases.rates.clone() } else { vec![Rate::Recipe] }
    }
    fn broken(&self, law: &'static str, case: impl ToString, message: impl ToString) -> Violation {
        Violation {
            recipe: self.codec.recipe().to_string(),
            law,
            case: case.to_string(),
            message: message.to_string(),
        }
    }
}
