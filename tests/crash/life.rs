//! Runs a plan on a simulated disk, through as many lives as crashes make of it.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use tailring::log::{Disk, RecoveryReport, SimulatedDisk, Space, SpaceConfig, Volume, recover};
use tailring::model::{Extent, Incarnation, Member, Moment};
use tailring::net::admission::Budget;
use tailring::policy::Rules;
use tailring::wire::{ScanLimits, span_id_of, spans_in};
use tailring::worker::shard::{ExportTrace, ExportWork};
use tailring::worker::{
    AckLevel, OnPressure, RecordPolicy, SimulatedAnswer, SimulatedWorker, WorkerConfig,
    WorkerMetrics,
};

use crate::books::Books;
use crate::plan::{Fault, Plan, SpanKey, Step, steps};

/// What all runs of a thread share: dear to make, and nothing in it decides anything.
pub(crate) struct Stage {
    metrics: WorkerMetrics,
}

/// A run writes some hundred; so many are no log that comes to rest.
const SEGMENTS_AT_REST: usize = 1_000;

/// Why an exporter does not get a trace.
enum Unread {
    /// Compaction moved it.
    Moved,
    /// The disk does not give it.
    Failed,
}

/// What became of one run.
pub(crate) struct Outcome {
    /// Changes on disk until the plan ended or the first crash came.
    pub(crate) changes: u64,
    pub(crate) crashes: u64,
    /// Segments that went by compaction.
    pub(crate) compacted: u64,
    pub(crate) books: Books,
}

pub(crate) struct Lives<'a> {
    plan: &'a Plan,
    stage: &'a Stage,
    disk: SimulatedDisk,
    random: SmallRng,
    now: Moment,
    life: u32,
    worker: SimulatedWorker<SimulatedDisk>,
    shards: usize,
    answers: Vec<(usize, SimulatedAnswer)>,
    /// Requests that were sent at least once, from the first on.
    sent: usize,
    works: Vec<(usize, ExportWork)>,
    books: Books,
    crashes: u64,
    /// By a fault of the plan.
    reads_fail: bool,
}

impl Stage {
    pub(crate) fn new() -> Self {
        Self {
            metrics: WorkerMetrics::register(&mut Default::default()),
        }
    }

    fn compacted(&self) -> u64 {
        self.metrics.log_segments_compacted.get()
    }
}

/// Runs the plan, ends everything at change `dies_at`, goes on with new lives that may end early
/// as well, and sees that all comes to rest.
pub(crate) fn run(plan: &Plan, stage: &Stage, dies_at: Option<u64>) -> Outcome {
    let compacted = stage.compacted();
    let mut lives = Lives::new(plan, stage, dies_at);
    lives.live(&plan.steps);
    let changes = lives.disk.changes();
    if lives.has_ended() {
        lives.crash_and_go_on();
    }
    lives.settle();
    Outcome {
        changes,
        crashes: lives.crashes,
        compacted: stage.compacted() - compacted,
        books: lives.books,
    }
}

/// Runs the plan to its end or to change `dies_at`, and ends everything there.
pub(crate) fn run_until<'a>(plan: &'a Plan, stage: &'a Stage, dies_at: u64) -> Lives<'a> {
    let mut lives = Lives::new(plan, stage, Some(dies_at));
    lives.live(&plan.steps);
    lives.crash();
    lives
}

fn rules(plan: &Plan, life: u32, draw: u32) -> Arc<Rules> {
    let quiet = plan.quiet_period.map_or(String::new(), |quiet| {
        format!("quiet_period: {}s\n", quiet.as_secs())
    });
    // Policies change between lives, so that a verdict that is made again is another one.
    let share = match draw % 5 {
        _ if plan.keeps_all => 100,
        0 => 0,
        1 => 30,
        2 => 50,
        _ => 100,
    };
    // Never true of these spans; but whoever asks must read them again.
    let more = match draw / 5 % 3 {
        0 => "",
        1 => "  - {name: errors, type: status_code, status_code: {status_codes: [ERROR]}}\n",
        _ => "  - {name: slow, type: latency, latency: {threshold_ms: 3600000}}\n",
    };
    let text = format!(
        "decision_wait: {}s\n{quiet}policies:\n  - name: of-life-{life}\n    type: probabilistic\n    \
         probabilistic:\n      sampling_percentage: {share}\n{more}",
        plan.decision_wait.as_secs()
    );
    Arc::new(tailring::policy::parse(&text).expect("legal rules").rules)
}

