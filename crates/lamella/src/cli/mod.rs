//! The program: one file a verb.
//!
//! Data goes to standard output, everything else to standard error. Exit codes: 0 done, 1 the answer is no, 2 an
//! error or wrong usage, 130 interrupted.

mod budget;
mod compress;
mod cut;
mod diff;
mod error;
mod eval;
mod expand;
mod export;
mod html;
mod inspect;
mod model_options;
mod plan;
mod plan_file;
mod print;
mod progress;
mod reencode;
mod reproduce;
mod run;
mod systems;
mod train;
mod verify;

use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

pub(crate) use error::CliError;
use progress::{Bar, Verbosity};

/// Compress what a machine-learning system stores, moves or attends to.
///
/// Sizes are bytes, KB/MB/GB (powers of 1000), KiB/MiB/GiB, or a percentage of the input's weight files.
#[derive(Debug, Parser)]
#[command(name = "lamella", version, propagate_version = true, max_term_width = 100)]
#[command(
    after_help = "Examples:\n  lamella compress assets/stories260k --size 160KB -o story.lam\n  lamella eval story.lam --against assets/stories260k\n  lamella run story.lam \"Once upon a time\"\n\nExit codes: 0 done, 1 the answer is no, 2 error or wrong usage, 130 interrupted"
)]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    Compress(compress::Compress),
    Plan(plan::Plan),
    Eval(eval::Eval),
    Run(run::Run),
    Cut(cut::Cut),
    Inspect(inspect::Inspect),
    Verify(verify::Verify),
    Expand(expand::Expand),
    Export(export::Export),
    Diff(diff::Diff),
    Systems(systems::Systems),
    Reproduce(reproduce::Reproduce),
    Train(train::Train),
}

/// What every verb takes.
#[derive(Debug, Clone, Args)]
pub(crate) struct Common {
    /// Print the report as JSON
    #[arg(long)]
    pub(crate) json: bool,
    /// Say nothing but errors on standard error
    #[arg(long, short, conflicts_with = "no_progress")]
    pub(crate) quiet: bool,
    /// Show no progress, but warnings
    #[arg(long)]
    pub(crate) no_progress: bool,
    /// Threads [default: all cores]; results do not depend on it
    #[arg(long, value_name = "N")]
    pub(crate) threads: Option<usize>,
}

impl Common {
    /// The bar, with the thread pool set up.
    pub(crate) fn start(&self) -> Result<Bar, CliError> {
        // This thread works, too: handing each small product to another thread and waking up for its result would
        // take longer than the product.
        let mut pool = rayon::ThreadPoolBuilder::new().use_current_thread();
        if let Some(threads) = self.threads {
            if threads == 0 {
                return Err(CliError::usage("`--threads` is 0; it takes 1 or more"));
            }
            pool = pool.num_threads(threads);
        }
        pool.build_global().map_err(|error| {
            CliError::usage(format!("threads cannot be started: {error}"))
                .hint("`--threads N` asks for fewer")
        })?;
        Ok(Bar::new(match (self.quiet, self.no_progress) {
            (true, _) => Verbosity::Quiet,
            (false, true) => Verbosity::NoProgress,
            (false, false) => Verbosity::Normal,
        }))
    }
}

/// How a verb ended well.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Exit {
    /// Done, or the answer is yes.
    Done,
    /// The answer is no.
    No,
}

pub(crate) fn main() -> ExitCode {
    progress::catch_interrupts();
    let result = match Cli::parse().verb {
        Verb::Compress(verb) => verb.main(),
        Verb::Plan(verb) => verb.main(),
        Verb::Eval(verb) => verb.main(),
        Verb::Run(verb) => verb.main(),
        Verb::Cut(verb) => verb.main(),
        Verb::Inspect(verb) => verb.main(),
        Verb::Verify(verb) => verb.main(),
        Verb::Expand(verb) => verb.main(),
        Verb::Export(verb) => verb.main(),
        Verb::Diff(verb) => verb.main(),
        Verb::Systems(verb) => verb.main(),
        Verb::Reproduce(verb) => verb.main(),
        Verb::Train(verb) => verb.main(),
    };
    match result {
        Ok(Exit::Done) => ExitCode::SUCCESS,
        Ok(Exit::No) => ExitCode::from(1),
        Err(error) => {
            if progress::is_interrupted() {
                print::note(
                    "interrupted; finished work is kept beside the output and the same command goes on from it",
                );
                return ExitCode::from(130);
            }
            error.print();
            ExitCode::from(2)
        }
    }
}
