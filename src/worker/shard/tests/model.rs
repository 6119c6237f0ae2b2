//! Random lives of a shard on a disk that fails now and then, against what its clients were told.

use std::collections::{BTreeMap, BTreeSet};

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use super::*;
use crate::log::{Disk, DiskOp};

const SEGMENT: u32 = 16 << 10;

type SpanKey = (TraceId, u64);

struct Model {
    bench: Bench,
    rules: Arc<Rules>,
    random: SmallRng,
    second: u64,
    requests: Vec<(u64, u64, String)>,
    /// At the disk thread, with who waits for it.
    flying: Option<(u64, Vec<DiskOp>, Vec<SpanKey>)>,
    /// Joined the batch being filled.
    joined: Vec<SpanKey>,
    works: Vec<ExportWork>,
    acknowledged: BTreeSet<SpanKey>,
    exported: BTreeMap<SpanKey, u32>,
    verdicts: BTreeMap<TraceId, VerdictId>,
    /// Exported, and the tombstone is perhaps not on disk: a crash may export these again.
    unnoted: Vec<SpanKey>,
    may_double: BTreeSet<SpanKey>,
    failed_batches: u32,
}

impl Model {
    fn new(seed: u64, rules: Arc<Rules>) -> Self {
        let disk = SimulatedDisk::new(seed);
        Self {
            bench: Bench::on(disk, rules.clone(), u64::MAX, SEGMENT, at(0)),
            rules,
            random: SmallRng::seed_from_u64(seed),
            second: 0,
            requests: Vec::new(),
            flying: None,
            joined: Vec::new(),
            works: Vec::new(),
            acknowledged: BTreeSet::new(),
            exported: BTreeMap::new(),
            verdicts: BTreeMap::new(),
            unnoted: Vec::new(),
            may_double: BTreeSet::new(),
            failed_batches: 0,
        }
    }

    fn now(&self) -> Moment {
        at(self.second)
    }

    fn step(&mut self) {
        match self.random.random_range(0..100) {
            0..35 => self.append(),
            35..45 => {
                self.second += self.random.random_range(0..3);
                self.bench.shard.tick(self.now());
            }
            45..65 => self.hand_over(),
            65..80 => self.land(),
            80..88 => self.pull(),
            88..96 => self.finish_work(),
            96..98 => self.bench.shard.tick(self.now()),
            98 => self.outage(),
            _ => self.kill(),
        }
    }

    fn append(&mut self) {
        let known = self.requests.len();
        let (trace_number, id, name) = if known > 0 && self.random.random_range(0..4) == 0 {
            // A client that was refused, or did not hear the answer.
            self.requests[self.random.random_range(0..known)].clone()
        } else {
            let name = "x".repeat(self.random.random_range(0..3_000));
            let request = (self.random.random_range(0..12), known as u64, name);
            self.requests.push(request.clone());
            request
        };
        let now = self.now();
        let incoming = spans(trace_number, id..id + 1, &name);
        if self.bench.append(&incoming, now).is_ok() {
            self.joined.push((trace(trace_number), id));
        }
    }

    fn hand_over(&mut self) {
        if self.flying.is_some() {
            return;
        }
        self.bench.shard.tick(self.now());
        let joined = std::mem::take(&mut self.joined);
        match self.bench.shard.take_batch() {
            Some((number, ops)) => self.flying = Some((number, ops, joined)),
            None => self.acknowledged.extend(joined),
        }
    }

    fn land(&mut self) {
        let disk = self.bench.disk.clone();
        match self.random.random_range(0..12) {
            0 => disk.fail_writes_after(Some(self.random.random_range(0..3))),
            1 => disk.fail_syncs(true),
            2 => disk.fail_unlinks(true),
            _ => {}
        }
        self.apply();
        disk.fail_writes_after(None);
        disk.fail_syncs(false);
        disk.fail_unlinks(false);
    }

    /// What the disk thread does, and the shard's when it hears of it.
    fn apply(&mut self) {
        let Some((number, ops, waiting)) = self.flying.take() else {
            return;
        };
        let now = self.now();
        let result = disk::apply(&self.bench.volume, AckLevel::Written, ops, &mut Vec::new());
        if let Ok(applied) = result {
            self.acknowledged.extend(waiting);
            self.bench.shard.batch_written(number);
            if applied.unlink_failed {
                self.bench.shard.unlink_failed(now);
            }
        } else {
            self.failed_batches += 1;
            self.joined.clear();
            self.bench.shard.batch_failed(number, now);
        }
    }

    fn pull(&mut self) {
        if self.works.len() < 2
            && let Some(work) = self.bench.shard.pull(8_000, 3)
        {
            self.read(&work);
            self.works.push(work);
        }
    }

    /// Whatever is handed out can be read, at once and all of it.
    fn read(&self, work: &ExportWork) -> Vec<Vec<u64>> {
        let of_trace = |export: &ExportTrace| {
            let extents: Vec<_> = export.fragments.iter().map(FragmentRef::extent).collect();
            let stored = self.bench.volume.read(&extents).unwrap();
            let sections = stored.iter().flat_map(|it| it.scopes.iter());
            sections
                .flat_map(|scope| crate::wire::spans_in(&scope.spans))
                .map(|(_, span)| {
                    let id = crate::wire::span_id_of(span).unwrap();
                    u64::from_be_bytes(*id.as_bytes()) - 1
                })
                .collect()
        };
        work.traces.iter().map(of_trace).collect()
    }

