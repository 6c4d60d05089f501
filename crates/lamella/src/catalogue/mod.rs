//! The index: the 169 published systems that Lamella sets out to hold.
//!
//! `systems.tsv` has a line for each: id, wing, short name, what it compresses, title of the publication. A
//! wing's own list knows more of those it has built (recipe, claim, measurement); [`merge`] lays it over the
//! index, so that `lamella systems` names every system and says `planned` where nothing is built yet.

use std::collections::BTreeMap;

use lamella_codec::{System, Wing};

/// One line of the index.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry {
    /// Catalogue id, `S056`.
    pub id: &'static str,
    /// Wing.
    pub wing: Wing,
    /// Short name, `SpQR`.
    pub name: &'static str,
    /// What it compresses, a few words.
    pub compresses: &'static str,
    /// Title of the publication.
    pub title: &'static str,
}

/// The index, in the order of ids.
pub fn index() -> impl Iterator<Item = Entry> {
    include_str!("systems.tsv").lines().skip(1).filter_map(entry)
}

/// Reads a line; the tests show that none is refused.
fn entry(line: &'static str) -> Option<Entry> {
    let mut fields = line.split('\t');
    Some(Entry {
        id: fields.next()?,
        wing: Wing::from_name(fields.next()?)?,
        name: fields.next()?,
        compresses: fields.next()?,
        title: fields.next()?,
    })
}

/// Title of the publication behind an id.
pub fn title(id: &str) -> Option<&'static str> {
    index().find(|entry| entry.id.eq_ignore_ascii_case(id)).map(|entry| entry.title)
}

/// Every system of the index as planned: no recipe, no claim, no measurement.
pub fn planned() -> Vec<System> {
    let system = |entry: Entry| System {
        id: entry.id,
        name: entry.name,
        wing: entry.wing,
        compresses: entry.compresses,
        recipe: None,
        claim: None,
        measure: None,
    };
    index().map(system).collect()
}

/// The index with the wings' own systems laid over it: each takes the place of the planned one with its id, one
/// that the index does not know joins. Sorted by id.
pub fn merge(built: Vec<System>) -> Vec<System> {
    let mut systems: BTreeMap<&str, System> =
        planned().into_iter().map(|system| (system.id, system)).collect();
    systems.extend(built.into_iter().map(|system| (system.id, system)));
    systems.into_values().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_index_holds_169_whole_lines() {
        let entries: Vec<Entry> = index().collect();
        assert_eq!(entries.len(), 169);
        assert_eq!(include_str!("systems.tsv").lines().count(), 170);
        for (number, entry) in entries.iter().enumerate() {
            assert_eq!(entry.id, format!("S{:03}", number + 1));
            for text in [entry.name, entry.compresses, entry.title] {
                assert!(!text.is_empty() && text.trim() == text, "{entry:?}");
            }
            assert!(entry.name.len() <= 32 && entry.compresses.len() <= 80, "{entry:?}");
        }
        let names: std::collections::BTreeSet<&str> = entries.iter().map(|entry| entry.name).collect();
        assert_eq!(names.len(), 169, "short names are unique");
        assert_eq!(title("s056"), Some(entries[55].title));
    }

    #[test]
    fn wings_have_their_share() {
        let count = |wing| index().filter(|entry| entry.wing == wing).count();
        let counts = Wing::ALL.map(count);
        assert_eq!(counts, [44, 10, 9, 6, 24, 15, 24, 13, 4, 3, 17], "{:?}", Wing::ALL);
    }

    #[test]
    fn built_systems_take_their_place() {
        let built = System { recipe: Some("spqr"), claim: Some("holds"), ..planned()[55].clone() };
        let new = System { id: "S170", ..built.clone() };
        let merged = merge(vec![new, built]);
        assert_eq!(merged.len(), 170);
        assert_eq!((merged[55].id, merged[55].recipe), ("S056", Some("spqr")));
        assert_eq!((merged[169].id, merged[54].recipe), ("S170", None));
    }
}
