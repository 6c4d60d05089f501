//! The statistics file.
//!
//! | bytes | what |
//! |---|---|
//! | 8 | `LAMSTAT1` |
//! | ... | entries, one after the other |
//! | ... | index: JSON with the provenance and, per entry, name, extent, counts and CRC-32 |
//! | 8, 8, 4 | the index's offset, length (u64) and CRC-32 (u32) |
//! | 8 | `LAMSTATE` |
//!
//! An entry of inputs with `n` features holds sums (f64 `[n]`), sums of squares (f64 `[n]`), maxima (f32 `[n]`) and,
//! if full, [`SecondMoment::to_bytes`]; an embedding's row usage is f64 `[rows]`, an
//! array's Fisher sums are f64 `[elements]`. All little endian. It is made for
//! spooling: entries go out as blocks finish, the index comes last, and the file takes its name when it is whole.

use std::collections::BTreeMap;
use std::io::{BufWriter, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use fs_err::File;
use lamella_math::SecondMoment;
use serde::{Deserialize, Serialize};

use super::inputs::Channels;
use super::tables::{Provenance, Sink};
use super::{FisherDiagonal, InputStatistics, StatisticsError};

const HEAD: &[u8; 8] = b"LAMSTAT1";
const TAIL: &[u8; 8] = b"LAMSTATE";
const FOOTER_BYTES: u64 = 28;

/// Where an entry lies and what it holds.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Extent {
    offset: u64,
    bytes: u64,
    crc32: u32,
    /// Features of inputs, rows of an embedding.
    extent: u64,
    tokens: u64,
    is_full: bool,
}

#[derive(Debug, Default, Serialize, Deserialize)]
pub(super) struct Index {
    pub(super) provenance: Provenance,
    pub(super) inputs: BTreeMap<String, Extent>,
    pub(super) row_usage: BTreeMap<String, Extent>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(super) fisher: BTreeMap<String, Extent>,
}

/// Spools statistics to a file while a network is calibrated.
///
/// The file appears under its name when [`StatisticsWriter::finish`] returns; until then it is `NAME.part`, removed
/// if the writer is dropped.
#[derive(Debug)]
pub struct StatisticsWriter {
    file: Option<BufWriter<File>>,
    path: PathBuf,
    part: PathBuf,
    position: u64,
    index: Index,
}

impl StatisticsWriter {
    /// Starts a file.
    ///
    /// # Errors
    /// Where it cannot be written.
    pub fn create(path: &Path, provenance: Provenance) -> Result<Self, StatisticsError> {
        let mut part = path.as_os_str().to_owned();
        part.push(".part");
        let part = PathBuf::from(part);
        let mut file = BufWriter::new(File::create(&part)?);
        file.write_all(HEAD)?;
        let index = Index { provenance, ..Index::default() };
        Ok(Self { file: Some(file), path: path.to_owned(), part, position: HEAD.len() as u64, index })
    }

    /// Writes the index, syncs and gives the file its name.
    ///
    /// # Errors
    /// Where it cannot be written.
    pub fn finish(mut self) -> Result<(), StatisticsError> {
        let index = serde_json::to_vec(&self.index).map_err(std::io::Error::from)?;
        let Some(mut file) = self.file.take() else { return Ok(()) };
        file.write_all(&index)?;
        file.write_all(&self.position.to_le_bytes())?;
        file.write_all(&(index.len() as u64).to_le_bytes())?;
        file.write_all(&crc32fast::hash(&index).to_le_bytes())?;
        file.write_all(TAIL)?;
        file.flush()?;
        file.get_ref().sync_all()?;
        drop(file);
        fs_err::rename(&self.part, &self.path)?;
        Ok(())
    }

    fn entry(
        &mut self,
        bytes: &[u8],
        (extent, tokens, is_full): (usize, u64, bool),
    ) -> Result<Extent, StatisticsError> {
        let offset = self.position;
        if let Some(file) = &mut self.file {
            file.write_all(bytes)?;
        }
        self.position += bytes.len() as u64;
        Ok(Extent {
            offset,
            bytes: bytes.len() as u64,
            crc32: crc32fast::hash(bytes),
            extent: extent as u64,
            tokens,
            is_full,
        })
    }
}

