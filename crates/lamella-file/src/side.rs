//! Side files: the small files beside the weights (configuration, tokenizer, chat template), compressed together.

use crate::limits::{MAX_NAME_BYTES, MAX_SIDE_BYTES};
use crate::manifest::{SideFile, SideTable};
use crate::{ManifestError, text_coding};

/// Packed side files: their table, which goes into the manifest, and their bytes, which follow it.
///
/// ```
/// use lamella_file::SideFiles;
/// let packed = SideFiles::pack(&[("config.json".to_owned(), b"{}".to_vec())]).unwrap();
/// assert_eq!(packed.table.files[0].length_bytes, 2);
/// assert_eq!(packed.unpack().unwrap()[0].1, b"{}");
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct SideFiles {
    /// Names, lengths, checksums.
    pub table: SideTable,
    /// All files' bytes one after the other, coded.
    pub bytes: Vec<u8>,
}

impl SideFiles {
    /// Packs files (name, bytes) in the given order. Neighbours of one kind compress best.
    ///
    /// # Errors
    /// More than the format's limits allow.
    pub fn pack(files: &[(String, Vec<u8>)]) -> Result<Self, ManifestError> {
        let total: u64 = files.iter().map(|(_, bytes)| bytes.len() as u64).sum();
        if total > MAX_SIDE_BYTES {
            return Err(ManifestError::Limit {
                what: "bytes of side files",
                found: total,
                allowed: MAX_SIDE_BYTES,
            });
        }
        if let Some((name, _)) = files.iter().find(|(name, _)| name.len() as u64 > MAX_NAME_BYTES) {
            return Err(ManifestError::Limit {
                what: "bytes of a name",
                found: name.len() as u64,
                allowed: MAX_NAME_BYTES,
            });
        }
        if files.is_empty() {
            return Ok(Self::default());
        }
        let (coding, bytes) =
            text_coding::encode(&files.iter().flat_map(|(_, bytes)| bytes).copied().collect::<Vec<u8>>());
        let table = SideTable {
            files: files
                .iter()
                .map(|(name, bytes)| SideFile {
                    name: name.clone(),
                    length_bytes: bytes.len() as u64,
                    crc32: crc32fast::hash(bytes),
                })
                .collect(),
            coding,
            stored_bytes: bytes.len() as u64,
            crc32: crc32fast::hash(&bytes),
        };
        Ok(Self { table, bytes })
    }

    /// The files, each checked.
    ///
    /// # Errors
    /// A sentence: what does not fit.
    pub fn unpack(&self) -> Result<Vec<(String, Vec<u8>)>, String> {
        unpack(&self.table, &self.bytes)
    }
}

pub(crate) fn unpack(table: &SideTable, stored: &[u8]) -> Result<Vec<(String, Vec<u8>)>, String> {
    let found = crc32fast::hash(stored);
    if table.crc32 != found {
        return Err(format!("they fail their checksum (stated {:08x}, found {found:08x})", table.crc32));
    }
    let total = table.files.iter().try_fold(0u64, |sum, file| sum.checked_add(file.length_bytes));
    let total = total.filter(|&total| total <= MAX_SIDE_BYTES).ok_or("their lengths exceed the limit")?;
    let text = text_coding::decode(table.coding, stored, total)?;
    let mut rest = text.as_slice();
    let mut files = Vec::with_capacity(table.files.len());
    for file in &table.files {
        let split = usize::try_from(file.length_bytes).ok().and_then(|length| rest.split_at_checked(length));
        let (bytes, after) = split.ok_or("they end early")?;
        rest = after;
        if crc32fast::hash(bytes) != file.crc32 {
            return Err(format!("`{}` fails its checksum", file.name));
        }
        files.push((file.name.clone(), bytes.to_vec()));
    }
    Ok(files)
}
