//! What the tiers cost and bear: real processes, real sockets, a real disk.
//!
//! `cargo bench --bench tiers` measures CPU-seconds per million spans from `/proc/<pid>/stat` of
//! one process at a time: a null tonic server with the raw codec, one that decodes with prost, the
//! router in front of two null workers, and the worker with `always_sample` and with the six policies
//! of `deploy/policies/fleet.yaml`, its log on a real disk and a null backend behind it. All receive the same load (512-span agent batches, uncompressed)
//! from the same client, share the allocator and the HTTP/2 settings, and run interleaved, so that
//! a neighbour's noise hits all of them. Where `taskset` is there, the measured process has CPU 0
//! and everything else CPU 1. The figures to quote are the ratios.
//!
//! Further modes, `cargo bench --bench tiers -- MODE`:
//!
//! - `memory`: what a buffered span costs in memory and on disk;
//! - `outage`: how fast the spool drains when the backend is back, while intake goes on;
//! - `overload`: memory and goodput of a worker at ten times what it can bear;
//! - `synced`: what `--ack synced` costs more than `written`;
//! - `reload`: acknowledgements while the policy file changes over 50,000 undecided traces;
//! - `recovery`: how long a worker that was killed with a long log takes to be ready again.
//!
//! Exit code 1 if a goal is missed or if a span was received and not appended.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a bench has nobody to hand an error to, and prints its figures"
)]

#[path = "tiers/memory.rs"]
mod memory;
#[path = "tiers/null.rs"]
mod null;
#[path = "tiers/outage.rs"]
mod outage;
#[path = "tiers/overload.rs"]
mod overload;
#[path = "tiers/process.rs"]
mod process;
#[path = "tiers/recovery.rs"]
mod recovery;
#[path = "tiers/reload.rs"]
mod reload;
#[path = "tiers/speed.rs"]
mod speed;
#[path = "tiers/synced.rs"]
mod synced;

#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let mode = arguments.iter().find(|word| !word.starts_with("--"));
    let missed = match mode.map(String::as_str) {
        Some("null-raw") => return null::serve(&arguments[1], null::Codec::Raw),
        Some("null-prost") => return null::serve(&arguments[1], null::Codec::Prost),
        Some("memory") => memory::run(),
        Some("outage") => outage::run(),
        Some("overload") => overload::run(),
        Some("recovery") => recovery::run(),
        Some("reload") => reload::run(),
        Some("synced") => synced::run(),
        _ => speed::run(),
    };
    std::process::exit(missed);
}

/// Prints a figure beside its goal. Returns 1 if it is missed.
fn judge(what: &str, measured: &str, goal: &str, held: bool) -> i32 {
    let verdict = if held { "held" } else { "MISSED" };
    println!("{what:<46} {measured:<44} goal {goal:<10} {verdict}");
    i32::from(!held)
}
