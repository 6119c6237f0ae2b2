//! Spans that can never be accepted: why, how many, and where the first one stood.

use std::fmt;

/// Why one span can never be accepted. Also a metric label.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum RejectReason {
    TraceIdLength,
    TraceIdZero,
    /// Its own, its parent's or a link's.
    SpanIdLength,
    SpanIdZero,
    InvalidUtf8,
    NestedTooDeep,
    Malformed,
}

/// Where the first rejected span stood, for the message to the client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rejection {
    pub reason: RejectReason,
    /// Indexes into resource_spans, scope_spans and spans, as the client wrote them.
    pub resource: u32,
    pub scope: u32,
    pub span: u32,
}

/// How many spans were rejected, by reason.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Rejections {
    counts: [u32; RejectReason::ALL.len()],
    first: Option<Rejection>,
}

impl RejectReason {
    pub const ALL: [Self; 7] = [
        Self::TraceIdLength,
        Self::TraceIdZero,
        Self::SpanIdLength,
        Self::SpanIdZero,
        Self::InvalidUtf8,
        Self::NestedTooDeep,
        Self::Malformed,
    ];

    pub fn label(self) -> &'static str {
        match self {
            Self::TraceIdLength => "trace_id_length",
            Self::TraceIdZero => "trace_id_zero",
            Self::SpanIdLength => "span_id_length",
            Self::SpanIdZero => "span_id_zero",
            Self::InvalidUtf8 => "invalid_utf8",
            Self::NestedTooDeep => "nested_too_deep",
            Self::Malformed => "malformed",
        }
    }
}

impl Rejections {
    pub fn total(&self) -> u32 {
        self.counts.iter().sum()
    }

    pub fn count(&self, reason: RejectReason) -> u32 {
        self.counts[reason as usize]
    }

    pub fn first(&self) -> Option<Rejection> {
        self.first
    }

    /// Counts `spans` for the reason of `first`, which stands before all of them. A broken header
    /// is found after the spans above it, so the first one counted need not be the first in order.
    pub(super) fn add(&mut self, spans: u32, first: Rejection) {
        let place = |it: &Rejection| (it.resource, it.scope, it.span);
        self.counts[first.reason as usize] += spans;
        if self.first.is_none_or(|now| place(&first) < place(&now)) {
            self.first = Some(first);
        }
    }

    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }
}

impl fmt::Display for Rejections {
    /// The `error_message` of a partial success: counts by reason and where the first one stood.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let total = self.total();
        let spans = if total == 1 { "span" } else { "spans" };
        write!(f, "{total} {spans} rejected")?;
        let mut separator = ": ";
        for reason in RejectReason::ALL {
            let count = self.count(reason);
            if count > 0 {
                write!(f, "{separator}{count} {}", reason.label())?;
                separator = ", ";
            }
        }
        if let Some(first) = self.first {
            let Rejection {
                resource,
                scope,
                span,
                ..
            } = first;
            write!(
                f,
                " (first: resource_spans[{resource}].scope_spans[{scope}].spans[{span}])"
            )?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_message_to_the_client_names_counts_and_the_first_place() {
        let at = |reason, resource, scope, span| Rejection {
            reason,
            resource,
            scope,
            span,
        };
        let mut rejections = Rejections::default();
        assert_eq!(rejections.to_string(), "0 spans rejected");
        rejections.add(2, at(RejectReason::InvalidUtf8, 1, 0, 0));
        rejections.add(1, at(RejectReason::TraceIdZero, 0, 1, 7));
        assert_eq!(
            rejections.to_string(),
            "3 spans rejected: 1 trace_id_zero, 2 invalid_utf8 \
             (first: resource_spans[0].scope_spans[1].spans[7])"
        );
    }
}
