//! The whole directory.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use globset::GlobBuilder;
use lamella_codec::{Array, ArrayError, ArraySpec, Dtype, Interrupted, Progress, SourceError, TensorMap};
use lamella_io::{IoError, SafetensorsWriter};
use lamella_lm::statistics::StatisticsError;
use lamella_lm::{LinearSite, Model, Role};
use serde::Serialize;
use serde_json::Value;

use super::Scheme;
use super::scheme::config;
use super::solve::quantize;
use crate::gguf::drift::Drift;
use crate::gguf::{Calibration, CalibrationError};

/// A scheme for some linears.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SchemeRule {
    /// Glob over whole array names.
    pub pattern: String,
    /// The scheme; `None` leaves the linear as it is.
    pub scheme: Option<Scheme>,
}

/// What to write.
#[derive(Debug, Clone)]
pub struct Export {
    /// The directory, which must not exist or be empty.
    pub output: PathBuf,
    /// Scheme of every linear of the blocks.
    pub scheme: Scheme,
    /// Other schemes; a later rule wins.
    pub rules: Vec<SchemeRule>,
    /// Whether each block is quantised for what it sees behind the quantised blocks before it.
    pub sequential: bool,
    /// Whether runtimes are told to round activations of 8-bit linears token by token.
    pub dynamic_activations: bool,
    /// Plan only: nothing is written.
    pub dry_run: bool,
}

/// What became of a linear.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct LinearRow {
    /// Array name in the source.
    pub name: String,
    /// `int4` for instance.
    pub scheme: &'static str,
    /// Whether statistics of its inputs decided its codes.
    pub calibrated: bool,
}

/// What was written.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ExportReport {
    /// Version of this report's fields.
    pub schema: u32,
    /// The directory.
    pub directory: String,
    /// Bytes of all arrays.
    pub array_bytes: u64,
    /// All arrays' bits over all weights of the source.
    pub bits_per_weight: f64,
    /// Quantised linears.
    pub linears: Vec<LinearRow>,
}

