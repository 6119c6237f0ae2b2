//! The parts that wait for one worker: bounded in bytes, grouped by what can share an RPC.
//!
//! Parts can be concatenated only if they are sent under the same metadata: the view they were
//! routed by and the owner they are sent in the stead of. Most of the time there is one group.

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::mpsc::UnboundedSender;

use crate::model::{Fingerprint, Member};
use crate::net::admission::Permit;
use crate::net::status::Refusal;

/// What a waiting part costs beside its bytes: its entry here and in its request. Without it a
/// bound in bytes would let tiny parts hold many times the bound.
const PART_OVERHEAD_BYTES: u64 = 256;

/// Why and how parts are sent to a member. Equal routes can share an RPC.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Route {
    pub(crate) view: Fingerprint,
    pub(crate) surrogate_for: Option<Member>,
}

/// What became of a part.
#[derive(Debug)]
pub(crate) enum Outcome {
    Acknowledged {
        rejected_spans: u64,
        message: String,
    },
    /// No worker will ever take it; the worker's text.
    Invalid(String),
    /// The owner lives and has no room: the client's turn to wait.
    BackPressure(Refusal),
    /// This member did not take it; another may.
    Unavailable(String),
    /// The member left the ring before the part was sent.
    Moved,
}

/// Where the outcome of a part is told: the request's channel and the part's place in it.
#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) request: UnboundedSender<(usize, Outcome)>,
    pub(crate) index: usize,
}

#[derive(Debug)]
pub(crate) struct QueuedPart {
    pub(crate) message: Bytes,
    pub(crate) spans: u32,
    pub(crate) reply: Reply,
    /// Held as long as the bytes are, also in flight after the client went away.
    pub(crate) _paid: Arc<Permit>,
}

/// Names a part that waits, for the request that may take it back.
#[derive(Debug, Clone)]
pub(crate) struct Ticket {
    route: Route,
    number: u64,
}

/// How much one RPC takes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct RpcBounds {
    pub(crate) bytes_max: usize,
    pub(crate) spans_max: u32,
    pub(crate) parts_max: usize,
}

#[derive(Debug)]
pub(crate) struct Queue {
    /// Never an empty group; ordered by nothing, and almost always one.
    groups: Vec<Group>,
    held_bytes: u64,
    bytes_max: u64,
    next_number: u64,
}

#[derive(Debug)]
struct Group {
    route: Route,
    /// Numbers ascend.
    parts: VecDeque<(u64, QueuedPart)>,
}

impl QueuedPart {
    pub(crate) fn cost_bytes(&self) -> u64 {
        self.message.len() as u64 + PART_OVERHEAD_BYTES
    }

    pub(crate) fn is_wanted(&self) -> bool {
        !self.reply.request.is_closed()
    }

    /// Tells the request; one that went away needs no answer.
    pub(crate) fn tell(self, outcome: Outcome) {
        let _gone = self.reply.request.send((self.reply.index, outcome));
    }
}

impl Queue {
    pub(crate) fn new(bytes_max: u64) -> Self {
        Self {
            groups: Vec::new(),
            held_bytes: 0,
            bytes_max,
            next_number: 0,
        }
    }

    /// Queued, and taken but not given back by [`Queue::release`].
    pub(crate) fn held_bytes(&self) -> u64 {
        self.held_bytes
    }

    /// `Err` gives the part back: the bound is reached.
    pub(crate) fn push(&mut self, route: &Route, part: QueuedPart) -> Result<Ticket, QueuedPart> {
        let cost = part.cost_bytes();
        if self.held_bytes > 0 && self.held_bytes + cost > self.bytes_max {
            return Err(part);
        }
        self.held_bytes += cost;
        let number = self.next_number;
        self.next_number += 1;
        match self.groups.iter_mut().find(|group| group.route == *route) {
            Some(group) => group.parts.push_back((number, part)),
            None => self.groups.push(Group {
                route: route.clone(),
                parts: VecDeque::from([(number, part)]),
            }),
        }
        Ok(Ticket {
            route: route.clone(),
            number,
        })
    }

    /// The next RPC's parts: those that waited longest and what can go with them. Their bytes count
    /// until they are released.
    pub(crate) fn take(&mut self, bounds: RpcBounds) -> Option<(Route, Vec<QueuedPart>)> {
        let (index, _) = self
            .groups
            .iter()
            .enumerate()
            .min_by_key(|(_, group)| group.parts.front().map(|(number, _)| *number))?;
        let group = &mut self.groups[index];
        let mut parts = Vec::new();
        let (mut bytes, mut spans) = (0_usize, 0_u32);
        while let Some((_, next)) = group.parts.front() {
            let more_bytes = bytes.saturating_add(next.message.len());
            let more_spans = spans.saturating_add(next.spans);
            let fits = more_bytes <= bounds.bytes_max
                && more_spans <= bounds.spans_max
                && parts.len() < bounds.parts_max;
            if !fits && !parts.is_empty() {
                break;
            }
            (bytes, spans) = (more_bytes, more_spans);
            parts.extend(group.parts.pop_front().map(|(_, part)| part));
        }
        let route = group.route.clone();
        if group.parts.is_empty() {
            self.groups.swap_remove(index);
        }
        Some((route, parts))
    }

    /// Takes a part back that still waits; its bytes are free at once. False when it was taken.
    pub(crate) fn cancel(&mut self, ticket: &Ticket) -> bool {
        let Some(index) = self
            .groups
            .iter()
            .position(|group| group.route == ticket.route)
        else {
            return false;
        };
        let parts = &mut self.groups[index].parts;
        let Ok(place) = parts.binary_search_by_key(&ticket.number, |(number, _)| *number) else {
            return false;
        };
        if let Some((_, part)) = parts.remove(place) {
            self.held_bytes -= part.cost_bytes();
        }
        if parts.is_empty() {
            self.groups.swap_remove(index);
        }
        true
    }

