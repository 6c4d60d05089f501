//! `tidy`: house rules that need no compiler. Each is a function that returns what it found, and a test.

use std::path::{Path, PathBuf};

/// Longest file of Rust, in lines.
const MAX_LINES: usize = 500;
/// Longest file of a system.
const MAX_SYSTEM_LINES: usize = 300;

/// Every rule on the whole tree.
pub fn all(root: &Path) -> Vec<String> {
    let rules = [
        file_lengths,
        unfinished,
        arrows,
        headings,
        registered,
        described,
        banned_names,
        local_paths,
        one_grammar,
    ];
    rules.iter().flat_map(|rule| rule(root)).collect()
}

/// Files under `folder` with one of the extensions, sorted; build output is left out.
fn files(folder: &Path, extensions: &[&str]) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![folder.to_path_buf()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).into_iter().flatten().flatten() {
            let (path, name) = (entry.path(), entry.file_name());
            let name = name.to_string_lossy();
            if path.is_dir() {
                if !matches!(&*name, "target" | "__pycache__") && !name.starts_with('.') {
                    folders.push(path);
                }
            } else if extensions.iter().any(|extension| name.ends_with(extension)) {
                found.push(path);
            }
        }
    }
    found.sort();
    found
}

fn rust(root: &Path) -> Vec<(String, String)> {
    let folders = ["crates", "xtask"].map(|folder| files(&root.join(folder), &[".rs"]));
    texts(root, folders.concat())
}

/// Paths from the root, with contents.
fn texts(root: &Path, paths: Vec<PathBuf>) -> Vec<(String, String)> {
    let named = |path: PathBuf| {
        let text = std::fs::read_to_string(&path).ok()?;
        Some((path.strip_prefix(root).unwrap_or(&path).to_string_lossy().replace('\\', "/"), text))
    };
    paths.into_iter().filter_map(named).collect()
}

/// No file of Rust is longer than 500 lines, none of a system longer than 300.
fn file_lengths(root: &Path) -> Vec<String> {
    let long = |(path, text): (String, String)| {
        let lines = text.lines().count();
        let most = if is_system_file(&path) { MAX_SYSTEM_LINES } else { MAX_LINES };
        (lines > most).then(|| format!("{path}: {lines} lines, at most {most}: split it"))
    };
    rust(root).into_iter().filter_map(long).collect()
}

/// No ignored test, nothing left to do.
fn unfinished(root: &Path) -> Vec<String> {
    let banned = [["#[ig", "nore"].concat(), ["to", "do!("].concat(), ["unimple", "mented!("].concat()];
    lines_with(
        rust(root),
        &banned.each_ref().map(String::as_str),
        "a test that cannot fail, or work left out",
    )
}

fn lines_with(texts: Vec<(String, String)>, banned: &[&str], why: &str) -> Vec<String> {
    let mut problems = Vec::new();
    for (path, text) in texts {
        for (number, line) in text.lines().enumerate() {
            if let Some(word) = banned.iter().find(|word| line.contains(**word)) {
                problems.push(format!("{path}:{}: `{word}`: {why}", number + 1));
            }
        }
    }
    problems
}

/// The floor a crate stands on; `None` for a name the house does not know.
fn floor(name: &str) -> Option<u8> {
    Some(match name {
        "lamella-math" | "lamella-quant" | "lamella-entropy" => 0,
        "lamella-codec" | "lamella-rate" | "lamella-file" | "lamella-io" => 1,
        "lamella-lm" | "lamella-nn" => 2,
        "lamella-weights"
        | "lamella-kv"
        | "lamella-vectors"
        | "lamella-gradients"
        | "lamella-context"
        | "lamella-audio"
        | "lamella-image"
        | "lamella-video"
        | "lamella-space"
        | "lamella-codes"
        | "lamella-representation" => 3,
        "lamella" | "lamella-python" | "lamella-server" => 4,
        _ => return None,
    })
}

/// Arrows within a floor that the architecture names: everything else goes down.
const SIDEWAYS: [(&str, &str); 7] = [
    ("lamella-quant", "lamella-math"),
    ("lamella-rate", "lamella-codec"),
    ("lamella-file", "lamella-codec"),
    ("lamella-io", "lamella-codec"),
    ("lamella-nn", "lamella-lm"),
    ("lamella-python", "lamella"),
    ("lamella-server", "lamella"),
];

