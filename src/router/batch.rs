//! The parts of one RPC: concatenated protobuf messages are one message with all of their spans.

use bytes::Bytes;

use crate::router::queue::{Outcome, QueuedPart, Route};

#[derive(Debug)]
pub(crate) struct Batch {
    pub(crate) route: Route,
    pub(crate) parts: Vec<QueuedPart>,
}

impl Batch {
    /// What the client sends; nothing is copied.
    pub(crate) fn pieces(&self) -> Vec<Bytes> {
        self.parts.iter().map(|part| part.message.clone()).collect()
    }

    /// One batch for each part, under the same route.
    pub(crate) fn singles(self) -> impl DoubleEndedIterator<Item = Self> {
        let route = self.route;
        self.parts.into_iter().map(move |part| Self {
            route: route.clone(),
            parts: vec![part],
        })
    }

    pub(crate) fn tell(self, outcome: impl Fn() -> Outcome) {
        for part in self.parts {
            part.tell(outcome());
        }
    }
}