pub(crate) fn start(
    plan: &Plan,
    stage: &Stage,
    disk: &SimulatedDisk,
    shards: usize,
    secret: u64,
    life: u32,
    now: Moment,
) -> Result<SimulatedWorker<SimulatedDisk>, tailring::worker::StartError> {
    let config = WorkerConfig {
        name: Member::parse("worker-0").expect("a legal name"),
        incarnation: Incarnation(u64::from(life)),
        shards: shards as u16,
        scan: ScanLimits::default(),
        ack: plan.ack,
        segment_bytes: plan.segment_bytes,
        log_max_bytes: plan
            .log_segments_max
            .map_or(u64::MAX, |most| most * u64::from(plan.segment_bytes)),
        trace_spans_max: 10_000,
        trace_bytes_max: 1 << 20,
        drop_retain: plan.drop_retain,
        decision_memory_max_bytes: 8 << 20,
        index_memory_max_bytes: 8 << 20,
        budget: Budget::new(1 << 40),
        export_memory_bytes: 8 << 20,
        on_pressure: OnPressure::Refuse,
        record_policy: RecordPolicy::Off,
    };
    let rules = rules(plan, life, secret as u32);
    SimulatedWorker::start(&config, disk.clone(), &rules, &stage.metrics, secret, now)
}

impl<'a> Lives<'a> {
    fn new(plan: &'a Plan, stage: &'a Stage, dies_at: Option<u64>) -> Self {
        let salt = dies_at.unwrap_or(0);
        let mut random =
            SmallRng::seed_from_u64(plan.seed.wrapping_mul(0x9e37_79b9) ^ (salt << 40));
        let disk = SimulatedDisk::new(random.random());
        let now = Moment::from_unix_millis(1_800_000_000_000);
        disk.die_at(dies_at);
        let shards = random.random_range(1..=3);
        let worker = start(plan, stage, &disk, shards, random.random(), 0, now);
        let mut books = Books::new(plan.log_segments_max.is_some());
        books.begin_life(shards);
        Self {
            plan,
            stage,
            disk,
            random,
            now,
            life: 0,
            worker: worker.expect("nothing is written to start on an empty disk"),
            shards,
            answers: Vec::new(),
            sent: 0,
            works: Vec::new(),
            books,
            crashes: 0,
            reads_fail: false,
        }
    }

    pub(crate) fn disk(&self) -> &SimulatedDisk {
        &self.disk
    }

    pub(crate) fn now(&self) -> Moment {
        self.now
    }

    pub(crate) fn recovery(&self) -> &RecoveryReport {
        self.worker.recovery()
    }

    pub(crate) fn into_books(self) -> Books {
        self.books
    }

    /// A bit of a segment that has any, not of what an earlier segment left in its file.
    pub(crate) fn draw_bit(&mut self) -> Option<(String, usize)> {
        let sound = self.disk.copy(1);
        let space = Space::new(SpaceConfig {
            segment_bytes: self.plan.segment_bytes,
            log_max_bytes: u64::MAX,
            shards: 1,
        });
        recover(&Volume::new(sound.clone()), &space, &mut |_| {}).ok()?;
        let mut names = sound.list().unwrap_or_default();
        let len = |name: &String| sound.content(name).map_or(0, |bytes| bytes.len());
        names.retain(|name| len(name) > 0);
        if names.is_empty() {
            return None;
        }
        let name = names.swap_remove(self.random.random_range(0..names.len()));
        let bits = 8 * sound.content(&name)?.len();
        Some((name, self.random.random_range(0..bits)))
    }

    /// Until the steps are through, or everything has ended.
    fn live(&mut self, steps: &[Step]) {
        for step in steps {
            self.step(*step);
            if self.has_ended() {
                return;
            }
        }
    }

    /// A process ends by itself when its disk fails to sync.
    fn has_ended(&self) -> bool {
        self.disk.death().is_some() || self.worker.sync_failure().is_some()
    }