/// Arrows between crates go only downwards; wings never import each other.
fn arrows(root: &Path) -> Vec<String> {
    let mut problems = Vec::new();
    for (path, text) in texts(root, files(&root.join("crates"), &["Cargo.toml"])) {
        let (name, dependencies) = package(&text);
        let Some(own) = floor(&name) else {
            problems.push(format!("{path}: `{name}` stands on no floor; give it one in `tidy.rs`"));
            continue;
        };
        for dependency in dependencies {
            let is_down = floor(&dependency).is_some_and(|floor| floor < own);
            if !is_down && !SIDEWAYS.contains(&(&name, &dependency)) {
                problems
                    .push(format!("{path}: `{name}` may not depend on `{dependency}`: arrows go downwards"));
            }
        }
    }
    problems
}

/// A manifest's package name and the crates of this house it depends on, tests aside.
fn package(manifest: &str) -> (String, Vec<String>) {
    let (mut section, mut name, mut dependencies) = ("", String::new(), Vec::new());
    for line in manifest.lines().map(str::trim) {
        if line.starts_with('[') {
            section = line.trim_matches(['[', ']']);
            let table = section.strip_prefix("dependencies.").filter(|name| name.starts_with("lamella"));
            dependencies.extend(table.map(str::to_owned));
        } else if let Some((key, value)) = line.split_once('=') {
            let key = key.trim();
            if section == "package" && key == "name" {
                name = value.trim().trim_matches('"').to_owned();
            }
            let key = key.split('.').next().unwrap_or(key);
            if section.ends_with("dependencies")
                && section != "dev-dependencies"
                && key.starts_with("lamella")
            {
                dependencies.push(key.to_owned());
            }
        }
    }
    (name, dependencies)
}

/// The headings of a system's file, in order.
const HEADINGS: [&str; 9] = [
    "Idea",
    "Algorithm",
    "Shapes",
    "Stored form",
    "Cost",
    "When to choose it",
    "Claim",
    "Differences",
    "Source",
];

/// Every file of a `systems` folder teaches under the usual headings, in the usual order.
fn headings(root: &Path) -> Vec<String> {
    system_files(root).iter().flat_map(|(path, text)| headings_of(path, text)).collect()
}

fn system_files(root: &Path) -> Vec<(String, String)> {
    texts(root, files(&root.join("crates"), &[".rs"]))
        .into_iter()
        .filter(|(path, _)| is_system_file(path))
        .collect()
}

fn is_system_file(path: &str) -> bool {
    path.contains("/src/systems/") && path.split('/').count() == 5
}

/// What is wrong with the doc of one system's file. A published system (its title names the id, `(S056)`) has all
/// headings; a plain codec at least *Idea* and *When to choose it*.
pub fn headings_of(path: &str, text: &str) -> Vec<String> {
    let doc: Vec<&str> = text.lines().map_while(|line| line.strip_prefix("//!")).map(str::trim).collect();
    let Some(title) = doc.first().filter(|title| !title.is_empty() && !title.starts_with('#')) else {
        return vec![format!("{path}: the first line is no title")];
    };
    let found: Vec<&str> = doc.iter().filter_map(|line| line.strip_prefix("# ")).collect();
    let is_system = (1..1000).any(|id| title.contains(&format!("(S{id:03})")));
    let needed = if is_system { &HEADINGS[..] } else { &["Idea", "When to choose it"] };
    let mut problems = Vec::new();
    for heading in needed.iter().filter(|heading| !found.contains(heading)) {
        problems.push(format!("{path}: the heading `# {heading}` is missing"));
    }
    let order: Vec<Option<usize>> =
        found.iter().map(|h| HEADINGS.iter().position(|known| known == h)).collect();
    for (heading, _) in found.iter().zip(&order).filter(|(_, place)| place.is_none()) {
        problems.push(format!("{path}: `# {heading}` is none of the headings: {}", HEADINGS.join(", ")));
    }
    let places: Vec<usize> = order.into_iter().flatten().collect();
    if !places.is_sorted() {
        problems.push(format!("{path}: headings are out of order: {}", found.join(", ")));
    }
    for line in doc.iter().filter(|line| line.contains("TELL")) {
        problems.push(format!("{path}: still to be told: {line}"));
    }
    problems
}

/// Every file of a `systems` folder is a module of its `systems.rs`.
fn registered(root: &Path) -> Vec<String> {
    let missing = |(path, _): (String, String)| {
        let (folder, file) = path.rsplit_once('/')?;
        let module = file.strip_suffix(".rs")?;
        let list = crate::read(&root.join(format!("{folder}.rs"))).unwrap_or_default();
        let is_listed = list.lines().any(|line| line.ends_with(&format!("mod {module};")));
        (!is_listed).then(|| format!("{path}: no `mod {module};` in {folder}.rs"))
    };
    system_files(root).into_iter().filter_map(missing).collect()
}

