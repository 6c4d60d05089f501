//! What a compression reports.

use serde::Serialize;

use super::TuneReport;

/// One array's row.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ArrayRow {
    /// Name.
    pub name: String,
    /// Shape, slowest axis first.
    pub shape: Vec<usize>,
    /// Recipe text.
    pub recipe: String,
    /// Bytes of its layers (its share where a payload holds several arrays).
    pub bytes: u64,
    /// Bits per element.
    pub bits_per_weight: f64,
    /// Distortion predicted before coding, over that of storing nothing; 0 for exact arrays.
    pub predicted_loss: f64,
    /// Distortion measured after coding, over that of storing nothing; `None` in a plan.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub measured_loss: Option<f64>,
    /// Why this recipe, where it is not the default.
    pub reason: String,
}

/// The whole job, planned or done.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct CompressReport {
    /// Version of this form.
    pub schema: u32,
    /// Bytes of the file (predicted in a plan).
    pub bytes: u64,
    /// Bytes asked for; 0 where the recipe alone decided.
    pub target_bytes: u64,
    /// Bytes of the source's weight files.
    pub source_bytes: u64,
    /// Weights, tied ones once.
    pub weights: u64,
    /// All bytes but copied side files, over all weights.
    pub bits_per_weight: f64,
    /// Coded bytes of the blocks' linears over their weights.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub linear_bits_per_weight: Option<f64>,
    /// Seconds it took (in a plan: of the planning).
    pub seconds: f64,
    /// Default recipe.
    pub recipe: String,
    /// Text the statistics were taken of, and its tokens.
    pub calibration: String,
    /// Tokens of that text.
    pub calibration_tokens: u64,
    /// What tuning did, where it was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tune: Option<TuneReport>,
    /// Every array.
    pub arrays: Vec<ArrayRow>,
    /// Files of the source directory that do not travel, with the reason.
    pub left_out: Vec<String>,
    /// What the user should know.
    pub warnings: Vec<String>,
}
