//! Any sequence of appends, releases, failures and crashes, beside a list of what was written.
//!
//! After a process crash exactly what was applied comes back. After a host crash all that was
//! synced does, and of the rest whatever it likes, but nothing that was never written and nothing
//! changed. Segments go only in the legal order, and in the end they all go.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use tailring::log::{DiskOp, ReadError, Recovered, SimulatedDisk};
use tailring::model::FragmentHash;
use tailring::model::{Extent, SegmentId};

use crate::fixture::{Content, Log, Message, SMALL, decision, trace};

#[derive(Debug, Clone)]
enum Action {
    Fragment {
        shard: usize,
        trace: u64,
        resource: usize,
        scopes: usize,
        padding: usize,
    },
    Verdict {
        shard: usize,
    },
    Exported {
        shard: usize,
        hashes: usize,
    },
    Checkpoint {
        shard: usize,
        decisions: u32,
    },
    Flush {
        shard: usize,
    },
    /// Flushes and syncs.
    Sync {
        shard: usize,
    },
    /// Flushes while the disk has this much room, or after this many writes none.
    FlushFull {
        shard: usize,
        room: u64,
    },
    FlushFailing {
        shard: usize,
        writes: u64,
    },
    Release {
        share: usize,
    },
    Free,
    Seal {
        shard: usize,
    },
    Kill,
    HostCrash,
}

fn action() -> impl Strategy<Value = Action> {
    let shard = || 0..usize::from(SMALL.shards);
    let fragment = (shard(), 1..9_u64, 0..4_usize, 1..4_usize, 0..700_usize);
    prop_oneof![
        12 => fragment.prop_map(|(shard, trace, resource, scopes, padding)| Action::Fragment {
            shard, trace, resource, scopes,
            // Now and then one that does not fit a segment.
            padding: if padding > 690 { padding * 5 } else { padding / 4 },
        }),
        3 => shard().prop_map(|shard| Action::Verdict { shard }),
        2 => (shard(), 0..5_usize).prop_map(|(shard, hashes)| Action::Exported { shard, hashes }),
        1 => (shard(), 0..9_u32).prop_map(|(shard, decisions)| Action::Checkpoint { shard, decisions }),
        4 => shard().prop_map(|shard| Action::Flush { shard }),
        2 => shard().prop_map(|shard| Action::Sync { shard }),
        1 => (shard(), 0..1500_u64).prop_map(|(shard, room)| Action::FlushFull { shard, room }),
        1 => (shard(), 0..3_u64).prop_map(|(shard, writes)| Action::FlushFailing { shard, writes }),
        2 => (1..5_usize).prop_map(|share| Action::Release { share }),
        2 => Just(Action::Free),
        1 => shard().prop_map(|shard| Action::Seal { shard }),
        1 => Just(Action::Kill),
        1 => Just(Action::HostCrash),
    ]
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Pending,
    /// Its write failed: it may come back, or not.
    Failed,
    Applied,
    Synced,
}

#[derive(Debug, Clone)]
struct Entry {
    record: Recovered,
    fragment: Option<Content>,
    state: State,
    is_live: bool,
    /// Its header was lost in a host crash.
    is_unreadable: bool,
}

struct Model {
    disk: SimulatedDisk,
    log: Log<SimulatedDisk>,
    /// Everything written, by place.
    entries: BTreeMap<Extent, Entry>,
    /// Segments written to in this life, with their shards.
    mine: BTreeMap<SegmentId, usize>,
    recovered: BTreeSet<SegmentId>,
    serial: u32,
    /// What host crashes did to segments that are still there.
    damaged: u64,
}

impl Model {
    fn new(seed: u64) -> Self {
        let disk = SimulatedDisk::new(seed);
        let (log, _, _) = Log::open(disk.clone(), SMALL);
        Self {
            disk,
            log,
            entries: BTreeMap::new(),
            mine: BTreeMap::new(),
            recovered: BTreeSet::new(),
            serial: 0,
            damaged: 0,
        }
    }

    fn append(&mut self, extent: Extent, record: Recovered, fragment: Option<Content>) {
        let entry = Entry {
            record,
            is_live: fragment.is_some(),
            fragment,
            state: State::Pending,
            is_unreadable: false,
        };
        assert!(
            self.entries.insert(extent, entry).is_none(),
            "a place was given twice"
        );
    }

