//! The wish of whoever started a tool that it end: SIGINT or SIGTERM.

use tokio::signal::unix::{SignalKind, signal};

/// Returns at the first SIGINT or SIGTERM. The second SIGINT then ends the process at once, for
/// whoever does not want to wait for a tidy end.
pub async fn interrupted() {
    let (Ok(mut interrupt), Ok(mut terminate)) = (
        signal(SignalKind::interrupt()),
        signal(SignalKind::terminate()),
    ) else {
        // Without handlers the default action of the signals still ends the process.
        return std::future::pending().await;
    };
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
    tokio::spawn(async move {
        interrupt.recv().await;
        // 128 + SIGINT, as a shell would say.
        std::process::exit(130);
    });
}
