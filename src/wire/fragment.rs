//! Groups the spans of a scanned message into fragments and gives each its identity.

use std::hash::BuildHasher as _;

use hashbrown::HashTable;
use hashbrown::hash_table::Entry;
use xxhash_rust::xxh3::{Xxh3Default, xxh3_128};

use crate::model::{FragmentHash, TraceId};
use crate::wire::field::{field_len, write_prefix};
use crate::wire::scan::{Envelope, Piece};
use crate::wire::{Scan, SpanEntry, section};

/// The fragments of one message. Made once, filled again and again: allocation-free when warm.
#[derive(Debug, Default)]
pub struct Fragments {
    fragments: Vec<Fragment>,
    /// What lies behind each of `fragments`.
    places: Vec<Place>,
    slices: Vec<Slice>,
    /// Indexes of spans, by fragment.
    order: Vec<u32>,
    /// The fragment of each span.
    fragment_of: Vec<u32>,
    resource_hashes: Vec<u128>,
    scope_hashes: Vec<u128>,
    /// Index of the fragment of a resource and a trace. Clients choose trace IDs, so the hash is
    /// keyed with what they cannot know.
    by_trace: HashTable<u32>,
    hasher: foldhash::quality::RandomState,
    /// What the hash of a fragment is made from.
    content: Vec<u8>,
}

/// One fragment: what can be said of it without the message at hand.
#[derive(Debug, Clone, Copy)]
pub struct Fragment {
    pub trace: TraceId,
    pub hash: FragmentHash,
    pub spans: u32,
    /// Bytes of its spans on the wire, with their tags and lengths, without headers.
    pub span_bytes: u32,
    pub has_root: bool,
}

/// Where a fragment's content is.
#[derive(Debug, Clone, Copy)]
struct Place {
    resource: u32,
    /// While grouping: where its next span goes in `order`. Then: where its spans begin there.
    first_span: u32,
    first_slice: u32,
    end_slice: u32,
}

/// The spans of a fragment in one ScopeSpans.
#[derive(Debug, Clone, Copy)]
struct Slice {
    scope: u32,
    /// A range of `order`.
    first_span: u32,
    end_span: u32,
    /// Bytes of the spans with their tags and lengths.
    len: u32,
}

/// One fragment with its bytes, borrowed from the message.
#[derive(Debug, Clone, Copy)]
pub struct FragmentView<'a> {
    pub fragment: &'a Fragment,
    message: &'a [u8],
    scan: &'a Scan,
    of: &'a Fragments,
    place: &'a Place,
}

/// A resource or scope header: raw bytes in one or more pieces.
#[derive(Debug, Clone, Copy)]
pub struct HeaderView<'a> {
    /// xxh3-128 of the bytes. Equal bytes, equal hash, wherever they came from.
    pub hash: u128,
    message: &'a [u8],
    pieces: &'a [Piece],
    len: u32,
}

/// One ScopeSpans of a fragment.
#[derive(Debug, Clone, Copy)]
pub struct ScopeView<'a> {
    pub header: HeaderView<'a>,
    /// Bytes that [`ScopeView::write_spans_to`] will write.
    pub spans_len: usize,
    message: &'a [u8],
    spans: &'a [SpanEntry],
    order: &'a [u32],
}

impl Fragments {
    /// Forgets the last message and groups the spans of this one, by resource and then by first
    /// appearance. `scan` is of the same `message`.
    pub fn group(&mut self, message: &[u8], scan: &Scan) {
        self.clear();
        let hash_of =
            |pieces: &[Piece], header: &Envelope| hash_header(message, header.pieces(pieces));
        self.resource_hashes.extend(
            scan.resources
                .iter()
                .map(|header| hash_of(&scan.resource_pieces, header)),
        );
        self.scope_hashes.extend(
            scan.scopes
                .iter()
                .map(|header| hash_of(&scan.scope_pieces, header)),
        );
        self.assign(scan);
        self.sort();
        for index in 0..self.fragments.len() {
            self.finish(message, scan, index);
        }
    }

    pub fn all(&self) -> &[Fragment] {
        &self.fragments
    }