/// Every registered codec has its line in the table of `docs/recipes.md`.
fn described(root: &Path) -> Vec<String> {
    let page = crate::read(&root.join("docs/recipes.md")).unwrap_or_default();
    let missing = |(path, text): (String, String)| {
        let name = codec_of(&text)?;
        let is_there = page.lines().any(|line| line.starts_with(&format!("| `{name}` |")));
        (!is_there).then(|| format!("{path}: no line of `{name}` in the table of docs/recipes.md"))
    };
    system_files(root).into_iter().filter_map(missing).collect()
}

/// The name that a system's file registers a codec under.
fn codec_of(text: &str) -> Option<&str> {
    let (_, registration) = text.split_once("\n    Registration {")?;
    let (_, name) = registration.split_once("name: \"")?;
    Some(name.split_once('"')?.0)
}

/// Words that public names do not use, with the word to use.
const BANNED: [(&str, &str); 10] = [
    ("utils", "the thing itself"),
    ("misc", "the thing itself"),
    ("bpw", "bits_per_weight"),
    ("kld", "kl_divergence"),
    ("hessian", "second_moment"),
    ("percdamp", "damping"),
    ("qweight", "code"),
    ("groupsize", "group_size"),
    ("imatrix", "fisher_diagonal"),
    ("wht", "randomized_hadamard"),
];

/// Words that no type ends in: types are the thing.
const EMPTY_ENDINGS: [&str; 7] = ["manager", "handler", "info", "data", "impl", "common", "util"];

/// Public names use the house's words.
fn banned_names(root: &Path) -> Vec<String> {
    let mut problems = Vec::new();
    for (path, text) in texts(root, files(&root.join("crates"), &[".rs"])) {
        if !path.contains("/src/") {
            continue;
        }
        for (number, line) in text.lines().enumerate() {
            let Some(name) = public_name(line) else { continue };
            let words = words(name);
            for (word, instead) in BANNED.iter().filter(|(word, _)| words.iter().any(|own| own == word)) {
                problems.push(format!("{path}:{}: `{name}`: not `{word}` but {instead}", number + 1));
            }
            let is_type = name.starts_with(|c: char| c.is_ascii_uppercase())
                && name.contains(|c: char| c.is_ascii_lowercase());
            let is_empty = |word: &String| EMPTY_ENDINGS.contains(&word.as_str());
            if is_type && words.last().is_some_and(is_empty) {
                problems.push(format!("{path}:{}: `{name}`: types are the thing itself", number + 1));
            }
            if matches!(words.first().map(String::as_str), Some("no" | "disable")) && words.len() > 1 {
                problems.push(format!("{path}:{}: `{name}`: booleans assert", number + 1));
            }
        }
    }
    problems
}

/// The name that a line makes public.
fn public_name(line: &str) -> Option<&str> {
    let mut rest = line.trim_start().strip_prefix("pub ")?;
    if rest.starts_with("use ") {
        return None;
    }
    for keyword in
        ["async ", "const ", "unsafe ", "fn ", "struct ", "enum ", "trait ", "type ", "mod ", "static "]
    {
        rest = rest.strip_prefix(keyword).unwrap_or(rest);
    }
    let end = rest.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(rest.len());
    (end > 0).then(|| &rest[..end])
}

/// `SecondMoment`, `second_moment` and `SECOND_MOMENT` as lower-case words.
fn words(name: &str) -> Vec<String> {
    let mut words = vec![String::new()];
    let mut before = '_';
    for c in name.chars() {
        if c == '_' || c.is_ascii_uppercase() && before.is_ascii_lowercase() {
            words.push(String::new());
        }
        if let Some(word) = words.last_mut().filter(|_| c != '_') {
            word.push(c.to_ascii_lowercase());
        }
        before = c;
    }
    words.retain(|word| !word.is_empty());
    words
}

