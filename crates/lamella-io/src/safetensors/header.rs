//! The JSON header: parsed and checked in full before any array is handed out.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;
use std::path::Path;

use lamella_codec::{ArraySpec, Dtype};
use serde::Deserialize;
use serde::de::{Deserializer, Error as _, MapAccess, Visitor};

use crate::IoError;

/// Longest header accepted, the reference implementation's own limit.
const LONGEST_HEADER_BYTES: u64 = 100_000_000;
const METADATA_KEY: &str = "__metadata__";

/// A checked header: every array lies inside the data, arrays neither overlap nor leave holes, and each has as
/// many bytes as its shape and dtype ask for.
#[derive(Debug, Clone)]
pub struct SafetensorsHeader {
    text: Vec<u8>,
    metadata: Vec<(String, String)>,
    specs: Vec<ArraySpec>,
    extents: Vec<Range<usize>>,
    by_name: BTreeMap<String, usize>,
    data_bytes: usize,
}

impl SafetensorsHeader {
    /// Parses and checks the header of a whole file's bytes. `path` only serves error messages.
    ///
    /// Work and memory are in proportion to the header's length (`n log n` for the order check).
    ///
    /// # Errors
    /// [`IoError::Damaged`], [`IoError::DamagedArray`] or [`IoError::UnknownDtype`], naming file and array.
    pub fn parse(file: &[u8], path: &Path) -> Result<Self, IoError> {
        let damaged = |message: String| IoError::damaged(path, message);
        let (length, rest) = file
            .split_first_chunk::<8>()
            .ok_or_else(|| damaged(format!("it has {} bytes, a safetensors file at least 10", file.len())))?;
        let length = u64::from_le_bytes(*length);
        if length > LONGEST_HEADER_BYTES {
            return Err(damaged(format!(
                "the header claims {length} bytes, allowed are {LONGEST_HEADER_BYTES}"
            )));
        }
        if length > rest.len() as u64 {
            return Err(damaged(format!(
                "the header claims {length} bytes, {} follow it: the file was cut",
                rest.len()
            )));
        }
        let (text, data) = rest.split_at(length as usize);
        Self::from_text(text, Some(data.len()), path)
    }

    /// Checks a header's JSON text alone, as [`SafetensorsHeader::text`] gives it. With `data_bytes` the arrays
    /// must fill exactly that many bytes.
    ///
    /// # Errors
    /// As [`SafetensorsHeader::parse`].
    pub fn from_text(text: &[u8], data_bytes: Option<usize>, path: &Path) -> Result<Self, IoError> {
        if text.first() != Some(&b'{') {
            return Err(IoError::damaged(path, "the header does not begin with `{`"));
        }
        let parsed: HeaderJson = serde_json::from_slice(text)
            .map_err(|error| IoError::damaged(path, format!("the header cannot be read: {error}")))?;

        let mut specs = Vec::with_capacity(parsed.entries.len());
        let mut extents = Vec::with_capacity(parsed.entries.len());
        let mut by_name = BTreeMap::new();
        for (ordinal, (name, entry)) in parsed.entries.into_iter().enumerate() {
            let (spec, extent) = checked_entry(name, entry, path)?;
            if by_name.insert(spec.name.clone(), ordinal).is_some() {
                return Err(IoError::damaged_array(path, &spec.name, "its name stands twice in the header"));
            }
            specs.push(spec);
            extents.push(extent);
        }

        let mut in_order: Vec<usize> = (0..specs.len()).collect();
        in_order.sort_by_key(|&ordinal| (extents[ordinal].start, extents[ordinal].end));
        let mut filled = 0;
        for &ordinal in &in_order {
            let extent = &extents[ordinal];
            if extent.start != filled {
                let what =
                    if extent.start < filled { "overlaps the array before it" } else { "leaves a hole" };
                return Err(IoError::damaged_array(
                    path,
                    &specs[ordinal].name,
                    format!(
                        "it begins at byte {} of the data and {what}, which ends at {filled}",
                        extent.start
                    ),
                ));
            }
            filled = extent.end;
        }
        if let Some(data_bytes) = data_bytes
            && data_bytes != filled
        {
            let last = in_order.last().map_or("", |&ordinal| specs[ordinal].name.as_str());
            return Err(IoError::damaged(
                path,
                format!(
                    "the arrays need {filled} bytes of data, {data_bytes} are there (last array: `{last}`)"
                ),
            ));
        }
        Ok(Self {
            text: text.to_owned(),
            metadata: parsed.metadata,
            specs,
            extents,
            by_name,
            data_bytes: filled,
        })
    }

