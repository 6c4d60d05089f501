//! Developer tasks: `cargo xtask TASK`. Standard library only, so that it builds in seconds anywhere.

mod check;
mod generate;
mod new_system;
mod tidy;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

const HELP: &str = "\
cargo xtask TASK

  check                                   formatting, lints, tests, documentation, generated pages
  tidy                                    the house rules that need no compiler; seconds
  generate [--check]                      writes the generated pages; --check only says which are stale
  new-system ID NAME --wing WING          the skeleton of a system: file, `mod` line, list line
                                          (cargo xtask new-system S056 spqr --wing weights)
";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let result = match words[..] {
        ["check"] => check::run(&root()),
        ["tidy"] => report(&tidy::all(&root())),
        ["generate"] => generate::run(&root(), false),
        ["generate", "--check"] => generate::run(&root(), true),
        ["new-system", id, name, "--wing", wing] => new_system::run(&root(), id, name, wing),
        ["new-system", ..] => Err(
            "`new-system` takes the id, a module name and the wing: `cargo xtask new-system S056 spqr --wing weights`"
                .to_owned(),
        ),
        [] | ["help" | "--help" | "-h"] => {
            print!("{HELP}");
            Ok(())
        }
        _ => Err(format!("`{}` is no task\n{HELP}", words.join(" "))),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("error: {message}");
            ExitCode::FAILURE
        }
    }
}

/// The repository, from where this program was built.
fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().map_or_else(|| PathBuf::from("."), Path::to_path_buf)
}

fn report(problems: &[String]) -> Result<(), String> {
    if problems.is_empty() {
        Ok(())
    } else {
        Err(format!("{} found\n{}", problems.len(), problems.join("\n")))
    }
}

/// Reads a file, naming it where that fails.
fn read(path: &Path) -> Result<String, String> {
    std::fs::read_to_string(path).map_err(|error| format!("{}: {error}", path.display()))
}