    fn step(&mut self, step: Step) {
        self.story(|| format!("{step:?}"));
        match step {
            Step::Send => {
                if self.sent < self.plan.requests.len() {
                    self.sent += 1;
                    self.send(self.sent - 1);
                }
            }
            Step::Repeat(draw) => {
                if self.sent > 0 {
                    self.send(draw % self.sent);
                }
            }
            Step::Wait(time) => self.now = self.now + time,
            Step::Turn(shard) => self.turn(shard % self.shards),
            Step::Write(shard) => self.write(shard % self.shards),
            Step::Compact => {
                self.worker.compact();
                if self.random.random_range(0..3) == 0 {
                    self.compact_to_the_end();
                }
            }
            Step::Pull {
                shard,
                bytes,
                traces,
            } => self.pull(shard % self.shards, bytes, traces),
            Step::Deliver { work, cut } => {
                if !self.works.is_empty() {
                    let (shard, work) = self.works.swap_remove(work % self.works.len());
                    self.deliver(shard, work, cut);
                }
            }
            Step::Reload(draw) => {
                let rules = rules(self.plan, self.life, draw);
                self.worker.set_rules(&rules);
            }
            Step::Refold(shard) => {
                self.worker.refold(shard % self.shards);
            }
            Step::Fault(fault) => match fault {
                Fault::WritesAfter(writes) => self.disk.fail_writes_after(Some(writes)),
                Fault::Syncs => self.disk.fail_syncs(true),
                Fault::Unlinks => self.disk.fail_unlinks(true),
                Fault::Reads => {
                    self.reads_fail = true;
                    self.disk.fail_reads(true);
                }
                Fault::Full => self
                    .disk
                    .limit_bytes(Some(self.random.random_range(0..2_000))),
                Fault::Healed => self.heal(),
            },
        }
    }

    /// What happened, for whoever looks into one run.
    fn story(&self, what: impl FnOnce() -> String) {
        if self.plan.is_told {
            let (life, changes) = (self.life, self.disk.changes());
            eprintln!("life {life}, change {changes}, {:?}: {}", self.now, what());
        }
    }

    fn heal(&mut self) {
        self.disk.fail_writes_after(None);
        self.disk.fail_syncs(false);
        self.disk.fail_unlinks(false);
        self.reads_fail = false;
        self.disk.fail_reads(false);
        self.disk.limit_bytes(None);
    }

    fn send(&mut self, number: usize) {
        let request = &self.plan.requests[number];
        self.books.sent(&request.spans, self.life, self.now);
        let answer = self.worker.append(request.message.clone());
        self.answers.push((number, answer));
    }

    /// Hears what clients are told.
    fn listen(&mut self) {
        let (plan, books, now) = (self.plan, &mut self.books, self.now);
        self.answers.retain_mut(|(number, answer)| {
            let answered = answer.poll();
            if plan.is_told {
                eprintln!(
                    "  request {number} {:?}: {answered:?}",
                    plan.requests[*number].spans
                );
            }
            if answered == Some(true) {
                books.acknowledged(&plan.requests[*number].spans, now);
            }
            answered.is_none()
        });
    }

    fn turn(&mut self, shard: usize) {
        let handed_over = self.worker.turn(shard, self.now);
        self.listen();
        for (number, trace) in self.plan.traces.iter().enumerate() {
            if self.worker.shard_of(*trace) == shard {
                let known = self.worker.verdict(*trace);
                if known.is_none() && self.worker.waits_for_fold(*trace) {
                    continue; // late, and by no other rules' state
                }
                self.books.look(self.plan, number, shard, known, self.now);
            }
        }
        if handed_over {
            self.books.handed_over(shard);
        }
    }

    fn write(&mut self, shard: usize) {
        if let Some(is_written) = self.worker.write(shard) {
            self.story(|| format!("shard {shard} written: {is_written}"));
            self.books.written(shard, is_written);
            self.listen();
        }
        if self.random.random() {
            self.worker.append_footer();
        }
        if self.random.random() {
            self.worker.append_trailer();
        }
    }

    fn pull(&mut self, shard: usize, bytes: u64, traces: usize) {
        let of_shard = self.works.iter().filter(|(of, _)| *of == shard).count();
        if of_shard < 2
            && let Some(work) = self.worker.pull(shard, bytes, traces, self.now)
        {
            self.works.push((shard, work));
        }
    }

    /// The spans of a kept trace as they are read back.
    fn read(&self, export: &ExportTrace) -> Result<BTreeSet<SpanKey>, Unread> {
        let traces = &self.plan.traces;
        let number = traces.iter().position(|it| *it == export.decision.trace);
        let number = number.ok_or(Unread::Failed)?;
        let extents: Vec<Extent> = export.fragments.iter().map(|it| it.extent()).collect();
        let mut keys = BTreeSet::new();
        for extent in extents {
            match self.worker.read(&[extent]) {
                Ok(stored) => {
                    let sections = stored.iter().flat_map(|it| it.scopes.iter());
                    keys.extend(
                        sections
                            .flat_map(|scope| spans_in(&scope.spans))
                            .filter_map(|(_, span)| span_id_of(span))
                            .map(|id| (number, u64::from_be_bytes(*id.as_bytes()) - 1)),
                    );
                }
                // A host crash can leave a fragment without its header; the exporter leaves it out.
                Err(tailring::log::ReadError::Damaged { .. }) => {}
                Err(tailring::log::ReadError::Moved { .. }) => return Err(Unread::Moved),
                Err(_) => return Err(Unread::Failed),
            }
        }
        Ok(keys)
    }

