//! Compiled rules and the vote over one complete trace.

use std::time::Duration;

use crate::model::{Randomness, Threshold, TraceId, Verdict};

/// When a trace is complete. The earliest of these decides; `decision_wait` is the cap.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timing {
    /// After the first span.
    pub decision_wait: Duration,
    /// After the last span.
    pub quiet_period: Option<Duration>,
    /// After the root span.
    pub decision_wait_after_root_received: Option<Duration>,
}

/// One policy of the file, in its order.
#[derive(Debug, Clone, PartialEq)]
pub struct Policy {
    pub name: String,
    pub kind: PolicyKind,
}

#[derive(Debug, Clone, PartialEq)]
pub enum PolicyKind {
    AlwaysSample,
    /// Keeps by the trace's own randomness; `None` keeps nothing.
    Probabilistic(Option<Threshold>),
}

/// A policy file, compiled.
#[derive(Debug, Clone, PartialEq)]
pub struct Rules {
    /// Hash of what the file means; equal rules, equal version.
    pub version: u64,
    pub timing: Timing,
    pub policies: Vec<Policy>,
}

/// What the rules say of one trace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Vote {
    pub verdict: Verdict,
    /// With which the trace was kept; meaningless for a drop.
    pub threshold: Threshold,
    /// The first policy that kept it: index into [`Rules::policies`].
    pub policy: Option<u16>,
}

impl Rules {
    pub fn new(timing: Timing, policies: Vec<Policy>) -> Self {
        Self {
            version: version_of(&timing, &policies),
            timing,
            policies,
        }
    }

    /// Keeps everything after the Collector's default wait.
    pub fn keep_everything() -> Self {
        Self::new(
            Timing {
                decision_wait: Duration::from_secs(30),
                quiet_period: None,
                decision_wait_after_root_received: None,
            },
            vec![Policy {
                name: "default".into(),
                kind: PolicyKind::AlwaysSample,
            }],
        )
    }

    /// OR of the policies: kept if any keeps it, with the smallest threshold among those that do.
    pub fn vote(&self, trace: TraceId) -> Vote {
        let randomness = Randomness::of(trace);
        let mut vote = Vote {
            verdict: Verdict::Drop,
            threshold: Threshold::ALWAYS,
            policy: None,
        };
        for (index, policy) in self.policies.iter().enumerate() {
            let threshold = match policy.kind {
                PolicyKind::AlwaysSample => Some(Threshold::ALWAYS),
                PolicyKind::Probabilistic(threshold) => {
                    threshold.filter(|threshold| threshold.admits(randomness))
                }
            };
            let Some(threshold) = threshold else {
                continue;
            };
            let first = vote.policy.is_none();
            vote.verdict = Verdict::Keep;
            vote.threshold = if first {
                threshold
            } else {
                vote.threshold.min(threshold)
            };
            vote.policy = vote.policy.or(u16::try_from(index).ok());
        }
        vote
    }
}

/// Frozen: the log carries versions from one release to the next. Every field is written with a
/// tag or a length in front, so that no two meanings have one spelling.
fn version_of(timing: &Timing, policies: &[Policy]) -> u64 {
    fn wait(meaning: &mut Vec<u8>, wait: Option<Duration>) {
        // A wait of zero never gets here; it means "off".
        let nanos = wait.map_or(0, |wait| wait.as_nanos());
        meaning.extend_from_slice(&nanos.to_le_bytes());
    }
    let mut meaning = b"tailring rules 1".to_vec();
    wait(&mut meaning, Some(timing.decision_wait));
    wait(&mut meaning, timing.quiet_period);
    wait(&mut meaning, timing.decision_wait_after_root_received);
    for policy in policies {
        meaning.extend_from_slice(&(policy.name.len() as u64).to_le_bytes());
        meaning.extend_from_slice(policy.name.as_bytes());
        match policy.kind {
            PolicyKind::AlwaysSample => meaning.push(1),
            PolicyKind::Probabilistic(threshold) => {
                meaning.push(2);
                let bits = threshold.map_or(u64::MAX, Threshold::bits);
                meaning.extend_from_slice(&bits.to_le_bytes());
            }
        }
    }
    xxhash_rust::xxh3::xxh3_64(&meaning)
}
