//! Writing a file so that a crash loses no finished work.
//!
//! Coding a model takes hours; a layer that was finished before a crash must never be coded twice. A [`Spool`] is the
//! directory `OUT.part` beside the output `OUT`. Each array's layers go there as soon as they are coded, under a
//! temporary name first, synced, then renamed: a record is there whole or not at all. [`Spool::assemble`] writes the
//! file inside the directory, syncs it, renames it to `OUT` and removes the directory.
//!
//! The *fingerprint* is a text that names everything the bytes depend on: input, recipe, size, calibration, version of
//! the program. A spool of another fingerprint is discarded, and [`Spool::start`] says so.
//!
//! | killed | what is left | what the next run finds |
//! |---|---|---|
//! | while a record is written | a temporary file | the array unfinished |
//! | after the record's rename | the record | the array finished |
//! | while assembling | `assembled.tmp` | every array finished |
//! | after the final rename | `OUT`, part of `OUT.part` | `OUT` whole; a new run assembles the same bytes |
//!
//! ```
//! use lamella_codec::{ArraySpec, Dtype, EncodedLayer};
//! use lamella_file::{ArrayEntry, File, Manifest, Shard, Spool, Storage};
//! # let directory = tempfile::tempdir().unwrap();
//! let out = directory.path().join("model.lam");
//! let spool = Spool::open(&out, "input 6f3a, exact").unwrap();
//! let layer = EncodedLayer { payload: vec![1, 2, 3, 4], distortion: 0.0, is_mapped: false };
//! spool.store("w", &[layer], "").unwrap();
//! assert!(spool.finished("w").unwrap().is_some());
//! let manifest = Manifest {
//!     recipes: vec!["exact".to_owned()],
//!     shards: vec![Shard { name: "model.safetensors".to_owned(), metadata: Vec::new() }],
//!     arrays: vec![ArrayEntry {
//!         spec: ArraySpec::new("w", vec![2], Dtype::BF16),
//!         recipe: 0,
//!         shard: 0,
//!         storage: Storage::Own,
//!     }],
//!     ..Manifest::default()
//! };
//! spool.assemble(manifest, &[], &[0]).unwrap();
//! let file = File::open(&out).unwrap();
//! assert_eq!(file.layers_of("w").unwrap(), [vec![1, 2, 3, 4]]);
//! ```

mod disk;
mod record;
#[cfg(test)]
mod tests;

use std::borrow::Cow;
use std::ffi::OsStr;
use std::io;
use std::path::{Path, PathBuf};

use lamella_codec::EncodedLayer;

use self::disk::Disk;
use self::record::Record;
pub use self::record::SpooledLayer;
use crate::manifest::{LayerEntry, Manifest, Targets, stored_distortion};
use crate::order::{LayerGain, order_by_gain};
use crate::{FileError, size_of, write_to};

const FINGERPRINT: &str = "fingerprint";
const FINGERPRINT_TEMPORARY: &str = "fingerprint.tmp";
const ASSEMBLED: &str = "assembled.tmp";
const LOCK: &str = "lock";

/// What [`Spool::open`] found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SpoolStart {
    /// Nothing: the job begins.
    Fresh,
    /// The same job, interrupted.
    Resumed {
        /// Arrays that are finished.
        finished: usize,
    },
    /// Another job's spool, which was discarded.
    Discarded {
        /// Fingerprint of that job, empty where it was unreadable.
        previous: String,
        /// Its finished arrays, now gone.
        finished: usize,
    },
}

/// The directory of finished layers of one output.
#[derive(Debug)]
pub struct Spool {
    out: PathBuf,
    directory: PathBuf,
    job: [u8; 16],
    start: SpoolStart,
    disk: Disk,
    /// Held while the spool is open; the system lets it go when the process dies, however it dies.
    lock: fs_err::File,
}

impl Spool {
    /// Opens the spool of `out`, resuming one with the same `fingerprint` and discarding any other.
    ///
    /// # Errors
    /// [`FileError::SpoolInUse`], [`FileError::ForeignSpool`], or what the system says.
    pub fn open(out: impl AsRef<Path>, fingerprint: &str) -> Result<Self, FileError> {
        Self::open_on(Disk::new(), out.as_ref(), fingerprint)
    }

