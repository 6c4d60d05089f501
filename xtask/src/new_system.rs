//! `new-system`: the skeleton of a system's file, entered in its wing's list. Its claim fails until it is real.

use std::path::Path;

/// Writes the skeleton and its two lines in `systems.rs`.
pub fn run(root: &Path, id: &str, name: &str, wing: &str) -> Result<(), String> {
    let is_plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
    if !name.starts_with(|c: char| c.is_ascii_lowercase()) || !name.chars().all(is_plain) {
        return Err(format!("`{name}` is no module name; write lower-case letters, digits and `_`: `spqr`"));
    }
    let index = crate::generate::index(root)?;
    let entry = index.iter().find(|entry| entry.id.eq_ignore_ascii_case(id)).ok_or_else(|| {
        format!("no system is numbered `{id}`; `docs/systems.md` lists S001 to S{:03}", index.len())
    })?;
    let id = &entry.id;
    if entry.wing != wing {
        return Err(format!("{id} ({}) belongs to the wing `{}`, not `{wing}`", entry.name, entry.wing));
    }
    if let Some(built) = crate::generate::file_of(root, entry) {
        return Err(format!("{id} ({}) is there already: {built}", entry.name));
    }
    let source = root.join(format!("crates/lamella-{wing}/src"));
    let list = source.join("systems.rs");
    if !list.exists() {
        return Err(format!(
            "the wing `{wing}` has no crate yet: its first system brings `crates/lamella-{wing}` with a `src/systems.rs` \
             whose `codecs()` and `systems()` return empty lists, and enters both in `crates/lamella/src/lib.rs`"
        ));
    }
    let listed = crate::read(&list)?;
    let file = source.join("systems").join(format!("{name}.rs"));
    if file.exists() {
        return Err(format!("{} is there already", file.display()));
    }
    let (listed, by_hand) = enter(&listed, name);
    std::fs::write(&file, skeleton(entry, name)).map_err(|error| format!("{}: {error}", file.display()))?;
    std::fs::write(&list, listed).map_err(|error| format!("{}: {error}", list.display()))?;
    println!("{}\n{}", file.display(), list.display());
    if by_hand.is_empty() {
        println!(
            "next: `cargo fmt`, then step 2 of \"A system in an afternoon\" in CONTRIBUTING.md; `cargo xtask tidy` \
             lists what is still to be told"
        );
    } else {
        println!("next: add to {} by hand: {}", list.display(), by_hand.join(", "));
    }
    Ok(())
}

/// `spqr_plus` as a type: `SpqrPlus`.
fn type_name(name: &str) -> String {
    let capital = |word: &str| word[..1].to_uppercase() + &word[1..];
    name.split('_').filter(|word| !word.is_empty()).map(capital).collect()
}

fn skeleton(entry: &crate::generate::Entry, name: &str) -> String {
    include_str!("skeleton.rs.txt")
        .replace("{{id}}", &entry.id)
        .replace("{{name}}", &entry.name)
        .replace("{{module}}", name)
        .replace("{{type}}", &type_name(name))
        .replace("{{wing}}", &type_name(&entry.wing))
        .replace("{{compresses}}", &entry.compresses)
        .replace("{{title}}", &entry.title)
}

/// A wing's list with the module, its codec and its system entered, and what has to be entered by hand.
fn enter(list: &str, name: &str) -> (String, Vec<String>) {
    let mut by_hand = Vec::new();
    let line = format!("mod {name};");
    let mut lines: Vec<String> = list.lines().map(str::to_owned).collect();
    // Before the first `mod` that sorts after it, else behind the last.
    let is_mod = |text: &String| text.starts_with("mod ") || text.starts_with("pub mod ");
    let key = |text: &str| text.trim_start_matches("pub ").to_owned();
    let place = lines.iter().position(|text| is_mod(text) && key(text) > line);
    match place.or_else(|| lines.iter().rposition(is_mod).map(|last| last + 1)) {
        Some(place) => lines.insert(place, line),
        None => by_hand.push(format!("`{line}`")),
    }
    let mut text = lines.join("\n") + "\n";
    for (function, item) in [("codecs", "registration"), ("systems", "system")] {
        let item = format!("{name}::{item}()");
        match enter_item(&text, function, &item) {
            Some(entered) => text = entered,
            None => by_hand.push(format!("`{item}` in `{function}`")),
        }
    }
    (text, by_hand)
}

