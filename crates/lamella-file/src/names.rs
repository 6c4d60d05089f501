//! Array names as columns: templates, and the numbers that fill them.
//!
//! `model.layers.3.self_attn.q_proj.weight` is the template `model.layers.#.self_attn.q_proj.weight` and the number
//! 3. A checkpoint of thousands of arrays has a dozen templates, its template column repeats from block to block,
//! and its numbers, written as differences, are almost all zero: all of it vanishes under the text coder.
//!
//! ```text
//! model.layers.0.mlp.up_proj.weight     template 0   +0
//! model.layers.0.mlp.down_proj.weight   template 1   +0
//! model.layers.1.mlp.up_proj.weight     template 0   +1
//! model.layers.1.mlp.down_proj.weight   template 1   +0
//! ```
#![warn(clippy::indexing_slicing, clippy::arithmetic_side_effects, clippy::cast_possible_truncation)]

use std::collections::BTreeMap;

use crate::ManifestError;
use crate::limits::{EXPANSION_FLOOR_BYTES, MAX_NAME_BYTES, MAX_NAME_EXPANSION};
use crate::wire::{Reader, put_varint, unzigzag, zigzag};

/// Stands in a template where a number goes. Never part of UTF-8.
const SLOT: u8 = 0xFF;
/// Ends a template. Never part of UTF-8.
const END: u8 = 0xFE;
/// Most slots of a template that are worth a column; digits beyond stay text.
const MAX_SLOTS: usize = 8;

/// Splits a name at its runs of one to nine digits without a leading zero.
fn split(name: &str) -> (Vec<u8>, Vec<u32>) {
    let (mut template, mut numbers) = (Vec::with_capacity(name.len()), Vec::new());
    let mut rest = name.as_bytes();
    while let Some(&first) = rest.first() {
        let is_digit = first.is_ascii_digit();
        let length = rest.iter().position(|byte| byte.is_ascii_digit() != is_digit).unwrap_or(rest.len());
        let (run, after) = rest.split_at(length);
        rest = after;
        let is_number =
            is_digit && length <= 9 && (length == 1 || first != b'0') && numbers.len() < MAX_SLOTS;
        match std::str::from_utf8(run).ok().and_then(|digits| digits.parse().ok()) {
            Some(number) if is_number => {
                template.push(SLOT);
                numbers.push(number);
            }
            _ => template.extend_from_slice(run),
        }
    }
    (template, numbers)
}

/// Writes the names as columns, with templates where the reader's bound on expansion allows it.
pub(crate) fn put_names<'n>(out: &mut Vec<u8>, names: impl Iterator<Item = &'n str> + Clone) {
    let before = out.len();
    put_columns(out, names.clone(), true);
    let total: u64 = names.clone().map(|name| name.len() as u64).sum();
    if total > expansion_bound(out.len().saturating_sub(before)) {
        out.truncate(before);
        put_columns(out, names, false);
    }
}

fn expansion_bound(column_bytes: usize) -> u64 {
    (column_bytes as u64).saturating_mul(MAX_NAME_EXPANSION).saturating_add(EXPANSION_FLOOR_BYTES)
}

fn put_columns<'n>(out: &mut Vec<u8>, names: impl Iterator<Item = &'n str>, with_templates: bool) {
    let mut templates: BTreeMap<Vec<u8>, u64> = BTreeMap::new();
    let (mut texts, mut chosen, mut columns) = (Vec::new(), Vec::new(), Vec::new());
    let mut previous = [0i64; MAX_SLOTS];
    for name in names {
        let (template, numbers) =
            if with_templates { split(name) } else { (name.as_bytes().to_vec(), Vec::new()) };
        let next = templates.len() as u64;
        let index = *templates.entry(template).or_insert_with_key(|template| {
            texts.extend_from_slice(template);
            texts.push(END);
            next
        });
        put_varint(&mut chosen, index);
        for (&number, previous) in numbers.iter().zip(&mut previous) {
            put_varint(&mut columns, zigzag(i64::from(number).wrapping_sub(*previous)));
            *previous = i64::from(number);
        }
    }
    put_varint(out, templates.len() as u64);
    out.extend_from_slice(&texts);
    out.extend_from_slice(&chosen);
    out.extend_from_slice(&columns);
}

