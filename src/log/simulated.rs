//! A disk in memory that forgets what was not synced, for tests. As unkind as a real one may be:
//! after a crash unsynced writes and names are there, or not, or half.

use std::collections::{BTreeMap, BTreeSet};
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
    /// Since the last sync of the directory: from, to. A journal keeps both ends or none.
    renames: Vec<(String, String)>,
    /// Counts crashes: handles of an earlier life are dead.
    life: u64,
    /// Bytes that all files together may have.
    room: Option<u64>,
    /// Writes that still succeed before all fail.
    writes_left: Option<u64>,
    syncs_fail: bool,
    unlinks_fail: bool,
    reads_fail: bool,
    /// Changes to files and names that were asked for.
    changes: u64,
    dies_at: Option<u64>,
    death: Option<Death>,
}

/// How far the change came during which everything ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Death {
    Before,
    /// The first so many bytes of a write are there, not all.
    Torn {
        bytes: usize,
    },
    After,
}

#[derive(Debug, Default, Clone)]
struct Inode {
    bytes: Vec<u8>,
    synced: Vec<u8>,
    /// Since the last sync, in order.
    changes: Vec<Change>,
    /// A sync failed: the kernel forgot that these pages are dirty, and no later sync helps.
    poisoned: bool,
}

#[derive(Debug, Clone)]
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
                renames: Vec::new(),
                life: 0,
                room: None,
                writes_left: None,
                syncs_fail: false,
                unlinks_fail: false,
                reads_fail: false,
                changes: 0,
                dies_at: None,
                death: None,
            })),
        }
    }

    /// The process dies: its handles are dead, and everything it wrote is there.
    pub fn kill(&self) {
        let mut state = self.state();
        state.life += 1;
        state.revive();
    }

    /// The change of this number (from 1 on, counted since the disk was made) is the last thing
    /// that happens: it is carried out, or not, or a part of it, and from then on everything fails
    /// until [`SimulatedDisk::kill`] or [`SimulatedDisk::crash`].
    pub fn die_at(&self, change: Option<u64>) {
        self.state().dies_at = change;
    }

    /// How everything ended, if it did.
    pub fn death(&self) -> Option<Death> {
        self.state().death
    }

    /// Creations, unlinks, renames, writes, truncations and syncs that were asked for until now.
    pub fn changes(&self) -> u64 {
        self.state().changes
    }

    /// Another disk with the same files, as they would be after [`SimulatedDisk::kill`].
    pub fn copy(&self, seed: u64) -> Self {
        let state = self.state();
        let mut names = BTreeMap::new();
        let mut inodes = Vec::with_capacity(state.names.len());
        for (name, inode) in &state.names {
            names.insert(name.clone(), inodes.len());
            inodes.push(state.inodes[*inode].clone());
        }
        // A name that is not synced yet keeps its right to get lost.
        let is_synced = |name: &String| state.synced_names.get(name) == state.names.get(name);
        let synced_names = names.iter().filter(|(name, _)| is_synced(name));
        let synced_names = synced_names.map(|(name, inode)| (name.clone(), *inode));
        let copy = Self::new(seed);
        {
            let mut copied = copy.state();
            copied.synced_names = synced_names.collect();
            copied.names = names;
            copied.inodes = inodes;
        }
        copy
    }

    /// Turns one bit over, on the medium: no sync helps.
    pub fn flip_bit(&self, name: &str, bit: usize) {
        let mut guard = self.state();
        let state = &mut *guard;
        let Some(inode) = state.names.get(name) else {
            return;
        };
        let Inode { bytes, synced, .. } = &mut state.inodes[*inode];
        for bytes in [bytes, synced] {
            if let Some(byte) = bytes.get_mut(bit / 8) {
                *byte ^= 1 << (bit % 8);
            }
        }
    }

    /// The host dies: what was synced is there. Of the rest, each name, each write and each sector
    /// of a write is there or not.
    pub fn crash(&self) {
        let mut guard = self.state();
        let state = &mut *guard;
        state.life += 1;
        state.revive();
        let random = &mut state.random;
        let mut names = state.synced_names.clone();
        for (name, inode) in &state.names {
            if !names.contains_key(name) && random.random() {
                names.insert(name.clone(), *inode);
            }
        }
        names.retain(|name, _| state.names.contains_key(name) || random.random());
        for (from, to) in state.renames.drain(..).rev() {
            let moved = state.names.get(&to).copied();
            match state.synced_names.get(&from) {
                _ if moved.is_some() && names.get(&to).copied() == moved => {
                    names.remove(&from);
                }
                Some(inode) => {
                    names.insert(from, *inode);
                }
                None => {}
            }
        }
        let named: BTreeSet<usize> = names.values().copied().collect();
        for (number, inode) in state.inodes.iter_mut().enumerate() {
            if !named.contains(&number) {
                *inode = Inode::default();
                continue;
            }
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

    pub fn fail_reads(&self, fail: bool) {
        self.state().reads_fail = fail;
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
        let died = state.change(0)?;
        if died != Some(Death::Before) {
            let inode = state.inodes.len();
            state.inodes.push(Inode::default());
            state.names.insert(name.to_owned(), inode);
        }
        state.alive()?;
        Ok(self.file(state.inodes.len() - 1, state.life))
    }

    fn open(&self, name: &str) -> io::Result<SimulatedFile> {
        let state = self.state();
        state.alive()?;
        let inode = state.names.get(name).ok_or(io::ErrorKind::NotFound)?;
        Ok(self.file(*inode, state.life))
    }

    fn list(&self) -> io::Result<Vec<String>> {
        let state = self.state();
        state.alive()?;
        Ok(state.names.keys().cloned().collect())
    }

    fn unlink(&self, name: &str) -> io::Result<()> {
        let mut state = self.state();
        if state.unlinks_fail {
            return Err(io::Error::other("injected: unlink"));
        }
        let died = state.change(0)?;
        let removed = match died {
            Some(Death::Before) => None,
            _ => state.names.remove(name),
        };
        state.alive()?;
        removed.map(drop).ok_or(io::ErrorKind::NotFound.into())
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let mut state = self.state();
        if state.unlinks_fail {
            return Err(io::Error::other("injected: rename"));
        }
        if !state.names.contains_key(from) {
            return Err(io::ErrorKind::NotFound.into());
        }
        if state.change(0)? != Some(Death::Before)
            && let Some(inode) = state.names.remove(from)
        {
            state.names.insert(to.to_owned(), inode);
            state.renames.push((from.to_owned(), to.to_owned()));
        }
        state.alive()
    }

    fn sync_dir(&self) -> io::Result<()> {
        let mut guard = self.state();
        let state = &mut *guard;
        if state.syncs_fail {
            return Err(io::Error::other("injected: sync"));
        }
        if state.change(0)? != Some(Death::Before) {
            state.synced_names.clone_from(&state.names);
            state.renames.clear();
        }
        state.alive()
    }
}

impl State {
    fn alive(&self) -> io::Result<()> {
        match self.death {
            Some(_) => Err(io::Error::other("everything has ended")),
            None => Ok(()),
        }
    }

    /// Counts a change that is about to happen, of so many bytes, and says if it is the last one.
    fn change(&mut self, bytes: usize) -> io::Result<Option<Death>> {
        self.alive()?;
        self.changes += 1;
        if self.dies_at == Some(self.changes) {
            self.death = Some(match self.random.random_range(0..3) {
                0 => Death::Before,
                1 if bytes > 1 => Death::Torn {
                    bytes: self.random.random_range(1..bytes),
                },
                _ => Death::After,
            });
        }
        Ok(self.death)
    }

    fn revive(&mut self) {
        self.dies_at = None;
        self.death = None;
    }
}

impl SimulatedFile {
    fn with<T>(&self, act: impl FnOnce(&mut State) -> io::Result<T>) -> io::Result<T> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.life != self.life {
            return Err(io::Error::other("the process that held this file is dead"));
        }
        state.alive()?;
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
            let died = state.change(bytes.len())?;
            let used: usize = state
                .names
                .values()
                .map(|it| state.inodes[*it].bytes.len())
                .sum();
            let inode = &mut state.inodes[self.inode];
            let room = state.room.map_or(usize::MAX, |room| {
                // An unlinked file that is still open is not counted among the used.
                let elsewhere = used.saturating_sub(inode.bytes.len());
                usize::try_from(room)
                    .unwrap_or(usize::MAX)
                    .saturating_sub(elsewhere + offset as usize)
            });
            let mut fits = &bytes[..bytes.len().min(room)];
            match died {
                Some(Death::Before) => fits = &[],
                Some(Death::Torn { bytes }) => fits = &fits[..bytes.min(fits.len())],
                Some(Death::After) | None => {}
            }
            write(&mut inode.bytes, offset as usize, fits);
            inode.changes.push(Change::Write {
                offset: offset as usize,
                bytes: fits.to_vec(),
            });
            state.alive()?;
            if fits.len() < bytes.len() {
                return Err(io::ErrorKind::StorageFull.into());
            }
            Ok(())
        })
    }

    fn read_at(&self, offset: u64, bytes: &mut [u8]) -> io::Result<()> {
        self.with(|state| {
            if state.reads_fail {
                return Err(io::Error::other("injected: EIO"));
            }
            let range = offset as usize..(offset as usize).saturating_add(bytes.len());
            let content = state.inodes[self.inode].bytes.get(range);
            bytes.copy_from_slice(content.ok_or(io::ErrorKind::UnexpectedEof)?);
            Ok(())
        })
    }

    fn truncate(&self, len: u64) -> io::Result<()> {
        self.with(|state| {
            if state.change(0)? != Some(Death::Before) {
                let inode = &mut state.inodes[self.inode];
                let len = len as usize;
                inode.bytes.resize(len, 0);
                inode.changes.push(Change::Truncate { len });
            }
            state.alive()
        })
    }

    fn sync(&self) -> io::Result<()> {
        self.with(|state| {
            let died = state.change(0)?;
            let inode = &mut state.inodes[self.inode];
            if state.syncs_fail {
                inode.poisoned = true;
                return Err(io::Error::other("injected: sync"));
            }
            if !inode.poisoned && died != Some(Death::Before) {
                inode.synced.clone_from(&inode.bytes);
                inode.changes.clear();
            }
            state.alive()
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
