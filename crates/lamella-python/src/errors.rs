//! Errors of the library as exceptions of the same names, with the whole chain of causes as their text.

use std::error::Error;

use lamella::codec::Interrupted;
use pyo3::create_exception;
use pyo3::exceptions::{PyException, PyKeyboardInterrupt};
use pyo3::prelude::*;

create_exception!(lamella, LamellaError, PyException, "Anything that Lamella refuses or cannot do.");

/// Declares exception classes, adds them to the module, and picks one for an error by its type.
macro_rules! classes {
    ($($rust:path => $python:ident, $doc:literal;)*) => {
        $(create_exception!(lamella, $python, LamellaError, $doc);)*

        /// Adds the classes to the module.
        pub(crate) fn add(module: &Bound<'_, PyModule>) -> PyResult<()> {
            let py = module.py();
            module.add("LamellaError", py.get_type::<LamellaError>())?;
            $(module.add(stringify!($python), py.get_type::<$python>())?;)*
            Ok(())
        }

        fn class_of(error: &(dyn Error + 'static), message: String) -> Option<PyErr> {
            $(if error.is::<$rust>() { return Some($python::new_err(message)); })*
            None
        }
    };
}

classes! {
    lamella::weights::compress::CompressError => CompressError, "A model cannot be compressed as asked.";
    lamella::weights::evaluate::EvaluateError => EvaluateError, "A model cannot be judged.";
    lamella::weights::expand::ExpandError => ExpandError, "A file cannot be expanded.";
    lamella::weights::open::OpenError => OpenError, "A file cannot be opened as a model.";
    lamella::file::FileError => FileError, "A `.lam` file is damaged, cut too short, or cannot be read or written.";
    lamella::io::IoError => IoError, "A model in a foreign format cannot be read or written.";
    lamella::codec::SourceError => SourceError, "An array is missing or cannot be decoded.";
    lamella::codec::CodecError => CodecError, "An array cannot be encoded or decoded.";
    lamella::codec::CatalogueError => CatalogueError, "A recipe names no codec, or one with arguments out of range.";
    lamella::codec::RecipeError => RecipeError, "A recipe text cannot be read.";
}

/// The exception of an error: the class of its outermost known type, the text of all causes, hints as notes.
pub(crate) fn raise(error: &(dyn Error + 'static)) -> PyErr {
    let mut message = error.to_string();
    let mut hints = Vec::new();
    let mut cause = Some(error);
    while let Some(current) = cause {
        if current.is::<Interrupted>() {
            return PyKeyboardInterrupt::new_err("interrupted");
        }
        let text = current.to_string();
        // Transparent wrappers repeat their cause's text.
        if !message.contains(&text) {
            message.push_str(": ");
            message.push_str(&text);
        }
        if let Some(file) = current.downcast_ref::<lamella::file::FileError>() {
            hints.extend(file.details());
            hints.extend(file.hints().into_iter().map(|hint| format!("hint: {hint}")));
        }
        cause = current.source();
    }
    let exception = class_of(error, message.clone()).unwrap_or_else(|| LamellaError::new_err(message));
    if !hints.is_empty() {
        Python::attach(|py| {
            for hint in hints {
                // A note that cannot be added must not hide the error itself.
                let _ = exception.value(py).call_method1("add_note", (hint,));
            }
        });
    }
    exception
}

/// Something is wrong with what the caller asked.
pub(crate) fn usage(message: impl Into<String>) -> PyErr {
    LamellaError::new_err(message.into())
}