    /// `index` is one into [`Fragments::all`]; `message` and `scan` are those of the last `group`.
    pub fn view<'a>(&'a self, message: &'a [u8], scan: &'a Scan, index: usize) -> FragmentView<'a> {
        FragmentView {
            fragment: &self.fragments[index],
            message,
            scan,
            of: self,
            place: &self.places[index],
        }
    }

    /// Heap that this value keeps for the next message. At most 20 MiB for 100,000 spans.
    pub fn heap_bytes(&self) -> usize {
        self.fragments.capacity() * size_of::<Fragment>()
            + self.places.capacity() * size_of::<Place>()
            + self.slices.capacity() * size_of::<Slice>()
            + (self.order.capacity() + self.fragment_of.capacity()) * size_of::<u32>()
            + (self.resource_hashes.capacity() + self.scope_hashes.capacity()) * size_of::<u128>()
            + self.by_trace.allocation_size()
            + self.content.capacity()
    }

    fn clear(&mut self) {
        self.fragments.clear();
        self.places.clear();
        self.slices.clear();
        self.order.clear();
        self.fragment_of.clear();
        self.resource_hashes.clear();
        self.scope_hashes.clear();
        self.by_trace.clear();
    }

    /// Finds the fragment of each span.
    fn assign(&mut self, scan: &Scan) {
        let Self {
            fragments,
            places,
            fragment_of,
            by_trace,
            hasher,
            ..
        } = self;
        let key = |resource: u32, trace: TraceId| {
            hasher.hash_one((resource, u128::from_ne_bytes(*trace.as_bytes())))
        };
        let mut last: Option<(u32, u32, TraceId)> = None; // fragment, resource, trace
        for span in &scan.spans {
            let resource = scan.scopes[span.scope as usize].resource;
            let index = match last {
                Some((index, of, trace)) if trace == span.trace && of == resource => index,
                _ => {
                    let entry = by_trace.entry(
                        key(resource, span.trace),
                        |&index| {
                            fragments[index as usize].trace == span.trace
                                && places[index as usize].resource == resource
                        },
                        |&index| {
                            let place = &places[index as usize];
                            key(place.resource, fragments[index as usize].trace)
                        },
                    );
                    match entry {
                        Entry::Occupied(entry) => *entry.get(),
                        Entry::Vacant(entry) => {
                            let index = fragments.len() as u32;
                            entry.insert(index);
                            fragments.push(Fragment {
                                trace: span.trace,
                                hash: FragmentHash(0),
                                spans: 0,
                                span_bytes: 0,
                                has_root: false,
                            });
                            places.push(Place {
                                resource,
                                first_span: 0,
                                first_slice: 0,
                                end_slice: 0,
                            });
                            index
                        }
                    }
                }
            };
            last = Some((index, resource, span.trace));
            fragment_of.push(index);
            let fragment = &mut fragments[index as usize];
            fragment.spans += 1;
            fragment.has_root |= span.is_root;
        }
    }

    /// Sorts the spans by fragment, in source order inside each: a counting sort.
    fn sort(&mut self) {
        let mut next = 0;
        for (fragment, place) in self.fragments.iter().zip(&mut self.places) {
            place.first_span = next;
            next += fragment.spans;
        }
        self.order.resize(self.fragment_of.len(), 0);
        for (span, &fragment) in self.fragment_of.iter().enumerate() {
            let place = &mut self.places[fragment as usize];
            self.order[place.first_span as usize] = span as u32;
            place.first_span += 1;
        }
        for (fragment, place) in self.fragments.iter().zip(&mut self.places) {
            place.first_span -= fragment.spans;
        }
    }

    /// Cuts the spans of one fragment by scope and hashes it all. The hash is an identity between
    /// processes of different versions: it must never change (`tests/wire.rs` has golden ones).
    ///
    /// ```text
    /// xxh3-128 of: trace ID · hash of the resource header
    ///     · for each ScopeSpans: hash of its header · number of spans, u32 · hash of each span
    /// ```
    ///
    /// Hashes inside are xxh3-128 of the raw bytes; all numbers are little endian.
    fn finish(&mut self, message: &[u8], scan: &Scan, index: usize) {
        let fragment = &mut self.fragments[index];
        let place = &mut self.places[index];
        let end_span = place.first_span + fragment.spans;
        place.first_slice = self.slices.len() as u32;
        self.content.clear();
        self.content.extend_from_slice(fragment.trace.as_bytes());
        self.content
            .extend_from_slice(&self.resource_hashes[place.resource as usize].to_le_bytes());
        let mut first_span = place.first_span;
        while first_span < end_span {
            let spans = &self.order[first_span as usize..end_span as usize];
            let scope = scan.spans[spans[0] as usize].scope;
            self.content
                .extend_from_slice(&self.scope_hashes[scope as usize].to_le_bytes());
            let count_at = self.content.len();
            self.content.extend_from_slice(&[0; 4]);
            let mut count = 0;
            let mut len = 0;
            for &span in spans {
                let span = &scan.spans[span as usize];
                if span.scope != scope {
                    break;
                }
                count += 1;
                len += section::span_len(span) as u32;
                self.content
                    .extend_from_slice(&xxh3_128(span.bytes(message)).to_le_bytes());
            }
            self.content[count_at..count_at + 4].copy_from_slice(&u32::to_le_bytes(count));
            self.slices.push(Slice {
                scope,
                first_span,
                end_span: first_span + count,
                len,
            });
            fragment.span_bytes += len;
            first_span += count;
        }
        place.end_slice = self.slices.len() as u32;
        fragment.hash = FragmentHash(xxh3_128(&self.content));
    }
}

