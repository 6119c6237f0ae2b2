//! Fragments as they lie in the log.

use bytes::Bytes;

use crate::log::Extent;
use crate::model::{FragmentHash, Moment, TraceId};

/// A fragment read back; its bytes are checked.
#[derive(Debug, Clone)]
pub struct StoredFragment {
    pub extent: Extent,
    pub trace: TraceId,
    pub hash: FragmentHash,
    pub arrival: Moment,
    pub previous: Option<Extent>,
    pub spans: u32,
    pub has_root: bool,
    pub resource_header: Bytes,
    pub scopes: Vec<StoredScope>,
}

#[derive(Debug, Clone)]
pub struct StoredScope {
    pub header: Bytes,
    /// `(12 len span)*`
    pub spans: Bytes,
}

#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    #[error("segment {segment:?} is damaged at {offset}: {what}")]
    Damaged {
        segment: crate::log::SegmentId,
        offset: u32,
        what: &'static str,
    },
    #[error("cannot read segment {segment:?}: {source}")]
    Io {
        segment: crate::log::SegmentId,
        source: std::io::Error,
    },
}
