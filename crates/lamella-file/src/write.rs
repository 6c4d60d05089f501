//! Writing a file whose layers are all known.

use std::borrow::Cow;
use std::io::{self, Write};
use std::path::Path;

use lamella_codec::EncodedLayer;

use crate::layout::Layout;
use crate::manifest::{self, LayerEntry, Manifest, stored_distortion};
use crate::{FileError, ManifestError};

impl LayerEntry {
    /// The entry of an encoded layer of `target`.
    pub fn of(target: usize, layer: &EncodedLayer) -> Self {
        Self {
            target,
            length_bytes: layer.payload.len() as u64,
            crc32: crc32fast::hash(&layer.payload),
            distortion: stored_distortion(layer.distortion),
            is_mapped: layer.is_mapped,
        }
    }
}

/// Writes a file: manifest, side files as [packed](crate::SideFiles), then the payload of each layer in order, which
/// `payload` hands out by index. Returns the bytes written. Payloads are checked against their entries.
///
/// # Errors
/// A manifest that cannot be written, a payload that is not what its entry says, or what the system says.
pub fn write_to<'p>(
    out: &mut dyn Write,
    manifest: &Manifest,
    side: &[u8],
    mut payload: impl FnMut(usize) -> Result<Cow<'p, [u8]>, FileError>,
) -> Result<u64, FileError> {
    let head = manifest::encode(manifest)?;
    let layout = Layout::new(head.len() as u64, manifest, &manifest.validate()?)?;
    if side.len() as u64 != manifest.side.stored_bytes || crc32fast::hash(side) != manifest.side.crc32 {
        return Err(ManifestError::invalid("the side files are not those of the manifest").into());
    }
    let failed = || FileError::io("writing the file");
    out.write_all(&head).map_err(failed())?;
    out.write_all(side).map_err(failed())?;
    let mut position = layout.side.end;
    for (index, (layer, extent)) in manifest.layers.iter().zip(&layout.extents).enumerate() {
        let bytes = payload(index)?;
        if bytes.len() as u64 != layer.length_bytes || crc32fast::hash(&bytes) != layer.crc32 {
            return Err(
                ManifestError::invalid(format!("the payload of layer {index} is not its entry's")).into()
            );
        }
        // Padding is shorter than the alignment.
        out.write_all(&[0; 64][..(extent.start - position) as usize]).map_err(failed())?;
        out.write_all(&bytes).map_err(failed())?;
        position = extent.end;
    }
    Ok(position)
}

/// The bytes of a file; see [`write_to`].
///
/// # Errors
/// As [`write_to`]; fewer payloads than layers.
pub fn to_bytes(
    manifest: &Manifest,
    side: &[u8],
    payloads: &[impl AsRef<[u8]>],
) -> Result<Vec<u8>, FileError> {
    let mut bytes = Vec::new();
    write_to(&mut bytes, manifest, side, |index| match payloads.get(index) {
        Some(payload) => Ok(Cow::Borrowed(payload.as_ref())),
        None => Err(ManifestError::invalid(format!("layer {index} has no payload")).into()),
    })?;
    Ok(bytes)
}

/// Writes a file under a temporary name beside `path`, syncs it and renames it: `path` is the old file or the whole
/// new one, never a part. `write` returns the bytes it wrote.
///
/// # Errors
/// What `write` or the system says.
pub fn write_atomically(
    path: &Path,
    write: impl FnOnce(&mut dyn Write) -> Result<u64, FileError>,
) -> Result<u64, FileError> {
    let failed = |source| FileError::Io { action: format!("writing `{}`", path.display()), source };
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let temporary = tempfile::Builder::new()
        .prefix(".lamella-")
        .suffix(".tmp")
        .permissions_of_new_files()
        .tempfile_in(directory)
        .map_err(failed)?;
    let mut out = io::BufWriter::with_capacity(1 << 20, temporary);
    let written = write(&mut out)?;
    let temporary = out.into_inner().map_err(|error| failed(error.into_error()))?;
    temporary.as_file().sync_all().map_err(failed)?;
    temporary.persist(path).map_err(|error| failed(error.error))?;
    sync_directory(directory).map_err(failed)?;
    Ok(written)
}

/// `tempfile` makes files only their owner may read; a model is as readable as any other new file.
trait NewFilePermissions {
    fn permissions_of_new_files(&mut self) -> &mut Self;
}

impl NewFilePermissions for tempfile::Builder<'_, '_> {
    #[cfg(unix)]
    fn permissions_of_new_files(&mut self) -> &mut Self {
        // The system takes the process's umask off these.
        self.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666))
    }
    #[cfg(not(unix))]
    fn permissions_of_new_files(&mut self) -> &mut Self {
        self
    }
}

/// Makes renames within a directory survive a power failure.
pub(crate) fn sync_directory(directory: &Path) -> io::Result<()> {
    if cfg!(unix) { fs_err::File::open(directory)?.sync_all() } else { Ok(()) }
}
