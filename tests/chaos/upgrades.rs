//! Workers of an older build, replaced one by one under load: other versions of the log's format on disk, and of the
//! peers' protocol between them.
//!
//! The newest build whose log has format version 1 and whose workers hand over is commit a975b1c:
//!
//! ```sh
//! git worktree add target/older a975b1c && cargo build --release --manifest-path target/older/Cargo.toml --bin tailring-worker
//! TAILRING_CHAOS_OLDER_WORKER=target/older/target/release/tailring-worker TAILRING_CHAOS_ROWS=upgrade \
//!     cargo test --release --test chaos -- --ignored --nocapture full
//! ```

use std::time::Duration;

use tokio::time::{Instant, sleep};

use crate::cluster::Plan;
use crate::process::PATIENCE;
use crate::ring;
use crate::row::{Doubling, Row, Scale};
use crate::run::Run;

const OLDER: &str = "TAILRING_CHAOS_OLDER_WORKER";

/// Old builds' workers are replaced one by one.
pub async fn rolling_upgrade(scale: Scale) -> Row {
    let name = "rolling upgrade from an older build";
    let Some(older) = std::env::var_os(OLDER) else {
        return Row::skipped(name, format!("{OLDER} names no older tailring-worker"));
    };
    // Processes have directories of their own.
    let older = match std::fs::canonicalize(&older) {
        Ok(older) => older,
        Err(error) => return Row::skipped(name, format!("{}: {error}", older.display())),
    };
    let mut row = Row::new(name, Doubling::Never).splits_nothing();
    let plan = Plan {
        decision_wait: scale.pick("2s", "10s"),
        worker_binaries: vec![older.clone(); 3],
        ..Plan::default()
    };
    let mut run = Run::start(plan).await;
    for number in 0..3 {
        let worker = &mut run.cluster.workers[number];
        worker.stop(PATIENCE * 2).await;
        // How long it is away.
        sleep(Duration::from_secs(1)).await;
        let again = Instant::now();
        run.cluster.start_elsewhere(number);
        run.cluster.workers[number].ready().await;
        row.recovered_in(again.elapsed());
        run.goes_on(scale.pick(5_000, 50_000), PATIENCE).await;
    }
    row.note(format!("from {}", older.display()));
    ring::ends(run, &mut row).await;
    row
}