impl<'a> FragmentView<'a> {
    pub fn resource(&self) -> HeaderView<'a> {
        let resource = self.place.resource as usize;
        HeaderView::new(
            self.of.resource_hashes[resource],
            self.message,
            &self.scan.resource_pieces,
            &self.scan.resources[resource],
        )
    }

    pub fn scopes(&self) -> impl Iterator<Item = ScopeView<'a>> + use<'a> {
        let Self {
            message, scan, of, ..
        } = *self;
        let slices = &of.slices[self.place.first_slice as usize..self.place.end_slice as usize];
        slices.iter().map(move |slice| ScopeView {
            header: HeaderView::new(
                of.scope_hashes[slice.scope as usize],
                message,
                &scan.scope_pieces,
                &scan.scopes[slice.scope as usize],
            ),
            spans_len: slice.len as usize,
            message,
            spans: &scan.spans,
            order: &of.order[slice.first_span as usize..slice.end_span as usize],
        })
    }

    /// Bytes that [`FragmentView::write_request_to`] will write.
    pub fn request_len(&self) -> usize {
        field_len(self.resource_spans_len())
    }

    /// The fragment as an `ExportTraceServiceRequest` of its own, in its canonical form.
    pub fn write_request_to(&self, out: &mut Vec<u8>) {
        let len = self.resource_spans_len();
        out.reserve(field_len(len));
        write_prefix(0x0A, len, out);
        self.resource().write_to(out);
        for scope in self.scopes() {
            write_prefix(0x12, scope.header.len() + scope.spans_len, out);
            scope.header.write_to(out);
            scope.write_spans_to(out);
        }
    }

    fn resource_spans_len(&self) -> usize {
        let scopes = self
            .scopes()
            .map(|scope| scope.header.len() + scope.spans_len);
        resource_spans_len(self.resource().len(), scopes)
    }
}

/// [`FragmentView::request_len`] of a fragment that was read back: the length of its resource's
/// header, and for each of its scopes those of the header and of the spans together.
pub fn request_len(resource_header: usize, scopes: impl Iterator<Item = usize>) -> usize {
    field_len(resource_spans_len(resource_header, scopes))
}

/// Writes a fragment that was read back as an `ExportTraceServiceRequest` of its own: the header of its
/// resource, and for each of its scopes the header and `(12 len span)*`.
pub fn write_request<'a>(
    resource_header: &[u8],
    scopes: impl Iterator<Item = (&'a [u8], &'a [u8])> + Clone,
    out: &mut Vec<u8>,
) {
    let lens = scopes
        .clone()
        .map(|(header, spans)| header.len() + spans.len());
    write_prefix(0x0A, resource_spans_len(resource_header.len(), lens), out);
    out.extend_from_slice(resource_header);
    for (header, spans) in scopes {
        write_prefix(0x12, header.len() + spans.len(), out);
        out.extend_from_slice(header);
        out.extend_from_slice(spans);
    }
}

fn resource_spans_len(resource_header: usize, scopes: impl Iterator<Item = usize>) -> usize {
    resource_header + scopes.map(field_len).sum::<usize>()
}

impl<'a> HeaderView<'a> {
    fn new(hash: u128, message: &'a [u8], pieces: &'a [Piece], envelope: &Envelope) -> Self {
        Self {
            hash,
            message,
            pieces: envelope.pieces(pieces),
            len: envelope.len,
        }
    }
}

impl HeaderView<'_> {
    pub fn len(&self) -> usize {
        self.len as usize
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    pub fn write_to(&self, out: &mut Vec<u8>) {
        write_pieces(self.message, self.pieces, out);
    }
}

impl<'a> HeaderView<'a> {
    /// The bytes in stretches of whole fields.
    pub fn pieces(&self) -> impl Iterator<Item = &'a [u8]> + use<'a> {
        let message = self.message;
        let bytes = move |piece: &Piece| &message[piece.start as usize..piece.end as usize];
        self.pieces.iter().map(bytes)
    }
}

impl<'a> ScopeView<'a> {
    /// Each span's own bytes, in source order.
    pub fn spans(&self) -> impl Iterator<Item = &'a [u8]> + use<'a> {
        let Self {
            message,
            spans,
            order,
            ..
        } = *self;
        order
            .iter()
            .map(move |&span| spans[span as usize].bytes(message))
    }

    /// The spans as fields of a ScopeSpans: `(12 len span)*`.
    pub fn write_spans_to(&self, out: &mut Vec<u8>) {
        let spans = self.order.iter().map(|&span| &self.spans[span as usize]);
        section::write(self.message, spans, out);
    }
}

pub(super) fn write_pieces(message: &[u8], pieces: &[Piece], out: &mut Vec<u8>) {
    for piece in pieces {
        out.extend_from_slice(&message[piece.start as usize..piece.end as usize]);
    }
}

fn hash_header(message: &[u8], pieces: &[Piece]) -> u128 {
    let bytes = |piece: &Piece| &message[piece.start as usize..piece.end as usize];
    match pieces {
        [] => xxh3_128(&[]),
        [piece] => xxh3_128(bytes(piece)),
        pieces => {
            let mut hash = Xxh3Default::new();
            for piece in pieces {
                hash.update(bytes(piece));
            }
            hash.digest128()
        }
    }
}
