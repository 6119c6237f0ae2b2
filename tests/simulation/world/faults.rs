//! Faults as they begin and end, and the end of all of them.

use rand::Rng;
use tailring::log::SimulatedDisk;
use tailring::model::{Incarnation, StoreId};
use tailring::worker::AckLevel;

use super::World;
use crate::dns::Service;
use crate::fault::{Fault, Party};
use crate::network::{Event, Host};
use crate::pods::WorkerPod;

impl World<'_> {
    pub(super) fn fault(&mut self, number: usize) {
        let (_, fault) = self.plan.faults[number].clone();
        self.story(|| format!("fault {number}: {fault:?}"));
        let now = self.now();
        let lasts = fault.lasts();
        match fault {
            Fault::Kill {
                worker,
                down,
                is_replaced,
            } => {
                // With `written`, what a host forgets was never promised.
                let host_dies = self.plan.ack == AckLevel::Synced && self.random.random();
                self.end_worker(worker, !host_dies);
                self.come_back(worker, down, is_replaced);
            }
            Fault::LoseDisk { worker, down } => {
                self.end_worker(worker, true);
                self.books.disk_lost(&self.network.promised());
                let disk = SimulatedDisk::new(self.random.random());
                let store = StoreId(self.random.random());
                self.workers[worker].disk = disk;
                self.workers[worker].store = store;
                self.workers[worker].incarnation = Incarnation(0);
                self.come_back(worker, down, true);
            }
            Fault::Restart {
                worker,
                down,
                is_replaced,
            } => {
                self.workers[worker].comes_back = Some((down, is_replaced));
                self.leave(worker);
            }
            Fault::Add { worker } => {
                if worker == self.workers.len() {
                    let disk = SimulatedDisk::new(self.random.random());
                    let lag = self.random.random_range(0..self.plan.dns_lag_most);
                    let dns = Service {
                        lag,
                        ..Service::default()
                    };
                    let store = StoreId(self.random.random());
                    self.workers.push(WorkerPod::new(worker, disk, store, dns));
                    self.publish(worker);
                    self.start_worker(worker);
                }
            }
            Fault::Remove { worker } => {
                self.workers[worker].is_removed = true;
                self.workers[worker].comes_back = None;
                if self.workers[worker].process.is_none() {
                    let name = self.workers[worker].name.clone();
                    self.zone.set(now, &name, None);
                }
                self.leave(worker);
            }
            Fault::Stall { worker, .. } => {
                if let Some(process) = &self.workers[worker].process {
                    self.network.stall(process.life, now + lasts);
                }
            }
            Fault::KillRouter { router, down } => {
                self.end_router(router);
                let host = Host::Router(router);
                self.network.push(down, Event::Start { host });
            }
            Fault::Cut { from, to, .. } => {
                for (from, to) in self.pairs(from, to) {
                    self.network.cut(from, to);
                }
                self.network.push(lasts, Event::Healed(number));
            }
            Fault::StaleDns { who, .. } => {
                self.serve(who, |service| {
                    service.frozen_at = Some(now.saturating_sub(service.lag));
                });
                self.network.push(lasts, Event::Healed(number));
            }
            Fault::LyingDns { who, lie, .. } => {
                self.serve(who, |service| service.lie = Some(lie));
                self.network.push(lasts, Event::Healed(number));
            }
            Fault::DiskFails { worker, .. } => {
                self.workers[worker].disk.fail_writes_after(Some(0));
                self.network.push(lasts, Event::Healed(number));
            }
            Fault::BackendDown { .. } => {
                self.is_backend_down = true;
                self.network.push(lasts, Event::Healed(number));
            }
        }
    }

    pub(super) fn healed(&mut self, number: usize) {
        let (_, fault) = self.plan.faults[number].clone();
        match fault {
            Fault::Cut { from, to, .. } => {
                for (from, to) in self.pairs(from, to) {
                    self.network.join(from, to);
                }
            }
            Fault::StaleDns { who, .. } => self.serve(who, |service| service.frozen_at = None),
            Fault::LyingDns { who, .. } => self.serve(who, |service| service.lie = None),
            Fault::DiskFails { worker, .. } => self.workers[worker].disk.fail_writes_after(None),
            Fault::BackendDown { .. } => self.is_backend_down = false,
            _ => {}
        }
    }

    pub(super) fn come_back(&mut self, number: usize, after: u64, is_replaced: bool) {
        if is_replaced {
            self.workers[number].pod += 1;
            self.publish(number);
        }
        let host = Host::Worker(number);
        self.network.push(after, Event::Start { host });
    }

    fn hosts(&self, party: Party) -> Vec<Host> {
        match party {
            Party::Worker(number) => vec![Host::Worker(number)],
            Party::Router(number) => vec![Host::Router(number)],
            Party::AllRouters => (0..self.routers.len()).map(Host::Router).collect(),
            // Those that may come, too.
            Party::AllWorkers => (0..self.plan.workers + 2).map(Host::Worker).collect(),
        }
    }

    fn pairs(&self, from: Party, to: Party) -> Vec<(Host, Host)> {
        let to = self.hosts(to);
        let pairs = self.hosts(from).into_iter();
        pairs
            .flat_map(|from| to.iter().map(move |to| (from, *to)))
            .filter(|(from, to)| from != to)
            .collect()
    }

    fn serve(&mut self, who: Party, change: impl Fn(&mut Service)) {
        for host in self.hosts(who) {
            match host {
                Host::Worker(number) => {
                    if let Some(pod) = self.workers.get_mut(number) {
                        change(&mut pod.dns);
                    }
                }
                Host::Router(number) => change(&mut self.routers[number].dns),
                Host::Client(_) => {}
            }
        }
    }

    /// Everything works from now on. Who was removed comes back once, to give away what it has.
    pub(super) fn calm_down(&mut self) {
        self.is_calm = true;
        self.network.calm_down();
        self.is_backend_down = false;
        for number in 0..self.workers.len() {
            let pod = &mut self.workers[number];
            pod.disk.fail_writes_after(None);
            pod.dns.frozen_at = None;
            pod.dns.lie = None;
            pod.is_removed = false;
            pod.comes_back = Some((1_000, false));
            if pod.process.is_none() {
                self.publish(number);
                self.start_worker(number);
            }
        }
        for number in 0..self.routers.len() {
            let pod = &mut self.routers[number];
            pod.dns.frozen_at = None;
            pod.dns.lie = None;
            self.start_router(number);
        }
    }

    /// Nobody has anything left to do.
    pub(super) fn is_at_rest(&self) -> bool {
        self.unrest().is_empty()
    }

    pub(super) fn unrest(&self) -> String {
        let waiting = self.attempts.iter().filter(|it| !it.is_over).count();
        if waiting > 0 {
            return format!("{waiting} requests are not answered");
        }
        for (number, pod) in self.workers.iter().enumerate() {
            let Some(process) = &pod.process else {
                return format!("worker {number} is not there");
            };
            let undecided = process.worker.undecided();
            let awaiting = process.worker.awaiting_export();
            if undecided > 0 || awaiting > 0 {
                return format!(
                    "worker {number} holds {undecided} undecided and {awaiting} kept traces"
                );
            }
        }
        String::new()
    }
}
