//! The file of a sink that has every span it took, as OTLP/JSON, a request a line.

use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;

use crate::net::json;

/// Appends requests; cheap to clone.
#[derive(Debug, Clone)]
pub(super) struct TraceFile(Arc<Mutex<File>>);

impl TraceFile {
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        let file = OpenOptions::new().create(true).append(true).open(path)?;
        Ok(Self(Arc::new(Mutex::new(file))))
    }

    /// Returns when the operating system has the line. A message that is no OTLP is an error of
    /// kind `InvalidData`.
    pub(super) async fn append(&self, message: Bytes) -> io::Result<()> {
        let file = Arc::clone(&self.0);
        let written = tokio::task::spawn_blocking(move || {
            let line = json::line(&message)
                .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
            let mut file = file.lock().unwrap_or_else(PoisonError::into_inner);
            file.write_all(line.as_bytes())
        });
        written.await.map_err(io::Error::other)?
    }
}
