//! The thread that gives sealed segments their footers, and syncs them for it.

use std::collections::VecDeque;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use crate::log::{Disk, Footed, Taken, Volume};
use crate::model::{Moment, SteadyClock};
use crate::worker::AckLevel;

/// With `--ack written` a segment is synced so long after it was sealed. By then the kernel has written most
/// of it back by itself (after 30 s, its default), for which this process would pay with CPU time, and
/// most segments of dropped traces are gone. Of younger ones a start reads all, from memory.
const SYNC_AFTER: Duration = Duration::from_secs(45);
/// Looked at the clock so often.
const TICK: Duration = Duration::from_secs(1);

pub(super) fn spawn<D: Disk>(
    volume: Arc<Volume<D>>,
    level: AckLevel,
    clock: SteadyClock,
) -> std::io::Result<JoinHandle<()>> {
    let after = match level {
        AckLevel::Written => SYNC_AFTER,
        // All of it is synced already.
        AckLevel::Synced => Duration::ZERO,
    };
    std::thread::Builder::new()
        .name("footers".to_owned())
        .spawn(move || run(&volume, after, clock))
}

fn run<D: Disk>(volume: &Volume<D>, after: Duration, clock: SteadyClock) {
    let mut unsynced: VecDeque<(Moment, Footed)> = VecDeque::new();
    loop {
        match volume.unfinished().take(TICK) {
            Taken::Sealed(sealed) => {
                let footed = volume.append_footer(sealed);
                unsynced.extend(footed.map(|footed| (clock.now() + after, footed)));
            }
            Taken::TimedOut => {}
            // The next start reads those that are left; a stop has better things to wait for.
            Taken::Closed => return,
        }
        let now = clock.now();
        while let Some((_, footed)) = unsynced.pop_front_if(|(at, _)| *at <= now) {
            volume.append_trailer(footed);
        }
    }
}
