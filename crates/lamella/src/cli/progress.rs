//! The bar on standard error, and Ctrl-C.

use std::io::IsTerminal;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use indicatif::{HumanDuration, ProgressBar, ProgressStyle};
use lamella::codec::Progress;

static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// Jobs shorter than this show nothing.
const QUIET_START: Duration = Duration::from_secs(2);
/// Distance of lines where standard error is no terminal.
const LINE_EVERY: Duration = Duration::from_secs(10);

/// First Ctrl-C asks jobs to stop between two units of work, the second ends the program at once (what is spooled
/// stays whole either way).
pub(crate) fn catch_interrupts() {
    // A second handler in one process is the only failure, and there is one call.
    let _ = ctrlc::set_handler(|| {
        if INTERRUPTED.swap(true, Ordering::SeqCst) {
            std::process::exit(130);
        }
    });
}

/// Whether Ctrl-C was pressed.
pub(crate) fn is_interrupted() -> bool {
    INTERRUPTED.load(Ordering::SeqCst)
}

/// How much is said on standard error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verbosity {
    /// Errors only.
    Quiet,
    /// Warnings and progress.
    Normal,
    /// Warnings, no progress.
    NoProgress,
}

struct Stage {
    name: String,
    started: Instant,
    last_line: Instant,
    bar: Option<ProgressBar>,
}

/// Draws progress.
pub(crate) struct Bar {
    verbosity: Verbosity,
    started: Instant,
    is_terminal: bool,
    stage: Mutex<Option<Stage>>,
}

impl Bar {
    pub(crate) fn new(verbosity: Verbosity) -> Self {
        let is_switched_off = std::env::var_os("LAMELLA_NO_PROGRESS").is_some();
        let verbosity =
            if is_switched_off && verbosity == Verbosity::Normal { Verbosity::NoProgress } else { verbosity };
        Self {
            verbosity,
            started: Instant::now(),
            is_terminal: std::io::stderr().is_terminal(),
            stage: Mutex::new(None),
        }
    }

    /// Removes the bar: what follows is output.
    pub(crate) fn finish(&self) {
        let mut stage = self.stage.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if let Some(bar) = stage.take().and_then(|stage| stage.bar) {
            bar.finish_and_clear();
        }
    }
}

impl Progress for Bar {
    fn advance(&self, stage: &str, done: u64, total: u64, current: &str) {
        if self.verbosity != Verbosity::Normal {
            return;
        }
        let mut guard = self.stage.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if guard.as_ref().is_none_or(|known| known.name != stage) {
            if let Some(bar) = guard.take().and_then(|known| known.bar) {
                bar.finish_and_clear();
            }
            let now = Instant::now();
            *guard = Some(Stage { name: stage.to_owned(), started: now, last_line: now, bar: None });
        }
        let Some(known) = guard.as_mut() else { return };
        if self.started.elapsed() < QUIET_START {
            return;
        }
        let elapsed = known.started.elapsed();
        let eta = (done > 0).then(|| elapsed.mul_f64((total.saturating_sub(done)) as f64 / done as f64));
        let eta = eta.map_or(String::new(), |eta| format!(", about {} left", HumanDuration(eta)));
        if self.is_terminal {
            let bar = known.bar.get_or_insert_with(|| {
                let bar = ProgressBar::new(total);
                if let Ok(style) = ProgressStyle::with_template("{prefix} [{bar:30}] {pos}/{len}{msg}") {
                    bar.set_style(style.progress_chars("=> "));
                }
                bar.set_prefix(stage.to_owned());
                bar
            });
            bar.set_length(total);
            bar.set_position(done);
            bar.set_message(format!("{eta}  {current}"));
        } else if known.last_line.elapsed() >= LINE_EVERY {
            known.last_line = Instant::now();
            let current = if stage == "train" { format!("; {current}") } else { String::new() };
            super::print::note(&format!("{stage}: {done} of {total}{eta}{current}"));
        }
    }

    fn warn(&self, message: &str) {
        if self.verbosity == Verbosity::Quiet {
            return;
        }
        let guard = self.stage.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        match guard.as_ref().and_then(|stage| stage.bar.as_ref()) {
            Some(bar) => bar.suspend(|| super::print::note(&format!("warning: {message}"))),
            None => super::print::note(&format!("warning: {message}")),
        }
    }

    fn is_interrupted(&self) -> bool {
        is_interrupted()
    }
}