impl Sink for StatisticsWriter {
    fn accept_input(&mut self, key: &str, seen: InputStatistics) -> Result<(), StatisticsError> {
        let channels = seen.channels();
        let mut bytes = Vec::new();
        for sums in [&channels.sums, &channels.squares] {
            sums.iter().for_each(|sum| bytes.extend_from_slice(&sum.to_le_bytes()));
        }
        channels.maxima.iter().for_each(|peak| bytes.extend_from_slice(&peak.to_le_bytes()));
        if let Some(moment) = seen.second_moment() {
            bytes.append(&mut moment.to_bytes());
        }
        let counts = (seen.features(), seen.tokens(), seen.second_moment().is_some());
        let extent = self.entry(&bytes, counts)?;
        self.index.inputs.insert(key.to_owned(), extent);
        Ok(())
    }

    fn accept_row_usage(&mut self, embedding: &str, counts: Vec<f64>) -> Result<(), StatisticsError> {
        let bytes: Vec<u8> = counts.iter().flat_map(|count| count.to_le_bytes()).collect();
        let extent = self.entry(&bytes, (counts.len(), 0, false))?;
        self.index.row_usage.insert(embedding.to_owned(), extent);
        Ok(())
    }

    fn accept_fisher(&mut self, array: &str, seen: FisherDiagonal) -> Result<(), StatisticsError> {
        let bytes: Vec<u8> = seen.sums().iter().flat_map(|sum| sum.to_le_bytes()).collect();
        let extent = self.entry(&bytes, (seen.sums().len(), seen.tokens(), false))?;
        self.index.fisher.insert(array.to_owned(), extent);
        Ok(())
    }
}

impl Drop for StatisticsWriter {
    fn drop(&mut self) {
        if self.file.take().is_some() {
            // An unfinished spool is of no use, and there is nobody to tell if it cannot be removed.
            let _ = fs_err::remove_file(&self.part);
        }
    }
}

fn damaged(path: &Path, message: impl Into<String>) -> StatisticsError {
    StatisticsError::Damaged { path: path.to_owned(), message: message.into() }
}

/// Reads and checks the index; every extent in it lies inside the file and has the length its counts ask for.
pub(super) fn read_index(path: &Path) -> Result<Index, StatisticsError> {
    let mut file = File::open(path)?;
    let length = file.metadata()?.len();
    let mut head = [0; 8];
    if length < HEAD.len() as u64 + FOOTER_BYTES {
        return Err(damaged(path, format!("{length} bytes are too few for a statistics file")));
    }
    file.read_exact(&mut head)?;
    if head != *HEAD {
        return Err(damaged(path, "it does not begin like a statistics file of version 1"));
    }
    let index_end = length - FOOTER_BYTES;
    let footer = read_at(&mut file, index_end, FOOTER_BYTES as usize)?;
    let (offset, bytes, crc32) = (number(&footer[..8]), number(&footer[8..16]), &footer[16..20]);
    if footer[20..] != *TAIL {
        return Err(damaged(path, "its end is missing: it was cut, or not written whole"));
    }
    if offset < HEAD.len() as u64 || offset.checked_add(bytes) != Some(index_end) {
        return Err(damaged(path, "its index does not lie where the footer says"));
    }
    let json = read_at(
        &mut file,
        offset,
        usize::try_from(bytes).map_err(|_| damaged(path, "its index is too long"))?,
    )?;
    if crc32fast::hash(&json).to_le_bytes() != *crc32 {
        return Err(damaged(path, "its index fails its checksum"));
    }
    let index: Index = serde_json::from_slice(&json)
        .map_err(|error| damaged(path, format!("its index cannot be read: {error}")))?;
    let fits = |extent: &Extent, needed: Option<u64>| {
        extent.offset >= HEAD.len() as u64
            && extent.offset.checked_add(extent.bytes).is_some_and(|end| end <= offset)
            && needed == Some(extent.bytes)
    };
    // Entries that share bytes would let a small file ask for much memory.
    let mut held = index.inputs.values().chain(index.row_usage.values()).chain(index.fisher.values());
    let total = held.try_fold(HEAD.len() as u64, |sum, extent| sum.checked_add(extent.bytes));
    if total.is_none_or(|total| total > offset) {
        return Err(damaged(path, "its entries overlap"));
    }
    for (key, extent) in &index.inputs {
        if !fits(extent, input_bytes(extent)) {
            return Err(damaged(path, format!("the extent of inputs `{key}` does not fit")));
        }
    }
    for (name, extent) in &index.row_usage {
        if !fits(extent, extent.extent.checked_mul(8)) {
            return Err(damaged(path, format!("the extent of the row usage of `{name}` does not fit")));
        }
    }
    for (name, extent) in &index.fisher {
        if !fits(extent, extent.extent.checked_mul(8)) {
            return Err(damaged(path, format!("the extent of the Fisher diagonal of `{name}` does not fit")));
        }
    }
    Ok(index)
}

