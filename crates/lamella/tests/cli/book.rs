//! The book's pages of verbs hold the help texts of this build.

use std::path::{Path, PathBuf};

const BEGIN: &str = "## Usage\n\n```text\n";
const END: &str = "```\n";

fn verbs() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/verbs")
}

fn help(words: &[&str]) -> String {
    let output = std::process::Command::new(env!("CARGO_BIN_EXE_lamella")).args(words).output().unwrap();
    assert!(output.status.success(), "{words:?}");
    let text = String::from_utf8(output.stdout).unwrap();
    text.lines().map(|line| format!("{}\n", line.trim_end())).collect()
}

/// `LAMELLA_BLESS=1` writes the pages' usage anew.
#[test]
fn pages_of_verbs_hold_their_help() {
    let mut pages: Vec<PathBuf> =
        std::fs::read_dir(verbs()).unwrap().map(|entry| entry.unwrap().path()).collect();
    pages.sort();
    let mut stale = Vec::new();
    for path in &pages {
        let verb = path.file_stem().unwrap().to_str().unwrap();
        let page = std::fs::read_to_string(path).unwrap();
        let (prose, _) = page.split_once(BEGIN).unwrap_or_else(|| panic!("{verb}.md has no `## Usage`"));
        let fresh = format!("{prose}{BEGIN}{}{END}", help(&[verb, "--help"]));
        if page != fresh {
            if std::env::var_os("LAMELLA_BLESS").is_some() {
                std::fs::write(path, fresh).unwrap();
            } else {
                stale.push(verb.to_owned());
            }
        }
    }
    assert!(
        stale.is_empty(),
        "stale: {stale:?}; `LAMELLA_BLESS=1 cargo test --release -p lamella --test cli book` mends it"
    );
}

#[test]
fn every_verb_has_a_page_in_the_summary() {
    let summary = std::fs::read_to_string(verbs().join("../SUMMARY.md")).unwrap();
    let listed = help(&["--help"]);
    let commands = listed.split_once("Commands:\n").unwrap().1;
    let mut n_verbs = 0;
    for line in commands.lines().take_while(|line| !line.is_empty()) {
        // Continuation lines of a description are indented further than a verb.
        let Some(verb) = line.strip_prefix("  ").filter(|rest| !rest.starts_with(' ')) else { continue };
        let verb = verb.split_whitespace().next().unwrap();
        if verb != "help" {
            assert!(
                summary.contains(&format!("(verbs/{verb}.md)")),
                "docs/SUMMARY.md has no page of `{verb}`"
            );
            n_verbs += 1;
        }
    }
    assert!(n_verbs >= 12);
    for target in summary.split('(').skip(1).filter_map(|rest| rest.split(')').next()) {
        assert!(
            verbs().join("..").join(target).is_file(),
            "docs/SUMMARY.md names `{target}`, which is not there"
        );
    }
}
