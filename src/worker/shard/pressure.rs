//! `--on-pressure decide`: room is made when clients were refused for want of it.
//!
//! What was dropped goes first, though somebody might still have asked for it within `--drop-retain`.
//! Only when that was not enough are traces judged before their time: those that are due next, for
//! they are the most complete. A round makes some room; the next one comes when clients are refused again.

use std::time::Duration;

use super::{OnPressure, Shard};
use crate::model::Moment;
use crate::trace::Stage;

/// What is let go of needs a batch, and what is kept an export, until its room is free.
const ROUND: Duration = Duration::from_millis(250);
/// Of the undecided traces, one in so many is judged in a round.
const JUDGED_A_ROUND: usize = 8;

impl Shard {
    /// Client bytes were refused for want of memory or of room in the log.
    pub(super) fn press(&mut self) {
        self.pressed |= self.config.on_pressure == OnPressure::Decide;
    }

    pub(super) fn relieve(&mut self, now: Moment) {
        if !self.pressed || !self.deciding || now < self.press_after {
            return;
        }
        self.pressed = false;
        self.press_after = now + ROUND;
        if self.retained.iter().any(|dropped| dropped.until > now) {
            for dropped in &mut self.retained {
                dropped.until = dropped.until.min(now);
            }
            return;
        }
        // They belong elsewhere, or are on their way there.
        let mut skipped = Vec::new();
        let mut wanted = self.index.undecided().div_ceil(JUDGED_A_ROUND);
        while wanted > 0
            && let Some(trace) = self.deadlines.pop_due(Moment::NEVER)
        {
            let Some(entry) = self.index.get(trace) else {
                continue;
            };
            if self.decides(trace, entry, now, now).is_err() {
                skipped.push((self.due(entry).0, trace));
                continue;
            }
            let Some(entry) = self.index.get_mut(trace) else {
                continue;
            };
            if entry.stage == Stage::Undecided && !entry.is_asking {
                entry.is_early = true;
                self.judge(trace, now);
                wanted -= 1;
            }
        }
        for (at, trace) in skipped {
            self.deadlines.push(at, trace);
        }
    }
}