    fn deliver(&mut self, shard: usize, work: ExportWork, cut: Option<(usize, usize)>) {
        let whole = (work.traces.len(), 0);
        let (traces, fragments) = cut.map_or(whole, |(traces, fragments)| {
            (traces % (work.traces.len() + 1), fragments)
        });
        let mut done = vec![usize::MAX; traces];
        done.push(fragments);
        let (delivered, rest) = work.split(&done);
        let read: Result<Vec<_>, Unread> =
            delivered.traces.iter().map(|it| self.read(it)).collect();
        let read = match read {
            Ok(read) => read,
            Err(unread) => {
                let may_fail = self.reads_fail || self.disk.death().is_some();
                if matches!(unread, Unread::Failed) && !may_fail {
                    self.books.violation(
                        "what is to be exported is not found, and the disk is well".into(),
                    );
                }
                for work in [delivered, rest] {
                    match unread {
                        Unread::Moved => self.worker.offer_again(shard, work),
                        Unread::Failed => self.worker.put_back(shard, work),
                    }
                }
                return;
            }
        };
        for (export, spans) in delivered.traces.iter().zip(read) {
            let decision = &export.decision;
            if let Some(number) = self.plan.traces.iter().position(|it| *it == decision.trace) {
                self.books
                    .delivered(shard, number, decision, spans, self.life);
            }
        }
        if !delivered.traces.is_empty() {
            self.worker.exported(shard, delivered);
        }
        if !rest.traces.is_empty() {
            self.worker.put_back(shard, rest);
        }
    }

    /// What the crash leaves, and lives on it until one is left alone.
    fn crash_and_go_on(&mut self) {
        for _ in 0..3 {
            self.crash();
            let again = (self.random.random_range(0..4) > 0)
                .then(|| self.disk.changes() + self.random.random_range(1..16));
            if !self.rise(again) {
                continue;
            }
            let more = self.random.random_range(8..30);
            let more = steps(&mut self.random, more, false);
            // As in a process: every shard goes round before it has anything to do.
            for shard in 0..self.shards {
                if self.random.random() {
                    self.turn(shard);
                }
            }
            self.live(&more);
            if !self.has_ended() {
                return;
            }
        }
        self.crash();
        self.rise(None);
    }

    fn crash(&mut self) {
        self.crashes += 1;
        self.story(|| format!("ended: {:?}", self.disk.death()));
        self.listen();
        self.answers.clear();
        self.works.clear();
        self.books.crashed();
        self.heal();
        // What a process leaves unsynced must not be taken for durable by the next one: the host
        // may die in a later life.
        if self.plan.host_dies && self.random.random_range(0..3) > 0 {
            self.disk.crash();
            if self.plan.ack == AckLevel::Written {
                self.books.host_died();
            }
        } else {
            self.disk.kill();
        }
    }

    /// False if this life ended while it read the log.
    pub(crate) fn rise(&mut self, dies_at: Option<u64>) -> bool {
        self.life += 1;
        self.shards = self.random.random_range(1..=3);
        self.now = self.now + Duration::from_millis(self.random.random_range(0..3_000));
        self.disk.die_at(dies_at);
        self.story(|| {
            let files = self.disk.list().unwrap_or_default();
            let files = files.iter().map(|name| {
                let len = self.disk.content(name).map_or(0, |bytes| bytes.len());
                format!(" {name} {len}")
            });
            format!(
                "{} shards, ends at {dies_at:?}:{}",
                self.shards,
                files.collect::<String>()
            )
        });
        let secret = self.random.random();
        let before = self.bytes_on_disk();
        let (plan, stage) = (self.plan, self.stage);
        let started = start(
            plan,
            stage,
            &self.disk,
            self.shards,
            secret,
            self.life,
            self.now,
        );
        match started {
            Ok(worker) => {
                self.story(|| format!("{:?}", worker.recovery()));
                self.worker = worker;
            }
            Err(_) if self.disk.death().is_some() => return false,
            Err(error) => {
                self.books.violation(format!("the log is refused: {error}"));
                return false;
            }
        }
        self.books.begin_life(self.shards);
        if self.disk.death().is_none() {
            let report = self.worker.recovery().clone();
            let cut = before - self.bytes_on_disk();
            let told = report.torn_bytes + report.stale_bytes;
            if told != cut || (report.torn_tails > 0) != (report.torn_bytes > 0) {
                self.books
                    .violation(format!("{cut} bytes were cut, and told was {report:?}"));
            }
            self.check_tails();
        }
        true
    }

