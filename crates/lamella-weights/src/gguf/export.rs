//! The whole GGUF file of a model.

use std::collections::BTreeMap;
use std::path::PathBuf;

use globset::GlobBuilder;
use half::{bf16, f16};
use lamella_codec::{ArrayError, Dtype, Interrupted, Progress, SourceError};
use lamella_io::{GgmlType, GgufField, GgufPlan, GgufSource, GgufTensor, GgufWriteError, GgufWriter};
use lamella_lm::Model;
use lamella_lm::statistics::{Statistics, StatisticsError};
use serde::Serialize;

use super::solve::quantize;

/// Types that a tensor whose rows are no whole blocks falls back to, smallest first.
const FALL_BACK: [(GgmlType, u32); 3] = [(GgmlType::Q4_0, 4), (GgmlType::Q5_0, 5), (GgmlType::Q8_0, 8)];

/// A type for some tensors.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TypeRule {
    /// Glob over whole array names, Hugging Face's or GGUF's.
    pub pattern: String,
    /// The type.
    pub kind: GgmlType,
}

/// What to write.
#[derive(Debug, Clone)]
pub struct Export {
    /// Where the file goes.
    pub output: PathBuf,
    /// `general.name`.
    pub name: String,
    /// Type of every matrix; `None` keeps what the source has.
    pub kind: Option<GgmlType>,
    /// Types of some tensors; a later rule wins.
    pub rules: Vec<TypeRule>,
    /// Plan only: no file is written.
    pub dry_run: bool,
}

/// What became of a tensor.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct TensorRow {
    /// GGUF's name.
    pub name: String,
    /// Extents, slowest first.
    pub shape: Vec<usize>,
    /// Type.
    pub kind: &'static str,
    /// Bytes.
    pub bytes: u64,
    /// Whether statistics of its inputs decided its codes.
    pub calibrated: bool,
}

/// What was written.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ExportReport {
    /// Version of this report's fields.
    pub schema: u32,
    /// The file.
    pub file: String,
    /// Bytes of the file.
    pub bytes: u64,
    /// Weights of all tensors.
    pub weights: u64,
    /// All tensors' bits over all weights.
    pub bits_per_weight: f64,
    /// Every tensor.
    pub tensors: Vec<TensorRow>,
}

