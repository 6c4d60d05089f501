//! `check`: everything a change must pass.

use std::path::Path;
use std::process::Command;
use std::time::Instant;

/// Runs each step, also after one that failed, and names those that did.
pub fn run(root: &Path) -> Result<(), String> {
    let steps: [(&str, &[&str]); 4] = [
        ("formatting", &["fmt", "--all", "--check"]),
        ("lints", &["clippy", "--release", "--workspace", "--all-targets", "--", "-D", "warnings"]),
        ("tests", &["test", "--release", "--workspace"]),
        ("documentation", &["doc", "--release", "--workspace", "--no-deps"]),
    ];
    let mut failed = Vec::new();
    for (name, arguments) in steps {
        let start = Instant::now();
        eprintln!("==> {name}: cargo {}", arguments.join(" "));
        let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned());
        let status = Command::new(cargo)
            .args(arguments)
            .current_dir(root)
            .env("RUSTDOCFLAGS", "-D warnings")
            .status()
            .map_err(|error| format!("cargo cannot be run: {error}"))?;
        eprintln!(
            "==> {name}: {} after {:.0?}",
            if status.success() { "passed" } else { "failed" },
            start.elapsed()
        );
        if !status.success() {
            failed.push(name);
        }
    }
    if let Err(message) = crate::generate::run(root, true) {
        eprintln!("{message}");
        failed.push("generated pages");
    }
    if failed.is_empty() { Ok(()) } else { Err(format!("failed: {}", failed.join(", "))) }
}
