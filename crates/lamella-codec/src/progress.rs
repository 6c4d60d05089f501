//! How long jobs say how far they are and learn that they should stop.

/// Watches a long job. Nothing below the roof prints; the program draws a bar from these calls.
pub trait Progress: Sync {
    /// `done` of `total` units of `stage` are finished ("calibrate", "code"); `current` names what is being worked on.
    fn advance(&self, stage: &str, done: u64, total: u64, current: &str);

    /// Something the user should know that stops nothing.
    fn warn(&self, _message: &str) {}

    /// Whether the user asked to stop. Jobs look between units of work and return [`Interrupted`].
    fn is_interrupted(&self) -> bool {
        false
    }

    /// An error once the user asked to stop.
    ///
    /// # Errors
    /// [`Interrupted`].
    fn check(&self) -> Result<(), Interrupted> {
        if self.is_interrupted() { Err(Interrupted) } else { Ok(()) }
    }
}

/// The user asked to stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("interrupted")]
pub struct Interrupted;

/// Nobody watches.
#[derive(Debug, Clone, Copy, Default)]
pub struct Silent;

impl Progress for Silent {
    fn advance(&self, _stage: &str, _done: u64, _total: u64, _current: &str) {}
}
