//! A disk in memory that forgets what was not synced, for tests. As unkind as a real one may be:
//! after a crash unsynced writes and names are there, or not, or half.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use crate::log::{Disk, DiskFile};

/// What survives a crash in one piece.
const SECTOR_BYTES: usize = 512;

/// See [`crate::log::Disk`]. Clones are the same disk.
#[derive(Debug, Clone)]
pub struct SimulatedDisk {
    state: Arc<Mutex<State>>,
}

/// A file of a [`SimulatedDisk`]; of no use after a crash.
#[derive(Debug)]
pub struct SimulatedFile {
    state: Arc<Mutex<State>>,
    inode: usize,
    life: u64,
}

#[derive(Debug)]
struct State {
    random: SmallRng,
    inodes: Vec<Inode>,
    names: BTreeMap<String, usize>,
    synced_names: BTreeMap<String, usize>,
    /// Counts crashes: handles of an earlier life are dead.
    life: u64,
    /// Bytes that all files together may have.
    room: Option<u64>,
    /// Writes that still succeed before all fail.
    writes_left: Option<u64>,
    syncs_fail: bool,
    unlinks_fail: bool,
}

#[derive(Debug, Default)]
struct Inode {
    bytes: Vec<u8>,
    synced: Vec<u8>,
    /// Since the last sync, in order.
    changes: Vec<Change>,
    /// A sync failed: the kernel forgot that these pages are dirty, and no later sync helps.
    poisoned: bool,
}

#[derive(Debug)]
enum Change {
    Write { offset: usize, bytes: Vec<u8> },
    Truncate { len: usize },
}

impl SimulatedDisk {
    /// Equal seeds and equal calls, equal crashes.
    pub fn new(seed: u64) -> Self {
        Self {
            state: Arc::new(Mutex::new(State {
                random: SmallRng::seed_from_u64(seed),
                inodes: Vec::new(),
                names: BTreeMap::new(),
                synced_names: BTreeMap::new(),
                life: 0,
                room: None,
                writes_left: None,
                syncs_fail: false,
                unlinks_fail: false,
            })),
        }
    }

    /// The process dies: its handles are dead, and everything it wrote is there.
    pub fn kill(&self) {
        self.state().life += 1;
    }

    /// The host dies: what was synced is there. Of the rest, each name, each write and each sector
    /// of a write is there or not.
    pub fn crash(&self) {
        let mut guard = self.state();
        let state = &mut *guard;
        state.life += 1;
        let random = &mut state.random;
        let mut names = state.synced_names.clone();
        for (name, inode) in &state.names {
            if !names.contains_key(name) && random.random() {
                names.insert(name.clone(), *inode);
            }
        }
        names.retain(|name, _| state.names.contains_key(name) || random.random());
        for inode in &mut state.inodes {
            let mut bytes = std::mem::take(&mut inode.synced);
            for change in inode.changes.drain(..) {
                change.survive(&mut bytes, random);
            }
            *inode = Inode {
                synced: bytes.clone(),
                bytes,
                ..Inode::default()
            };
        }
        state.synced_names.clone_from(&names);
        state.names = names;
    }

    /// From now on the files together may have this many bytes; a write beyond gets as far as
    /// there is room and fails. `None`: no bound.
    pub fn limit_bytes(&self, room: Option<u64>) {
        self.state().room = room;
    }

    /// After this many more writes, all fail with EIO. `None`: they succeed again.
    pub fn fail_writes_after(&self, writes: Option<u64>) {
        self.state().writes_left = writes;
    }

    pub fn fail_syncs(&self, fail: bool) {
        self.state().syncs_fail = fail;
    }

    pub fn fail_unlinks(&self, fail: bool) {
        self.state().unlinks_fail = fail;
    }

    /// What is in a file now.
    pub fn content(&self, name: &str) -> Option<Vec<u8>> {
        let state = self.state();
        let inode = state.names.get(name)?;
        Some(state.inodes[*inode].bytes.clone())
    }

    /// Puts a file there as if it had always been: for damage that has no other cause.
    pub fn set_content(&self, name: &str, bytes: Vec<u8>) {
        let mut state = self.state();
        let inode = state.inodes.len();
        state.inodes.push(Inode {
            synced: bytes.clone(),
            bytes,
            ..Inode::default()
        });
        state.names.insert(name.to_owned(), inode);
        state.synced_names.insert(name.to_owned(), inode);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn file(&self, inode: usize, life: u64) -> SimulatedFile {
        SimulatedFile {
            state: Arc::clone(&self.state),
            inode,
            life,
        }
    }
}

impl Default for SimulatedDisk {
    fn default() -> Self {
        Self::new(0)
    }
}

impl Disk for SimulatedDisk {
    type File = SimulatedFile;

