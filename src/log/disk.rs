//! What the log stands on: a directory of files, real or simulated.

use std::io;
use std::path::PathBuf;

/// A flat directory.
pub trait Disk: Send + Sync + 'static {
    type File: DiskFile;
    fn create(&self, name: &str) -> io::Result<Self::File>;
    fn open(&self, name: &str) -> io::Result<Self::File>;
    fn list(&self) -> io::Result<Vec<String>>;
    fn unlink(&self, name: &str) -> io::Result<()>;
    /// Makes creations and unlinks durable.
    fn sync_dir(&self) -> io::Result<()>;
}

/// One file, written and read by position from any thread.
pub trait DiskFile: Send + Sync + 'static {
    fn len(&self) -> io::Result<u64>;
    fn is_empty(&self) -> io::Result<bool> {
        Ok(self.len()? == 0)
    }
    /// Reserves blocks without changing the length where the file system can; else nothing.
    fn allocate(&self, offset: u64, len: u64) -> io::Result<()>;
    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()>;
    fn read_at(&self, offset: u64, bytes: &mut [u8]) -> io::Result<()>;
    fn truncate(&self, len: u64) -> io::Result<()>;
    /// fdatasync.
    fn sync(&self) -> io::Result<()>;
}

/// A directory of the operating system.
#[derive(Debug)]
pub struct RealDisk {
    pub dir: PathBuf,
}
