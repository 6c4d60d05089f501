//! Reference logits kept on disk.
//!
//! One file per window, named by a hash of everything the logits depend on: the model, the window's tokens, the rows
//! scored. Other protocols, texts and models therefore never collide, and a run that was broken off goes on where it
//! stopped. A file holds `LAMLOGT1`, vocabulary size and rows (u64), the logits (f32) and a CRC-32 of them, little
//! endian; one that is cut or damaged is computed again. Windows take `4 rows vocab_size` bytes each: 1 MB for 128
//! rows of 2,048 tokens, 78 MB for 128 rows of 152,000.

use std::io::{BufWriter, Read, Seek, SeekFrom, Write};
use std::ops::Range;
use std::path::{Path, PathBuf};

use fs_err::File;
use sha2::{Digest, Sha256};

use super::{JudgeError, Predictions, Predictor, Window};
use crate::statistics::hexadecimal;

const HEAD: &[u8; 8] = b"LAMLOGT1";
const HEAD_BYTES: u64 = 24;
const SLAB_BYTES: usize = 16 << 20;

/// A predictor whose logits are computed once and kept in a folder.
pub struct CachedPredictor<'a> {
    inner: &'a dyn Predictor,
    model: String,
    folder: PathBuf,
}

impl std::fmt::Debug for CachedPredictor<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CachedPredictor").field("model", &self.model).field("folder", &self.folder).finish()
    }
}

impl<'a> CachedPredictor<'a> {
    /// Wraps `inner`; `model` must name its weights uniquely
    /// ([`source_hash`](crate::statistics::source_hash)), the folder must exist.
    pub fn new(inner: &'a dyn Predictor, model: impl Into<String>, folder: impl Into<PathBuf>) -> Self {
        Self { inner, model: model.into(), folder: folder.into() }
    }

    fn path(&self, window: &Window) -> PathBuf {
        let mut hasher = Sha256::new();
        hasher.update((self.model.len() as u64).to_le_bytes());
        hasher.update(self.model.as_bytes());
        for number in [self.vocab_size(), window.scored.start, window.scored.end] {
            hasher.update((number as u64).to_le_bytes());
        }
        window.tokens.iter().for_each(|token| hasher.update(token.to_le_bytes()));
        self.folder.join(format!("{}.logits", &hexadecimal(&hasher.finalize())[..32]))
    }
}

fn failed(path: &Path) -> impl FnOnce(std::io::Error) -> JudgeError {
    let path = path.to_owned();
    move |source| JudgeError::Cache { path, source }
}

fn header(vocab_size: usize, rows: usize) -> [u8; HEAD_BYTES as usize] {
    let mut bytes = [0; HEAD_BYTES as usize];
    bytes[..8].copy_from_slice(HEAD);
    bytes[8..16].copy_from_slice(&(vocab_size as u64).to_le_bytes());
    bytes[16..].copy_from_slice(&(rows as u64).to_le_bytes());
    bytes
}

/// Whether a file is there and whole.
fn is_valid(path: &Path, vocab_size: usize, rows: usize) -> bool {
    let check = || -> std::io::Result<bool> {
        let mut file = File::open(path)?;
        let data_bytes = 4 * (vocab_size as u64) * (rows as u64);
        let mut head = [0; HEAD_BYTES as usize];
        if file.metadata()?.len() != HEAD_BYTES + data_bytes + 4 {
            return Ok(false);
        }
        file.read_exact(&mut head)?;
        let (mut hasher, mut left) = (crc32fast::Hasher::new(), data_bytes);
        let mut slab = vec![0; SLAB_BYTES.min(usize::try_from(data_bytes).unwrap_or(SLAB_BYTES))];
        while left > 0 {
            let taken = slab.len().min(usize::try_from(left).unwrap_or(slab.len()));
            file.read_exact(&mut slab[..taken])?;
            hasher.update(&slab[..taken]);
            left -= taken as u64;
        }
        let mut crc32 = [0; 4];
        file.read_exact(&mut crc32)?;
        Ok(head == header(vocab_size, rows) && crc32 == hasher.finalize().to_le_bytes())
    };
    check().unwrap_or(false)
}

fn write(
    path: &Path,
    vocab_size: usize,
    rows: usize,
    logits: &mut dyn FnMut(Range<usize>) -> Result<Vec<f32>, JudgeError>,
) -> Result<(), JudgeError> {
    let part = path.with_extension("part");
    let mut file = BufWriter::new(File::create(&part).map_err(failed(path))?);
    file.write_all(&header(vocab_size, rows)).map_err(failed(path))?;
    let mut hasher = crc32fast::Hasher::new();
    let step = (SLAB_BYTES / (4 * vocab_size.max(1))).max(1);
    for first in (0..rows).step_by(step) {
        let slab = logits(first..rows.min(first + step))?;
        let bytes: Vec<u8> = slab.iter().flat_map(|logit| logit.to_le_bytes()).collect();
        hasher.update(&bytes);
        file.write_all(&bytes).map_err(failed(path))?;
    }
    file.write_all(&hasher.finalize().to_le_bytes()).map_err(failed(path))?;
    file.flush().map_err(failed(path))?;
    drop(file);
    fs_err::rename(&part, path).map_err(failed(path))
}