/// Bytes an entry of inputs needs by its counts.
fn input_bytes(extent: &Extent) -> Option<u64> {
    let features = usize::try_from(extent.extent).ok()?;
    let moment = if extent.is_full { SecondMoment::stored_bytes(features)? } else { 0 };
    Some(features.checked_mul(20)?.checked_add(moment)? as u64)
}

pub(super) fn read_input(path: &Path, extent: &Extent) -> Result<InputStatistics, StatisticsError> {
    let bytes = read_entry(path, extent)?;
    let features = extent.extent as usize;
    let (sums, rest) = bytes.split_at(8 * features);
    let (squares, rest) = rest.split_at(8 * features);
    let (maxima, moment) = rest.split_at(4 * features);
    let channels = Channels {
        sums: doubles(sums),
        squares: doubles(squares),
        maxima: maxima.as_chunks::<4>().0.iter().map(|&value| f32::from_le_bytes(value)).collect(),
    };
    let moment = match extent.is_full {
        false => None,
        true => Some(
            SecondMoment::from_bytes(moment)
                .filter(|moment| moment.dimension() == features && moment.tokens() == extent.tokens)
                .ok_or_else(|| damaged(path, "a second moment contradicts the index"))?,
        ),
    };
    Ok(InputStatistics::from_parts(extent.tokens, channels, moment.map(Arc::new)))
}

pub(super) fn read_usage(path: &Path, extent: &Extent) -> Result<Vec<f64>, StatisticsError> {
    Ok(doubles(&read_entry(path, extent)?))
}

pub(super) fn read_fisher(path: &Path, extent: &Extent) -> Result<FisherDiagonal, StatisticsError> {
    Ok(FisherDiagonal::new(extent.tokens, doubles(&read_entry(path, extent)?)))
}

fn read_entry(path: &Path, extent: &Extent) -> Result<Vec<u8>, StatisticsError> {
    let bytes = read_at(&mut File::open(path)?, extent.offset, extent.bytes as usize)?;
    if crc32fast::hash(&bytes) != extent.crc32 {
        let end = extent.offset + extent.bytes;
        return Err(damaged(path, format!("bytes {} to {end} fail their checksum", extent.offset)));
    }
    Ok(bytes)
}

/// Reads bytes that are known to lie inside the file, so that the allocation is earned.
fn read_at(file: &mut File, offset: u64, length: usize) -> Result<Vec<u8>, StatisticsError> {
    file.seek(SeekFrom::Start(offset))?;
    let mut bytes = vec![0; length];
    file.read_exact(&mut bytes)?;
    Ok(bytes)
}

fn number(bytes: &[u8]) -> u64 {
    bytes.iter().rev().fold(0, |number, &byte| number << 8 | u64::from(byte))
}

fn doubles(bytes: &[u8]) -> Vec<f64> {
    bytes.as_chunks::<8>().0.iter().map(|&value| f64::from_le_bytes(value)).collect()
}

#[cfg(test)]
mod tests {
    use super::super::{Detail, InputAccumulator, Statistics, TextUse};
    use super::*;

    fn seen(features: usize, detail: Detail) -> InputStatistics {
        let mut accumulator = InputAccumulator::new(features, detail);
        accumulator.push(&(0..features * 5).map(|i| (i as f32 * 0.7).sin()).collect::<Vec<_>>());
        accumulator.finish()
    }

    fn example() -> Statistics {
        let text = TextUse { hash: "t".to_owned(), tokens: 5, sequences: 1 };
        let mut statistics = Statistics::new(Provenance { model: "m".to_owned(), texts: vec![text] });
        statistics.accept_input("a", seen(3, Detail::Full)).unwrap();
        Sink::accept_input(&mut statistics, "b", seen(4, Detail::Diagonal)).unwrap();
        Sink::accept_row_usage(&mut statistics, "embedding", vec![1.0, 0.0, 2.0]).unwrap();
        statistics.accept_fisher("array", FisherDiagonal::new(5, vec![0.5, 2.0])).unwrap();
        statistics
    }

