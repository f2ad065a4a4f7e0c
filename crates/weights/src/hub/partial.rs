//! A file that is being downloaded into the cache.

use std::fmt::Write as _;
use std::fs::File;
use std::io::{Read, Write};
use std::path::Path;

use ring::digest::{Context, SHA1_FOR_LEGACY_USE_ONLY, SHA256};
use ureq::Body;
use ureq::http::Response;

use super::fetch::BUFFER_BYTES;
use super::flow::Flow;
use super::{HubError, RemoteFile};

/// A file that is being downloaded: its bytes on disk so far, and their hash.
pub(super) struct Partial<'a> {
    file: &'a RemoteFile,
    path: &'a Path,
    disk: File,
    len: u64,
    hash: Context,
}

impl<'a> Partial<'a> {
    /// Opens the bytes that an earlier pull has left. They are read for the hash.
    pub(super) fn open(
        file: &'a RemoteFile,
        path: &'a Path,
        flow: &Flow,
    ) -> Result<Self, HubError> {
        let options = File::options().read(true).append(true).create(true).clone();
        let mut disk = options.open(path).map_err(HubError::io(path))?;
        if disk.metadata().map_err(HubError::io(path))?.len() > file.size {
            disk.set_len(0).map_err(HubError::io(path))?;
        }
        let mut hash = if file.hash.len() == 64 {
            Context::new(&SHA256)
        } else {
            let mut git = Context::new(&SHA1_FOR_LEGACY_USE_ONLY);
            git.update(format!("blob {}\0", file.size).as_bytes());
            git
        };
        let mut len = 0;
        let mut buffer = vec![0; BUFFER_BYTES];
        loop {
            flow.check()?;
            let count = disk.read(&mut buffer).map_err(HubError::io(path))?;
            if count == 0 {
                return Ok(Self { file, path, disk, len, hash });
            }
            hash.update(&buffer[..count]);
            len += count as u64;
            flow.advance(count as u64);
        }
    }

    pub(super) fn file(&self) -> &'a RemoteFile {
        self.file
    }

    /// Number of bytes on disk.
    pub(super) fn len(&self) -> u64 {
        self.len
    }

    /// How many bytes at the beginning of an answer are on disk already. Fails if the answer's
    /// headers do not fit the file.
    pub(super) fn known_bytes(&self, response: &Response<Body>) -> Result<u64, HubError> {
        let field = |name| response.headers().get(name).and_then(|value| value.to_str().ok());
        let (known, total) = if response.status().as_u16() == 206 {
            let range = field("Content-Range").unwrap_or_default();
            let from_here = range.strip_prefix(&format!("bytes {}-", self.len));
            let (_, total) = from_here.and_then(|rest| rest.split_once('/')).ok_or_else(|| {
                let (file, range) = (self.file.name.clone(), range.to_owned());
                HubError::Range { file, start: self.len, range }
            })?;
            (0, total)
        } else {
            // A server without ranges sends the file from its beginning.
            (self.len, field("Content-Length").unwrap_or_default())
        };
        match total.parse() {
            Ok(total) if total != self.file.size => Err(self.wrong_size(total)),
            _ => Ok(known),
        }
    }

    pub(super) fn append(&mut self, bytes: &[u8], flow: &Flow) -> Result<(), HubError> {
        let len = self.len + bytes.len() as u64;
        if len > self.file.size {
            return Err(self.wrong_size(len));
        }
        self.disk.write_all(bytes).map_err(HubError::io(self.path))?;
        self.hash.update(bytes);
        self.len = len;
        flow.advance(bytes.len() as u64);
        Ok(())
    }

    /// Writes the file out to the disk, and checks its hash.
    pub(super) fn finish(&self) -> Result<(), HubError> {
        self.disk.sync_all().map_err(HubError::io(self.path))?;
        let mut hex = String::new();
        for byte in self.hash.clone().finish().as_ref() {
            let _ = write!(hex, "{byte:02x}");
        }
        if self.len != self.file.size || hex != self.file.hash {
            return Err(HubError::Corrupt { file: self.file.name.clone() });
        }
        Ok(())
    }

    pub(super) fn wrong_size(&self, got: u64) -> HubError {
        HubError::Size { file: self.file.name.clone(), size: self.file.size, got }
    }
}
