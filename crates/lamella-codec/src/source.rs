//! Where arrays come from.

use std::collections::BTreeMap;

use crate::{Array, ArraySpec};

/// Why an array could not be handed out.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SourceError {
    /// No array has this name.
    #[error("no array is named `{name}`")]
    Missing {
        /// What was asked for.
        name: String,
    },
    /// The array is there but could not be read or decoded.
    #[error("array `{name}` cannot be read")]
    Unreadable {
        /// Array.
        name: String,
        /// What went wrong.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

/// Hands out arrays by name: a checkpoint directory, an open `.lam` file, a map in memory.
///
/// Implementations are cheap to share between threads and hold no array longer than the caller does; memory
/// mapping or decoding on demand is what keeps a large model out of memory.
pub trait TensorSource: Send + Sync {
    /// Every array, in a fixed order (file order).
    fn arrays(&self) -> &[ArraySpec];

    /// One array, bytes borrowed where that is possible.
    ///
    /// # Errors
    /// [`SourceError::Missing`] where no array has this name, [`SourceError::Unreadable`] where it is damaged.
    fn array(&self, name: &str) -> Result<Array<'_>, SourceError>;

    /// Says that an array will not be wanted for a while, so that a source that maps files may give its memory back.
    /// Changes nothing that can be read.
    fn release(&self, _name: &str) {}

    /// The spec of one array.
    fn spec(&self, name: &str) -> Option<&ArraySpec> {
        self.arrays().iter().find(|spec| spec.name == name)
    }
}

/// Arrays in memory.
#[derive(Debug, Default, Clone)]
pub struct TensorMap {
    specs: Vec<ArraySpec>,
    arrays: BTreeMap<String, Array<'static>>,
}

impl TensorMap {
    /// Adds an array, or replaces the one with this name.
    pub fn insert(&mut self, array: Array<'static>) {
        let spec = array.spec.clone();
        if self.arrays.insert(spec.name.clone(), array).is_some() {
            self.specs.retain(|known| known.name != spec.name);
        }
        self.specs.push(spec);
    }
}

impl TensorSource for TensorMap {
    fn arrays(&self) -> &[ArraySpec] {
        &self.specs
    }
    fn array(&self, name: &str) -> Result<Array<'_>, SourceError> {
        let array = self.arrays.get(name).ok_or_else(|| SourceError::Missing { name: name.to_owned() })?;
        Ok(Array { spec: array.spec.clone(), bytes: (&array.bytes[..]).into() })
    }
}
