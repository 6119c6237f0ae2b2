//! Cuts a scanned message into one message for each destination.

use bytes::Bytes;

use crate::model::TraceId;
use crate::wire::field::{field_len, write_prefix};
use crate::wire::fragment::write_pieces;
use crate::wire::{Scan, section};

/// What one destination gets: an `ExportTraceServiceRequest` with its traces' spans.
#[derive(Debug, Clone)]
pub struct Part {
    pub destination: u16,
    pub spans: u32,
    pub message: Bytes,
}

/// The lengths of one part, known before its first byte is written.
#[derive(Default)]
struct Cuts {
    resources: Vec<ResourceCut>,
    scopes: Vec<ScopeCut>,
    len: usize,
}

struct ResourceCut {
    resource: u32,
    end_scope: usize,
    body_len: usize,
}

struct ScopeCut {
    scope: u32,
    /// Where its spans end among those of the part.
    end_span: usize,
    body_len: usize,
}

/// Writes one message for each destination that any accepted span has, in order of destination.
/// `destination_of` gives a number below `destinations` and is asked once for each run of equal
/// trace IDs. A message that goes whole to one destination is passed on, not copied.
///
/// Each part is allocated at its exact length. All parts together are larger than the message by
/// at most [`Scan::split_growth_max`].
pub fn split(
    message: &Bytes,
    scan: &Scan,
    destinations: u16,
    mut destination_of: impl FnMut(TraceId) -> u16,
) -> Vec<Part> {
    let mut destination_by_span = Vec::with_capacity(scan.spans.len());
    let mut counts = vec![0u32; usize::from(destinations)];
    for run in scan.spans.chunk_by(|a, b| a.trace == b.trace) {
        let destination = destination_of(run[0].trace);
        if usize::from(destination) >= counts.len() {
            counts.resize(usize::from(destination) + 1, 0); // a broken promise must not cost spans
        }
        counts[usize::from(destination)] += run.len() as u32;
        destination_by_span.extend(std::iter::repeat_n(destination, run.len()));
    }
    let used = counts.iter().filter(|&&spans| spans > 0).count();
    if let (1, true, Some(&destination)) = (used, scan.is_whole(), destination_by_span.first()) {
        return vec![Part {
            destination,
            spans: scan.spans.len() as u32,
            message: message.clone(),
        }];
    }

    // A counting sort of the spans by destination keeps the order of the message in each part.
    let mut next: Vec<usize> = counts
        .iter()
        .scan(0, |sum, &spans| {
            let first = *sum;
            *sum += spans as usize;
            Some(first)
        })
        .collect();
    let mut order = vec![0u32; scan.spans.len()];
    for (span, &destination) in destination_by_span.iter().enumerate() {
        let place = &mut next[usize::from(destination)];
        order[*place] = span as u32;
        *place += 1;
    }

    let mut parts = Vec::with_capacity(used);
    let mut cuts = Cuts::default();
    let mut rest = &order[..];
    for (destination, &spans) in counts.iter().enumerate() {
        if spans > 0 {
            let (mine, others) = rest.split_at(spans as usize);
            rest = others;
            cuts.measure(scan, mine);
            parts.push(Part {
                destination: destination as u16,
                spans,
                message: cuts.write(message, scan, mine).into(),
            });
        }
    }
    parts
}

impl Cuts {
    fn measure(&mut self, scan: &Scan, spans: &[u32]) {
        self.resources.clear();
        self.scopes.clear();
        self.len = 0;
        let mut start = 0;
        while let Some(&first) = spans.get(start) {
            let scope = scan.spans[first as usize].scope;
            let envelope = &scan.scopes[scope as usize];
            let mut body_len = envelope.len as usize;
            let mut end = start;
            for &span in &spans[start..] {
                let span = &scan.spans[span as usize];
                if span.scope != scope {
                    break;
                }
                body_len += section::span_len(span);
                end += 1;
            }
            self.scopes.push(ScopeCut {
                scope,
                end_span: end,
                body_len,
            });
            let end_scope = self.scopes.len();
            match self.resources.last_mut() {
                Some(cut) if cut.resource == envelope.resource => {
                    cut.end_scope = end_scope;
                    cut.body_len += field_len(body_len);
                }
                _ => {
                    let header = scan.resources[envelope.resource as usize].len as usize;
                    self.resources.push(ResourceCut {
                        resource: envelope.resource,
                        end_scope,
                        body_len: header + field_len(body_len),
                    });
                }
            }
            start = end;
        }
        for cut in &self.resources {
            self.len += field_len(cut.body_len);
        }
    }

    fn write(&self, message: &[u8], scan: &Scan, spans: &[u32]) -> Vec<u8> {
        let mut out = Vec::with_capacity(self.len);
        let mut scopes = 0;
        let mut start = 0;
        for resource in &self.resources {
            write_prefix(0x0A, resource.body_len, &mut out);
            let header = &scan.resources[resource.resource as usize];
            write_pieces(message, header.pieces(&scan.resource_pieces), &mut out);
            for scope in &self.scopes[scopes..resource.end_scope] {
                write_prefix(0x12, scope.body_len, &mut out);
                let header = &scan.scopes[scope.scope as usize];
                write_pieces(message, header.pieces(&scan.scope_pieces), &mut out);
                let mine = spans[start..scope.end_span]
                    .iter()
                    .map(|&span| &scan.spans[span as usize]);
                section::write(message, mine, &mut out);
                start = scope.end_span;
            }
            scopes = resource.end_scope;
        }
        debug_assert_eq!(out.len(), self.len);
        out
    }
}