/// No path of the machine a change was made on.
fn local_paths(root: &Path) -> Vec<String> {
    let extensions = [".rs", ".toml", ".md", ".py", ".tsv", ".txt", ".sh", ".json"];
    let mut paths: Vec<PathBuf> = ["crates", "xtask", "docs", "tools", "bench", "fuzz"]
        .iter()
        .flat_map(|f| files(&root.join(f), &extensions))
        .collect();
    let top = std::fs::read_dir(root).into_iter().flatten().flatten().map(|entry| entry.path());
    paths.extend(top.filter(|path| extensions.iter().any(|e| path.to_string_lossy().ends_with(e))));
    let banned = ["work/", "tmp/", "root/", "home/"].map(|folder| format!("\"/{folder}"));
    let bare = ["/wo", "rk/main"].concat();
    let shared = ["/wo", "rk/shared"].concat();
    let mut words: Vec<&str> = banned.iter().map(String::as_str).collect();
    words.extend([bare.as_str(), shared.as_str()]);
    lines_with(texts(root, paths), &words, "a path of one machine")
}

/// The page on recipes and the module that reads them hold the same grammar.
fn one_grammar(root: &Path) -> Vec<String> {
    let block = |path: &str, fence: &str, prefix: &str| -> Result<Vec<String>, String> {
        let text = crate::read(&root.join(path))?;
        let lines = text.lines().map(|line| line.strip_prefix(prefix).unwrap_or(line));
        let inside = lines.skip_while(|line| *line != fence).skip(1).take_while(|line| *line != "```");
        Ok(inside.map(str::to_owned).collect())
    };
    let page = block("docs/recipes.md", "```ebnf", "");
    let module = block("crates/lamella-codec/src/recipe.rs", "```text", "//! ");
    match (page, module) {
        (Ok(page), Ok(module)) if page == module && !page.is_empty() => Vec::new(),
        (Err(error), _) | (_, Err(error)) => vec![error],
        _ => vec![
            "docs/recipes.md: its grammar is not the one in crates/lamella-codec/src/recipe.rs".to_owned(),
        ],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn holds(rule: fn(&Path) -> Vec<String>) {
        let problems = rule(&crate::root());
        assert!(problems.is_empty(), "{}", problems.join("\n"));
    }

    #[test]
    fn files_are_at_most_500_lines() {
        holds(file_lengths);
    }
    #[test]
    fn nothing_is_left_out() {
        holds(unfinished);
    }
    #[test]
    fn arrows_go_downwards() {
        holds(arrows);
    }
    #[test]
    fn systems_teach_under_the_usual_headings() {
        holds(headings);
    }
    #[test]
    fn systems_are_listed() {
        holds(registered);
    }
    #[test]
    fn codecs_are_described() {
        holds(described);
        let registered =
            "pub fn registration() -> Registration {\n    Registration {\n        name: \"bfp\",\n";
        assert_eq!(codec_of(registered), Some("bfp"));
    }
    #[test]
    fn public_names_use_the_houses_words() {
        holds(banned_names);
    }
    #[test]
    fn no_path_of_one_machine() {
        holds(local_paths);
    }

    #[test]
    fn the_grammar_is_written_once() {
        holds(one_grammar);
    }

    #[test]
    fn the_rules_see_what_they_are_for() {
        let manifest = "[package]\nname = \"lamella-kv\"\n[dependencies]\nlamella-weights.workspace = true\n\
                        lamella-lm = { path = \"x\" }\nserde = \"1\"\n[dependencies.lamella-io]\npath = \"y\"\n\
                        [dev-dependencies]\nlamella-file.workspace = true\n";
        let (name, dependencies) = package(manifest);
        assert_eq!(name, "lamella-kv");
        assert_eq!(dependencies, ["lamella-weights", "lamella-lm", "lamella-io"]);
        assert_eq!(floor("lamella-weights"), floor("lamella-kv"), "so this arrow is refused");

        assert_eq!(public_name("    pub fn hessian_of(x: u8) {"), Some("hessian_of"));
        assert_eq!(public_name("pub const MAX_BPW: u8 = 1;"), Some("MAX_BPW"));
        assert_eq!(public_name("pub(crate) fn x() {}"), None);
        assert_eq!(words("StepTable"), ["step", "table"]);
        assert_eq!(words("MAX_BPW"), ["max", "bpw"]);

        let plain = "//! Plain.\n//!\n//! # Idea\n//! x\n//!\n//! # When to choose it\n//! y\n";
        assert!(headings_of("a.rs", plain).is_empty());
        let swapped = plain.replace("# Idea", "# Cost").replace("# When to choose it", "# Idea");
        let problems = headings_of("a.rs", &swapped);
        assert!(problems.iter().any(|p| p.contains("out of order")), "{problems:?}");
        let problems = headings_of("a.rs", &plain.replace("Plain.", "Plain (S056): x."));
        assert_eq!(problems.len(), 7, "{problems:?}");
        assert!(!headings_of("a.rs", "use x;\n").is_empty());
    }
}
