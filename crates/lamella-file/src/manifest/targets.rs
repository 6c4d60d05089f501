//! Which arrays share a stack of layers.

use lamella_codec::ArraySpec;

use super::{ArrayEntry, Storage};
use crate::ManifestError;

/// The targets of a manifest: what layers refine. A target is one array stored by itself, or a bundle of arrays that
/// share payloads: end to end where their recipe is `exact`, else, where all are matrices of as many columns, stacked
/// into one matrix. Targets are numbered by their first array.
///
/// ```
/// use lamella_codec::{ArraySpec, Dtype};
/// use lamella_file::{ArrayEntry, Storage, Targets};
/// let entry = |name: &str, storage| ArrayEntry {
///     spec: ArraySpec::new(name, vec![4], Dtype::F32),
///     recipe: 0,
///     shard: 0,
///     storage,
/// };
/// let arrays = [
///     entry("embed", Storage::Own),
///     entry("norm.0", Storage::Bundle(0)),
///     entry("up", Storage::Own),
///     entry("norm.1", Storage::Bundle(0)),
///     entry("head", Storage::AliasOf(0)),
/// ];
/// let targets = Targets::new(&arrays, &["exact".to_owned()]).unwrap();
/// assert_eq!(targets.len(), 3);
/// assert_eq!(targets.members(1), [1, 3]);
/// assert_eq!(targets.of_array(4), Some(0)); // the tied array reads what target 0 holds
/// assert_eq!(targets.spec(1, &arrays).unwrap().shape, [8]);
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Targets {
    /// Target of each array.
    of_array: Vec<u32>,
    /// Array indices, target by target.
    members: Vec<u32>,
    /// Where each target's members start, and one more.
    starts: Vec<u32>,
    /// Whether each target is a stack.
    are_stacks: Vec<bool>,
}

impl Targets {
    /// Finds the targets of a list of arrays, whose entries count into `recipes`.
    ///
    /// # Errors
    /// Bundle numbers not counted up from zero, bundles of different recipes or dtypes, aliases that lead nowhere, to
    /// another alias or to an array of another shape.
    pub fn new(arrays: &[ArrayEntry], recipes: &[String]) -> Result<Self, ManifestError> {
        const ALIAS: u32 = u32::MAX;
        let mut of_array = Vec::with_capacity(arrays.len());
        let mut sizes: Vec<u32> = Vec::new();
        // Target and first array of each bundle; bundles are numbered in the order they begin.
        let mut bundles: Vec<(u32, usize)> = Vec::new();
        for (index, array) in arrays.iter().enumerate() {
            let target = match array.storage {
                Storage::AliasOf(_) => ALIAS,
                Storage::Bundle(bundle) if bundle < bundles.len() => {
                    let (target, first) = bundles[bundle];
                    let first = &arrays[first];
                    if first.recipe != array.recipe || first.spec.dtype != array.spec.dtype {
                        return Err(ManifestError::invalid(format!(
                            "arrays `{}` and `{}` share a bundle but not their recipe and dtype",
                            first.spec.name, array.spec.name
                        )));
                    }
                    target
                }
                Storage::Bundle(bundle) if bundle > bundles.len() => {
                    return Err(ManifestError::invalid(format!(
                        "array `{}` begins bundle {bundle}, expected {}",
                        array.spec.name,
                        bundles.len()
                    )));
                }
                Storage::Bundle(_) | Storage::Own => {
                    let target = sizes.len() as u32;
                    sizes.push(0);
                    if matches!(array.storage, Storage::Bundle(_)) {
                        bundles.push((target, index));
                    }
                    target
                }
            };
            if let Some(size) = sizes.get_mut(target as usize) {
                *size += 1;
            }
            of_array.push(target);
        }
        let mut starts = Vec::with_capacity(sizes.len() + 1);
        starts.push(0);
        let mut next = 0;
        for size in sizes {
            next += size;
            starts.push(next);
        }
        let mut members = vec![0; next as usize];
        let mut free = starts.clone();
        for (index, &target) in of_array.iter().enumerate().filter(|&(_, &target)| target != ALIAS) {
            members[free[target as usize] as usize] = index as u32;
            free[target as usize] += 1;
        }
        for (index, array) in arrays.iter().enumerate() {
            if let Storage::AliasOf(original) = array.storage {
                of_array[index] = alias_target(arrays, &of_array, array, original)?;
            }
        }
        let are_stacks = starts
            .windows(2)
            .map(|range| is_stack(arrays, recipes, &members[range[0] as usize..range[1] as usize]))
            .collect();
        Ok(Self { of_array, members, starts, are_stacks })
    }