    /// A header for `arrays` in the order given, in the reference implementation's layout: no spaces, the data
    /// offset padded to a multiple of 8.
    ///
    /// # Errors
    /// A name that stands twice, `__metadata__` as a name, or sizes that overflow.
    pub fn for_arrays(metadata: &[(&str, &str)], arrays: &[ArraySpec], path: &Path) -> Result<Self, IoError> {
        let quoted = |text: &str| serde_json::Value::from(text).to_string();
        let mut fields = Vec::with_capacity(arrays.len() + 1);
        if !metadata.is_empty() {
            let pairs: Vec<_> =
                metadata.iter().map(|(key, value)| format!("{}:{}", quoted(key), quoted(value))).collect();
            fields.push(format!("\"{METADATA_KEY}\":{{{}}}", pairs.join(",")));
        }
        let mut start = 0usize;
        for spec in arrays {
            let unexpected = |message: &str| IoError::Unexpected {
                path: path.to_owned(),
                array: spec.name.clone(),
                message: message.to_owned(),
            };
            if spec.name == METADATA_KEY {
                return Err(unexpected("the format keeps this name for itself"));
            }
            let end = spec
                .checked_size_bytes()
                .and_then(|size| start.checked_add(size))
                .ok_or_else(|| unexpected("its size overflows"))?;
            let shape: Vec<_> = spec.shape.iter().map(usize::to_string).collect();
            fields.push(format!(
                "{}:{{\"dtype\":\"{}\",\"shape\":[{}],\"data_offsets\":[{start},{end}]}}",
                quoted(&spec.name),
                spec.dtype.name(),
                shape.join(",")
            ));
            start = end;
        }
        let mut text = format!("{{{}}}", fields.join(","));
        while !text.len().is_multiple_of(8) {
            text.push(' ');
        }
        Self::from_text(text.as_bytes(), Some(start), path)
    }

    /// The JSON text as it stands in the file, trailing spaces included, without the length before it.
    pub fn text(&self) -> &[u8] {
        &self.text
    }
    /// `__metadata__`, in the file's order.
    pub fn metadata(&self) -> &[(String, String)] {
        &self.metadata
    }
    /// The arrays in the order of the header.
    pub fn arrays(&self) -> &[ArraySpec] {
        &self.specs
    }
    /// Bytes of all arrays.
    pub fn data_bytes(&self) -> usize {
        self.data_bytes
    }
    /// Ordinal of an array in [`SafetensorsHeader::arrays`].
    pub fn position(&self, name: &str) -> Option<usize> {
        self.by_name.get(name).copied()
    }
    /// Where an array's bytes lie, relative to the end of the header.
    pub fn extent(&self, name: &str) -> Option<Range<usize>> {
        self.position(name).map(|ordinal| self.extents[ordinal].clone())
    }
    /// Bytes before the data: the length field and the text.
    pub fn size_bytes(&self) -> usize {
        8 + self.text.len()
    }
}

fn checked_entry(name: String, entry: EntryJson, path: &Path) -> Result<(ArraySpec, Range<usize>), IoError> {
    let Some(dtype) = Dtype::from_name(&entry.dtype) else {
        let known: Vec<_> = (0..=255).filter_map(Dtype::from_code).map(Dtype::name).collect();
        return Err(IoError::UnknownDtype {
            path: path.to_owned(),
            array: name,
            dtype: entry.dtype,
            known: known.join(", "),
        });
    };
    let spec = ArraySpec::new(name, entry.shape, dtype);
    let damaged = |message: String| IoError::damaged_array(path, &spec.name, message);
    let needed = spec
        .checked_size_bytes()
        .ok_or_else(|| damaged(format!("its shape {:?} overflows the address space", spec.shape)))?;
    let (start, end) = entry.data_offsets;
    if end.checked_sub(start) != Some(needed) {
        return Err(damaged(format!(
            "shape {:?} of {} needs {needed} bytes, its offsets {start} to {end} give another number",
            spec.shape,
            dtype.name()
        )));
    }
    Ok((spec, start..end))
}

#[derive(Deserialize)]
struct EntryJson {
    dtype: String,
    shape: Vec<usize>,
    data_offsets: (usize, usize),
}

struct HeaderJson {
    metadata: Vec<(String, String)>,
    entries: Vec<(String, EntryJson)>,
}

