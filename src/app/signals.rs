//! SIGTERM and SIGINT: the first asks for a clean stop, the second ends the process at once.
//! SIGHUP is a worker's `policy_watch`'s. SIGXFSZ: nothing; the write that it comes with fails, and who wrote knows what to do.

use std::io;

use rustix::process::Signal as Number;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tracing::{info, warn};

/// Handles signals from now on. The receiver turns true at the first one; who holds it stops taking
/// work and finishes what it has. Needs a runtime.
pub fn spawn() -> io::Result<(watch::Receiver<bool>, JoinHandle<()>)> {
    let terminate = signal(SignalKind::terminate())?;
    let interrupt = signal(SignalKind::interrupt())?;
    // A log at RLIMIT_FSIZE is a full disk, and by default the end of the process. The handler stays
    // when the receiver goes.
    drop(signal(SignalKind::from_raw(Number::XFSZ.as_raw()))?);
    let (stop, stopping) = watch::channel(false);
    let task = tokio::spawn(follow(terminate, interrupt, stop));
    Ok((stopping, task))
}

async fn follow(mut terminate: Signal, mut interrupt: Signal, stop: watch::Sender<bool>) {
    let first = next(&mut terminate, &mut interrupt).await;
    info!(
        signal = first.name,
        "stopping; a second signal ends the process at once"
    );
    stop.send_replace(true);
    let second = next(&mut terminate, &mut interrupt).await;
    warn!(signal = second.name, "ending at once");
    // What a shell reports for a process that a signal ended.
    std::process::exit(128 + second.number);
}

struct Received {
    name: &'static str,
    number: i32,
}

async fn next(terminate: &mut Signal, interrupt: &mut Signal) -> Received {
    // Signal::recv is cancel safe: none is lost with the branch that was not taken.
    tokio::select! {
        _ = terminate.recv() => Received { name: "SIGTERM", number: SignalKind::terminate().as_raw_value() },
        _ = interrupt.recv() => Received { name: "SIGINT", number: SignalKind::interrupt().as_raw_value() },
    }
}