    /// Number of targets.
    pub fn len(&self) -> usize {
        self.starts.len().saturating_sub(1)
    }
    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
    /// Target that holds an array's numbers; an alias gives that of its original.
    pub fn of_array(&self, array: usize) -> Option<usize> {
        self.of_array.get(array).map(|&target| target as usize)
    }
    /// Array indices of a target, ascending: one, or a bundle's. Empty where there is no such target.
    pub fn members(&self, target: usize) -> &[u32] {
        match (self.starts.get(target), self.starts.get(target.saturating_add(1))) {
            (Some(&start), Some(&end)) => &self.members[start as usize..end as usize],
            _ => &[],
        }
    }
    /// The spec that a target is coded with: the array's own, or for a bundle, under the first member's name, one axis
    /// of all members' elements or a stack of all members' rows.
    pub fn spec(&self, target: usize, arrays: &[ArrayEntry]) -> Option<ArraySpec> {
        let members = self.members(target);
        let first = &arrays.get(*members.first()? as usize)?.spec;
        if !matches!(arrays.get(members[0] as usize)?.storage, Storage::Bundle(_)) {
            return Some(first.clone());
        }
        let total = members.iter().try_fold(0usize, |sum, &member| {
            sum.checked_add(arrays.get(member as usize)?.spec.checked_len()?)
        })?;
        let shape = match first.shape[..] {
            [_, columns] if self.are_stacks.get(target) == Some(&true) => {
                vec![total / columns.max(1), columns]
            }
            _ => vec![total],
        };
        Some(ArraySpec::new(first.name.clone(), shape, first.dtype))
    }
    /// Name of a target's first array, empty where there is no such target.
    pub fn name<'a>(&self, target: usize, arrays: &'a [ArrayEntry]) -> &'a str {
        let first = self.members(target).first().and_then(|&member| arrays.get(member as usize));
        first.map_or("", |array| array.spec.name.as_str())
    }
}

/// Whether arrays are coded as one matrix.
fn is_stack(arrays: &[ArrayEntry], recipes: &[String], members: &[u32]) -> bool {
    let array = |&member: &u32| arrays.get(member as usize);
    let columns = |array: &ArrayEntry| match array.spec.shape[..] {
        [_, columns] if columns > 0 => Some(columns),
        _ => None,
    };
    let Some(first) = members.first().and_then(array) else { return false };
    let recipe = recipes.get(first.recipe).map_or("exact", |recipe| recipe.split('(').next().unwrap_or(""));
    matches!(first.storage, Storage::Bundle(_))
        && recipe != "exact"
        && columns(first).is_some()
        && members.iter().filter_map(array).all(|other| columns(other) == columns(first))
}

fn alias_target(
    arrays: &[ArrayEntry],
    of_array: &[u32],
    alias: &ArrayEntry,
    original: usize,
) -> Result<u32, ManifestError> {
    let name = &alias.spec.name;
    let found =
        arrays.get(original).filter(|found| !matches!(found.storage, Storage::AliasOf(_))).ok_or_else(
            || ManifestError::invalid(format!("array `{name}` is tied to array {original}, which is none")),
        )?;
    if found.spec.shape != alias.spec.shape || found.spec.dtype != alias.spec.dtype {
        return Err(ManifestError::invalid(format!(
            "array `{name}` is tied to `{}` of another shape or dtype",
            found.spec.name
        )));
    }
    Ok(of_array[original])
}
