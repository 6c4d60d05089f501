//! What an interrupted run leaves: weights and the optimiser's means, exact to the bit.

use std::path::Path;

use lamella_codec::{Array, ArraySpec, Dtype, TensorSource};
use lamella_io::{SafetensorsFile, SafetensorsWriter};
use serde_json::json;

use super::{Schedule, TrainError};
use crate::{AdamW, Named};

/// Parts of a run's state, each with the parameters' names behind it.
const PARTS: [&str; 3] = ["parameter", "mean", "square"];

/// Writes the state before step `step`.
pub(super) fn save(
    path: &Path,
    (schedule, text): (&Schedule, &str),
    step: usize,
    named: &Named,
    optimizer: &AdamW,
) -> Result<(), TrainError> {
    let (_, means, squares) = optimizer.state();
    let mut arrays = Vec::new();
    for (part, values) in PARTS.iter().zip([named.network.parameters(), means, squares]) {
        for (name, values) in named.parameters.iter().zip(values) {
            let spec = ArraySpec::new(format!("{part}.{}", name.name), vec![values.len()], Dtype::F32);
            arrays.push(Array::from_f32(spec, values)?);
        }
    }
    let specs: Vec<ArraySpec> = arrays.iter().map(|array| array.spec.clone()).collect();
    let (step, schedule) = (step.to_string(), json!(schedule).to_string());
    let metadata = [("step", &step[..]), ("schedule", &schedule), ("text", text)];
    let mut writer = SafetensorsWriter::create(path, &metadata, &specs)?;
    arrays.iter().try_for_each(|array| writer.write(array))?;
    writer.finish()?;
    Ok(())
}

/// Reads a state into the network and the optimiser and returns the step to go on with.
pub(super) fn load(
    path: &Path,
    (schedule, text): (&Schedule, &str),
    named: &mut Named,
    optimizer: &mut AdamW,
) -> Result<usize, TrainError> {
    let file = SafetensorsFile::open(path)?;
    let state = |message: String| TrainError::State { path: path.to_owned(), message };
    let field = |name: &str| {
        let found = file.header().metadata().iter().find(|(key, _)| key == name);
        found.map(|(_, value)| value.clone()).ok_or_else(|| state(format!("it has no `{name}`")))
    };
    let other = |what: &str| TrainError::OtherRun { path: path.to_owned(), what: what.to_owned() };
    let theirs: Schedule =
        serde_json::from_str(&field("schedule")?).map_err(|error| state(error.to_string()))?;
    if theirs != *schedule {
        return Err(other(&format!("schedule: {} against {}", json!(theirs), json!(schedule))));
    }
    if field("text")? != text {
        return Err(other("text or tokenizer"));
    }
    let step: usize = field("step")?.parse().map_err(|_| state("its step is no number".to_owned()))?;
    let mut parts = Vec::new();
    for part in PARTS {
        let mut all = Vec::new();
        for (name, values) in named.parameters.iter().zip(named.network.parameters()) {
            let read = file.array(&format!("{part}.{}", name.name))?.to_f32()?;
            if read.len() != values.len() {
                return Err(other("shape"));
            }
            all.push(read);
        }
        parts.push(all);
    }
    let (Some(squares), Some(means), Some(parameters)) = (parts.pop(), parts.pop(), parts.pop()) else {
        return Err(state("parts are missing".to_owned()));
    };
    for (values, read) in named.network.parameters_mut().iter_mut().zip(parameters) {
        *values = read;
    }
    optimizer.restore(u32::try_from(step).unwrap_or(u32::MAX), means, squares);
    Ok(step)
}
