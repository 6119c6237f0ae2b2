//! What is counted of the cluster as this worker sees it. Calls are counted in `net/peer`, refused ones by the listener.

use std::fmt::Write as _;

use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue, LabelValueEncoder};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use crate::cluster::roster::{Distrust, Note, Roster};
use crate::model::MemberState;

#[derive(Debug, Clone)]
pub struct PeeringMetrics {
    events: Family<EventLabel, Counter>,
    distrusted: Family<WhyLabel, Counter>,
    deciding: Gauge,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum RosterEvent {
    Joined,
    Drained,
    Suspected,
    Left,
    StoreReplaced,
    Stalled,
    Isolated,
    Rejoining,
    Ready,
    ReadyForced,
    Fenced,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Why {
    Stale,
    Copy,
    TooMany,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct EventLabel {
    event: RosterEvent,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct WhyLabel {
    reason: Why,
}

impl RosterEvent {
    const ALL: [Self; 11] = [
        Self::Joined,
        Self::Drained,
        Self::Suspected,
        Self::Left,
        Self::StoreReplaced,
        Self::Stalled,
        Self::Isolated,
        Self::Rejoining,
        Self::Ready,
        Self::ReadyForced,
        Self::Fenced,
    ];

    fn of(note: &Note) -> Option<Self> {
        Some(match note {
            Note::Joined(_) => Self::Joined,
            Note::Drained(_) => Self::Drained,
            Note::Suspected(_) => Self::Suspected,
            Note::Left(_) => Self::Left,
            Note::StoreReplaced(_) => Self::StoreReplaced,
            Note::Stalled(_) => Self::Stalled,
            Note::Isolated => Self::Isolated,
            Note::Rejoining => Self::Rejoining,
            Note::Ready { forced: false } => Self::Ready,
            Note::Ready { forced: true } => Self::ReadyForced,
            Note::Fenced(_) => Self::Fenced,
            Note::Distrusted(..) => return None,
        })
    }

    fn label(self) -> &'static str {
        match self {
            Self::Joined => "joined",
            Self::Drained => "drained",
            Self::Suspected => "suspected",
            Self::Left => "left",
            Self::StoreReplaced => "store_replaced",
            Self::Stalled => "stalled",
            Self::Isolated => "isolated",
            Self::Rejoining => "rejoining",
            Self::Ready => "ready",
            Self::ReadyForced => "ready_forced",
            Self::Fenced => "fenced",
        }
    }
}

impl Why {
    const ALL: [Self; 3] = [Self::Stale, Self::Copy, Self::TooMany];

    fn of(distrust: &Distrust) -> Self {
        match distrust {
            Distrust::Stale { .. } => Self::Stale,
            Distrust::Copy => Self::Copy,
            Distrust::TooMany => Self::TooMany,
        }
    }

    fn label(self) -> &'static str {
        match self {
            Self::Stale => "stale_incarnation",
            Self::Copy => "copied_store",
            Self::TooMany => "too_many_members",
        }
    }
}

impl EncodeLabelValue for RosterEvent {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> std::fmt::Result {
        encoder.write_str(self.label())
    }
}

impl EncodeLabelValue for Why {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> std::fmt::Result {
        encoder.write_str(self.label())
    }
}

impl PeeringMetrics {
    pub fn register(registry: &mut Registry) -> Self {
        let metrics = Self {
            events: Family::default(),
            distrusted: Family::default(),
            deciding: Gauge::default(),
        };
        for event in RosterEvent::ALL {
            drop(metrics.events.get_or_create(&EventLabel { event }));
        }
        for reason in Why::ALL {
            drop(metrics.distrusted.get_or_create(&WhyLabel { reason }));
        }
        registry.register(
            "roster_events",
            "What happened to the members this worker knows (joined, drained, suspected, left, store_replaced), and to itself",
            metrics.events.clone(),
        );
        registry.register(
            "roster_distrusted",
            "Peers that were not believed, by why: an older process of a known name, a copy of its data dir, or no room",
            metrics.distrusted.clone(),
        );
        registry.register(
            "roster_ready",
            "1 while this worker has joined and gives verdicts",
            metrics.deciding.clone(),
        );
        metrics
    }

    pub(crate) fn note(&self, note: &Note) {
        if let Note::Distrusted(_, distrust) = note {
            self.distrusted(distrust);
        }
        if let Some(event) = RosterEvent::of(note) {
            self.events.get_or_create(&EventLabel { event }).inc();
        }
    }

    pub(crate) fn distrusted(&self, distrust: &Distrust) {
        let reason = Why::of(distrust);
        self.distrusted.get_or_create(&WhyLabel { reason }).inc();
    }

    pub(crate) fn show(&self, roster: &Roster) {
        let ready = roster.state() == MemberState::Ready;
        self.deciding.set(ready.into());
    }
}
