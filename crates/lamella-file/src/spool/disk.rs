//! The file operations a spool is made of, one at a time, so that a test can stop after any of them.

use std::io::{self, Write};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::write::sync_directory;

/// Does file operations, and stops for good once its steps are used up, as a killed process would.
#[derive(Debug)]
pub(crate) struct Disk {
    steps_left: AtomicUsize,
}

impl Disk {
    pub(crate) fn new() -> Self {
        Self::with_steps(usize::MAX)
    }

    pub(crate) fn with_steps(steps: usize) -> Self {
        Self { steps_left: AtomicUsize::new(steps) }
    }

    fn step(&self) -> io::Result<()> {
        let next = |left: usize| if left == usize::MAX { Some(left) } else { left.checked_sub(1) };
        match self.steps_left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, next) {
            Ok(_) => Ok(()),
            Err(_) => Err(io::Error::other("stopped")),
        }
    }

    pub(crate) fn create_directory(&self, path: &Path) -> io::Result<()> {
        self.step()?;
        match fs_err::create_dir(path) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists && path.is_dir() => Ok(()),
            other => other,
        }
    }

    /// Creates or replaces a file, handing out its writer; synced before this returns.
    pub(crate) fn write<E: From<io::Error>>(
        &self,
        path: &Path,
        write: impl FnOnce(&mut dyn Write) -> Result<u64, E>,
    ) -> Result<u64, E> {
        self.step()?;
        let mut out =
            io::BufWriter::with_capacity(1 << 20, Stepping { disk: self, file: fs_err::File::create(path)? });
        let written = write(&mut out)?;
        let file = out.into_inner().map_err(io::IntoInnerError::into_error)?.file;
        self.step()?;
        file.sync_all()?;
        Ok(written)
    }

    pub(crate) fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.step()?;
        fs_err::rename(from, to)
    }

    pub(crate) fn sync_directory(&self, path: &Path) -> io::Result<()> {
        self.step()?;
        sync_directory(path)
    }

    /// Removes a file; one that is not there is as good.
    pub(crate) fn remove_file(&self, path: &Path) -> io::Result<()> {
        self.step()?;
        match fs_err::remove_file(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            other => other,
        }
    }

    pub(crate) fn remove_directory(&self, path: &Path) -> io::Result<()> {
        self.step()?;
        fs_err::remove_dir(path)
    }
}

/// Writes in two halves with a step between, so that a test also stops inside a write.
struct Stepping<'d> {
    disk: &'d Disk,
    file: fs_err::File,
}

impl Write for Stepping<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let (first, second) = bytes.split_at(bytes.len() / 2);
        self.file.write_all(first)?;
        self.disk.step()?;
        self.file.write_all(second)?;
        Ok(bytes.len())
    }
    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}
