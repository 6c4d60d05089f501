//! The native half of the Python package `lamella`.
//!
//! * [`jobs`]: `compress`, `plan`, `expand`, `cut`, `evaluate`, `systems`, `reproduce`; reports travel as JSON text.
//! * [`file`]: an open `.lam` file, whose arrays are decoded into memory that NumPy then uses as it is.
//! * [`codec`]: one codec on one array.
//! * [`errors`]: each error type of the library becomes an exception class of the same name.
//!
//! The interpreter's lock is released while anything is computed, and taken for moments to report progress and to
//! look for Ctrl-C. What is Python about Python (dtypes, progress bars, torch) is written in Python, beside this crate.

mod codec;
mod errors;
mod file;
mod jobs;
mod progress;

use pyo3::prelude::*;

/// The module that `import lamella` wraps.
#[pymodule]
fn _lamella(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add("__version__", env!("CARGO_PKG_VERSION"))?;
    module.add_class::<file::File>()?;
    module.add_class::<codec::Codec>()?;
    jobs::add(module)?;
    errors::add(module)
}