impl<'de> Deserialize<'de> for HeaderJson {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct HeaderVisitor;
        impl<'de> Visitor<'de> for HeaderVisitor {
            type Value = HeaderJson;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of arrays")
            }
            fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<HeaderJson, M::Error> {
                let mut header = HeaderJson { metadata: Vec::new(), entries: Vec::new() };
                while let Some(name) = map.next_key::<String>()? {
                    if name == METADATA_KEY {
                        header.metadata = map.next_value::<StringMap>()?.0;
                    } else {
                        let entry = map
                            .next_value::<EntryJson>()
                            .map_err(|error| M::Error::custom(format!("array `{name}`: {error}")))?;
                        header.entries.push((name, entry));
                    }
                }
                Ok(header)
            }
        }
        deserializer.deserialize_map(HeaderVisitor)
    }
}

/// A JSON object of strings in its own order.
struct StringMap(Vec<(String, String)>);

impl<'de> Deserialize<'de> for StringMap {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct StringMapVisitor;
        impl<'de> Visitor<'de> for StringMapVisitor {
            type Value = StringMap;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of strings")
            }
            fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<StringMap, M::Error> {
                let mut pairs = Vec::new();
                while let Some(pair) = map.next_entry::<String, String>()? {
                    pairs.push(pair);
                }
                Ok(StringMap(pairs))
            }
        }
        deserializer.deserialize_map(StringMapVisitor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(json: &str, data_bytes: usize) -> Vec<u8> {
        let mut bytes = (json.len() as u64).to_le_bytes().to_vec();
        bytes.extend_from_slice(json.as_bytes());
        bytes.resize(bytes.len() + data_bytes, 7);
        bytes
    }
    fn message(json: &str, data_bytes: usize) -> String {
        SafetensorsHeader::parse(&file(json, data_bytes), Path::new("m.safetensors")).unwrap_err().to_string()
    }

    #[test]
    fn every_contradiction_names_file_and_array() {
        let cases = [
            (r#"{"w":{"dtype":"F32","shape":[2],"data_offsets":[0,4]}}"#, 4, "needs 8 bytes"),
            (r#"{"w":{"dtype":"F31","shape":[2],"data_offsets":[0,8]}}"#, 8, "unknown element type `F31`"),
            (r#"{"w":{"dtype":"F32","shape":[2],"data_offsets":[4,12]}}"#, 12, "leaves a hole"),
            (
                r#"{"v":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},"w":{"dtype":"U8","shape":[4],"data_offsets":[2,6]}}"#,
                6,
                "overlaps",
            ),
            (r#"{"w":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}"#, 9, "9 are there"),
            (r#"{"w":{"dtype":"F32","shape":[2],"data_offsets":[8,0]}}"#, 8, "offsets 8 to 0"),
            (r#"{"w":{"dtype":"F64","shape":[4294967296,4294967296],"data_offsets":[0,8]}}"#, 8, "overflows"),
            (r#"{"w":{"dtype":"F32","shape":[-1],"data_offsets":[0,8]}}"#, 8, "cannot be read"),
            (
                r#"{"w":{"dtype":"U8","shape":[0],"data_offsets":[0,0]},"w":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}"#,
                0,
                "twice",
            ),
        ];
        for (json, data_bytes, part) in cases {
            let message = message(json, data_bytes);
            assert!(message.contains(part), "{message}");
            assert!(message.contains("`w`") && message.contains("m.safetensors"), "{message}");
        }
    }

    #[test]
    fn huge_claims_are_refused_before_anything_is_read() {
        let mut bytes = u64::MAX.to_le_bytes().to_vec();
        bytes.extend_from_slice(b"{}");
        let error = SafetensorsHeader::parse(&bytes, Path::new("m")).unwrap_err();
        assert!(error.to_string().contains("allowed are"));
        let mut bytes = 50u64.to_le_bytes().to_vec();
        bytes.extend_from_slice(b"{}");
        let error = SafetensorsHeader::parse(&bytes, Path::new("m")).unwrap_err();
        assert!(error.to_string().contains("the file was cut"));
        for length in 0..8 {
            assert!(SafetensorsHeader::parse(&vec![0; length], Path::new("m")).is_err());
        }
    }

    #[test]
    fn header_order_and_text_are_kept() {
        let json = "{\"b\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[1,2]}, \
                    \"__metadata__\":{\"z\":\"1\",\"a\":\"2\"},\
                    \"a\":{\"data_offsets\":[0,1],\"shape\":[],\"dtype\":\"BOOL\"}}   ";
        let header = SafetensorsHeader::parse(&file(json, 2), Path::new("m")).unwrap();
        assert_eq!(header.text(), json.as_bytes());
        assert_eq!(header.arrays().iter().map(|spec| spec.name.as_str()).collect::<Vec<_>>(), ["b", "a"]);
        assert_eq!(header.metadata()[0], ("z".to_owned(), "1".to_owned()));
        assert_eq!(header.extent("b"), Some(1..2));
    }
}
