//! A `.lam` file on a web server, read by HTTP ranges: the manifest, and of the layers what is asked for.
//!
//! Opening costs one request of 4 KiB, two where the manifest is longer; a layer costs one more. The server must
//! answer ranges (static file servers and object stores do). If it names a version of the file (`ETag`), every
//! answer must be of the same version.
//!
//! ```no_run
//! use lamella_file::File;
//! let file = File::open_url("https://example.org/story.lam")?;
//! println!("{} arrays in {} bytes", file.arrays().len(), file.length_bytes());
//! # Ok::<(), lamella_file::FileError>(())
//! ```

use std::io::{self, Read};
use std::time::Duration;

use ureq::Agent;
use ureq::http::StatusCode;
use ureq::http::header::{CONTENT_RANGE, ETAG, HeaderName};

use crate::{File, FileError, ReadAt};

/// Bytes of the first request: most manifests are shorter.
const FIRST_BYTES: u64 = 4096;
/// Longest wait for a connection, and for the first byte of an answer.
const PATIENCE: Duration = Duration::from_secs(30);

/// A file behind an `http://` or `https://` address.
#[derive(Debug)]
pub struct RemoteFile {
    agent: Agent,
    url: String,
    length: u64,
    version: Option<String>,
    /// The first bytes, kept: the header and mostly the manifest stand there.
    first: Vec<u8>,
}

impl RemoteFile {
    /// Asks for the first bytes, and with them for the length.
    ///
    /// # Errors
    /// No connection, an answer without the file, a server that answers no ranges.
    pub fn open(url: &str) -> io::Result<Self> {
        let config = Agent::config_builder()
            .http_status_as_error(false)
            .accept_encoding("identity")
            .timeout_connect(Some(PATIENCE))
            .timeout_recv_response(Some(PATIENCE));
        let agent = config.build().new_agent();
        let mut file = Self { agent, url: url.to_owned(), length: 0, version: None, first: Vec::new() };
        let (first, length, version) = file.request(0, FIRST_BYTES)?;
        (file.first, file.length, file.version) = (first, length, version);
        Ok(file)
    }

    /// Bytes from `offset` on, at most `length`; the file's whole length; its version.
    fn request(&self, offset: u64, length: u64) -> io::Result<(Vec<u8>, u64, Option<String>)> {
        let last = offset.saturating_add(length).saturating_sub(1);
        let range = format!("bytes={offset}-{last}");
        let mut answer = self.agent.get(&self.url).header("Range", range).call().map_err(io::Error::other)?;
        let text = |name: HeaderName| answer.headers().get(name).and_then(|value| value.to_str().ok());
        let extent = text(CONTENT_RANGE).and_then(content_range);
        let version = text(ETAG).map(str::to_owned);
        match (answer.status(), extent) {
            (StatusCode::PARTIAL_CONTENT, Some((Some(start), total))) if start == offset => {
                let mut bytes = Vec::new();
                answer.body_mut().as_reader().take(length).read_to_end(&mut bytes)?;
                if (bytes.len() as u64) < length.min(total.saturating_sub(offset)) {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
                Ok((bytes, total, version))
            }
            // An empty file has no first byte.
            (StatusCode::RANGE_NOT_SATISFIABLE, Some((None, 0))) => Ok((Vec::new(), 0, version)),
            (StatusCode::NOT_FOUND | StatusCode::GONE, _) => {
                Err(io::Error::new(io::ErrorKind::NotFound, "the server has no such file"))
            }
            (StatusCode::OK | StatusCode::PARTIAL_CONTENT, _) => Err(io::Error::new(
                io::ErrorKind::Unsupported,
                "the server does not answer ranges of bytes; download the file first",
            )),
            (status, _) => Err(io::Error::other(format!("the server answers {status}"))),
        }
    }
}

/// `bytes 0-99/1234` or `bytes */1234`: first byte, where there is one, and whole length.
fn content_range(text: &str) -> Option<(Option<u64>, u64)> {
    let (range, total) = text.strip_prefix("bytes ")?.split_once('/')?;
    let start = range.split_once('-').and_then(|(start, _)| start.trim().parse().ok());
    Some((start, total.trim().parse().ok()?))
}

impl ReadAt for RemoteFile {
    fn length_bytes(&self) -> u64 {
        self.length
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        // What is known already need not be asked for again.
        let known = usize::try_from(offset).ok().and_then(|offset| self.first.get(offset..)).unwrap_or(&[]);
        let known = known.get(..known.len().min(buffer.len())).unwrap_or(&[]);
        let (start, rest) = buffer.split_at_mut(known.len());
        start.copy_from_slice(known);
        if rest.is_empty() {
            return Ok(());
        }
        let (bytes, length, version) = self.request(offset + start.len() as u64, rest.len() as u64)?;
        if length != self.length || version != self.version {
            return Err(io::Error::other("the file on the server changed while it was read"));
        }
        if bytes.len() != rest.len() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        rest.copy_from_slice(&bytes);
        Ok(())
    }
}

impl File {
    /// Opens a file on a web server (feature `remote`).
    ///
    /// # Errors
    /// As [`File::open`], and what the server says.
    pub fn open_url(url: &str) -> Result<Self, FileError> {
        let remote = RemoteFile::open(url).map_err(FileError::io(format!("opening `{url}`")))?;
        Self::from_source(url, Box::new(remote))
    }

    /// Brings the first `bytes` bytes of a file on a web server in one request more, and opens them: the whole layers
    /// among them, as if the rest were not there.
    ///
    /// # Errors
    /// As [`File::open_url`]; [`FileError::Incomplete`] says how many bytes hold every array.
    pub fn open_url_prefix(url: &str, bytes: u64) -> Result<Self, FileError> {
        let failed = || FileError::io(format!("reading `{url}`"));
        let remote = RemoteFile::open(url).map_err(failed())?;
        let length = usize::try_from(bytes.min(remote.length_bytes()))
            .map_err(|_| failed()(io::ErrorKind::OutOfMemory.into()))?;
        let mut first = vec![0; length];
        remote.read_at(0, &mut first).map_err(failed())?;
        Self::from_source(url, Box::new(first))
    }
}