    fn open_on(disk: Disk, out: &Path, fingerprint: &str) -> Result<Self, FileError> {
        let mut directory = out.as_os_str().to_owned();
        directory.push(".part");
        let directory = PathBuf::from(directory);
        let failed = || FileError::io(format!("opening the spool `{}`", directory.display()));
        disk.create_directory(&directory).map_err(failed())?;
        let entries = entries(&directory).map_err(failed())?;
        if let Some(entry) = entries.iter().find(|entry| !is_known(entry)) {
            return Err(FileError::ForeignSpool { path: directory, entry: entry.clone() });
        }
        let lock = fs_err::File::create(directory.join(LOCK)).map_err(failed())?;
        match lock.file().try_lock() {
            Ok(()) => {}
            Err(std::fs::TryLockError::WouldBlock) => return Err(FileError::SpoolInUse { path: directory }),
            Err(std::fs::TryLockError::Error(error)) => return Err(failed()(error)),
        }
        let mut spool = Self {
            out: out.to_owned(),
            job: record::hash(fingerprint),
            start: SpoolStart::Fresh,
            disk,
            lock,
            directory: directory.clone(),
        };
        spool.start = spool.begin(fingerprint, &entries).map_err(failed())?;
        Ok(spool)
    }

    /// Resumes, or clears the directory and writes the fingerprint.
    fn begin(&self, fingerprint: &str, entries: &[String]) -> io::Result<SpoolStart> {
        let path = self.directory.join(FINGERPRINT);
        let previous = match fs_err::read(&path) {
            Ok(bytes) => Some(String::from_utf8_lossy(&bytes).into_owned()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(error),
        };
        let records = || entries.iter().filter(|entry| entry.ends_with(".layers"));
        if previous.as_deref() == Some(fingerprint) {
            for entry in entries.iter().filter(|entry| entry.ends_with(".tmp")) {
                self.disk.remove_file(&self.directory.join(entry))?;
            }
            let mut finished = 0;
            for entry in records() {
                finished += usize::from(record::read(&self.directory.join(entry), self.job)?.is_some());
            }
            return Ok(SpoolStart::Resumed { finished });
        }
        let finished = records().count();
        // The fingerprint goes first: what is left by a kill in between belongs to nobody and is cleared next time.
        self.disk.remove_file(&path)?;
        for entry in entries.iter().filter(|entry| !matches!(entry.as_str(), LOCK | FINGERPRINT)) {
            self.disk.remove_file(&self.directory.join(entry))?;
        }
        let temporary = self.directory.join(FINGERPRINT_TEMPORARY);
        self.disk.write(&temporary, |out| {
            out.write_all(fingerprint.as_bytes())?;
            Ok::<_, io::Error>(0)
        })?;
        self.disk.rename(&temporary, &path)?;
        self.disk.sync_directory(&self.directory)?;
        Ok(match previous {
            None if finished == 0 => SpoolStart::Fresh,
            previous => SpoolStart::Discarded { previous: previous.unwrap_or_default(), finished },
        })
    }

    /// What was found when the spool was opened.
    pub fn start(&self) -> &SpoolStart {
        &self.start
    }
    /// The spool's directory, `OUT.part`.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    fn path(&self, array: &str) -> PathBuf {
        let hash = record::hash(array).map(|byte| format!("{byte:02x}")).concat();
        self.directory.join(format!("{hash}.layers"))
    }

    /// Stores the layers of an array (of a bundle under its first array's name) for good, with a free `note` that
    /// [`Spool::note`] returns. Replaces what was stored under this name. May be called from several threads, for
    /// different arrays.
    ///
    /// # Errors
    /// What the system says; the previous record, if any, is then still there.
    pub fn store(&self, array: &str, layers: &[EncodedLayer], note: &str) -> Result<(), FileError> {
        let path = self.path(array);
        let temporary = path.with_extension("layers.tmp");
        let stored = self
            .disk
            .write(&temporary, |out| record::write(out, self.job, array, layers, note))
            .and_then(|_| self.disk.rename(&temporary, &path));
        stored.map_err(FileError::io(format!("storing array `{array}` in `{}`", self.directory.display())))
    }