    fn finish_work(&mut self) {
        if self.works.is_empty() {
            return;
        }
        let place = self.random.random_range(0..self.works.len());
        let work = self.works.swap_remove(place);
        let traces = self.random.random_range(0..=work.traces.len());
        let fragments = self.random.random_range(0..2);
        let all = work.traces.iter().map(|it| it.fragments.len());
        let mut done: Vec<usize> = all.collect();
        match self.random.random_range(0..6) {
            // All up to a place in the middle of a trace.
            0 | 1 => {
                done.truncate(traces);
                done.push(fragments);
            }
            // Each trace up to a place of its own.
            2 => done
                .iter_mut()
                .for_each(|done| *done = self.random.random_range(0..=*done)),
            _ => {}
        }
        let (delivered, rest) = work.split(&done);
        for (export, ids) in delivered.traces.iter().zip(self.read(&delivered)) {
            let trace = export.decision.trace;
            let known = self.verdicts.entry(trace).or_insert(export.decision.id);
            assert_eq!(*known, export.decision.id, "one verdict for {trace:?}");
            // Copies within one piece of work are left out by the exporter.
            for id in BTreeSet::from_iter(ids) {
                *self.exported.entry((trace, id)).or_default() += 1;
                self.unnoted.push((trace, id));
            }
        }
        let now = self.now();
        self.bench.shard.exported(delivered, now);
        self.bench.shard.put_back(rest, now);
    }

    /// The disk takes nothing for a while.
    fn outage(&mut self) {
        self.bench.disk.fail_writes_after(Some(0));
        for _ in 0..self.random.random_range(1..20) {
            self.second += 1;
            self.apply();
            self.append();
            self.hand_over();
        }
        self.apply();
        self.bench.disk.fail_writes_after(None);
    }

    fn kill(&mut self) {
        self.may_double.extend(self.unnoted.drain(..));
        // The disk thread may have got to it or not.
        if let Some((_, ops, _)) = self.flying.take()
            && self.random.random()
        {
            disk::apply(&self.bench.volume, AckLevel::Written, ops, &mut Vec::new()).unwrap();
        }
        self.joined.clear();
        self.works.clear();
        self.bench.disk.kill();
        self.bench = Bench::on(
            self.bench.disk.clone(),
            self.rules.clone(),
            u64::MAX,
            SEGMENT,
            self.now(),
        );
    }

    fn settle(&mut self) {
        while !self.works.is_empty() {
            self.finish_work();
        }
        for _ in 0..300 {
            self.second += 1;
            self.hand_over();
            self.apply();
            while let Some(work) = self.bench.shard.pull(u64::MAX, 100) {
                let all = self.read(&work);
                for (export, ids) in work.traces.iter().zip(all) {
                    let trace = export.decision.trace;
                    let known = self.verdicts.entry(trace).or_insert(export.decision.id);
                    assert_eq!(*known, export.decision.id, "one verdict for {trace:?}");
                    for id in BTreeSet::from_iter(ids) {
                        *self.exported.entry((trace, id)).or_default() += 1;
                    }
                }
                let now = self.now();
                self.bench.shard.exported(work, now);
            }
        }
    }
}

#[test]
fn what_was_acknowledged_is_exported_once_under_one_verdict_whatever_the_disk_does() {
    let (mut exported, mut failed) = (0, 0);
    for seed in 0..150 {
        let mut model = Model::new(seed, rules(wait(5), true));
        for _ in 0..300 {
            model.step();
        }
        model.settle();
        for key in &model.acknowledged {
            assert!(
                model.exported.contains_key(key),
                "seed {seed}: {key:?} was acknowledged and is gone"
            );
        }
        for (key, times) in &model.exported {
            assert!(
                *times == 1 || model.may_double.contains(key),
                "seed {seed}: {key:?} was exported {times} times"
            );
        }
        let bench = &model.bench;
        assert!(bench.shard.index.is_empty(), "seed {seed}");
        assert_eq!(bench.shard.index.undecided_spans(), 0, "seed {seed}");
        assert_eq!(bench.shard.index.bytes(), 0, "seed {seed}");
        assert!(
            bench.space.segments() <= 2,
            "seed {seed}: {} segments",
            bench.space.segments()
        );
        let mut names = bench.disk.list().unwrap();
        names.retain(|name| !name.ends_with(".spare"));
        assert!(names.len() <= 2, "seed {seed}: {names:?}");
        exported += model.exported.len();
        failed += model.failed_batches;
    }
    assert!(exported > 5_000, "{exported}");
    assert!(failed > 300, "{failed}");
}

#[test]
fn nothing_stays_of_dropped_traces_whatever_the_disk_does() {
    for seed in 0..100 {
        let mut model = Model::new(seed, rules(wait(5), false));
        for _ in 0..300 {
            model.step();
        }
        model.settle();
        assert!(model.exported.is_empty());
        let bench = &model.bench;
        assert!(bench.shard.index.is_empty(), "seed {seed}");
        assert_eq!(bench.shard.index.undecided_spans(), 0, "seed {seed}");
        assert_eq!(bench.shard.index.bytes(), 0, "seed {seed}");
        assert!(
            bench.space.segments() <= 2,
            "seed {seed}: {} segments",
            bench.space.segments()
        );
    }
}
