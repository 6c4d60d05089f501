//! `generate`: pages that are made from the tree, never by hand.

use std::fmt::Write;
use std::path::Path;

/// A page and how its text is made.
type Page = (&'static str, fn(&Path) -> Result<String, String>);

/// Every page, with its path.
const PAGES: [Page; 1] = [("docs/systems.md", systems)];

/// Writes the pages, or (`check`) says which are stale.
pub fn run(root: &Path, check: bool) -> Result<(), String> {
    let mut stale = Vec::new();
    for (path, make) in PAGES {
        let text = make(root)?;
        let file = root.join(path);
        if std::fs::read_to_string(&file).is_ok_and(|known| known == text) {
            continue;
        }
        if check {
            stale.push(path);
        } else {
            std::fs::write(&file, text).map_err(|error| format!("{path}: {error}"))?;
            println!("{path}");
        }
    }
    if stale.is_empty() {
        return Ok(());
    }
    Err(format!("stale: {}\nhint: `cargo xtask generate` writes them anew", stale.join(", ")))
}

/// A line of the index of systems.
pub struct Entry {
    /// Catalogue id, `S056`.
    pub id: String,
    /// Wing, `weights`.
    pub wing: String,
    /// Short name.
    pub name: String,
    /// What it compresses.
    pub compresses: String,
    /// Title of the publication.
    pub title: String,
}

/// The index of systems.
pub fn index(root: &Path) -> Result<Vec<Entry>, String> {
    let text = crate::read(&root.join("crates/lamella/src/catalogue/systems.tsv"))?;
    text.lines()
        .skip(1)
        .map(|line| match line.split('\t').collect::<Vec<_>>()[..] {
            [id, wing, name, compresses, title] => Ok(Entry {
                id: id.to_owned(),
                wing: wing.to_owned(),
                name: name.to_owned(),
                compresses: compresses.to_owned(),
                title: title.to_owned(),
            }),
            _ => Err(format!("systems.tsv: not five columns: {line}")),
        })
        .collect()
}

/// The file that holds a system, where one does: its first line names the id.
pub fn file_of(root: &Path, entry: &Entry) -> Option<String> {
    let folder = format!("crates/lamella-{}/src/systems", entry.wing);
    let marker = format!("({})", entry.id);
    let mut files: Vec<_> =
        std::fs::read_dir(root.join(&folder)).ok()?.flatten().map(|file| file.path()).collect();
    files.sort();
    let file = files.into_iter().find(|file| {
        crate::read(file).is_ok_and(|text| text.lines().next().is_some_and(|line| line.contains(&marker)))
    })?;
    Some(format!("{folder}/{}", file.file_name()?.to_string_lossy()))
}

fn systems(root: &Path) -> Result<String, String> {
    let entries = index(root)?;
    let mut page = format!(
        "# The {} systems\n\nThe index of published systems by wing. A system with a link is built; the others are \
         planned. `lamella systems` prints the same list with recipes and claims. This page is made by \
         `cargo xtask generate`.\n",
        entries.len()
    );
    let mut wings: Vec<&str> = Vec::new();
    for entry in &entries {
        if !wings.contains(&entry.wing.as_str()) {
            wings.push(&entry.wing);
        }
    }
    wings.sort_unstable();
    for wing in wings {
        let of_wing: Vec<&Entry> = entries.iter().filter(|entry| entry.wing == wing).collect();
        let _ = writeln!(page, "\n## {wing} ({})\n", of_wing.len());
        page.push_str("| id | name | compresses | publication |\n|---|---|---|---|\n");
        for entry in of_wing {
            let name = match file_of(root, entry) {
                Some(file) => format!("[{}](../{file})", entry.name),
                None => entry.name.clone(),
            };
            let title = entry.title.replace('|', "\\|");
            let _ = writeln!(page, "| {} | {name} | {} | {title} |", entry.id, entry.compresses);
        }
    }
    Ok(page)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_system_has_a_row() {
        let page = systems(&crate::root()).unwrap();
        assert!(page.starts_with("# The 169 systems\n"));
        assert_eq!(page.lines().filter(|line| line.starts_with("| S")).count(), 169);
    }

    #[test]
    fn pages_are_fresh() {
        run(&crate::root(), true).unwrap();
    }
}
