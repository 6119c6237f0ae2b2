//! What the log stands on: a directory of files, real or simulated. Nothing here knows what is in
//! the files.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// A flat directory.
pub trait Disk: Send + Sync + 'static {
    type File: DiskFile;
    fn create(&self, name: &str) -> io::Result<Self::File>;
    fn open(&self, name: &str) -> io::Result<Self::File>;
    fn list(&self) -> io::Result<Vec<String>>;
    fn unlink(&self, name: &str) -> io::Result<()>;
    /// After a crash one of the two names is there, never both. A file of the new name is gone.
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;
    /// Makes creations, unlinks and renames durable.
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

/// The same for who only looks: files are opened for reading, and nothing is made or removed.
#[derive(Debug)]
pub struct ReadOnlyDisk {
    pub dir: PathBuf,
}

/// A file of a [`RealDisk`].
#[derive(Debug)]
pub struct RealFile {
    file: File,
}

impl Disk for RealDisk {
    type File = RealFile;

    /// Fails if the file exists: an ID used twice would overwrite a segment.
    fn create(&self, name: &str) -> io::Result<RealFile> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .open(self.dir.join(name))?;
        Ok(RealFile { file })
    }

    fn open(&self, name: &str) -> io::Result<RealFile> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .open(self.dir.join(name))?;
        Ok(RealFile { file })
    }

    fn list(&self) -> io::Result<Vec<String>> {
        list(&self.dir)
    }

    fn unlink(&self, name: &str) -> io::Result<()> {
        std::fs::remove_file(self.dir.join(name))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        std::fs::rename(self.dir.join(from), self.dir.join(to))
    }

    fn sync_dir(&self) -> io::Result<()> {
        File::open(&self.dir)?.sync_all()
    }
}

impl Disk for ReadOnlyDisk {
    type File = RealFile;

    fn create(&self, _name: &str) -> io::Result<RealFile> {
        Err(io::ErrorKind::PermissionDenied.into())
    }

    fn open(&self, name: &str) -> io::Result<RealFile> {
        let file = File::open(self.dir.join(name))?;
        Ok(RealFile { file })
    }

    fn list(&self) -> io::Result<Vec<String>> {
        list(&self.dir)
    }

    fn unlink(&self, _name: &str) -> io::Result<()> {
        Err(io::ErrorKind::PermissionDenied.into())
    }

    fn rename(&self, _from: &str, _to: &str) -> io::Result<()> {
        Err(io::ErrorKind::PermissionDenied.into())
    }

    fn sync_dir(&self) -> io::Result<()> {
        Err(io::ErrorKind::PermissionDenied.into())
    }
}

fn list(dir: &Path) -> io::Result<Vec<String>> {
    std::fs::read_dir(dir)?
        .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
        .collect()
}

impl DiskFile for RealFile {
    fn len(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.len())
    }

    fn allocate(&self, offset: u64, len: u64) -> io::Result<()> {
        use rustix::io::Errno;
        // KEEP_SIZE: the length of the file stays what was written, so that recovery after a kill
        // meets no zeros at the end.
        match rustix::fs::fallocate(
            &self.file,
            rustix::fs::FallocateFlags::KEEP_SIZE,
            offset,
            len,
        ) {
            Ok(()) | Err(Errno::OPNOTSUPP | Errno::NOSYS) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.file.write_all_at(bytes, offset)
    }

    fn read_at(&self, offset: u64, bytes: &mut [u8]) -> io::Result<()> {
        self.file.read_exact_at(bytes, offset)
    }

    fn truncate(&self, len: u64) -> io::Result<()> {
        self.file.set_len(len)
    }

    fn sync(&self) -> io::Result<()> {
        self.file.sync_data()
    }
}
