//! The data dir itself: who may use it, which store it is, and how often it was started. What is
//! in its segments is not known here.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::FlockOperation;

use crate::model::{Incarnation, Moment};

const LOCK_FILE: &str = "LOCK";
const IDENTITY_FILE: &str = "IDENTITY";
const IDENTITY_NEXT_FILE: &str = "IDENTITY.next";
const IDENTITY_VERSION: &str = "tailring-store 1";
/// Both files are far shorter; a longer one is not ours.
const FILE_BYTES_MAX: u64 = 1024;
/// Each time around, another process removed the lock file between our open and our lock.
const LOCK_TRIES: usize = 100;

/// Why a data dir cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DirectoryError {
    /// Another process holds it. Give each worker a data dir of its own.
    #[error("data dir {dir} is in use by process {holder}: each worker needs one of its own", dir = dir.display())]
    InUse {
        dir: PathBuf,
        /// A process ID, in the holder's PID namespace; "unknown" if it could not be read.
        holder: String,
    },
    /// It is not there and cannot be made, or this user may not write to it, or it is full.
    #[error("cannot write to data dir {dir}: {source}", dir = dir.display())]
    Unwritable { dir: PathBuf, source: io::Error },
    /// The identity is not what we wrote. If the log beside it is of no use, remove both.
    #[error("{file} is damaged or of a newer version: restore it, or empty the data dir", file = file.display())]
    IdentityDamaged { file: PathBuf },
}

/// Holds a data dir for this process. Dropped, it removes the lock file; a killed process's lock
/// is gone with it.
#[derive(Debug)]
pub struct DirLock {
    dir: PathBuf,
    _file: File,
}

/// Which store this is and which life of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StoreIdentity {
    /// Random, made with the data dir. A new one tells peers that the log is empty.
    pub store: u128,
    pub incarnation: Incarnation,
}

impl DirLock {
    /// Makes the directory if it is not there.
    pub fn acquire(dir: &Path) -> Result<Self, DirectoryError> {
        let unwritable = |source| DirectoryError::Unwritable {
            dir: dir.to_path_buf(),
            source,
        };
        std::fs::create_dir_all(dir).map_err(unwritable)?;
        let path = dir.join(LOCK_FILE);
        for _ in 0..LOCK_TRIES {
            let mut file = OpenOptions::new()
                .read(true)
                .write(true)
                .create(true)
                .truncate(false)
                .open(&path)
                .map_err(unwritable)?;
            match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => {}
                Err(rustix::io::Errno::WOULDBLOCK) => {
                    return Err(DirectoryError::InUse {
                        dir: dir.to_path_buf(),
                        holder: holder_of(&mut file),
                    });
                }
                Err(error) => return Err(unwritable(error.into())),
            }
            // The holder before us may have removed the file after we opened it; a lock on a file
            // without a name keeps nobody out.
            if is_same_file(&file, &path).map_err(unwritable)? {
                note_holder(&mut file).map_err(unwritable)?;
                return Ok(Self {
                    dir: dir.to_path_buf(),
                    _file: file,
                });
            }
        }
        Err(DirectoryError::InUse {
            dir: dir.to_path_buf(),
            holder: "unknown".to_owned(),
        })
    }

    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Begins a life of this store: its incarnation is above every one before, durably, and above
    /// those of a dir that was lost as long as the clock is right. To be called once a start.
    pub fn next_life(&self, now: Moment) -> Result<StoreIdentity, DirectoryError> {
        let unwritable = |source| DirectoryError::Unwritable {
            dir: self.dir.clone(),
            source,
        };
        let file = self.dir.join(IDENTITY_FILE);
        let stored = match File::open(&file) {
            Ok(mut open) => {
                let text = read_short(&mut open).map_err(unwritable)?;
                Some(
                    StoreIdentity::parse(&text)
                        .ok_or(DirectoryError::IdentityDamaged { file: file.clone() })?,
                )
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(unwritable(error)),
        };
        let next = StoreIdentity {
            store: stored.map_or_else(rand::random, |it| it.store),
            incarnation: Incarnation(stored.map_or(now.unix_millis(), |it| {
                it.incarnation.0.saturating_add(1).max(now.unix_millis())
            })),
        };
        self.replace(&file, &next.to_text()).map_err(unwritable)?;
        Ok(next)
    }

    /// Either the old content or the new is there after a crash, never a part.
    fn replace(&self, file: &Path, text: &str) -> io::Result<()> {
        let next = self.dir.join(IDENTITY_NEXT_FILE);
        let mut open = File::create(&next)?;
        open.write_all(text.as_bytes())?;
        open.sync_all()?;
        std::fs::rename(&next, file)?;
        File::open(&self.dir)?.sync_all()
    }
}

impl Drop for DirLock {
    fn drop(&mut self) {
        // While it is still locked: nobody else can have made another one of this name. If it
        // stays, the next start locks it as it is.
        if let Err(error) = std::fs::remove_file(self.dir.join(LOCK_FILE)) {
            tracing::warn!(dir = %self.dir.display(), %error, "cannot remove the lock file");
        }
    }
}

impl StoreIdentity {
    fn to_text(self) -> String {
        let Self { store, incarnation } = self;
        format!("{IDENTITY_VERSION}\nstore {store:032x}\nincarnation {incarnation}\n")
    }

    fn parse(text: &str) -> Option<Self> {
        let mut lines = text.strip_suffix('\n')?.split('\n');
        if lines.next()? != IDENTITY_VERSION {
            return None;
        }
        let store = lines.next()?.strip_prefix("store ")?;
        let incarnation = lines.next()?.strip_prefix("incarnation ")?;
        let identity = Self {
            store: u128::from_str_radix(store, 16).ok()?,
            incarnation: Incarnation(incarnation.parse().ok()?),
        };
        // Exactly what we would write: a flipped digit that still parses is rare enough, a missing
        // one is seen.
        (identity.to_text() == text).then_some(identity)
    }
}

fn note_holder(file: &mut File) -> io::Result<()> {
    file.set_len(0)?;
    file.rewind()?;
    writeln!(file, "{}", std::process::id())
}

fn holder_of(file: &mut File) -> String {
    let text = read_short(file).unwrap_or_default();
    let pid = text.trim();
    let is_number = !pid.is_empty() && pid.len() <= 10 && pid.bytes().all(|c| c.is_ascii_digit());
    if is_number { pid } else { "unknown" }.to_owned()
}

fn read_short(file: &mut File) -> io::Result<String> {
    let mut bytes = Vec::new();
    file.take(FILE_BYTES_MAX).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

fn is_same_file(open: &File, path: &Path) -> io::Result<bool> {
    match std::fs::metadata(path) {
        Ok(named) => {
            let open = open.metadata()?;
            Ok((open.dev(), open.ino()) == (named.dev(), named.ino()))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

/// For who only looks: which store a dir is, if its file says so.
pub(super) fn read_identity(dir: &Path) -> Option<StoreIdentity> {
    let mut file = File::open(dir.join(IDENTITY_FILE)).ok()?;
    StoreIdentity::parse(&read_short(&mut file).ok()?)
}

/// For who only looks, and does not lock: who noted himself in the lock file.
pub(super) fn read_holder(dir: &Path) -> Option<String> {
    let mut file = File::open(dir.join(LOCK_FILE)).ok()?;
    Some(holder_of(&mut file))
}

/// Files of a data dir that are not segments and are expected in it.
pub(super) fn is_ours(name: &str) -> bool {
    [LOCK_FILE, IDENTITY_FILE, IDENTITY_NEXT_FILE].contains(&name)
}
