//! The tool for people; see `tailring::app`.

use std::process::ExitCode;

use tailring::app::{cli, tool_main};

// The same as in the two services, so that what is measured with it is measured alike.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    cli::parse::<cli::ToolArgs>().map_or_else(|code| code, tool_main)
}
