//! Progress and Ctrl-C across the border: jobs run without the interpreter's lock and take it for moments.

use std::error::Error;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use lamella::codec::Progress;
use pyo3::exceptions::PyUserWarning;
use pyo3::prelude::*;

use crate::errors::raise;

/// Reports nearer together than this are dropped: taking the lock costs other Python threads their turn.
const REPORT_EVERY: Duration = Duration::from_millis(100);

/// Watches one job.
pub(crate) struct Watch {
    callback: Option<Py<PyAny>>,
    state: Mutex<State>,
    is_interrupted: AtomicBool,
}

struct State {
    reported: Instant,
    stage: String,
    failure: Option<PyErr>,
    warnings: Vec<String>,
}

impl Watch {
    fn new(callback: Option<Py<PyAny>>) -> Self {
        let state =
            State { reported: Instant::now(), stage: String::new(), failure: None, warnings: Vec::new() };
        Self { callback, state: Mutex::new(state), is_interrupted: AtomicBool::new(false) }
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Progress for Watch {
    fn advance(&self, stage: &str, done: u64, total: u64, current: &str) {
        {
            let mut state = self.state();
            if state.stage == stage && done < total && state.reported.elapsed() < REPORT_EVERY {
                return;
            }
            state.reported = Instant::now();
            stage.clone_into(&mut state.stage);
        }
        let answer = Python::attach(|py| {
            py.check_signals()?;
            match &self.callback {
                Some(callback) => callback.call1(py, (stage, done, total, current)).map(drop),
                None => Ok(()),
            }
        });
        if let Err(error) = answer {
            self.state().failure.get_or_insert(error);
            self.is_interrupted.store(true, Ordering::SeqCst);
        }
    }

    fn warn(&self, message: &str) {
        self.state().warnings.push(message.to_owned());
    }

    fn is_interrupted(&self) -> bool {
        self.is_interrupted.load(Ordering::SeqCst)
    }
}

/// Runs a job without the interpreter's lock; `callback(stage, done, total, current)` hears of its progress. What the
/// callback raises ends the job and is raised again here, as Ctrl-C is.
pub(crate) fn run<T: Send, E: Error + Send + 'static>(
    py: Python<'_>,
    callback: Option<Py<PyAny>>,
    job: impl FnOnce(&Watch) -> Result<T, E> + Send,
) -> PyResult<T> {
    let watch = Watch::new(callback);
    let result = py.detach(|| job(&watch));
    let state = watch.state.into_inner().unwrap_or_else(PoisonError::into_inner);
    for warning in state.warnings {
        let text = std::ffi::CString::new(warning).unwrap_or_default();
        PyErr::warn(py, &py.get_type::<PyUserWarning>(), &text, 2)?;
    }
    match state.failure {
        Some(failure) => Err(failure),
        None => result.map_err(|error| raise(&error)),
    }
}