/// Why a model could not be exported.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs, reason = "each message says what its fields are")]
pub enum ExportError {
    #[error(transparent)]
    File(#[from] IoError),
    #[error(transparent)]
    Source(#[from] SourceError),
    #[error(transparent)]
    Array(#[from] ArrayError),
    #[error(transparent)]
    Statistics(#[from] StatisticsError),
    #[error(transparent)]
    Calibration(#[from] CalibrationError),
    #[error(transparent)]
    Interrupted(#[from] Interrupted),
    #[error("`{path}`: {source}")]
    Disk { path: PathBuf, source: std::io::Error },
    #[error("pattern `{pattern}` is not a glob: {message}")]
    BadPattern { pattern: String, message: String },
    #[error("pattern `{pattern}` matches no linear of a block; there are `{example}` and others")]
    PatternMatchesNothing { pattern: String, example: String },
    #[error("linear `{array}` cannot be quantised: it {message}")]
    Linear { array: String, message: String },
    #[error(
        "`{first}` and `{second}` run as one linear in vLLM and must share a scheme, found `{first_scheme}` and `{second_scheme}`"
    )]
    Fused { first: String, second: String, first_scheme: &'static str, second_scheme: &'static str },
    #[error("the model's file `{name}` has no place in the directory")]
    SideFile { name: String },
    #[error("the model has no `config.json`, which loaders need")]
    NoConfig,
}

/// Writes a model as a compressed-tensors checkpoint. Linears of the blocks are quantised, all other arrays keep
/// their bytes.
///
/// # Errors
/// Groups that do not divide a linear's columns, rules that part fused linears, damaged arrays, values that are not
/// finite, a disk that refuses. Messages name the array.
pub fn export(
    model: &Model,
    side_files: &BTreeMap<String, Vec<u8>>,
    calibration: Option<&Calibration>,
    request: &Export,
    progress: &dyn Progress,
) -> Result<ExportReport, ExportError> {
    let source = model.network.source();
    let plan = plan(model, request, progress)?;
    let mut specs = Vec::new();
    for spec in source.arrays() {
        match plan.get(spec.name.as_str()) {
            Some((site, scheme)) => {
                specs.extend(scheme.arrays(module(site), site.out_features, site.in_features, spec.dtype));
            }
            None => specs.push(spec.clone()),
        }
    }
    let array_bytes = specs.iter().filter_map(ArraySpec::checked_size_bytes).sum::<usize>() as u64;
    let weights: usize = source.arrays().iter().map(ArraySpec::len).sum();
    let row = |(name, (_, scheme)): (&&str, &(&LinearSite, Scheme))| LinearRow {
        name: (*name).to_owned(),
        scheme: scheme.name(),
        calibrated: false,
    };
    let mut report = ExportReport {
        schema: 1,
        directory: request.output.display().to_string(),
        array_bytes,
        bits_per_weight: array_bytes as f64 * 8.0 / weights.max(1) as f64,
        linears: plan.iter().map(row).collect(),
    };
    let config = with_quantization(model, side_files, &plan, request)?;
    if request.dry_run {
        return Ok(report);
    }
    // Everything is written under a temporary name: an interrupted run leaves nothing that looks whole.
    let name = request.output.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let part = request.output.with_file_name(format!("{name}.exporting"));
    let disk = |path: &Path| {
        let path = path.to_owned();
        move |source| ExportError::Disk { path, source }
    };
    let _ = std::fs::remove_dir_all(&part);
    let written = std::fs::create_dir_all(&part).map_err(disk(&part)).and_then(|()| {
        write_arrays(model, &plan, calibration, request, &specs, &part, &mut report, progress)?;
        write_side_files(side_files, &config, &part)
    });
    if let Err(error) = written {
        let _ = std::fs::remove_dir_all(&part);
        return Err(error);
    }
    if request.output.exists() {
        std::fs::remove_dir(&request.output).map_err(disk(&request.output))?;
    }
    std::fs::rename(&part, &request.output).map_err(disk(&request.output))?;
    Ok(report)
}

/// A linear's name as a module.
fn module(site: &LinearSite) -> &str {
    site.weight.trim_end_matches(".weight")
}

type Plan<'m> = BTreeMap<&'m str, (&'m LinearSite, Scheme)>;

/// The linears that are quantised, by array name, fused ones agreeing.
fn plan<'m>(model: &'m Model, request: &Export, progress: &dyn Progress) -> Result<Plan<'m>, ExportError> {
    let is_linear = |site: &&LinearSite| {
        let is_own = site.weight.ends_with(".weight") && !site.is_transposed;
        site.block.is_some() && is_own && site.role != Role::Router
    };
    let sites: Vec<&LinearSite> = model.network.linears().iter().filter(is_linear).collect();
    let mut schemes: BTreeMap<&str, Option<Scheme>> =
        sites.iter().map(|site| (site.weight.as_str(), Some(request.scheme))).collect();
    for rule in &request.rules {
        let glob = GlobBuilder::new(&rule.pattern).build().map_err(|error| ExportError::BadPattern {
            pattern: rule.pattern.clone(),
            message: error.kind().to_string(),
        })?;
        let matcher = glob.compile_matcher();
        let mut matched = 0;
        for (_, scheme) in schemes.iter_mut().filter(|(name, _)| matcher.is_match(name)) {
            *scheme = rule.scheme;
            matched += 1;
        }
        if matched == 0 {
            let example = sites.first().map_or(String::new(), |site| site.weight.clone());
            return Err(ExportError::PatternMatchesNothing { pattern: rule.pattern.clone(), example });
        }
    }
    // Fused linears see the same inputs, so groups that divide one's columns divide all.
    let mut fused: BTreeMap<(Option<usize>, Option<usize>, u8), &LinearSite> = BTreeMap::new();
    let mut plan = Plan::new();
    for site in sites {
        let mut scheme = schemes[site.weight.as_str()];
        if let Some(group) = scheme.map(|scheme| scheme.group(site.in_features))
            && (group == 0 || !site.in_features.is_multiple_of(group))
        {
            progress.warn(&format!(
                "`{}` has {} columns, no whole groups of {group}: it stays as it is",
                site.weight, site.in_features
            ));
            scheme = None;
        }
        let kind = match site.role {
            Role::Query | Role::Key | Role::Value => 0,
            Role::Gate | Role::Up => 1,
            _ => 2,
        };
        if kind < 2 {
            let first = fused.entry((site.block, site.expert, kind)).or_insert(site);
            let of_first = plan.get(first.weight.as_str()).map(|(_, scheme)| *scheme);
            if !std::ptr::eq(*first, site) && of_first != scheme {
                let name = |scheme: Option<Scheme>| scheme.map_or("none", Scheme::name);
                return Err(ExportError::Fused {
                    first: first.weight.clone(),
                    second: site.weight.clone(),
                    first_scheme: name(of_first),
                    second_scheme: name(scheme),
                });
            }
        }
        if let Some(scheme) = scheme {
            plan.insert(&site.weight, (site, scheme));
        }
    }
    Ok(plan)
}

/// `config.json` with the `quantization_config`.
fn with_quantization(
    model: &Model,
    side_files: &BTreeMap<String, Vec<u8>>,
    plan: &Plan<'_>,
    request: &Export,
) -> Result<Vec<u8>, ExportError> {
    let text = side_files.get("config.json").ok_or(ExportError::NoConfig)?;
    let mut fields: Value = serde_json::from_slice(text).map_err(|_| ExportError::NoConfig)?;
    let linears: Vec<(String, Scheme)> =
        plan.values().map(|(site, scheme)| (module(site).to_owned(), *scheme)).collect();
    // The head is a linear to the loaders also where its weight is the embedding's.
    let mut ignored = BTreeSet::from(["lm_head".to_owned()]);
    for site in model.network.linears().iter().filter(|site| site.block.is_some()) {
        if !plan.contains_key(site.weight.as_str()) {
            ignored.insert(module(site).to_owned());
        }
    }
    let ignored: Vec<String> = ignored.into_iter().collect();
    let object = fields.as_object_mut().ok_or(ExportError::NoConfig)?;
    object.insert("quantization_config".to_owned(), config(&linears, &ignored, request.dynamic_activations));
    Ok(format!("{fields:#}\n").into_bytes())
}

#[allow(clippy::too_many_arguments, reason = "one loop with all that it reads and writes")]
fn write_arrays(
    model: &Model,
    plan: &Plan<'_>,
    calibration: Option<&Calibration>,
    request: &Export,
    specs: &[ArraySpec],
    directory: &Path,
    report: &mut ExportReport,
    progress: &dyn Progress,
) -> Result<(), ExportError> {
    let source = model.network.source();
    let mut writer =
        SafetensorsWriter::create(directory.join("model.safetensors"), &[("format", "pt")], specs)?;
    for spec in source.arrays().iter().filter(|spec| !plan.contains_key(spec.name.as_str())) {
        writer.write(&source.array(&spec.name)?)?;
        source.release(&spec.name);
    }
    let mut drift = calibration
        .filter(|_| request.sequential)
        .map(|calibration| Drift::new(model, &calibration.sequences));
    if let Some(drift) = &mut drift {
        drift.begin(&TensorMap::default())?;
    }
    let mut done = 0;
    for block in 0..model.network.n_blocks() {
        if let Some(drift) = &mut drift {
            drift.observe(block)?;
        }
        let mut quantized = TensorMap::default();
        for (name, (site, scheme)) in plan.iter().filter(|(_, (site, _))| site.block == Some(block)) {
            progress.advance("export", done, plan.len() as u64, name);
            progress.check()?;
            let drifted = drift.as_ref().and_then(|drift| drift.second_moment(&site.input));
            let moment = match calibration {
                Some(calibration) if drifted.is_none() => {
                    calibration.statistics.second_moment(&site.input)?
                }
                _ => drifted,
            };
            let array = source.array(name)?;
            let refuse = |message: String| ExportError::Linear { array: (*name).to_owned(), message };
            let dtype = array.spec.dtype;
            if !matches!(dtype, Dtype::F32 | Dtype::F16 | Dtype::BF16) {
                return Err(refuse(format!("holds {}, known are F32, F16 and BF16", dtype.name())));
            }
            if let Some(index) = array.first_non_finite() {
                return Err(refuse(format!("holds a value that is not finite (number {index})")));
            }
            let own = scheme.arrays(module(site), site.out_features, site.in_features, dtype);
            let arrays = quantize(&array.to_f32()?, site.in_features, *scheme, &own, moment.as_ref())
                .map_err(refuse)?;
            arrays.iter().try_for_each(|array| writer.write(array))?;
            if let Some(row) = report.linears.iter_mut().find(|row| row.name == **name) {
                row.calibrated = moment.is_some();
            }
            if drift.is_some() {
                quantized.insert(expanded(&array.spec, &arrays, *scheme)?);
            }
            drop(array);
            source.release(name);
            done += 1;
        }
        if let Some(drift) = &mut drift {
            drift.advance(block, &quantized)?;
        }
    }
    writer.finish()?;
    Ok(())
}

/// What a linear's arrays stand for, as readers expand them.
fn expanded(spec: &ArraySpec, arrays: &[Array<'_>], scheme: Scheme) -> Result<Array<'static>, ExportError> {
    let scales = arrays[1].to_f32()?;
    let bytes = &arrays[0].bytes;
    let codes: Vec<f32> = match scheme {
        Scheme::Int4 { .. } => {
            bytes.iter().flat_map(|byte| [f32::from(byte & 15) - 8.0, f32::from(byte >> 4) - 8.0]).collect()
        }
        Scheme::Int8 { .. } => bytes.iter().map(|&byte| f32::from(byte) - 128.0).collect(),
        Scheme::Int8Channel => bytes.iter().map(|&byte| f32::from(byte as i8)).collect(),
        Scheme::Fp8 => arrays[0].to_f32()?,
    };
    // Groups are whole, so rows have no padding unless a group is odd.
    let (rows, columns) = (spec.shape[0], spec.shape[1]);
    let (stored, per_row) = (codes.len() / rows.max(1), scales.len() / rows.max(1));
    let group = (columns / per_row.max(1)).max(1);
    let mut values = Vec::with_capacity(rows * columns);
    for (row, scales) in codes.chunks_exact(stored.max(1)).zip(scales.chunks_exact(per_row.max(1))) {
        values.extend(row[..columns].iter().enumerate().map(|(column, code)| code * scales[column / group]));
    }
    Ok(Array::from_f32(spec.clone(), &values)?)
}

fn write_side_files(
    side_files: &BTreeMap<String, Vec<u8>>,
    config: &[u8],
    directory: &Path,
) -> Result<(), ExportError> {
    for (name, bytes) in side_files {
        let mut parts = Path::new(name).components();
        let is_plain = parts.all(|part| matches!(part, std::path::Component::Normal(_)));
        if name.is_empty() || !is_plain || name == "model.safetensors" {
            return Err(ExportError::SideFile { name: name.clone() });
        }
        if name.ends_with(".index.json") {
            continue;
        }
        let bytes = if name == "config.json" { config } else { bytes };
        let path = directory.join(name);
        let failed = |source| ExportError::Disk { path: path.clone(), source };
        if let Some(parent) = path.parent() {
            std::fs::create_dir_all(parent).map_err(failed)?;
        }
        std::fs::write(&path, bytes).map_err(|source| ExportError::Disk { path: path.clone(), source })?;
    }
    Ok(())
}
