//! Writes safetensors files array by array.

use std::io::{BufWriter, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use lamella_codec::{Array, ArraySpec};
use tempfile::NamedTempFile;

use super::SafetensorsHeader;
use crate::IoError;

/// Writes one safetensors file without holding it in memory.
///
/// The header is fixed first; arrays then come in any order, each exactly once. The file grows beside its
/// destination under a temporary name and takes its place only in [`SafetensorsWriter::finish`], so a reader
/// never sees half a file and a failed run leaves the old one.
#[derive(Debug)]
pub struct SafetensorsWriter {
    destination: PathBuf,
    header: SafetensorsHeader,
    is_written: Vec<bool>,
    position: u64,
    file: BufWriter<NamedTempFile>,
}

impl SafetensorsWriter {
    /// Begins a file of `arrays` in the order given.
    ///
    /// # Errors
    /// A name twice or reserved, or a destination that cannot be written.
    pub fn create(
        destination: impl AsRef<Path>,
        metadata: &[(&str, &str)],
        arrays: &[ArraySpec],
    ) -> Result<Self, IoError> {
        let header = SafetensorsHeader::for_arrays(metadata, arrays, destination.as_ref())?;
        Self::begin(destination.as_ref(), header)
    }

    /// Begins a file with exactly this header text (see [`SafetensorsHeader::text`]), so that the file of the
    /// same arrays has the same bytes.
    ///
    /// # Errors
    /// A damaged header, or a destination that cannot be written.
    pub fn with_header(destination: impl AsRef<Path>, text: &[u8]) -> Result<Self, IoError> {
        let header = SafetensorsHeader::from_text(text, None, destination.as_ref())?;
        Self::begin(destination.as_ref(), header)
    }

    fn begin(destination: &Path, header: SafetensorsHeader) -> Result<Self, IoError> {
        let mut file = BufWriter::with_capacity(1 << 20, crate::temporary_beside(destination)?);
        file.write_all(&(header.text().len() as u64).to_le_bytes())?;
        file.write_all(header.text())?;
        let position = header.size_bytes() as u64;
        let is_written = vec![false; header.arrays().len()];
        Ok(Self { destination: destination.to_owned(), header, is_written, position, file })
    }

    /// The header being written.
    pub fn header(&self) -> &SafetensorsHeader {
        &self.header
    }

    /// Writes one array to its place.
    ///
    /// # Errors
    /// [`IoError::Unexpected`] where the header has no such array, has another shape or dtype for it, or it was
    /// written before; or the disk refuses.
    pub fn write(&mut self, array: &Array<'_>) -> Result<(), IoError> {
        let unexpected = |message: String| IoError::Unexpected {
            path: self.destination.clone(),
            array: array.spec.name.clone(),
            message,
        };
        let found = self.header.position(&array.spec.name).zip(self.header.extent(&array.spec.name));
        let Some((ordinal, extent)) = found else {
            return Err(unexpected("the header does not name it".to_owned()));
        };
        let expected = &self.header.arrays()[ordinal];
        if *expected != array.spec || extent.len() != array.bytes.len() {
            return Err(unexpected(format!(
                "found {} {:?}, the header has {} {:?}",
                array.spec.dtype.name(),
                array.spec.shape,
                expected.dtype.name(),
                expected.shape
            )));
        }
        if self.is_written[ordinal] {
            return Err(unexpected("it was written before".to_owned()));
        }
        let start = (self.header.size_bytes() + extent.start) as u64;
        if start != self.position {
            self.file.seek(SeekFrom::Start(start))?;
        }
        self.file.write_all(&array.bytes)?;
        self.position = start + array.bytes.len() as u64;
        self.is_written[ordinal] = true;
        Ok(())
    }

    /// Flushes to the disk and puts the file in its place.
    ///
    /// # Errors
    /// [`IoError::Unexpected`] naming the first array that was not written, or the disk refuses.
    pub fn finish(self) -> Result<(), IoError> {
        if let Some(ordinal) = self.is_written.iter().position(|&is_written| !is_written) {
            return Err(IoError::Unexpected {
                path: self.destination,
                array: self.header.arrays()[ordinal].name.clone(),
                message: "the file is finished and it was never written".to_owned(),
            });
        }
        let file = self.file.into_inner().map_err(std::io::IntoInnerError::into_error)?;
        crate::persist(file, &self.destination)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::SafetensorsFile;
    use lamella_codec::{Dtype, TensorSource};
    use proptest::prelude::*;

    fn arrays() -> Vec<Array<'static>> {
        (0..=255)
            .filter_map(Dtype::from_code)
            .enumerate()
            .map(|(ordinal, dtype)| {
                let spec = ArraySpec::new(format!("array.{ordinal}.é\""), vec![ordinal, 3], dtype);
                let length = spec.checked_size_bytes().unwrap();
                Array::new(spec, (0..length).map(|i| (i * 7 + ordinal) as u8).collect::<Vec<_>>()).unwrap()
            })
            .collect()
    }

    #[test]
    fn every_dtype_returns_and_a_copy_by_header_has_the_same_bytes() {
        let directory = tempfile::tempdir().unwrap();
        let (first, second) =
            (directory.path().join("a.safetensors"), directory.path().join("b.safetensors"));
        let arrays = arrays();
        let specs: Vec<_> = arrays.iter().map(|array| array.spec.clone()).collect();
        let mut writer = SafetensorsWriter::create(&first, &[("format", "pt"), ("a", "\n")], &specs).unwrap();
        for array in arrays.iter().rev() {
            writer.write(array).unwrap();
        }
        writer.finish().unwrap();
        let file = SafetensorsFile::open(&first).unwrap();
        assert_eq!(file.arrays(), specs);
        assert_eq!(file.header().size_bytes() % 8, 0);

        let mut copy = SafetensorsWriter::with_header(&second, file.header().text()).unwrap();
        for array in &arrays {
            assert_eq!(&file.array(&array.spec.name).unwrap(), array);
            copy.write(&file.array(&array.spec.name).unwrap()).unwrap();
        }
        copy.finish().unwrap();
        assert_eq!(fs_err::read(&first).unwrap(), fs_err::read(&second).unwrap());

        let bytes = fs_err::read(&first).unwrap();
        let peer = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        for array in &arrays {
            let view = peer.tensor(&array.spec.name).unwrap();
            assert_eq!(view.data(), &array.bytes[..]);
            assert_eq!(view.shape(), array.spec.shape);
        }
    }

    #[test]
    fn unfinished_files_never_appear() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a.safetensors");
        let arrays = arrays();
        let specs: Vec<_> = arrays.iter().map(|array| array.spec.clone()).collect();
        let mut writer = SafetensorsWriter::create(&path, &[], &specs).unwrap();
        writer.write(&arrays[1]).unwrap();
        assert!(writer.write(&arrays[1]).unwrap_err().to_string().contains("written before"));
        let error = writer.finish().unwrap_err().to_string();
        assert!(error.contains("array.0") && error.contains("never written"), "{error}");
        assert_eq!(fs_err::read_dir(directory.path()).unwrap().count(), 0);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(400))]
        #[test]
        fn flips_and_cuts_give_an_error_or_the_same_extents(
            flips in proptest::collection::vec((any::<proptest::sample::Index>(), 0u32..8), 0..4),
            cut in proptest::option::of(any::<proptest::sample::Index>()),
        ) {
            let arrays = arrays();
            let specs: Vec<_> = arrays.iter().map(|array| array.spec.clone()).collect();
            let path = Path::new("m");
            let header = SafetensorsHeader::for_arrays(&[("k", "v")], &specs, path).unwrap();
            let mut bytes = (header.text().len() as u64).to_le_bytes().to_vec();
            bytes.extend_from_slice(header.text());
            let in_header = bytes.len();
            for array in &arrays {
                bytes.extend_from_slice(&array.bytes);
            }
            for (at, bit) in &flips {
                bytes[at.index(in_header)] ^= 1 << bit;
            }
            let cut = cut.map(|at| at.index(bytes.len()));
            if let Some(cut) = cut {
                bytes.truncate(cut);
            }
            match SafetensorsHeader::parse(&bytes, path) {
                Ok(header) => {
                    prop_assert!(cut.is_none());
                    for spec in header.arrays() {
                        let extent = header.extent(&spec.name).unwrap();
                        prop_assert!(header.size_bytes() + extent.end <= bytes.len());
                    }
                }
                Err(error) => prop_assert!(error.to_string().contains("`m`")),
            }
        }
    }
}
