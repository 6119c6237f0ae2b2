//! What is remembered of a trace while it is between two members.

use std::collections::HashSet;

use crate::model::{FragmentHash, Moment};
use crate::policy::FoldState;
use crate::trace::FragmentRef;

/// See the module.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Transfer {
    /// What is being handed over.
    pub outgoing: Option<Outgoing>,
    /// Whoever hands this trace over has more of it: no verdict until then, or until all has come.
    pub more_until: Moment,
    /// It is being read again from the log.
    pub is_reopening: bool,
    /// Its state knows fragments that are gone: it must be read again before it is judged.
    pub is_stale: bool,
}

/// The generation that another member is being given: the first fragments of the trace, all of which
/// were on disk. Others stand behind them and make the next generation.
#[derive(Debug, Clone, PartialEq)]
pub struct Outgoing {
    pub generation: u64,
    pub fragments: u32,
    /// Of the fragments behind them alone. The entry's own state is that of all. `None`: there were some
    /// already when the generation was made, and their part in that state is not known.
    pub rest: Option<Folded>,
    /// Fragments of the generation that came again, from another member: they stand behind it too,
    /// and the entry's own state knows them once.
    pub copies: HashSet<[u8; 16]>,
}

/// What was folded of some fragments.
#[derive(Debug, Clone, PartialEq)]
pub struct Folded {
    pub state: FoldState,
    pub spans: u32,
    pub span_bytes: u64,
}

/// Where a fragment that a member hands over is already.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Held {
    No,
    /// And stays, until the trace is decided or moved.
    Yes,
    /// In the generation that is being handed over: it may be gone in a moment.
    Leaving,
}

impl Outgoing {
    /// Where `hash` is in a trace with these fragments, this being its transfer.
    pub fn holds(&self, fragments: &[FragmentRef], hash: FragmentHash) -> Held {
        let (leaving, staying) = fragments.split_at(self.fragments as usize);
        let is = |held: &FragmentRef| held.hash() == hash;
        if self.copies.contains(&hash.0.to_le_bytes()) || staying.iter().any(is) {
            Held::Yes
        } else if leaving.iter().any(is) {
            Held::Leaving
        } else {
            Held::No
        }
    }
}