    fn create(&self, name: &str) -> io::Result<SimulatedFile> {
        let mut state = self.state();
        if state.names.contains_key(name) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        let inode = state.inodes.len();
        state.inodes.push(Inode::default());
        state.names.insert(name.to_owned(), inode);
        Ok(self.file(inode, state.life))
    }

    fn open(&self, name: &str) -> io::Result<SimulatedFile> {
        let state = self.state();
        let inode = state.names.get(name).ok_or(io::ErrorKind::NotFound)?;
        Ok(self.file(*inode, state.life))
    }

    fn list(&self) -> io::Result<Vec<String>> {
        Ok(self.state().names.keys().cloned().collect())
    }

    fn unlink(&self, name: &str) -> io::Result<()> {
        let mut state = self.state();
        if state.unlinks_fail {
            return Err(io::Error::other("injected: unlink"));
        }
        let removed = state.names.remove(name);
        removed.map(drop).ok_or(io::ErrorKind::NotFound.into())
    }

    fn sync_dir(&self) -> io::Result<()> {
        let mut guard = self.state();
        let state = &mut *guard;
        if state.syncs_fail {
            return Err(io::Error::other("injected: sync"));
        }
        state.synced_names.clone_from(&state.names);
        Ok(())
    }
}

impl SimulatedFile {
    fn with<T>(&self, act: impl FnOnce(&mut State) -> io::Result<T>) -> io::Result<T> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.life != self.life {
            return Err(io::Error::other("the process that held this file is dead"));
        }
        act(&mut state)
    }
}

impl DiskFile for SimulatedFile {
    fn len(&self) -> io::Result<u64> {
        self.with(|state| Ok(state.inodes[self.inode].bytes.len() as u64))
    }

    fn allocate(&self, _offset: u64, _len: u64) -> io::Result<()> {
        self.with(|_| Ok(()))
    }

    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.with(|state| {
            if let Some(left) = &mut state.writes_left {
                *left = left
                    .checked_sub(1)
                    .ok_or_else(|| io::Error::other("injected: EIO"))?;
            }
            let used: usize = state
                .names
                .values()
                .map(|it| state.inodes[*it].bytes.len())
                .sum();
            let inode = &mut state.inodes[self.inode];
            let room = state.room.map_or(usize::MAX, |room| {
                let elsewhere = used - inode.bytes.len();
                usize::try_from(room)
                    .unwrap_or(usize::MAX)
                    .saturating_sub(elsewhere + offset as usize)
            });
            let fits = &bytes[..bytes.len().min(room)];
            write(&mut inode.bytes, offset as usize, fits);
            inode.changes.push(Change::Write {
                offset: offset as usize,
                bytes: fits.to_vec(),
            });
            if fits.len() < bytes.len() {
                return Err(io::ErrorKind::StorageFull.into());
            }
            Ok(())
        })
    }

    fn read_at(&self, offset: u64, bytes: &mut [u8]) -> io::Result<()> {
        self.with(|state| {
            let range = offset as usize..(offset as usize).saturating_add(bytes.len());
            let content = state.inodes[self.inode].bytes.get(range);
            bytes.copy_from_slice(content.ok_or(io::ErrorKind::UnexpectedEof)?);
            Ok(())
        })
    }

    fn truncate(&self, len: u64) -> io::Result<()> {
        self.with(|state| {
            let inode = &mut state.inodes[self.inode];
            let len = len as usize;
            inode.bytes.resize(len, 0);
            inode.changes.push(Change::Truncate { len });
            Ok(())
        })
    }

    fn sync(&self) -> io::Result<()> {
        self.with(|state| {
            let inode = &mut state.inodes[self.inode];
            if state.syncs_fail {
                inode.poisoned = true;
                return Err(io::Error::other("injected: sync"));
            }
            if !inode.poisoned {
                inode.synced.clone_from(&inode.bytes);
                inode.changes.clear();
            }
            Ok(())
        })
    }
}

impl Change {
    /// Does this to the bytes, or not, or for some sectors only.
    fn survive(self, bytes: &mut Vec<u8>, random: &mut SmallRng) {
        match (self, random.random_range(0..4)) {
            (_, 0) => {}
            (Self::Truncate { len }, _) => bytes.resize(len, 0),
            (Self::Write { offset, bytes: new }, 1) => {
                let kept = random.random_range(0..=new.len());
                write(bytes, offset, &new[..kept]);
            }
            (Self::Write { offset, bytes: new }, 2) => {
                for (index, sector) in new.chunks(SECTOR_BYTES).enumerate() {
                    if random.random() {
                        write(bytes, offset + index * SECTOR_BYTES, sector);
                    }
                }
            }
            (Self::Write { offset, bytes: new }, _) => write(bytes, offset, &new),
        }
    }
}

fn write(bytes: &mut Vec<u8>, offset: usize, new: &[u8]) {
    let end = offset + new.len();
    if bytes.len() < end {
        bytes.resize(end, 0);
    }
    bytes[offset..end].copy_from_slice(new);
}
