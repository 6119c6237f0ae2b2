//! A whole worker in the test's own process, on a simulated disk. What it receives and who its backend
//! is are the tests' own.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use prometheus_client::registry::Registry;
use tailring::cluster::{View, ViewHandle};
use tailring::log::SimulatedDisk;
use tailring::model::{Incarnation, Member, Moment, SteadyClock};
use tailring::net::admission::Budget;
use tailring::policy::{Policy, PolicyKind, Rules, Timing};
use tailring::ring::Seed;
use tailring::wire::ScanLimits;
use tailring::worker::export::{DeliveryConfig, Destination, ExportMetrics};
use tailring::worker::{AckLevel, OnPressure, Worker, WorkerConfig, WorkerMetrics};

pub(crate) const LOCALHOST: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 0);

fn member(name: &str) -> Member {
    Member::parse(name).unwrap()
}

pub(crate) fn view<const N: usize>(members: [(&str, SocketAddr); N]) -> ViewHandle {
    let addresses = members.map(|(name, address)| (member(name), address));
    ViewHandle::fixed(View::new(addresses.into(), Seed(1), "test"))
}

/// A worker that nothing but the tests' own numbers bounds.
pub(crate) fn config(name: &str, shards: u16) -> WorkerConfig {
    WorkerConfig {
        name: member(name),
        incarnation: Incarnation(1),
        shards,
        scan: ScanLimits::default(),
        ack: AckLevel::Written,
        segment_bytes: 64 << 20,
        log_max_bytes: 1 << 40,
        trace_spans_max: 32_000,
        trace_bytes_max: 256 << 20,
        drop_retain: Duration::from_secs(120),
        decision_memory_max_bytes: 64 << 20,
        index_memory_max_bytes: 64 << 20,
        budget: Budget::new(1 << 40),
        export_memory_bytes: 256 << 20,
        on_pressure: OnPressure::Refuse,
    }
}

/// One policy, called `all`, 400 ms after the first span.
#[allow(dead_code, reason = "not all that share this file judge by one policy")]
pub(crate) fn one_policy(kind: PolicyKind) -> Rules {
    let timing = Timing {
        decision_wait: Duration::from_millis(400),
        quiet_period: None,
        decision_wait_after_root_received: None,
    };
    let all = Policy {
        name: "all".into(),
        kind,
    };
    Rules::new(timing, vec![all])
}

/// Starts it, and has it judge. `export` is a destination's URL.
pub(crate) fn start(
    config: WorkerConfig,
    disk: &SimulatedDisk,
    rules: Rules,
    view: ViewHandle,
    export: &str,
    registry: &mut Registry,
) -> Arc<Worker> {
    let destination = Destination::connect(
        &export.parse().unwrap(),
        http::HeaderMap::new(),
        DeliveryConfig::default(),
        ExportMetrics::register(registry),
    );
    let worker = Worker::start(
        config,
        disk.clone(),
        Arc::new(rules),
        Arc::new(destination.unwrap()),
        view,
        SteadyClock::start(),
        WorkerMetrics::register(registry),
    );
    let worker = worker.unwrap();
    assert!(worker.join(Some(Moment::NEVER)));
    worker
}