/// Why a model could not be exported.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs, reason = "each message says what its fields are")]
pub enum ExportError {
    #[error(transparent)]
    Write(#[from] GgufWriteError),
    #[error(transparent)]
    Source(#[from] SourceError),
    #[error(transparent)]
    Array(#[from] ArrayError),
    #[error(transparent)]
    Statistics(#[from] StatisticsError),
    #[error(transparent)]
    Interrupted(#[from] Interrupted),
    #[error("pattern `{pattern}` is not a glob: {message}")]
    BadPattern { pattern: String, message: String },
    #[error("pattern `{pattern}` matches no tensor; there are `{example}` and others")]
    PatternMatchesNothing { pattern: String, example: String },
    #[error("type {kind} cannot be written; written are {known}")]
    Type { kind: &'static str, known: &'static str },
    #[error("tensor `{tensor}` cannot be quantised: it {message}")]
    Tensor { tensor: String, message: String },
}

const WRITTEN: &str =
    "f32, f16, bf16, q8_0, q6_k, q5_k, q5_0, q5_1, q4_k, q4_0, q4_1, iq4_nl, iq4_xs, q3_k, q2_k";

/// Writes a model as one GGUF file. `statistics` are of the model's inputs; without them matrices are rounded on
/// grids fitted to their values alone.
///
/// # Errors
/// An architecture, array or tokenizer that has no form in GGUF, a type that is not written, damaged arrays,
/// values that are not finite, a disk that refuses. Messages name the tensor.
pub fn export(
    model: &Model,
    side_files: &BTreeMap<String, Vec<u8>>,
    statistics: Option<&Statistics>,
    request: &Export,
    progress: &dyn Progress,
) -> Result<ExportReport, ExportError> {
    let source = model.network.source();
    let plan = GgufPlan::new(&request.name, source.arrays(), side_files)?;
    plan.warnings.iter().for_each(|warning| progress.warn(warning));
    let kinds = choose(&plan, source.as_ref(), request, progress)?;
    let mut tensors: Vec<GgufTensor> = Vec::new();
    for (tensor, &kind) in plan.tensors.iter().zip(&kinds) {
        tensors.push(GgufTensor { name: tensor.name.clone(), shape: tensor.shape.clone(), kind });
    }
    if let Some(divisors) = &plan.rope_divisors {
        let name = "rope_freqs.weight".to_owned();
        tensors.push(GgufTensor { name, shape: vec![divisors.len()], kind: GgmlType::F32 });
    }
    let mut fields = plan.fields.clone();
    fields.push(("general.file_type".to_owned(), GgufField::U32(file_type(&plan, &kinds))));
    let header_bytes = GgufWriter::header(&fields, &tensors)?.len() as u64;
    let mut report = ExportReport {
        schema: 1,
        file: request.output.display().to_string(),
        bytes: header_bytes,
        weights: 0,
        bits_per_weight: 0.0,
        tensors: Vec::new(),
    };
    for tensor in &tensors {
        let bytes = tensor.size_bytes().unwrap_or(0) as u64;
        report.bytes += bytes.next_multiple_of(32);
        report.weights += tensor.shape.iter().map(|&extent| extent as u64).product::<u64>();
        report.tensors.push(TensorRow {
            name: tensor.name.clone(),
            shape: tensor.shape.clone(),
            kind: tensor.kind.name(),
            bytes,
            calibrated: false,
        });
    }
    let stored: u64 = report.tensors.iter().map(|row| row.bytes).sum();
    report.bits_per_weight = stored as f64 * 8.0 / report.weights.max(1) as f64;
    if request.dry_run {
        return Ok(report);
    }
    let mut writer = GgufWriter::create(&request.output, &fields, tensors)?;
    let total = plan.tensors.len() as u64;
    for (index, (tensor, &kind)) in plan.tensors.iter().zip(&kinds).enumerate() {
        progress.advance("export", index as u64, total, &tensor.name);
        progress.check()?;
        let mut bytes = Vec::new();
        for part in &tensor.parts {
            let values = read(source.as_ref(), tensor, part)?;
            let site =
                model.network.linears().iter().find(|site| site.weight == *part && !site.is_transposed);
            let knowledge = match (statistics, site) {
                (Some(statistics), Some(site)) if kind.is_quantized() => Some(statistics.knowledge(site)?),
                _ => None,
            };
            let moment = knowledge.as_ref().and_then(|knowledge| knowledge.second_moment.as_ref());
            report.tensors[index].calibrated |= moment.is_some();
            bytes.extend(encode(tensor, kind, &values, moment)?);
        }
        writer.write(&tensor.name, &bytes)?;
    }
    if let Some(divisors) = &plan.rope_divisors {
        let bytes: Vec<u8> = divisors.iter().flat_map(|value| value.to_le_bytes()).collect();
        writer.write("rope_freqs.weight", &bytes)?;
    }
    writer.finish()?;
    Ok(report)
}

fn read(
    source: &dyn lamella_codec::TensorSource,
    tensor: &GgufSource,
    part: &str,
) -> Result<Vec<f32>, ExportError> {
    let values = source.array(part)?.to_f32()?;
    source.release(part);
    if let Some(index) = values.iter().position(|value| !value.is_finite()) {
        let message = format!("holds a value that is not finite (number {index} of `{part}`)");
        return Err(ExportError::Tensor { tensor: tensor.name.clone(), message });
    }
    Ok(tensor.reorder(values))
}

fn encode(
    tensor: &GgufSource,
    kind: GgmlType,
    values: &[f32],
    moment: Option<&std::sync::Arc<lamella_math::SecondMoment>>,
) -> Result<Vec<u8>, ExportError> {
    let refuse = |message: String| ExportError::Tensor { tensor: tensor.name.clone(), message };
    Ok(match kind {
        GgmlType::F32 => values.iter().flat_map(|value| value.to_le_bytes()).collect(),
        GgmlType::F16 => {
            if let Some(value) = values.iter().find(|value| value.abs() > 65_504.0) {
                return Err(refuse(format!("holds {value:e}, more than an f16 can")));
            }
            values.iter().flat_map(|&value| f16::from_f32(value).to_le_bytes()).collect()
        }
        GgmlType::BF16 => values.iter().flat_map(|&value| bf16::from_f32(value).to_le_bytes()).collect(),
        _ => {
            let columns = tensor.shape.last().copied().unwrap_or(0);
            quantize(values, columns, kind, moment).map_err(refuse)?
        }
    })
}

/// The type of every tensor.
fn choose(
    plan: &GgufPlan,
    source: &dyn lamella_codec::TensorSource,
    request: &Export,
    progress: &dyn Progress,
) -> Result<Vec<GgmlType>, ExportError> {
    let mut rules = Vec::new();
    for rule in &request.rules {
        let glob = GlobBuilder::new(&rule.pattern).build().map_err(|error| ExportError::BadPattern {
            pattern: rule.pattern.clone(),
            message: error.kind().to_string(),
        })?;
        let matcher = glob.compile_matcher();
        let matches: Vec<bool> = plan
            .tensors
            .iter()
            .map(|tensor| {
                matcher.is_match(&tensor.name) || tensor.parts.iter().any(|part| matcher.is_match(part))
            })
            .collect();
        if !matches.contains(&true) {
            let example = plan.tensors.first().map_or(String::new(), |tensor| tensor.parts[0].clone());
            return Err(ExportError::PatternMatchesNothing { pattern: rule.pattern.clone(), example });
        }
        rules.push((matches, rule.kind));
    }
    let mut kinds = Vec::new();
    for (index, tensor) in plan.tensors.iter().enumerate() {
        if tensor.is_small {
            kinds.push(GgmlType::F32);
            continue;
        }
        let own = match source.spec(&tensor.parts[0]).map(|spec| spec.dtype) {
            Some(Dtype::BF16) => GgmlType::BF16,
            Some(Dtype::F16) => GgmlType::F16,
            _ => GgmlType::F32,
        };
        let ruled = rules.iter().rev().find(|(matches, _)| matches[index]).map(|(_, kind)| *kind);
        let kind = ruled.or(request.kind).unwrap_or(own);
        let is_plain = matches!(kind, GgmlType::F32 | GgmlType::F16 | GgmlType::BF16);
        if !is_plain && kind.block_form().is_none() {
            return Err(ExportError::Type { kind: kind.name(), known: WRITTEN });
        }
        let columns = tensor.shape.last().copied().unwrap_or(0);
        kinds.push(fitting(kind, columns, &tensor.name, progress));
    }
    Ok(kinds)
}

/// The type itself, or where rows are no whole blocks the next that fits.
fn fitting(kind: GgmlType, columns: usize, name: &str, progress: &dyn Progress) -> GgmlType {
    if columns.is_multiple_of(kind.block_elements()) {
        return kind;
    }
    let bits = (kind.block_bytes() * 8 / kind.block_elements()) as u32;
    let fits = |&&(other, other_bits): &&(GgmlType, u32)| {
        other_bits >= bits && columns.is_multiple_of(other.block_elements())
    };
    let found = FALL_BACK.iter().find(fits).map_or(GgmlType::F16, |&(other, _)| other);
    progress.warn(&format!(
        "`{name}` has rows of {columns}, no whole blocks of {} ({}): it becomes {}",
        kind.block_elements(),
        kind.name(),
        found.name()
    ));
    found
}

/// llama.cpp's number for what most of a file is; it shows it and nothing depends on it.
fn file_type(plan: &GgufPlan, kinds: &[GgmlType]) -> u32 {
    let mut weights: BTreeMap<u32, usize> = BTreeMap::new();
    for (tensor, kind) in plan.tensors.iter().zip(kinds).filter(|(tensor, _)| !tensor.is_small) {
        *weights.entry(kind.code()).or_default() += tensor.shape.iter().product::<usize>();
    }
    let code = weights.into_iter().max_by_key(|&(_, weights)| weights).map_or(0, |(code, _)| code);
    match GgmlType::from_code(code) {
        Some(GgmlType::F16) => 1,
        Some(GgmlType::Q4_0) => 2,
        Some(GgmlType::Q4_1) => 3,
        Some(GgmlType::Q8_0) => 7,
        Some(GgmlType::Q5_0) => 8,
        Some(GgmlType::Q5_1) => 9,
        Some(GgmlType::Q2_K) => 10,
        Some(GgmlType::Q3_K) => 12,
        Some(GgmlType::Q4_K) => 15,
        Some(GgmlType::Q5_K) => 17,
        Some(GgmlType::Q6_K) => 18,
        Some(GgmlType::IQ4_NL) => 25,
        Some(GgmlType::IQ4_XS) => 30,
        Some(GgmlType::BF16) => 32,
        _ => 0,
    }
}
