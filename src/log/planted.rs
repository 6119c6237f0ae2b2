//! Bugs that can be planted into the way of a record to disk and back, to see that `tests/crash`
//! finds them, and into what moves between workers, for `tests/simulation`. What a bug does stands where it
//! is planted.
//!
//! They are there with `debug_assertions` only: tests and development builds share one build of
//! this crate, and a release binary has neither the bugs nor the switch. A feature would have cost
//! a second build of the crate (and binaries under test that differ from those that are run), and
//! `cfg(test)` is not seen by `tests/`.

/// One way to lose, double or forget.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PlantedBug {
    /// Clients get OK when the disk thread has their bytes, not when the disk has.
    AckBeforeWrite,
    /// What is handed to an exporter is noted as exported.
    TombstoneBeforeExport,
    /// A torn tail stays in its file.
    TornTailKept,
    /// Segments go with their decisions.
    CheckpointForgotten,
    /// Segments go before the checkpoint of their decisions is written.
    UnlinkBeforeCheckpoint,
    /// Segments of earlier lives go before every shard has written its checkpoint.
    UnlinkBeforeOtherShards,
    /// Segments go as they become idle, tombstones before what they cover.
    FreedOutOfOrder,
    /// A new segment's name is not synced.
    DirectoryNotSynced,
    /// Exporters need not wait for the verdict to be on disk.
    VerdictAfterFirstByte,
    /// A failed sync counts as a good one.
    SyncErrorIgnored,
    /// Exported fragments are released two times.
    ReleasedTwice,
    /// Verdicts and tombstones of a failed batch are not written again.
    FailedRecordsForgotten,
    /// Dropped traces are freed although their verdicts are not on disk.
    DroppedBeforeVerdict,
    /// A fragment whose header did not come to disk is taken over, and its repetition passes for
    /// a duplicate.
    HeadlessFragmentHeld,
    /// What an earlier life did not get synced is taken for durable.
    UnsyncedTakenOver,
    /// A footer is to be believed before what it vouches for is synced.
    FooterBeforeSync,
    /// Compaction lets a segment go before the copies are synced, or on disk at all.
    CopyNotAwaited,
    /// A segment goes with the tombstones of others that are still there. Not among [`PlantedBug::ALL`]: as long as
    /// verdicts and exported hashes are remembered, longer than a run there takes, they are carried forward, too.
    TombstoneLeftBehind,
    /// Of two copies of a fragment a start holds the older one. Not among [`PlantedBug::ALL`] for the same reason: what
    /// is settled of a segment that is still there is hardly ever carried forward. A test of the shard finds it.
    OlderCopyHeld,
    /// What was exported goes on to be read where it was before it was moved, and is not found.
    MovedNotLookedFor,
    /// Segments go with the hashes of what was exported.
    ExportsForgotten,
    /// Arrivals are read back three seconds late, and deadlines with them.
    ArrivalsMoved,
    /// A generation goes although nobody said that it arrived.
    DeletedBeforeAck,
    /// With a generation goes what came to its trace meanwhile.
    GenerationsMixed,
    /// A generation that did not arrive is not held on to.
    MergeBackForgotten,
    /// A handoff is acknowledged before it is written.
    AckBeforeCommit,
    /// Of two handoffs of one trace that cross each says that it has what the other one brings. This one and the next
    /// are met by no simulation within 1,000 seeds: tests of the shard's handoff find them.
    CopyOfLeavingRefused,
    /// A trace is judged while a part of it is under way.
    JudgedUnderWay,
    /// Whoever holds a trace judges it.
    JudgedInCustody,
    /// What is taken into custody is acknowledged and not held.
    CustodyForgotten,
    /// New owners are not told the verdicts on their traces.
    VerdictsNotTold,
    /// What comes by handoff after a DROP is dropped without a look.
    DroppedNotReopened,
    /// A KEEP of another member does not go before an own DROP.
    KeepNotLearned,
    /// Nobody is told that a DROP rose to KEEP.
    RaisedNotTold,
    /// What is handed over waits anew.
    WaitBegunAnew,
}

impl PlantedBug {
    /// Those that `tests/crash` finds.
    pub const ALL: [Self; 20] = [
        Self::AckBeforeWrite,
        Self::TombstoneBeforeExport,
        Self::TornTailKept,
        Self::CheckpointForgotten,
        Self::UnlinkBeforeCheckpoint,
        Self::UnlinkBeforeOtherShards,
        Self::FreedOutOfOrder,
        Self::DirectoryNotSynced,
        Self::VerdictAfterFirstByte,
        Self::SyncErrorIgnored,
        Self::ReleasedTwice,
        Self::FailedRecordsForgotten,
        Self::DroppedBeforeVerdict,
        Self::HeadlessFragmentHeld,
        Self::UnsyncedTakenOver,
        Self::FooterBeforeSync,
        Self::CopyNotAwaited,
        Self::MovedNotLookedFor,
        Self::ExportsForgotten,
        Self::ArrivalsMoved,
    ];

    /// Those that `tests/simulation` finds.
    pub const OF_HANDOFF: [Self; 11] = [
        Self::DeletedBeforeAck,
        Self::GenerationsMixed,
        Self::MergeBackForgotten,
        Self::AckBeforeCommit,
        Self::JudgedInCustody,
        Self::CustodyForgotten,
        Self::VerdictsNotTold,
        Self::DroppedNotReopened,
        Self::KeepNotLearned,
        Self::RaisedNotTold,
        Self::WaitBegunAnew,
    ];
}

#[cfg(debug_assertions)]
mod switch {
    use std::cell::Cell;

    use super::PlantedBug;

    thread_local! {
        /// Of a thread, so that tests beside each other do not share bugs; a simulated worker has
        /// one thread.
        static PLANTED: Cell<Option<PlantedBug>> = const { Cell::new(None) };
    }

    impl PlantedBug {
        /// Plants this bug, and only this, in the current thread.
        pub fn plant(bug: Option<Self>) {
            PLANTED.set(bug);
        }

        pub(crate) fn is_planted(self) -> bool {
            PLANTED.get() == Some(self)
        }
    }
}

#[cfg(not(debug_assertions))]
impl PlantedBug {
    pub(crate) const fn is_planted(self) -> bool {
        false
    }
}