struct CachedPredictions {
    vocab_size: usize,
    paths: Vec<PathBuf>,
}

impl Predictions for CachedPredictions {
    fn logits(&self, window: usize, rows: Range<usize>) -> Result<Vec<f32>, JudgeError> {
        let path = &self.paths[window];
        let row_bytes = 4 * self.vocab_size;
        let mut bytes = vec![0; row_bytes * rows.len()];
        let mut read = || -> std::io::Result<()> {
            let mut file = File::open(path)?;
            file.seek(SeekFrom::Start(HEAD_BYTES + (row_bytes * rows.start) as u64))?;
            file.read_exact(&mut bytes)
        };
        read().map_err(failed(path))?;
        Ok(bytes.as_chunks::<4>().0.iter().map(|&logit| f32::from_le_bytes(logit)).collect())
    }
}

impl Predictor for CachedPredictor<'_> {
    fn vocab_size(&self) -> usize {
        self.inner.vocab_size()
    }

    fn run(&self, windows: &[Window]) -> Result<Box<dyn Predictions + '_>, JudgeError> {
        let vocab_size = self.vocab_size();
        let paths: Vec<PathBuf> = windows.iter().map(|window| self.path(window)).collect();
        let missing: Vec<usize> = (0..windows.len())
            .filter(|&index| !is_valid(&paths[index], vocab_size, windows[index].scored.len()))
            .collect();
        if !missing.is_empty() {
            let absent: Vec<Window> = missing.iter().map(|&index| windows[index].clone()).collect();
            let predictions = self.inner.run(&absent)?;
            for (place, &index) in missing.iter().enumerate() {
                write(&paths[index], vocab_size, windows[index].scored.len(), &mut |rows| {
                    predictions.logits(place, rows)
                })?;
            }
        }
        Ok(Box::new(CachedPredictions { vocab_size, paths }))
    }

    fn greedy(
        &self,
        prompt: &[u32],
        max_tokens: usize,
        is_done: &mut dyn FnMut(&[u32]) -> bool,
    ) -> Result<Vec<u32>, JudgeError> {
        self.inner.greedy(prompt, max_tokens, is_done)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[derive(Default)]
    struct Counting(AtomicUsize);
    struct Rows(Vec<Window>);

    impl Predictor for Counting {
        fn vocab_size(&self) -> usize {
            3
        }
        fn run(&self, windows: &[Window]) -> Result<Box<dyn Predictions + '_>, JudgeError> {
            self.0.fetch_add(windows.len(), Ordering::SeqCst);
            Ok(Box::new(Rows(windows.to_vec())))
        }
    }
    impl Predictions for Rows {
        fn logits(&self, window: usize, rows: Range<usize>) -> Result<Vec<f32>, JudgeError> {
            let window = &self.0[window];
            let tokens = &window.tokens[window.scored.clone()][rows];
            Ok(tokens.iter().flat_map(|&token| [token as f32, 0.5, -1.0]).collect())
        }
    }

    #[test]
    fn windows_are_computed_once_and_damaged_files_again() {
        let folder = tempfile::tempdir().unwrap();
        let inner = Counting::default();
        let cached = CachedPredictor::new(&inner, "model", folder.path());
        let windows: Vec<Window> =
            (0..3).map(|i| Window { tokens: vec![i, i + 1, i + 2], scored: 1..3 }).collect();
        let read = || -> Vec<f32> {
            let predictions = cached.run(&windows).unwrap();
            (0..3).flat_map(|window| predictions.logits(window, 0..2).unwrap()).collect()
        };
        let first = read();
        assert_eq!(first, inner_logits(&windows));
        assert_eq!(read(), first);
        assert_eq!(inner.0.load(Ordering::SeqCst), 3);
        let path = cached.path(&windows[1]);
        let good = fs_err::read(&path).unwrap();
        for damage in [&good[..good.len() - 1], &[], &{
            let mut bytes = good.clone();
            bytes[30] ^= 4;
            bytes
        }] {
            fs_err::write(&path, damage).unwrap();
            assert_eq!(read(), first);
        }
        assert_eq!(inner.0.load(Ordering::SeqCst), 6);
        let other = CachedPredictor::new(&inner, "other", folder.path());
        assert_ne!(other.path(&windows[0]), cached.path(&windows[0]));
    }

    fn inner_logits(windows: &[Window]) -> Vec<f32> {
        let rows = Rows(windows.to_vec());
        (0..windows.len()).flat_map(|window| rows.logits(window, 0..2).unwrap()).collect()
    }
}