    fn record(&self, array: &str) -> Result<Option<Record>, FileError> {
        let found = record::read(&self.path(array), self.job)
            .map_err(FileError::io(format!("reading array `{array}` in `{}`", self.directory.display())))?;
        Ok(found.filter(|record| record.name == array))
    }

    fn payload(&self, array: &str, record: &Record, layer: usize) -> Result<Option<Vec<u8>>, FileError> {
        record
            .payload(&self.path(array), layer)
            .map_err(FileError::io(format!("reading array `{array}` in `{}`", self.directory.display())))
    }

    /// The layers of an array that a previous run or this one has finished, `None` where there are none or they are
    /// damaged (a power failure can do that; code the array again then).
    ///
    /// # Errors
    /// What the system says.
    pub fn finished(&self, array: &str) -> Result<Option<Vec<EncodedLayer>>, FileError> {
        let Some(record) = self.record(array)? else { return Ok(None) };
        let mut layers = Vec::with_capacity(record.layers.len());
        for (index, layer) in record.layers.iter().enumerate() {
            let Some(payload) = self.payload(array, &record, index)? else { return Ok(None) };
            layers.push(EncodedLayer { payload, distortion: layer.distortion, is_mapped: layer.is_mapped });
        }
        Ok(Some(layers))
    }

    /// Lengths and distortions of a finished array's layers, without reading the payloads.
    ///
    /// # Errors
    /// What the system says.
    pub fn finished_lengths(&self, array: &str) -> Result<Option<Vec<SpooledLayer>>, FileError> {
        Ok(self.record(array)?.map(|record| record.layers))
    }

    /// The note stored with a finished array.
    ///
    /// # Errors
    /// What the system says.
    pub fn note(&self, array: &str) -> Result<Option<String>, FileError> {
        Ok(self.record(array)?.map(|record| record.note))
    }

    /// The order of the finished layers in which every prefix buys most; see [`order_by_gain`]. `weight` is what a
    /// unit of a target's distortion costs the task, 1 where nothing is known.
    ///
    /// # Errors
    /// [`FileError::Unfinished`], an invalid manifest, or what the system says.
    pub fn order_by_gain(
        &self,
        manifest: &Manifest,
        weight: impl Fn(usize) -> f64,
    ) -> Result<Vec<usize>, FileError> {
        let (_, records) = self.records(manifest)?;
        let gains: Vec<Vec<LayerGain>> = records
            .iter()
            .enumerate()
            .map(|(target, record)| {
                let gain = |layer: &SpooledLayer| LayerGain {
                    length_bytes: layer.length_bytes,
                    distortion: layer.distortion * weight(target),
                };
                record.layers.iter().map(gain).collect()
            })
            .collect();
        Ok(order_by_gain(&gains))
    }

    /// Exact size of the file that [`Spool::assemble`] would write.
    ///
    /// # Errors
    /// As [`Spool::order_by_gain`].
    pub fn size_of(&self, manifest: &Manifest, order: &[usize]) -> Result<u64, FileError> {
        let (targets, records) = self.records(manifest)?;
        size_of(&self.described(manifest.clone(), &targets, &records, order)?.0)
    }

    fn records(&self, manifest: &Manifest) -> Result<(Targets, Vec<Record>), FileError> {
        let targets = manifest.validate()?;
        let records = (0..targets.len())
            .map(|target| {
                let array = targets.name(target, &manifest.arrays);
                let record = self.record(array)?.filter(|record| !record.layers.is_empty());
                record.ok_or_else(|| self.unfinished(array))
            })
            .collect::<Result<_, _>>()?;
        Ok((targets, records))
    }

    fn unfinished(&self, array: &str) -> FileError {
        FileError::Unfinished { array: array.to_owned(), path: self.directory.clone() }
    }

