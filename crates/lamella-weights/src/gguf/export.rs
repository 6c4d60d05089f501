//! The whole GGUF file of a model.

use std::collections::BTreeMap;
use std::path::PathBuf;

use globset::GlobBuilder;
use lamella_codec::{ArrayError, Interrupted, Progress, SourceError, TensorMap};
use lamella_io::{GgmlType, GgufField, GgufPlan, GgufTensor, GgufWriteError, GgufWriter};
use lamella_lm::statistics::StatisticsError;
use lamella_lm::{LmError, Model};
use lamella_rate::AllocationError;
use serde::Serialize;

use super::allocate::{allocate, own_kind};
use super::calibration::{Calibration, CalibrationError};
use super::coding::{decoded, encode, read, site};
use super::drift::Drift;
use super::solve::Effort;

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
    /// Bytes of the file: tensors without a rule get the types that lose least at or under it. Needs a text; `kind`
    /// is not looked at.
    pub size: Option<u64>,
    /// Whether each block is quantised for what it sees behind the quantised blocks before it, rather than for
    /// what it sees in the original. Without a text nothing is seen.
    pub sequential: bool,
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
    Network(#[from] LmError),
    #[error(transparent)]
    Calibration(#[from] CalibrationError),
    #[error(transparent)]
    Allocation(#[from] AllocationError),
    #[error("a size is met by measuring on a text, and none was given")]
    SizeNeedsText,
    #[error("the size cannot be met: the smallest types take {missing} bytes more")]
    TooSmall { missing: u64 },
    #[error("the model's predictions are not finite at token {token} of the text")]
    NotFinite { token: usize },
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

/// Writes a model as one GGUF file. `calibration` is a text's; without it matrices are rounded on grids fitted to
/// their values alone.
///
/// # Errors
/// An architecture, array or tokenizer that has no form in GGUF, a type that is not written, a size out of reach,
/// damaged arrays, values that are not finite, a disk that refuses. Messages name the tensor.
pub fn export(
    model: &Model,
    side_files: &BTreeMap<String, Vec<u8>>,
    calibration: Option<&Calibration>,
    request: &Export,
    progress: &dyn Progress,
) -> Result<ExportReport, ExportError> {
    let plan = GgufPlan::new(&request.name, model.network.source().arrays(), side_files)?;
    plan.warnings.iter().for_each(|warning| progress.warn(warning));
    let ruled = ruled(&plan, model, request, progress)?;
    let kinds: Vec<GgmlType> = match request.size {
        None => ruled.iter().map(|kind| kind.unwrap_or(GgmlType::F32)).collect(),
        Some(size) => {
            let calibration = calibration.ok_or(ExportError::SizeNeedsText)?;
            // Neither header nor padding depends on the free tensors' types.
            let placeholder: Vec<GgmlType> = ruled.iter().map(|kind| kind.unwrap_or(GgmlType::F32)).collect();
            let (fields, tensors) = header(&plan, &placeholder);
            let mut fixed = GgufWriter::header(&fields, &tensors)?.len() as u64;
            for (index, tensor) in tensors.iter().enumerate() {
                if ruled.get(index).is_none_or(Option::is_some) {
                    fixed += (tensor.size_bytes().unwrap_or(0) as u64).next_multiple_of(32);
                }
            }
            let left =
                size.checked_sub(fixed).ok_or_else(|| ExportError::TooSmall { missing: fixed - size })?;
            allocate(model, &plan, &ruled, left, calibration, progress)?
        }
    };
    let (fields, tensors) = header(&plan, &kinds);
    let mut report = report(&fields, &tensors, request)?;
    if request.dry_run {
        return Ok(report);
    }
    let mut writer = GgufWriter::create(&request.output, &fields, tensors)?;
    write(model, &plan, &kinds, calibration, request, &mut writer, &mut report, progress)?;
    if let Some(divisors) = &plan.rope_divisors {
        let bytes: Vec<u8> = divisors.iter().flat_map(|value| value.to_le_bytes()).collect();
        writer.write("rope_freqs.weight", &bytes)?;
    }
    writer.finish()?;
    Ok(report)
}

/// Fields and tensors of the file.
fn header(plan: &GgufPlan, kinds: &[GgmlType]) -> (Vec<(String, GgufField)>, Vec<GgufTensor>) {
    let tensor = |(tensor, &kind): (&lamella_io::GgufSource, &GgmlType)| GgufTensor {
        name: tensor.name.clone(),
        shape: tensor.shape.clone(),
        kind,
    };
    let mut tensors: Vec<GgufTensor> = plan.tensors.iter().zip(kinds).map(tensor).collect();
    if let Some(divisors) = &plan.rope_divisors {
        let name = "rope_freqs.weight".to_owned();
        tensors.push(GgufTensor { name, shape: vec![divisors.len()], kind: GgmlType::F32 });
    }
    let mut fields = plan.fields.clone();
    fields.push(("general.file_type".to_owned(), GgufField::U32(file_type(plan, kinds))));
    (fields, tensors)
}

fn report(
    fields: &[(String, GgufField)],
    tensors: &[GgufTensor],
    request: &Export,
) -> Result<ExportReport, ExportError> {
    let mut report = ExportReport {
        schema: 1,
        file: request.output.display().to_string(),
        bytes: GgufWriter::header(fields, tensors)?.len() as u64,
        weights: 0,
        bits_per_weight: 0.0,
        tensors: Vec::new(),
    };
    for tensor in tensors {
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
    Ok(report)
}

/// Codes and writes all tensors: embeddings, then block after block, then the rest.
#[allow(clippy::too_many_arguments, reason = "one loop with all that it reads and writes")]
fn write(
    model: &Model,
    plan: &GgufPlan,
    kinds: &[GgmlType],
    calibration: Option<&Calibration>,
    request: &Export,
    writer: &mut GgufWriter,
    report: &mut ExportReport,
    progress: &dyn Progress,
) -> Result<(), ExportError> {
    let embeddings = model.network.embeddings();
    let n_blocks = model.network.n_blocks();
    // 0 for what is looked up, 1 + block, then the rest.
    let stage = |index: usize| {
        let parts = &plan.tensors[index].parts;
        match parts.iter().find_map(|part| site(model, part)?.block) {
            _ if parts.iter().any(|part| embeddings.contains(part)) => 0,
            Some(block) => 1 + block,
            None => 1 + n_blocks,
        }
    };
    let stages: Vec<usize> = (0..plan.tensors.len()).map(stage).collect();
    let is_lossy = |kind: &GgmlType| kind.is_quantized();
    let mut drift = calibration
        .filter(|_| request.sequential && kinds.iter().any(is_lossy))
        .map(|calibration| Drift::new(model, &calibration.sequences));
    let (total, mut done) = (plan.tensors.len() as u64, 0);
    for stage in 0..n_blocks + 2 {
        match &mut drift {
            Some(drift) if (1..=n_blocks).contains(&stage) => drift.observe(stage - 1)?,
            Some(drift) if stage == n_blocks + 1 => drift.observe_head()?,
            _ => {}
        }
        let mut coded = TensorMap::default();
        for index in (0..plan.tensors.len()).filter(|&index| stages[index] == stage) {
            let tensor = &plan.tensors[index];
            progress.advance("export", done, total, &tensor.name);
            progress.check()?;
            done += 1;
            let mut bytes = Vec::new();
            for part in &tensor.parts {
                let source = model.network.source();
                let values = read(source.as_ref(), tensor, part)?;
                let site = site(model, part).filter(|_| kinds[index].is_quantized());
                let moment = match (calibration, site) {
                    (Some(calibration), Some(site)) => {
                        match drift.as_ref().and_then(|drift| drift.second_moment(&site.input)) {
                            None => calibration.statistics.second_moment(&site.input)?,
                            drifted => drifted,
                        }
                    }
                    _ => None,
                };
                report.tensors[index].calibrated |= moment.is_some();
                let own = encode(tensor, kinds[index], &values, moment.as_ref(), Effort::Refined)?;
                if drift.is_some() {
                    let shape = source.spec(part).map_or_else(Vec::new, |spec| spec.shape.clone());
                    coded.insert(decoded(part, &shape, kinds[index], &own)?);
                }
                bytes.extend(tensor.reorder(own));
            }
            writer.write(&tensor.name, &bytes)?;
        }
        match &mut drift {
            Some(drift) if stage == 0 => drift.begin(&coded)?,
            Some(drift) if stage <= n_blocks => drift.advance(stage - 1, &coded)?,
            _ => {}
        }
    }
    Ok(())
}

/// The type of every tensor, `None` where a size decides.
fn ruled(
    plan: &GgufPlan,
    model: &Model,
    request: &Export,
    progress: &dyn Progress,
) -> Result<Vec<Option<GgmlType>>, ExportError> {
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
            kinds.push(Some(GgmlType::F32));
            continue;
        }
        let ruled = rules.iter().rev().find(|(matches, _)| matches[index]).map(|(_, kind)| *kind);
        let kind = match ruled.or(request.kind.filter(|_| request.size.is_none())) {
            Some(kind) => kind,
            None if request.size.is_some() => {
                kinds.push(None);
                continue;
            }
            None => own_kind(model, tensor),
        };
        let is_plain = matches!(kind, GgmlType::F32 | GgmlType::F16 | GgmlType::BF16);
        if !is_plain && kind.block_form().is_none() {
            return Err(ExportError::Type { kind: kind.name(), known: WRITTEN });
        }
        let columns = tensor.shape.last().copied().unwrap_or(0);
        kinds.push(Some(fitting(kind, columns, &tensor.name, progress)));
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