    /// Everything that waits, for whom this lane is the wrong one now.
    pub(crate) fn drain(&mut self) -> Vec<QueuedPart> {
        let parts: Vec<_> = self
            .groups
            .drain(..)
            .flat_map(|group| group.parts)
            .map(|(_, part)| part)
            .collect();
        self.release(&parts);
        parts
    }

    /// Bytes that were taken and are no longer held.
    pub(crate) fn release<'a>(&mut self, parts: impl IntoIterator<Item = &'a QueuedPart>) {
        let bytes: u64 = parts.into_iter().map(QueuedPart::cost_bytes).sum();
        debug_assert!(bytes <= self.held_bytes, "released more than was taken");
        self.held_bytes = self.held_bytes.saturating_sub(bytes);
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::mpsc;

    use super::*;
    use crate::net::admission::Budget;

    const BOUNDS: RpcBounds = RpcBounds {
        bytes_max: 100,
        spans_max: 10,
        parts_max: 3,
    };

    fn part(bytes: usize, spans: u32) -> QueuedPart {
        let (request, _) = mpsc::unbounded_channel();
        QueuedPart {
            message: vec![0; bytes].into(),
            spans,
            reply: Reply { request, index: 0 },
            _paid: Arc::new(Budget::new(1).try_take(1).unwrap()),
        }
    }

    fn route(surrogate_for: Option<&str>) -> Route {
        Route {
            view: Fingerprint(1),
            surrogate_for: surrogate_for.map(|name| Member::parse(name).unwrap()),
        }
    }

    fn lengths(taken: Option<(Route, Vec<QueuedPart>)>) -> Vec<usize> {
        let parts = taken.map(|(_, parts)| parts).unwrap_or_default();
        parts.iter().map(|part| part.message.len()).collect()
    }

    #[test]
    fn an_rpc_takes_what_fits_in_bytes_spans_and_parts_and_never_nothing() {
        // Parts as (bytes, spans), and the bytes of those that one RPC takes.
        type Row = (&'static [(usize, u32)], &'static [usize]);
        let rows: [Row; 5] = [
            (&[(60, 1), (40, 1), (1, 1)], &[60, 40]),
            (&[(1, 5), (2, 5), (3, 1)], &[1, 2]),
            (&[(1, 1), (2, 1), (3, 1), (4, 1)], &[1, 2, 3]),
            (&[(500, 50), (1, 1)], &[500]),
            (&[(1, 1), (500, 1)], &[1]),
        ];
        for (pushed, expected) in rows {
            let mut queue = Queue::new(1 << 20);
            for (bytes, spans) in pushed {
                queue.push(&route(None), part(*bytes, *spans)).unwrap();
            }
            assert_eq!(lengths(queue.take(BOUNDS)), expected, "{pushed:?}");
        }
    }

    #[test]
    fn parts_for_different_owners_never_share_an_rpc_and_the_oldest_goes_first() {
        let mut queue = Queue::new(1 << 20);
        let (own, other) = (route(None), route(Some("b")));
        for (route, bytes) in [(&other, 1), (&own, 2), (&other, 3), (&own, 4)] {
            queue.push(route, part(bytes, 1)).unwrap();
        }
        let (first, parts) = queue.take(BOUNDS).unwrap();
        assert_eq!(
            (first, lengths(Some((own.clone(), parts)))),
            (other, vec![1, 3])
        );
        let (second, parts) = queue.take(BOUNDS).unwrap();
        assert_eq!(
            (second, lengths(Some((own.clone(), parts)))),
            (own, vec![2, 4])
        );
        assert!(queue.take(BOUNDS).is_none());
    }

    #[test]
    fn bytes_count_until_they_are_released_and_a_large_part_passes_only_alone() {
        let mut queue = Queue::new(1000);
        queue.push(&route(None), part(5000, 1)).unwrap();
        assert!(queue.push(&route(None), part(1, 1)).is_err());
        let (_, taken) = queue.take(BOUNDS).unwrap();
        assert!(
            queue.push(&route(None), part(1, 1)).is_err(),
            "in flight still counts"
        );
        queue.release(&taken);
        assert_eq!(queue.held_bytes(), 0);
        queue.push(&route(None), part(1, 1)).unwrap();
        queue.push(&route(None), part(1, 1)).unwrap();
        assert_eq!(queue.held_bytes(), 2 * (1 + PART_OVERHEAD_BYTES));
        assert_eq!(queue.drain().len(), 2);
        assert_eq!(queue.held_bytes(), 0);
    }

    #[test]
    fn a_cancelled_part_gives_its_bytes_back_once_and_a_taken_one_does_not() {
        let mut queue = Queue::new(1 << 20);
        let first = queue.push(&route(None), part(1, 1)).unwrap();
        let second = queue.push(&route(None), part(2, 1)).unwrap();
        let third = queue.push(&route(None), part(3, 1)).unwrap();
        assert!(queue.cancel(&second));
        assert!(!queue.cancel(&second));
        let (_, taken) = queue.take(BOUNDS).unwrap();
        assert_eq!(lengths(Some((route(None), taken))), [1, 3]);
        assert!(!queue.cancel(&first) && !queue.cancel(&third));
        assert_eq!(queue.held_bytes(), 4 + 2 * PART_OVERHEAD_BYTES);
    }
}
