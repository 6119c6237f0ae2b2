//! What compaction appends: copies of fragments, and what stands for the tombstones of a segment that goes.

use xxhash_rust::xxh3::xxh3_128;

use super::{Current, Record, Writer, small};
use crate::log::format::{self, FragmentRecord, Kind};
use crate::log::{GoneTrace, StoredFragment};
use crate::model::{Extent, SegmentId};

/// A longer list becomes several records.
const GONE_BYTES_PER_RECORD: usize = 1 << 20;

impl Writer {
    /// Appends a fragment of another segment anew, with its headers if this segment has not got them. Counts
    /// as live beside the other one.
    pub fn copy(&mut self, fragment: &StoredFragment) -> Extent {
        let extent = self.append(&Record::Copy(fragment));
        if let Some(current) = &mut self.current {
            current.fragments.add(extent);
        }
        extent
    }

    /// Nothing of these traces in `segment` is needed, but for what they list. Gives the places of the
    /// records that it takes, each with the traces in it.
    pub fn gone(&mut self, segment: SegmentId, gone: &[GoneTrace]) -> Vec<(Extent, usize)> {
        let mut rest = gone;
        let mut places = Vec::new();
        while !rest.is_empty() {
            let mut bytes = 0;
            let fits = rest.iter().take_while(|it| {
                bytes += format::GONE_TRACE_BYTES + 4 * it.live.len();
                bytes <= GONE_BYTES_PER_RECORD
            });
            let (some, later) = rest.split_at(fits.count().max(1));
            rest = later;
            places.push((self.append(&Record::Gone(segment, some)), some.len()));
        }
        places
    }

    pub(super) fn encode_copy(&mut self, current: &Current, fragment: &StoredFragment) -> Extent {
        let resource = self.stored_header(current, &fragment.resource_header);
        let mut scopes = std::mem::take(&mut self.scopes);
        scopes.clear();
        for scope in &fragment.scopes {
            scopes.push(self.stored_header(current, &scope.header));
        }
        let record = FragmentRecord {
            trace: fragment.trace,
            hash: fragment.hash,
            arrival: fragment.arrival,
            previous: fragment.previous,
            spans: fragment.spans,
            has_root: fragment.has_root,
            resource,
            scopes: small(scopes.len()),
            // What is copied is held: it was committed.
            is_received: false,
        };
        let extent = self.frame(current, Kind::Fragment, |out| {
            record.encode(out);
            for (header, scope) in scopes.iter().zip(&fragment.scopes) {
                out.extend_from_slice(&header.to_le_bytes());
                out.extend_from_slice(&small(scope.spans.len()).to_le_bytes());
            }
            for scope in &fragment.scopes {
                out.extend_from_slice(&scope.spans);
            }
        });
        self.scopes = scopes;
        extent
    }

    fn stored_header(&mut self, current: &Current, bytes: &[u8]) -> u32 {
        if bytes.is_empty() {
            return 0;
        }
        self.place_header(current, xxh3_128(bytes), bytes)
    }
}
