//! The worker; see `tailring::app`.

use std::process::ExitCode;

use tailring::app::{cli, settings::WorkerArgs, worker_main};

// Gives memory back after a burst (settings in .cargo/config.toml), which the system's does not.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    cli::parse::<WorkerArgs>().map_or_else(|code| code, |args| worker_main(&args))
}