    fn run(&mut self, action: Action) {
        self.serial += 1;
        let serial = self.serial;
        match action {
            Action::Fragment {
                shard,
                trace: number,
                resource,
                scopes,
                padding,
            } => {
                let scopes = &["", "a", "b", "c"][resource..][..scopes.min(4 - resource)];
                let service = ["", "shop", "search", "a-longer-name"][resource];
                let message =
                    Message::of(trace(number), service, scopes, 1 + scopes.len(), padding);
                let content = self.log.fragment(shard, &message);
                self.append(content.extent, content.recovered(), Some(content));
            }
            Action::Verdict { shard } => {
                let extent = self.log.writers[shard].verdict(&decision(serial));
                self.append(extent, Recovered::Verdict(decision(serial)), None);
            }
            Action::Exported { shard, hashes } => {
                let fragments = vec![FragmentHash(7); hashes];
                let trace = trace(serial.into());
                let extent = self.log.writers[shard].exported(trace, &fragments);
                self.append(extent, Recovered::Exported { trace, fragments }, None);
            }
            Action::Checkpoint { shard, decisions } => {
                let decisions: Vec<_> =
                    (0..=decisions).map(|n| decision(serial * 10 + n)).collect();
                let extent = self.log.writers[shard].checkpoint(&decisions);
                self.append(extent, Recovered::Checkpoint(decisions), None);
            }
            Action::Flush { shard } => self.flush(shard),
            Action::Sync { shard } => self.sync(shard),
            Action::FlushFull { shard, room } => {
                let files = tailring::log::Disk::list(&self.disk).unwrap();
                let used = files
                    .iter()
                    .map(|name| self.disk.content(name).unwrap().len() as u64);
                self.disk.limit_bytes(Some(used.sum::<u64>() + room));
                self.flush(shard);
                self.disk.limit_bytes(None);
            }
            Action::FlushFailing { shard, writes } => {
                self.disk.fail_writes_after(Some(writes));
                self.flush(shard);
                self.disk.fail_writes_after(None);
            }
            Action::Release { share } => self.release(share),
            Action::Free => self.free(),
            Action::Seal { shard } => {
                self.log.writers[shard].seal_current();
                self.flush(shard);
            }
            Action::Kill => {
                self.disk.kill();
                self.restart(State::Applied);
            }
            Action::HostCrash => {
                self.disk.crash();
                self.restart(State::Synced);
            }
        }
    }

    fn flush(&mut self, shard: usize) {
        let current = self.log.writers[shard].segment();
        let mut has_failed = false;
        let mut names_current = false;
        for op in self.log.writers[shard].take() {
            let segment = op.segment();
            names_current |= Some(segment) == current;
            let range = match &op {
                DiskOp::Write { offset, bytes, .. } => *offset..*offset + bytes.len() as u32,
                _ => 0..0,
            };
            if let DiskOp::Create { segment, shard } = op {
                self.mine.insert(segment, shard.into());
            }
            has_failed = has_failed || self.log.volume.apply(op).is_err();
            let state = if has_failed {
                State::Failed
            } else {
                State::Applied
            };
            for (extent, entry) in &mut self.entries {
                if extent.segment == segment && range.contains(&extent.offset) {
                    assert_eq!(entry.state, State::Pending);
                    entry.state = state;
                }
            }
        }
        if !has_failed {
            return;
        }
        let failed: Vec<Extent> = self
            .entries
            .iter_mut()
            .filter(|(_, it)| it.state == State::Failed && it.is_live)
            .map(|(extent, it)| {
                it.is_live = false;
                *extent
            })
            .collect();
        self.log.space.release(failed);
        if names_current {
            self.log.writers[shard].abandon();
            for op in self.log.writers[shard].take() {
                self.log.volume.apply(op).unwrap();
            }
        }
    }

    fn sync(&mut self, shard: usize) {
        self.flush(shard);
        for (segment, of) in self.mine.clone() {
            // A segment whose creation failed has no file.
            if of == shard && self.log.volume.sync(segment).is_ok() {
                for (extent, entry) in &mut self.entries {
                    if extent.segment == segment && entry.state == State::Applied {
                        entry.state = State::Synced;
                    }
                }
            }
        }
    }

    fn release(&mut self, share: usize) {
        let live = self.entries.iter_mut().filter(|(_, it)| it.is_live);
        let released: Vec<Extent> = live
            .step_by(share)
            .map(|(extent, it)| {
                it.is_live = false;
                *extent
            })
            .collect();
        self.log.space.release(released);
    }

