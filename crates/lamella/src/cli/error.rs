//! How errors reach the user: what could not be done, why, and what to try.

use std::error::Error;

use lamella::file::FileError;
use lamella::weights::compress::CompressError;

use super::print;

/// An error with hints.
#[derive(Debug)]
pub(crate) struct CliError {
    message: String,
    details: Vec<String>,
    hints: Vec<String>,
}

impl CliError {
    /// Something is wrong with what the user asked.
    pub(crate) fn usage(message: impl Into<String>) -> Self {
        Self { message: message.into(), details: Vec::new(), hints: Vec::new() }
    }

    /// Adds a line on what to try.
    pub(crate) fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hints.push(hint.into());
        self
    }

    pub(crate) fn print(&self) {
        print::note(&format!("error: {}", self.message));
        self.details.iter().for_each(|line| print::note(&format!("  {line}")));
        self.hints.iter().for_each(|line| print::note(&format!("hint: {line}")));
    }
}

impl<E: Error + 'static> From<E> for CliError {
    fn from(error: E) -> Self {
        let mut message = error.to_string();
        let (mut details, mut hints) = (Vec::new(), Vec::new());
        let mut cause: Option<&(dyn Error + 'static)> = Some(&error);
        while let Some(current) = cause {
            let text = current.to_string();
            // Transparent wrappers repeat their cause's text.
            if !message.contains(&text) {
                message.push_str(": ");
                message.push_str(&text);
            }
            if let Some(file) = current.downcast_ref::<FileError>() {
                details.extend(file.details());
                hints.extend(file.hints());
            }
            if let Some(error) = current.downcast_ref::<CompressError>() {
                hints.extend(hint_of(error));
            }
            cause = current.source();
        }
        Self { message, details, hints }
    }
}

fn hint_of(error: &CompressError) -> Option<String> {
    Some(match error {
        CompressError::TooSmall { .. } => {
            "`lamella plan MODEL --size SIZE` prints what each array takes; `--keep` and `--rule` decide what is exact"
                .to_owned()
        }
        CompressError::NoFreeRate { .. } => {
            "fewer `bits` or larger groups make it smaller; the recipe `house` meets any size".to_owned()
        }
        CompressError::PatternMatchesNothing { .. } => "`*` matches any part of a name, dots included".to_owned(),
        CompressError::NotSequential { .. } => "leave out `--sequential`".to_owned(),
        _ => return None,
    })
}