/// Puts `item` at the end of the `vec![…]`, or in place of the `Vec::new()`, that `pub fn function()` returns.
fn enter_item(text: &str, function: &str, item: &str) -> Option<String> {
    let start = text.find(&format!("pub fn {function}()"))?;
    let end = start + text[start..].find("\n}")?;
    let body = &text[start..end];
    if let Some(at) = body.find("Vec::new()") {
        let at = start + at;
        return Some(format!("{}vec![{item}]{}", &text[..at], &text[at + "Vec::new()".len()..]));
    }
    body.find("vec![")?;
    let close = start + body.rfind(']')?;
    let before = text[..close].trim_end();
    let comma = if before.ends_with([',', '[']) { "" } else { ", " };
    let gap = if before.ends_with(',') { "\n        " } else { "" };
    let tail = if before.ends_with(',') { ",\n    " } else { "" };
    Some(format!("{before}{comma}{gap}{item}{tail}{}", &text[close..]))
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIST: &str = "//! List.\n\nmod exact;\nmod rtn;\n\npub fn codecs() -> Vec<Registration> {\n    \
        vec![exact::registration(), rtn::registration()]\n}\n\npub fn systems() -> Vec<System> {\n    Vec::new()\n}\n";

    #[test]
    fn lists_are_entered() {
        let (list, by_hand) = enter(LIST, "gear");
        assert!(by_hand.is_empty());
        assert!(list.contains("mod exact;\nmod gear;\nmod rtn;\n"), "{list}");
        assert!(
            list.contains("vec![exact::registration(), rtn::registration(), gear::registration()]"),
            "{list}"
        );
        assert!(list.contains("{\n    vec![gear::system()]\n}"), "{list}");
        let (list, _) = enter(&list, "spqr");
        assert!(
            list.contains("mod rtn;\nmod spqr;\n") && list.contains("vec![gear::system(), spqr::system()]")
        );
        let long = "mod a;\npub fn codecs() -> V {\n    vec![\n        a::registration(),\n    ]\n}\n";
        let (list, by_hand) = enter(long, "b");
        assert!(list.contains("        a::registration(),\n        b::registration(),\n    ]\n}"), "{list}");
        assert_eq!(by_hand, ["`b::system()` in `systems`"]);
    }

    #[test]
    fn skeletons_have_every_heading_and_are_not_done() {
        let index = crate::generate::index(&crate::root()).unwrap();
        let text = skeleton(&index[55], "spqr");
        assert!(!text.contains("{{"), "{text}");
        let problems = crate::tidy::headings_of("spqr.rs", &text);
        assert!(
            !problems.is_empty() && problems.iter().all(|problem| problem.contains("TELL")),
            "{problems:?}"
        );
        assert!(
            text.contains("pub struct Spqr")
                && text.contains("Wing::Weights")
                && text.contains("holds: false")
        );
    }

    #[test]
    fn wrong_requests_are_refused() {
        let refusal = |id, name, wing| run(&crate::root(), id, name, wing).unwrap_err();
        assert!(refusal("S056", "SpQR", "weights").contains("is no module name"));
        assert!(refusal("S056", "spqr", "kv").contains("belongs to the wing `weights`"));
        assert!(refusal("S999", "spqr", "weights").contains("S001 to S169"));
        assert!(refusal("s056", "again", "weights").ends_with("crates/lamella-weights/src/systems/spqr.rs"));
    }
}