/// Reads `count` names. The caller has checked `count` against what is left to read.
pub(crate) fn names(reader: &mut Reader<'_>, count: usize) -> Result<Vec<String>, ManifestError> {
    let bound = expansion_bound(reader.remaining());
    let n_templates = reader.count("name templates", u64::MAX, 1)?;
    let mut templates: Vec<&[u8]> = Vec::with_capacity(n_templates.min(count));
    for _ in 0..n_templates {
        templates.push(template(reader)?);
    }
    let mut chosen = Vec::with_capacity(count);
    for _ in 0..count {
        let index = reader.index("name template", templates.len())?;
        chosen.push(templates.get(index).copied().unwrap_or_default());
    }
    let mut previous = [0i64; MAX_SLOTS];
    let mut total = 0u64;
    let mut names = Vec::with_capacity(count);
    for template in chosen {
        let mut name = Vec::with_capacity(template.len());
        let mut slots = previous.iter_mut();
        for &byte in template {
            if byte != SLOT {
                name.push(byte);
                continue;
            }
            let difference = unzigzag(reader.varint()?);
            let previous = slots
                .next()
                .ok_or_else(|| ManifestError::invalid(format!("a name has more than {MAX_SLOTS} numbers")))?;
            *previous = previous
                .checked_add(difference)
                .filter(|number| (0..1_000_000_000).contains(number))
                .ok_or_else(|| ManifestError::invalid("a number in a name is out of range"))?;
            name.extend_from_slice(previous.to_string().as_bytes());
        }
        total = total.saturating_add(name.len() as u64);
        if total > bound {
            return Err(ManifestError::Limit { what: "bytes of names", found: total, allowed: bound });
        }
        let name = String::from_utf8(name).map_err(|_| ManifestError::invalid("a name is not UTF-8"))?;
        names.push(name);
    }
    Ok(names)
}

fn template<'a>(reader: &mut Reader<'a>) -> Result<&'a [u8], ManifestError> {
    let found = reader.clone().bytes(reader.remaining() as u64)?;
    let length = found
        .iter()
        .take(usize::try_from(MAX_NAME_BYTES).unwrap_or(usize::MAX).saturating_add(1))
        .position(|&byte| byte == END)
        .ok_or_else(|| ManifestError::invalid("a name template has no end"))?;
    let text = reader.bytes(length as u64)?;
    reader.u8()?;
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn returns(given: &[String]) {
        let mut bytes = Vec::new();
        put_names(&mut bytes, given.iter().map(String::as_str));
        let mut reader = Reader::new(&bytes, "names");
        assert_eq!(names(&mut reader, given.len()).unwrap(), given);
        reader.finish().unwrap();
    }

    proptest! {
        #[test]
        fn names_return(given in proptest::collection::vec("[a-c.0-9é]{0,24}", 0..40)) {
            returns(&given);
        }
    }

    #[test]
    fn awkward_numbers_stay_text() {
        let given =
            ["", "0", "00", "007.x", "1234567890", "999999999", "a1b2c3d4e5f6g7h8i9j10", "h.10.h.9.h"];
        returns(&given.map(str::to_owned));
    }

    #[test]
    fn long_names_of_one_template_fall_back_to_text() {
        let long = "x".repeat(4000);
        let given: Vec<String> = (0..100).map(|i| format!("{long}.{i}")).collect();
        returns(&given);
    }

    #[test]
    fn templates_are_shared() {
        let given: Vec<String> = (0..32).map(|i| format!("model.layers.{i}.mlp.up_proj.weight")).collect();
        let mut bytes = Vec::new();
        put_names(&mut bytes, given.iter().map(String::as_str));
        assert!(bytes.len() < 40 + 2 * 32, "{}", bytes.len());
    }
}
