//! An open `.lam` file.

use std::path::PathBuf;

use lamella::codec::{Array, ArraySpec, SourceError, TensorSource};
use lamella::weights::open::CodedModel;
use numpy::{IntoPyArray, PyArray1};
use pyo3::exceptions::PyKeyError;
use pyo3::prelude::*;
use pyo3::types::PyBytes;

use crate::errors::raise;

/// Name, shape and dtype name of an array.
type Described = (String, Vec<usize>, &'static str);

/// An open file; arrays are decoded when they are asked for.
#[pyclass(frozen, module = "lamella._lamella")]
pub(crate) struct File {
    model: CodedModel,
}

#[pymethods]
impl File {
    #[new]
    fn new(py: Python<'_>, path: PathBuf) -> PyResult<Self> {
        let model =
            py.detach(|| CodedModel::open(&path, &lamella::catalogue())).map_err(|error| raise(&error))?;
        Ok(Self { model })
    }

    /// Every array: name, shape, dtype name.
    fn arrays(&self) -> Vec<Described> {
        self.model.arrays().iter().map(described).collect()
    }

    /// Name, shape and dtype name of one array.
    fn spec(&self, name: &str) -> PyResult<Described> {
        let specs = self.model.arrays();
        let index =
            self.model.file().array_index(name).ok_or_else(|| PyKeyError::new_err(name.to_owned()))?;
        Ok(described(&specs[index]))
    }

    /// The recipe an array is coded by.
    fn recipe(&self, name: &str) -> PyResult<String> {
        let file = self.model.file();
        let index = file.array_index(name).ok_or_else(|| PyKeyError::new_err(name.to_owned()))?;
        Ok(file.recipe(&file.arrays()[index]).to_owned())
    }

    /// The little-endian bytes of one decoded array; NumPy takes over the memory that they were decoded into.
    fn decode<'py>(&self, py: Python<'py>, name: &str) -> PyResult<Bound<'py, PyArray1<u8>>> {
        let array = py.detach(|| self.model.array(name)).map_err(missing)?;
        Ok(array.bytes.into_owned().into_pyarray(py))
    }

    /// The files beside the weights: configuration, tokenizer.
    fn side_files<'py>(&self, py: Python<'py>) -> PyResult<Vec<(String, Bound<'py, PyBytes>)>> {
        let files = py.detach(|| self.model.file().side_files()).map_err(|error| raise(&error))?;
        Ok(files.into_iter().map(|(name, bytes)| (name, PyBytes::new(py, &bytes))).collect())
    }

    /// Bytes of the file, layers in it, the budget it was made for.
    fn summary(&self) -> (u64, usize, String) {
        let file = self.model.file();
        (file.length_bytes(), file.whole_layers(), file.manifest().budget.clone())
    }
}

fn described(spec: &ArraySpec) -> Described {
    (spec.name.clone(), spec.shape.clone(), spec.dtype.name())
}

fn missing(error: SourceError) -> PyErr {
    match &error {
        SourceError::Missing { name } => PyKeyError::new_err(name.clone()),
        _ => raise(&error),
    }
}

/// An array from its parts, as both directions of a codec need it.
pub(crate) fn spec_of(name: &str, shape: Vec<usize>, dtype: &str) -> PyResult<ArraySpec> {
    let dtype = lamella::codec::Dtype::from_name(dtype)
        .ok_or_else(|| crate::errors::usage(format!("no element type is named `{dtype}`")))?;
    Ok(ArraySpec::new(name, shape, dtype))
}

/// An owned array over the caller's bytes.
pub(crate) fn array_of(spec: ArraySpec, bytes: Vec<u8>) -> PyResult<Array<'static>> {
    Array::new(spec, bytes).map_err(|error| raise(&error))
}
