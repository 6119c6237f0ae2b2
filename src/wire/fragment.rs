//! Groups the spans of a scanned message into fragments and gives each its identity.

use crate::model::{FragmentHash, TraceId};
use crate::wire::Scan;

/// The fragments of one message. Made once, filled again and again: allocation-free when warm.
#[derive(Debug, Default)]
pub struct Fragments {
    pub(crate) fragments: Vec<Fragment>,
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

/// One fragment with its bytes, borrowed from the message.
#[derive(Debug, Clone, Copy)]
pub struct FragmentView<'a> {
    pub fragment: &'a Fragment,
    #[allow(dead_code)]
    pub(crate) message: &'a [u8],
}

/// A resource or scope header: raw bytes in one or more pieces.
#[derive(Debug, Clone, Copy)]
pub struct HeaderView<'a> {
    /// xxh3-128 of the bytes. Equal bytes, equal hash, wherever they came from.
    pub hash: u128,
    #[allow(dead_code)]
    pub(crate) message: &'a [u8],
}

/// One ScopeSpans of a fragment.
#[derive(Debug, Clone, Copy)]
pub struct ScopeView<'a> {
    pub header: HeaderView<'a>,
    /// Bytes that [`ScopeView::write_spans_to`] will write.
    pub spans_len: usize,
}

impl Fragments {
    /// Forgets the last message and groups the spans of this one. `scan` is of the same `message`.
    pub fn group(&mut self, message: &[u8], scan: &Scan) {
        let _ = (message, scan);
        unimplemented!()
    }

    pub fn all(&self) -> &[Fragment] {
        &self.fragments
    }

    pub fn view<'a>(&'a self, message: &'a [u8], scan: &'a Scan, index: usize) -> FragmentView<'a> {
        let _ = (message, scan, index);
        unimplemented!()
    }
}

impl<'a> FragmentView<'a> {
    pub fn resource(&self) -> HeaderView<'a> {
        unimplemented!()
    }

    pub fn scopes(&self) -> impl Iterator<Item = ScopeView<'a>> + use<'a> {
        std::iter::empty()
    }

    /// Bytes that [`FragmentView::write_request_to`] will write.
    pub fn request_len(&self) -> usize {
        unimplemented!()
    }

    /// The fragment as an `ExportTraceServiceRequest` of its own, in its canonical form.
    pub fn write_request_to(&self, out: &mut Vec<u8>) {
        let _ = out;
        unimplemented!()
    }
}

impl HeaderView<'_> {
    pub fn len(&self) -> usize {
        unimplemented!()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub fn write_to(&self, out: &mut Vec<u8>) {
        let _ = out;
        unimplemented!()
    }
}

impl ScopeView<'_> {
    /// The spans as fields of a ScopeSpans: `(12 len span)*`.
    pub fn write_spans_to(&self, out: &mut Vec<u8>) {
        let _ = out;
        unimplemented!()
    }
}