    /// Fills in the manifest's layers, and returns each layer's ordinal with it.
    fn described(
        &self,
        mut manifest: Manifest,
        targets: &Targets,
        records: &[Record],
        order: &[usize],
    ) -> Result<(Manifest, Vec<usize>), FileError> {
        let mut next = vec![0usize; records.len()];
        manifest.layers.clear();
        let mut ordinals = Vec::with_capacity(order.len());
        for &target in order {
            let layer = records.get(target).and_then(|record| record.layers.get(next[target]));
            let layer = layer.ok_or_else(|| self.unfinished(targets.name(target, &manifest.arrays)))?;
            ordinals.push(next[target]);
            next[target] += 1;
            manifest.layers.push(LayerEntry {
                target,
                length_bytes: layer.length_bytes,
                crc32: layer.crc32,
                distortion: stored_distortion(layer.distortion),
                is_mapped: layer.is_mapped,
            });
        }
        Ok((manifest, ordinals))
    }

    /// Writes the output: `manifest` (its `layers` are filled in here), the side files as packed, and the layers in
    /// `order`, a list of targets in which a target's n-th occurrence stands for its n-th layer. Layers not named are
    /// left out. Never holds more than one payload in memory. Returns the file's bytes and removes the spool.
    ///
    /// # Errors
    /// [`FileError::Unfinished`] where an array has no layer or its record is damaged, an invalid manifest, or what
    /// the system says; the spool then stays.
    pub fn assemble(self, manifest: Manifest, side: &[u8], order: &[usize]) -> Result<u64, FileError> {
        let (targets, records) = self.records(&manifest)?;
        let (manifest, ordinals) = self.described(manifest, &targets, &records, order)?;
        let assembled = self.directory.join(ASSEMBLED);
        let written = self.disk.write::<SpoolWriteError>(&assembled, |out| {
            let written = write_to(out, &manifest, side, |layer| {
                let target = manifest.layers[layer].target;
                let array = targets.name(target, &manifest.arrays);
                let payload = self.payload(array, &records[target], ordinals[layer])?;
                payload.map(Cow::Owned).ok_or_else(|| self.unfinished(array))
            });
            written.map_err(SpoolWriteError::File)
        });
        let failed = || FileError::io(format!("writing `{}`", self.out.display()));
        let written = match written {
            Ok(written) => written,
            Err(SpoolWriteError::File(error)) => return Err(error),
            Err(SpoolWriteError::Io(error)) => return Err(failed()(error)),
        };
        let parent =
            self.out.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        self.disk.rename(&assembled, &self.out).map_err(failed())?;
        self.disk.sync_directory(parent).map_err(failed())?;
        self.remove()?;
        Ok(written)
    }

    /// Removes the spool with everything in it.
    ///
    /// # Errors
    /// What the system says.
    pub fn discard(self) -> Result<(), FileError> {
        self.remove()
    }

    fn remove(self) -> Result<(), FileError> {
        let failed = || FileError::io(format!("removing `{}`", self.directory.display()));
        for entry in entries(&self.directory).map_err(failed())?.iter().filter(|entry| is_known(entry)) {
            if entry != LOCK {
                self.disk.remove_file(&self.directory.join(entry)).map_err(failed())?;
            }
        }
        // Some systems do not remove a file that is open.
        drop(self.lock);
        self.disk.remove_file(&self.directory.join(LOCK)).map_err(failed())?;
        self.disk.remove_directory(&self.directory).map_err(failed())
    }
}

/// Names of a directory's entries, sorted.
fn entries(directory: &Path) -> io::Result<Vec<String>> {
    let mut names = fs_err::read_dir(directory)?
        .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
        .collect::<io::Result<Vec<_>>>()?;
    names.sort_unstable();
    Ok(names)
}

fn is_known(entry: &str) -> bool {
    let is_record = |stem: &str| stem.len() == 32 && stem.bytes().all(|byte| byte.is_ascii_hexdigit());
    let stem = Path::new(entry.strip_suffix(".tmp").unwrap_or(entry));
    matches!(entry, FINGERPRINT | FINGERPRINT_TEMPORARY | ASSEMBLED | LOCK)
        || (stem.extension() == Some(OsStr::new("layers"))
            && stem.file_stem().and_then(OsStr::to_str).is_some_and(is_record))
}

enum SpoolWriteError {
    Io(io::Error),
    File(FileError),
}

impl From<io::Error> for SpoolWriteError {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}
