//! Puts stored fragments together into one message, grouped by resource and scope.

use std::hash::BuildHasher as _;

use bytes::Bytes;
use hashbrown::HashTable;
use hashbrown::hash_table::Entry;

use crate::wire::field::field_len;
use crate::wire::weight::{Copying, UnwrittenSpans, Weight};
use crate::wire::writing::Writing;

/// Builds one `ExportTraceServiceRequest` out of pieces of many fragments. Equal resource headers
/// become one ResourceSpans, equal scope headers in it one ScopeSpans. Into each span goes the weight
/// of its trace.
#[derive(Debug, Default)]
pub struct BatchBuilder {
    resources: Vec<Resource>,
    scopes: Vec<Scope>,
    sections: Vec<Section>,
    weights: Vec<Weight>,
    unwritten: UnwrittenSpans,
    /// The headers themselves, in the order in which they came. Sections stay where they were read:
    /// they are most of a message, and are copied once, into it.
    bytes: Vec<u8>,
    len: usize,
    heaviest_header: usize,
    resource_by_header: HashTable<u32>,
    /// Of all resources; a scope is found by its resource's index and its header.
    scope_by_header: HashTable<u32>,
    hasher: foldhash::quality::RandomState,
}

/// A range of `bytes`.
#[derive(Debug, Clone, Copy)]
struct Range {
    start: usize,
    end: usize,
}

#[derive(Debug)]
struct Resource {
    header: Range,
    /// Its scopes, linked in order of appearance.
    first_scope: u32,
    last_scope: u32,
    body_len: usize,
}

#[derive(Debug)]
struct Scope {
    resource: u32,
    header: Range,
    next: u32,
    /// Its sections, linked in order of appearance.
    first_section: u32,
    last_section: u32,
    body_len: usize,
}

#[derive(Debug)]
struct Section {
    spans: Bytes,
    /// Of all spans in it; its place in `weights`.
    weight: u32,
    copying: Copying,
    next: u32,
}

/// The end of a linked list.
const NONE: u32 = u32::MAX;
impl BatchBuilder {
    /// `spans` is `(12 len span)*`, as [`crate::wire::ScopeView::write_spans_to`] wrote it, and all
    /// of one trace.
    pub fn add(
        &mut self,
        resource_header: &[u8],
        scope_header: &[u8],
        spans: Bytes,
        weight: &Weight,
    ) {
        if spans.is_empty() {
            return; // an envelope of nothing
        }
        let resource = self.resource(resource_header);
        let scope = self.scope(resource, scope_header);
        let section = self.sections.len() as u32;
        let (copying, added) = weight.measure(&spans, &mut self.unwritten);
        if self.weights.last() != Some(weight) {
            self.weights.push(weight.clone());
        }
        self.sections.push(Section {
            spans,
            weight: self.weights.len() as u32 - 1,
            copying,
            next: NONE,
        });

        let scope = &mut self.scopes[scope as usize];
        // A scope without a section is not in the sum yet.
        let scope_was = match scope.first_section {
            NONE => 0,
            _ => field_len(scope.body_len),
        };
        match scope.first_section {
            NONE => scope.first_section = section,
            _ => self.sections[scope.last_section as usize].next = section,
        }
        scope.last_section = section;
        scope.body_len += added;
        let resource = &mut self.resources[resource as usize];
        let has_more = resource.body_len > resource.header.end - resource.header.start;
        let resource_was = if has_more {
            field_len(resource.body_len)
        } else {
            0
        };
        resource.body_len += field_len(scope.body_len) - scope_was;
        self.len += field_len(resource.body_len) - resource_was;
    }

    pub fn is_empty(&self) -> bool {
        self.sections.is_empty()
    }

    /// Bytes that [`BatchBuilder::write_to`] will write. Costs nothing: it is kept as batches grow.
    pub fn encoded_len(&self) -> usize {
        self.len
    }

    /// Spans in it that say nothing of their weight, or not what they said when they came.
    pub fn unwritten(&self) -> UnwrittenSpans {
        self.unwritten
    }

    /// Bytes of the longest resource or scope header in it.
    pub fn heaviest_header(&self) -> usize {
        self.heaviest_header
    }

    /// Writes the message into a buffer of exactly [`BatchBuilder::encoded_len`] bytes; of a longer
    /// one the rest is left, in a shorter one the end is missing.
    pub fn write_to(&self, out: &mut [u8]) {
        let len = self.len.min(out.len());
        let mut out = Writing::new(&mut out[..len]);
        for resource in &self.resources {
            out.put_prefix(0x0A, resource.body_len);
            out.put(self.read(resource.header));
            let mut scope = resource.first_scope;
            while let Some(it) = self.scopes.get(scope as usize) {
                out.put_prefix(0x12, it.body_len);
                out.put(self.read(it.header));
                let mut section = it.first_section;
                while let Some(it) = self.sections.get(section as usize) {
                    self.weights[it.weight as usize].write(&it.spans, it.copying, &mut out);
                    section = it.next;
                }
                scope = it.next;
            }
        }
    }

    fn read(&self, range: Range) -> &[u8] {
        &self.bytes[range.start..range.end]
    }

    fn store(&mut self, bytes: &[u8]) -> Range {
        self.heaviest_header = self.heaviest_header.max(bytes.len());
        let start = self.bytes.len();
        self.bytes.extend_from_slice(bytes);
        Range {
            start,
            end: self.bytes.len(),
        }
    }

    fn resource(&mut self, header: &[u8]) -> u32 {
        let Self {
            resources,
            bytes,
            hasher,
            ..
        } = self;
        let bytes_of = |index: u32| {
            let range = resources[index as usize].header;
            &bytes[range.start..range.end]
        };
        let entry = self.resource_by_header.entry(
            hasher.hash_one(header),
            |&index| bytes_of(index) == header,
            |&index| hasher.hash_one(bytes_of(index)),
        );
        match entry {
            Entry::Occupied(entry) => *entry.get(),
            Entry::Vacant(entry) => {
                let index = resources.len() as u32;
                entry.insert(index);
                let header = self.store(header);
                self.resources.push(Resource {
                    header,
                    first_scope: NONE,
                    last_scope: NONE,
                    body_len: header.end - header.start,
                });
                index
            }
        }
    }

    fn scope(&mut self, resource: u32, header: &[u8]) -> u32 {
        let Self {
            scopes,
            bytes,
            hasher,
            ..
        } = self;
        let key_of = |index: u32| {
            let scope = &scopes[index as usize];
            (scope.resource, &bytes[scope.header.start..scope.header.end])
        };
        let entry = self.scope_by_header.entry(
            hasher.hash_one((resource, header)),
            |&index| key_of(index) == (resource, header),
            |&index| hasher.hash_one(key_of(index)),
        );
        match entry {
            Entry::Occupied(entry) => *entry.get(),
            Entry::Vacant(entry) => {
                let index = scopes.len() as u32;
                entry.insert(index);
                let header = self.store(header);
                self.scopes.push(Scope {
                    resource,
                    header,
                    next: NONE,
                    first_section: NONE,
                    last_section: NONE,
                    body_len: header.end - header.start,
                });
                let of = &mut self.resources[resource as usize];
                match of.first_scope {
                    NONE => of.first_scope = index,
                    _ => self.scopes[of.last_scope as usize].next = index,
                }
                of.last_scope = index;
                index
            }
        }
    }
}