    fn bytes_on_disk(&self) -> u64 {
        let names = self.disk.list().unwrap_or_default();
        let contents = names.iter().filter_map(|name| self.disk.content(name));
        contents.map(|bytes| bytes.len() as u64).sum()
    }

    /// A tail that was cut is not met a second time.
    fn check_tails(&mut self) {
        let copy = self.disk.copy(1);
        let space = Space::new(SpaceConfig {
            segment_bytes: self.plan.segment_bytes,
            log_max_bytes: u64::MAX,
            shards: 1,
        });
        match recover(&Volume::new(copy), &space, &mut |_| {}) {
            Ok(report) if report.torn_tails == 0 && report.torn_bytes == 0 => {}
            Ok(report) => self
                .books
                .violation(format!("a start left torn tails: {report:?}")),
            Err(error) => self
                .books
                .violation(format!("a start left damage: {error}")),
        }
    }

    /// Everything works from now on, and all comes to rest.
    pub(crate) fn settle(&mut self) {
        self.heal();
        self.disk.die_at(None);
        // Half of the clients whose requests were not acknowledged have the patience.
        for number in 0..self.sent {
            let spans = &self.plan.requests[number].spans;
            let is_told = spans
                .iter()
                .all(|key| self.books.acknowledged.contains(key));
            if !is_told && self.random.random() {
                self.send(number);
            }
        }
        while let Some((shard, work)) = self.works.pop() {
            self.deliver(shard, work, None);
        }
        for round in 0..28 {
            self.rest(if round < 14 { 1 } else { 10 });
        }
        self.books.settled();
        let awaiting = self.worker.awaiting_export();
        if awaiting > 0 {
            self.books
                .violation(format!("{awaiting} traces wait for an export for ever"));
        }
        // Open ones, and those of which half and more is what is remembered: a decision takes 56 bytes, and the hashes
        // of what was exported 29 and 16 each. The smallest segments hold three of them.
        let hashes: usize = self.plan.requests.iter().map(|it| it.spans.len()).sum();
        let remembered = 2 * (56 + 29) * self.plan.traces.len() + 2 * 16 * hashes;
        let remembered = remembered / self.plan.segment_bytes as usize;
        let segments_max = 3 * self.shards + 2 * remembered;
        // One that nothing is live in goes out of its order when an older one has to stay: one a look of compaction, ten a
        // second, and one a rest.
        for _ in 0..50 {
            if self.worker.space().segments() <= segments_max {
                break;
            }
            self.rest(1);
        }
        let segments = self.worker.space().segments();
        let mut names = self.disk.list().unwrap_or_default();
        names.retain(|name| !name.ends_with(".spare"));
        let files = names.len();
        // One that could not be created has no file, and goes in its turn.
        if segments > segments_max || files > segments {
            self.books
                .violation(format!("{segments} segments in {files} files are left"));
        }
        self.check_acceptance();
    }

    fn rest(&mut self, seconds: u64) {
        self.now = self.now + Duration::from_secs(seconds);
        for shard in 0..self.shards {
            for _ in 0..4 {
                if self.worker.space().segments() > SEGMENTS_AT_REST {
                    self.books.violation("a log at rest grows and grows".into());
                    return;
                }
                self.turn(shard);
                self.write(shard);
                while self.worker.refold(shard) {
                    self.turn(shard);
                }
                self.worker.compact();
                self.now = self.now + Duration::from_millis(10);
            }
            while let Some(work) = self.worker.pull(shard, u64::MAX, 100, self.now) {
                self.deliver(shard, work, None);
            }
        }
    }

    /// While exporters hold what they pulled.
    fn compact_to_the_end(&mut self) {
        for _ in 0..12 {
            self.now = self.now + Duration::from_millis(25);
            for shard in 0..self.shards {
                self.turn(shard);
                self.write(shard);
            }
            self.worker.compact();
            if self.has_ended() {
                return;
            }
        }
    }

    /// A worker that is well and has nothing to do takes what it gets.
    fn check_acceptance(&mut self) {
        let Some(request) = self.plan.requests.last() else {
            return;
        };
        let mut answer = self.worker.append(request.message.clone());
        for shard in 0..self.shards {
            self.worker.turn(shard, self.now);
            self.worker.write(shard);
            self.worker.turn(shard, self.now);
            self.worker.write(shard);
        }
        if answer.poll() != Some(true) {
            self.books
                .violation("a worker at rest takes nothing in".into());
        }
    }
}
