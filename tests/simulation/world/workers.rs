//! Workers at work: turns of their shards, writes to their disks, and what they bring to the backend.

use std::sync::Arc;

use rand::Rng;
use tailring::cluster::roster::{Event as RosterEvent, Roster, RosterConfig};
use tailring::log::ReadError;
use tailring::model::{Decision, Identity, Incarnation};
use tailring::net::admission::Budget;
use tailring::policy::Rules;
use tailring::wire::{ScanLimits, span_id_of, spans_in};
use tailring::worker::shard::ExportTrace;
use tailring::worker::{OnPressure, RecordPolicy, SimulatedWorker, WorkerConfig};

use super::World;
use crate::network::{Event, Host, Life, Line};
use crate::plan::Millis;
use crate::pods::{Clock, Export, ShardState, WorkerPod, WorkerProcess, nobody};

/// A shard goes round at least so often.
const ROUND: Millis = 500;
/// Exports of a shard that are under way at the same time.
const EXPORTS_MOST: usize = 2;
/// The limits look at their windows so often.
const LIMITS: Millis = 250;
/// How long an exporter waits after a refusal.
const EXPORT_AGAIN: Millis = 1_000;

impl World<'_> {
    pub(super) fn config(&self, pod: &WorkerPod) -> WorkerConfig {
        WorkerConfig {
            name: pod.name.clone(),
            incarnation: pod.incarnation,
            shards: self.plan.shards as u16,
            scan: ScanLimits::default(),
            ack: self.plan.ack,
            segment_bytes: self.plan.segment_bytes,
            log_max_bytes: u64::MAX,
            trace_spans_max: 10_000,
            trace_bytes_max: 1 << 20,
            drop_retain: self.plan.drop_retain,
            decision_memory_max_bytes: 8 << 20,
            index_memory_max_bytes: 8 << 20,
            budget: Budget::new(1 << 40),
            export_memory_bytes: 8 << 20,
            on_pressure: OnPressure::Refuse,
            record_policy: RecordPolicy::Off,
        }
    }

    pub(super) fn rules(&self) -> Arc<Rules> {
        let text = self.plan.policies.text(self.plan.decision_wait);
        let parsed = tailring::policy::parse(&text);
        Arc::new(parsed.expect("legal policies").rules)
    }

    pub(super) fn start_worker(&mut self, number: usize) {
        let pod = &self.workers[number];
        if pod.process.is_some() || pod.is_removed {
            return;
        }
        let life = self.new_life();
        let (now, rules, secret) = (self.now(), self.rules(), self.random.random());
        let off = self.plan.clocks_off_most as i64;
        let ahead = self.random.random_range(-off..=off);
        let clock = Clock::new(ahead);
        let pod = &mut self.workers[number];
        // As the data dir does.
        let wall = clock.at(now).unix_millis();
        pod.incarnation = Incarnation(wall.max(pod.incarnation.0 + 1));
        let pod = &self.workers[number];
        let config = self.config(pod);
        let metrics = &self.stage.worker_metrics;
        let disk = pod.disk.clone();
        let started = SimulatedWorker::start(&config, disk, &rules, metrics, secret, clock.at(now));
        let worker = match started {
            Ok(worker) => worker,
            Err(error) => {
                let host = pod.host;
                self.story(|| format!("worker {number} does not start: {error}"));
                return self.network.push(2_000, Event::Start { host });
            }
        };
        worker.set_deciding(None);
        let view = nobody();
        let me = Identity {
            member: pod.name.clone(),
            incarnation: pod.incarnation,
            store: pod.store,
        };
        let roster = Roster::new(RosterConfig::default(), me, pod.address());
        let line = Arc::new(Line::new(&self.network, pod.host, life));
        let door = worker.door(&config, view.clone(), line, metrics.clone());
        let address = pod.address();
        let host = pod.host;
        self.story(|| format!("worker {number} starts as {life:?} at {address}"));
        self.workers[number].process = Some(WorkerProcess {
            life,
            address,
            worker,
            door,
            roster,
            view,
            divided_by: None,
            clock,
            shards: vec![ShardState::default(); self.plan.shards],
            handlers: Vec::new(),
            exports: Default::default(),
            handoffs: Default::default(),
            receipts: Vec::new(),
            last_request: now,
            is_stopping: false,
        });
        self.listeners.insert(address.ip(), (host, life));
        self.network.push(1, Event::Resolve { life });
        self.network.push(1, Event::Tick { life });
        self.network.push(LIMITS, Event::Limit { life });
        self.tell_roster(number, RosterEvent::Indexed);
        for shard in 0..self.plan.shards {
            self.want_turn(number, shard, 1);
        }
    }

    pub(super) fn limit(&mut self, life: Life) {
        let now = self.now();
        let Some(number) = self.worker_of(life) else {
            return;
        };
        let stalled = self.network.stalled_until(life).unwrap_or(0);
        if let Some(process) = &mut self.workers[number].process
            && stalled <= now
        {
            process.worker.limit(process.clock.at(now));
        }
        self.network.push(LIMITS, Event::Limit { life });
    }

    fn want_turn(&mut self, number: usize, shard: usize, after: Millis) {
        let at = self.now() + after.max(1);
        let Some(process) = &mut self.workers[number].process else {
            return;
        };
        let state = &mut process.shards[shard];
        if state.turn_at.is_none_or(|next| at < next) {
            state.turn_at = Some(at);
            let life = process.life;
            self.network.push_at(at, Event::Turn { life, shard });
        }
    }

    /// Requests put things into queues without an event of their own.
    pub(super) fn wake_shards(&mut self) {
        for number in 0..self.workers.len() {
            for shard in 0..self.plan.shards {
                let process = self.workers[number].process.as_ref();
                if process.is_some_and(|it| it.worker.is_wanted(shard)) {
                    self.want_turn(number, shard, 1);
                }
            }
        }
    }

    pub(super) fn turn(&mut self, life: Life, shard: usize) {
        let now = self.now();
        let Some(number) = self.worker_of(life) else {
            return;
        };
        let stalled = self.network.stalled_until(life).unwrap_or(0);
        let Some(process) = &mut self.workers[number].process else {
            return;
        };
        if process.shards[shard].turn_at != Some(now) {
            return; // an earlier one was wanted since
        }
        process.shards[shard].turn_at = None;
        if stalled > now {
            return self.want_turn(number, shard, stalled - now);
        }
        let moment = process.clock.at(now);
        process.worker.turn(shard, moment);
        // What is read beside the shard comes back with its next turn.
        let is_read = process.worker.refold(shard) | process.worker.compact();
        let next = process.worker.next_wakeup(shard).filter(|_| !is_read);
        let next = next.or(is_read.then_some(moment));
        self.look(number, shard);
        self.pull(number, shard);
        self.hand_over(number, shard);
        self.give_receipts(number);
        self.start_write(number, shard);
        let after = next.map_or(ROUND, |at| at.since(moment).as_millis() as Millis + 1);
        self.want_turn(number, shard, after.min(ROUND));
    }

    fn look(&mut self, number: usize, shard: usize) {
        let Some(process) = &self.workers[number].process else {
            return;
        };
        for (trace, id) in self.plan.traces.iter().enumerate() {
            if process.worker.shard_of(*id) == shard {
                let known = process.worker.verdict(*id);
                let known = known.map(|it| (it, process.clock.world(it.decided_at)));
                self.books.look(self.plan, number, trace, known);
            }
        }
    }

    fn start_write(&mut self, number: usize, shard: usize) {
        let slow = self.random.random_range(0..40) == 0;
        let takes = self.random.random_range(1..=if slow { 400 } else { 8 });
        let Some(process) = &mut self.workers[number].process else {
            return;
        };
        let state = &mut process.shards[shard];
        if !state.is_writing && process.worker.has_batch(shard) {
            state.is_writing = true;
            let life = process.life;
            self.network.push(takes, Event::Write { life, shard });
        }
    }

    pub(super) fn write(&mut self, life: Life, shard: usize) {
        let Some(number) = self.worker_of(life) else {
            return;
        };
        let Some(process) = &mut self.workers[number].process else {
            return;
        };
        process.shards[shard].is_writing = false;
        process.worker.write(shard);
        if self.random.random() {
            process.worker.append_footer();
        }
        if self.random.random() {
            process.worker.append_trailer();
        }
        if process.worker.sync_failure().is_some() {
            // A process ends by itself when its disk fails to sync.
            self.end_worker(number, true);
            let host = self.workers[number].host;
            return self.network.push(3_000, Event::Start { host });
        }
        self.want_turn(number, shard, 1);
    }

    fn pull(&mut self, number: usize, shard: usize) {
        loop {
            let now = self.now();
            let bytes = self.random.random_range(1..4_000);
            let traces = self.random.random_range(1..4);
            let Some(process) = &mut self.workers[number].process else {
                return;
            };
            if process.shards[shard].exports >= EXPORTS_MOST {
                return;
            }
            let moment = process.clock.at(now);
            let Some(work) = process.worker.pull(shard, bytes, traces, moment) else {
                return;
            };
            let content: Option<Vec<_>> =
                work.traces.iter().map(|it| self.read(number, it)).collect();
            let process = self.workers[number].process.as_mut();
            let process = process.expect("it is there");
            let Some(content) = content else {
                process.worker.put_back(shard, work);
                return;
            };
            process.shards[shard].exports += 1;
            let export = self.exports;
            self.exports += 1;
            let content_of = Export {
                shard,
                work,
                content,
            };
            process.exports.insert(export, content_of);
            let life = process.life;
            let takes = self.random.random_range(1..50);
            self.network.push(takes, Event::Deliver { life, export });
        }
    }

    /// The spans of a kept trace as they are read back; `None` if the disk does not give them.
    fn read(&self, number: usize, export: &ExportTrace) -> Option<(usize, Decision, Vec<usize>)> {
        let process = self.workers[number].process.as_ref()?;
        let trace = *self.by_trace.get(&export.decision.trace)?;
        let mut spans = Vec::new();
        for fragment in &export.fragments {
            match process.worker.read(&[fragment.extent()]) {
                Ok(stored) => {
                    let sections = stored.iter().flat_map(|it| it.scopes.iter());
                    spans.extend(
                        sections
                            .flat_map(|scope| spans_in(&scope.spans))
                            .filter_map(|(_, span)| span_id_of(span))
                            .map(|id| u64::from_be_bytes(*id.as_bytes()) as usize - 1),
                    );
                }
                // A host crash can leave a fragment without its header; the exporter leaves it out.
                Err(ReadError::Damaged { .. }) => {}
                Err(_) => return None,
            }
        }
        spans.sort_unstable();
        spans.dedup();
        Some((trace, export.decision, spans))
    }

    pub(super) fn deliver(&mut self, life: Life, export: u64) {
        let Some(number) = self.worker_of(life) else {
            return;
        };
        if self.is_backend_down {
            return self
                .network
                .push(EXPORT_AGAIN, Event::Deliver { life, export });
        }
        let process = self.workers[number].process.as_ref();
        let Some(export_of) = process.and_then(|it| it.exports.get(&export)) else {
            return;
        };
        for (trace, decision, spans) in &export_of.content {
            self.books.delivered(*trace, decision, spans);
        }
        let takes = self.random.random_range(1..50);
        self.network.push(takes, Event::Delivered { life, export });
    }

    pub(super) fn exported(&mut self, life: Life, export: u64) {
        let Some(number) = self.worker_of(life) else {
            return;
        };
        let Some(process) = &mut self.workers[number].process else {
            return;
        };
        let Some(done) = process.exports.remove(&export) else {
            return;
        };
        process.worker.exported(done.shard, done.work);
        process.shards[done.shard].exports -= 1;
        self.want_turn(number, done.shard, 1);
    }

    /// Ends a worker's process at once. `keeps_all`: its host lives on.
    pub(super) fn end_worker(&mut self, number: usize, keeps_all: bool) {
        let Some(process) = self.workers[number].process.take() else {
            return;
        };
        self.listeners.remove(&process.address.ip());
        self.network.end_life(process.life);
        for (_, handler) in &process.handlers {
            handler.abort();
        }
        drop(process);
        let pod = &self.workers[number];
        if keeps_all {
            pod.disk.kill();
        } else {
            pod.disk.crash();
        }
        self.books.forgotten(number);
    }

    /// What the name stands for is what DNS says from now on.
    pub(super) fn publish(&mut self, number: usize) {
        let now = self.now();
        let pod = &self.workers[number];
        self.zone.set(now, &pod.name, Some(pod.address()));
        debug_assert_eq!(pod.host, Host::Worker(number));
    }
}