    fn free(&mut self) {
        let shards = 0..self.log.writers.len() as u16;
        for segment in shards.flat_map(|shard| self.log.space.take_freed(shard)) {
            let holds_live = self
                .entries
                .iter()
                .any(|(extent, it)| extent.segment == segment && it.is_live);
            assert!(!holds_live, "{segment:?} holds something live");
            let older_recovered = self.recovered.range(..segment).next();
            assert_eq!(older_recovered, None, "{segment:?}");
            if let Some(shard) = self.mine.get(&segment) {
                let older = self.mine.range(..segment).find(|(_, of)| *of == shard);
                assert_eq!(older, None, "{segment:?}");
            }
            self.log.volume.apply(DiskOp::Unlink { segment }).unwrap();
            self.mine.remove(&segment);
            self.recovered.remove(&segment);
            self.entries.retain(|extent, _| extent.segment != segment);
        }
    }

    /// A new process. Every entry of at least `certain` must come back.
    fn restart(&mut self, certain: State) {
        let (log, records, report) = Log::open(self.disk.clone(), SMALL);
        self.log = log;
        let rank = |state| match state {
            State::Pending => 0,
            State::Failed => 1,
            State::Applied => 2,
            State::Synced => 3,
        };
        let mut absent = Vec::new();
        let mut expected = std::mem::take(&mut self.entries).into_iter();
        for record in records {
            loop {
                let (extent, mut entry) = expected.next().expect("a record that nobody wrote");
                if entry.record != record {
                    absent.push((extent, entry));
                    continue;
                }
                assert_ne!(
                    entry.state,
                    State::Pending,
                    "it was never given to the disk"
                );
                entry.is_live = entry.fragment.is_some();
                if entry.state == State::Failed {
                    entry.state = State::Applied;
                }
                self.entries.insert(extent, entry);
                break;
            }
        }
        absent.extend(expected);
        for (extent, entry) in absent {
            assert!(
                rank(entry.state) < rank(certain),
                "lost a record: {entry:?} at {extent:?}"
            );
            // The write that failed was cut off again, and nobody synced that either: a later
            // crash of the host may bring it back.
            if certain == State::Applied && entry.state == State::Failed {
                self.entries.insert(extent, entry);
            }
        }
        if certain == State::Applied {
            assert!(report.damaged_records <= self.damaged, "{report:?}");
        }
        self.damaged = report.damaged_records;
        for (extent, entry) in &mut self.entries {
            let Some(content) = entry.fragment.as_ref().filter(|_| entry.is_live) else {
                continue;
            };
            match self.log.volume.read(&[*extent]) {
                Ok(found) => assert_eq!(Content::from(&found[0]), *content),
                // The frame survived and its header, which nobody synced either, did not.
                Err(ReadError::Damaged { .. })
                    if entry.is_unreadable || rank(entry.state) < rank(certain) =>
                {
                    entry.is_unreadable = true;
                }
                Err(error) => panic!("{error}: {entry:?}"),
            }
        }
        let names = tailring::log::Disk::list(&self.disk).unwrap();
        assert_eq!(report.segments as usize, names.len());
        self.mine.clear();
        self.recovered = names
            .iter()
            .map(|name| SegmentId(name[..10].parse().unwrap()))
            .collect();
        if certain == State::Synced {
            // What a host crash left has been on the platter.
            for entry in self.entries.values_mut() {
                entry.state = State::Synced;
            }
        }
        // The ID of a file that never was is given again.
        let there = &self.recovered;
        self.entries
            .retain(|extent, _| there.contains(&extent.segment));
    }

    /// Everything is released: nothing may be left.
    fn wind_up(&mut self) {
        for shard in 0..self.log.writers.len() {
            self.log.writers[shard].seal_current();
            self.flush(shard);
        }
        self.release(1);
        while self.log.space.segments() > 0 {
            let before = self.log.space.segments();
            self.free();
            assert!(self.log.space.segments() < before, "segments that never go");
        }
        // But files to be written over.
        let names = tailring::log::Disk::list(&self.disk).unwrap();
        assert!(
            names.iter().all(|name| name.ends_with(".spare")),
            "{names:?}"
        );
        assert!(names.len() <= 2, "{names:?}");
        let len = |name: &String| self.disk.content(name).unwrap().len() as u64;
        assert_eq!(
            self.log.space.used_bytes(),
            names.iter().map(len).sum::<u64>()
        );
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn whatever_happens_what_was_acknowledged_comes_back(
        seed: u64,
        actions in proptest::collection::vec(action(), 1..120),
    ) {
        let mut model = Model::new(seed);
        for action in actions {
            model.run(action);
        }
        model.restart_and_wind_up();
    }
}

impl Model {
    fn restart_and_wind_up(&mut self) {
        self.disk.kill();
        self.restart(State::Applied);
        self.wind_up();
    }
}
