//! One finished array in a spool directory: a small checked header, then the payloads.
//!
//! The form is private to this crate and may change with any release: a record of another form counts as absent.

use std::io::{self, Read, Seek, Write};
use std::path::Path;

use lamella_codec::EncodedLayer;
use sha2::{Digest, Sha256};

use crate::ManifestError;
use crate::limits::{MAX_LAYER_BYTES, MAX_LAYERS, MAX_NAME_BYTES, MAX_TEXT_BYTES};
use crate::wire::{Reader, put_text, put_varint};

const MAGIC: [u8; 5] = *b"LSPL\x01";

/// A layer in a spool.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SpooledLayer {
    /// Bytes of the payload.
    pub length_bytes: u64,
    /// CRC-32 (IEEE) of the payload.
    pub crc32: u32,
    /// Distortion once the layer is applied, as the encoder measured it.
    pub distortion: f64,
    /// Whether the payload wants to be memory-mapped.
    pub is_mapped: bool,
}

/// The header of a record.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Record {
    pub(crate) name: String,
    pub(crate) layers: Vec<SpooledLayer>,
    /// Free text kept with the array: what a resumed run needs beside the layers.
    pub(crate) note: String,
    /// Where payloads begin in the record's file.
    start: u64,
}

/// What ties a record to one job.
pub(crate) fn hash(text: &str) -> [u8; 16] {
    let digest = Sha256::digest(text.as_bytes());
    *digest.first_chunk::<16>().unwrap_or(&[0; 16])
}

/// Writes a whole record.
pub(crate) fn write(
    out: &mut dyn Write,
    job: [u8; 16],
    name: &str,
    layers: &[EncodedLayer],
    note: &str,
) -> io::Result<u64> {
    let mut header = Vec::new();
    header.extend_from_slice(&job);
    put_text(&mut header, name);
    put_text(&mut header, note);
    put_varint(&mut header, layers.len() as u64);
    for layer in layers {
        put_varint(&mut header, layer.payload.len() as u64);
        header.extend_from_slice(&crc32fast::hash(&layer.payload).to_le_bytes());
        header.extend_from_slice(&layer.distortion.to_bits().to_le_bytes());
        header.push(u8::from(layer.is_mapped));
    }
    out.write_all(&MAGIC)?;
    out.write_all(&(header.len() as u64).to_le_bytes())?;
    out.write_all(&crc32fast::hash(&header).to_le_bytes())?;
    out.write_all(&header)?;
    for layer in layers {
        out.write_all(&layer.payload)?;
    }
    Ok(0)
}

/// Reads the header of a record, `None` where the file is absent, of another job, damaged or incomplete.
pub(crate) fn read(path: &Path, job: [u8; 16]) -> io::Result<Option<Record>> {
    let file = match fs_err::File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        other => other?,
    };
    let file_bytes = file.metadata()?.len();
    let mut file = io::BufReader::new(file);
    let mut start = [0; MAGIC.len() + 12];
    if file.read_exact(&mut start).is_err() || !start.starts_with(&MAGIC) {
        return Ok(None);
    }
    let mut reader = Reader::new(&start[MAGIC.len()..], "record");
    let (Ok(length), Ok(crc32)) = (reader.array().map(u64::from_le_bytes), reader.u32()) else {
        return Ok(None);
    };
    let header_end = (start.len() as u64).saturating_add(length);
    if header_end > file_bytes {
        return Ok(None);
    }
    let mut header = Vec::new();
    file.take(length).read_to_end(&mut header)?;
    if header.len() as u64 != length || crc32fast::hash(&header) != crc32 || !header.starts_with(&job) {
        return Ok(None);
    }
    let Ok(mut record) = parse(&header[job.len()..]) else { return Ok(None) };
    record.start = header_end;
    let payload_bytes = record.layers.iter().fold(0u64, |sum, layer| sum.saturating_add(layer.length_bytes));
    Ok((header_end.saturating_add(payload_bytes) == file_bytes).then_some(record))
}

fn parse(header: &[u8]) -> Result<Record, ManifestError> {
    let mut reader = Reader::new(header, "record");
    let name = reader.text("bytes of a name", MAX_NAME_BYTES)?;
    let note = reader.text("bytes of a note", MAX_TEXT_BYTES)?;
    let count = reader.count("layers", MAX_LAYERS, 14)?;
    let mut layers = Vec::with_capacity(count);
    for _ in 0..count {
        layers.push(SpooledLayer {
            length_bytes: reader.bounded("bytes of a layer", MAX_LAYER_BYTES)?,
            crc32: reader.u32()?,
            distortion: f64::from_bits(u64::from_le_bytes(reader.array()?)),
            is_mapped: reader.u8()? != 0,
        });
    }
    reader.finish()?;
    Ok(Record { name, layers, note, start: 0 })
}

impl Record {
    /// Reads one payload and checks it; `None` where it is damaged.
    pub(crate) fn payload(&self, path: &Path, layer: usize) -> io::Result<Option<Vec<u8>>> {
        let before: u64 = self.layers[..layer].iter().map(|layer| layer.length_bytes).sum();
        let mut file = fs_err::File::open(path)?;
        file.seek(io::SeekFrom::Start(self.start + before))?;
        let mut payload = Vec::new();
        file.take(self.layers[layer].length_bytes).read_to_end(&mut payload)?;
        let is_intact = payload.len() as u64 == self.layers[layer].length_bytes
            && crc32fast::hash(&payload) == self.layers[layer].crc32;
        Ok(is_intact.then_some(payload))
    }
}
