//! The same network in another numeric order.
//!
//! The intermediate features of a feed-forward network may stand in any order: when the outputs of its gate and up
//! projections are reversed and the inputs of its down projection with them, every product is the same and only the
//! order of the sums differs. What then comes out differently is rounding: the noise floor of a measurement.

use std::collections::BTreeMap;
use std::sync::Arc;

use lamella_codec::{Array, ArraySpec, SourceError, TensorSource};

use crate::{LinearSite, Role};

/// Hands out a source's arrays with every feed-forward network's intermediate features in reverse order. Networks
/// without such roles come out unchanged; their noise floor is then zero.
///
/// ```
/// use std::sync::Arc;
/// use lamella_codec::{Array, ArraySpec, Dtype, TensorMap, TensorSource};
/// use lamella_lm::{LinearSite, Role, judge::reordered};
/// let mut arrays = TensorMap::default();
/// arrays.insert(Array::from_f32(ArraySpec::new("up", vec![2, 1], Dtype::F32), &[1.0, 2.0])?);
/// let up = LinearSite {
///     weight: "up".into(), bias: None, input: "x".into(), block: Some(0), in_features: 1, out_features: 2,
///     role: Role::Up, is_transposed: false, expert: None,
/// };
/// let reversed = reordered(Arc::new(arrays), &[up]);
/// assert_eq!(reversed.array("up")?.to_f32()?, [2.0, 1.0]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn reordered(source: Arc<dyn TensorSource>, linears: &[LinearSite]) -> Arc<dyn TensorSource> {
    let mut axes = BTreeMap::new();
    for site in linears {
        let is_inner = match site.role {
            Role::Gate | Role::Up => false,
            Role::Down => true,
            _ => continue,
        };
        axes.insert(site.weight.clone(), usize::from(is_inner != site.is_transposed));
        if let (false, Some(bias)) = (is_inner, &site.bias) {
            axes.insert(bias.clone(), 0);
        }
    }
    Arc::new(Reordered { source, axes })
}

struct Reordered {
    source: Arc<dyn TensorSource>,
    /// The axis along which an array is reversed.
    axes: BTreeMap<String, usize>,
}

impl TensorSource for Reordered {
    fn arrays(&self) -> &[ArraySpec] {
        self.source.arrays()
    }

    fn array(&self, name: &str) -> Result<Array<'_>, SourceError> {
        let array = self.source.array(name)?;
        let Some(&axis) = self.axes.get(name) else { return Ok(array) };
        let inner: usize = array.spec.shape.iter().skip(axis + 1).product();
        let extent = array.spec.shape.get(axis).copied().unwrap_or(1);
        let piece = inner * array.spec.dtype.size_bytes();
        if piece == 0 || extent == 0 {
            return Ok(array);
        }
        let mut bytes = Vec::with_capacity(array.bytes.len());
        for outer in array.bytes.chunks(piece * extent) {
            outer.rchunks(piece).for_each(|piece| bytes.extend_from_slice(piece));
        }
        Ok(Array { spec: array.spec, bytes: bytes.into() })
    }
}
