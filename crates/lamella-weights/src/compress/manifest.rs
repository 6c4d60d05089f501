//! From treatments to the file's manifest.

use lamella_codec::ArraySpec;
use lamella_file::{ArrayEntry, Manifest, Shard, SideFiles, Storage};

use super::{CompressError, Input, Place, Request, Treatment};

/// A payload of the file: one array, or a bundle of small ones.
#[derive(Debug, Clone)]
pub(super) struct Target {
    /// Indices of the arrays it holds, one or more.
    pub(super) members: Vec<usize>,
    /// What the codec sees: the array itself, all members' elements along one axis, or all members' rows.
    pub(super) spec: ArraySpec,
}

/// The payloads in the order the file counts them: by the first array that each holds.
pub(super) fn targets(treatments: &[Treatment]) -> Vec<Target> {
    let mut targets: Vec<Target> = Vec::new();
    let mut bundles: Vec<(usize, usize)> = Vec::new();
    for (index, treatment) in treatments.iter().enumerate() {
        match treatment.place {
            Place::TwinOf(_) => {}
            Place::Own => targets.push(Target { members: vec![index], spec: treatment.spec.clone() }),
            Place::Bundle(number) => match bundles.iter().find(|bundle| bundle.0 == number) {
                Some(&(_, target)) => {
                    targets[target].members.push(index);
                    targets[target].spec.shape[0] +=
                        if treatment.codec.stacks() { treatment.spec.shape[0] } else { treatment.spec.len() };
                }
                None => {
                    bundles.push((number, targets.len()));
                    let shape = match treatment.codec.stacks() {
                        true => treatment.spec.shape.clone(),
                        false => vec![treatment.spec.len()],
                    };
                    let spec = ArraySpec::new(treatment.spec.name.clone(), shape, treatment.spec.dtype);
                    targets.push(Target { members: vec![index], spec });
                }
            },
        }
    }
    targets
}

/// Everything of the manifest but the layers.
///
/// # Errors
/// Side files beyond the format's limits.
pub(super) fn describe(
    input: &Input,
    treatments: &[Treatment],
    request: &Request,
    metadata: Vec<(String, String)>,
) -> Result<(Manifest, SideFiles), CompressError> {
    let side = SideFiles::pack(&input.side_files).map_err(|source| lamella_file::FileError::Manifest {
        file: request.output.display().to_string(),
        source,
    })?;
    let mut recipes: Vec<String> = Vec::new();
    let mut arrays = Vec::with_capacity(treatments.len());
    for treatment in treatments {
        let text = treatment.codec.recipe().to_string();
        let recipe = recipes.iter().position(|known| *known == text).unwrap_or_else(|| {
            recipes.push(text);
            recipes.len() - 1
        });
        arrays.push(ArrayEntry {
            spec: treatment.spec.clone(),
            recipe,
            shard: input.directory.shard_of(&treatment.spec.name).unwrap_or(0),
            storage: match treatment.place {
                Place::Own => Storage::Own,
                Place::Bundle(number) => Storage::Bundle(number),
                Place::TwinOf(original) => Storage::AliasOf(original),
            },
        });
    }
    let mut shards: Vec<Shard> = input
        .directory
        .shards()
        .iter()
        .map(|shard| Shard {
            name: shard.path().file_name().unwrap_or_default().to_string_lossy().into_owned(),
            metadata: shard.header().metadata().to_vec(),
        })
        .collect();
    if shards.is_empty() {
        shards.push(Shard { name: "model.safetensors".to_owned(), metadata: Vec::new() });
    }
    let manifest = Manifest {
        recipes,
        arrays,
        shards,
        side: side.table.clone(),
        budget: request.budget_text.clone(),
        metadata,
        ..Manifest::default()
    };
    Ok((manifest, side))
}