    #[test]
    fn saved_statistics_come_back() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("statistics");
        let statistics = example();
        statistics.save(&path).unwrap();
        let read = Statistics::open(&path).unwrap();
        assert_eq!(read.provenance(), statistics.provenance());
        for key in ["a", "b"] {
            assert_eq!(read.input(key).unwrap(), statistics.input(key).unwrap());
        }
        assert_eq!(**read.row_usage("embedding").unwrap(), [1.0, 0.0, 2.0]);
        assert_eq!(read.fisher("array").unwrap().unwrap().means(), [0.1, 0.4]);
        assert_eq!(fs_err::read_dir(folder.path()).unwrap().count(), 1, "no temporary file is left");
    }

    #[test]
    fn merging_in_memory_and_to_a_file_agree() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("merged");
        let (mut one, two) = (example(), example());
        one.merge_to_file(&two, &path).unwrap();
        one.merge(&two).unwrap();
        let read = Statistics::open(&path).unwrap();
        assert_eq!(read.input("a").unwrap(), one.input("a").unwrap());
        assert_eq!(read.input("a").unwrap().unwrap().tokens(), 10);
        assert_eq!(read.row_usage("embedding"), one.row_usage("embedding"));
        assert_eq!(read.fisher("array").unwrap(), one.fisher("array").unwrap());
        assert_eq!(read.fisher("array").unwrap(), Some(FisherDiagonal::new(10, vec![1.0, 4.0])));
        assert_eq!(read.provenance().tokens(), 10);
        let other = Statistics::new(Provenance { model: "other".to_owned(), texts: Vec::new() });
        assert!(matches!(one.merge(&other), Err(StatisticsError::Mismatch { .. })));
    }

    #[test]
    fn every_cut_and_every_flipped_bit_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("statistics");
        example().save(&path).unwrap();
        let good = fs_err::read(&path).unwrap();
        let read_all = |bytes: &[u8]| -> Result<(), StatisticsError> {
            fs_err::write(&path, bytes)?;
            let statistics = Statistics::open(&path)?;
            for key in statistics.keys() {
                statistics.input(key)?;
            }
            for array in statistics.fisher_arrays() {
                statistics.fisher(array)?;
            }
            Ok(())
        };
        read_all(&good).unwrap();
        for end in 0..good.len() {
            assert!(read_all(&good[..end]).is_err(), "cut to {end} bytes");
        }
        for bit in 0..good.len() * 8 {
            let mut bytes = good.clone();
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert!(read_all(&bytes).is_err(), "bit {bit} flipped");
        }
    }

    #[test]
    fn a_crafted_index_earns_no_memory() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("crafted");
        let open = |extents: &[(&str, Extent)]| {
            let mut writer = StatisticsWriter::create(&path, Provenance::default()).unwrap();
            writer.accept_row_usage("good", vec![1.0; 4]).unwrap();
            for (name, extent) in extents {
                writer.index.row_usage.insert((*name).to_owned(), extent.clone());
                writer.index.inputs.insert((*name).to_owned(), extent.clone());
            }
            writer.finish().unwrap();
            Statistics::open(&path)
        };
        open(&[]).unwrap();
        let good = Extent { offset: 8, bytes: 32, crc32: 0, extent: 4, tokens: 0, is_full: false };
        for bad in [
            Extent { extent: u64::MAX, ..good.clone() },
            Extent { extent: u64::MAX, bytes: u64::MAX, is_full: true, ..good.clone() },
            Extent { extent: 1 << 32, is_full: true, ..good.clone() },
            Extent { offset: u64::MAX, ..good.clone() },
            Extent { bytes: 1 << 40, extent: 1 << 37, ..good.clone() },
        ] {
            assert!(matches!(open(&[("bad", bad)]), Err(StatisticsError::Damaged { .. })));
        }
        let error = open(&[("twice", good)]).unwrap_err();
        assert!(error.to_string().contains("overlap"), "{error}");
    }

    #[test]
    fn an_abandoned_spool_leaves_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let mut writer = StatisticsWriter::create(&folder.path().join("x"), Provenance::default()).unwrap();
        writer.accept_input("a", seen(3, Detail::Full)).unwrap();
        drop(writer);
        assert_eq!(fs_err::read_dir(folder.path()).unwrap().count(), 0);
    }
}
