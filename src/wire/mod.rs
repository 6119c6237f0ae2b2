//! OTLP traces as bytes: what is in a message, cut by trace, cut by owner, put together again.
//!
//! Nobody here builds protobuf structs. A *fragment* is one trace's spans inside one
//! `ResourceSpans` of one request, logically an `ExportTraceServiceRequest` of its own:
//!
//! ```text
//! 0A len { resource header · for each ScopeSpans with spans of the trace: 12 len { scope header · (12 len span)* } }
//! ```
//!
//! A *header* is everything in its message but the children, in order, as raw bytes: the
//! `Resource` or `InstrumentationScope`, the schema URL, and every field we do not know. Tags and
//! lengths that we write are minimal; what we copy is copied as it came. Therefore
//! `fragment(split(m)) = fragment(m)` byte for byte, for any partition and any concatenation.
//! Unknown fields beside `resource_spans` at the top of a request belong to no trace and are left
//! behind.
//!
//! Source of the format: opentelemetry-proto v1.11.0 trace.proto and protobuf's encoding rules.
//! This folder knows nothing of sockets, files, owners or policies.

mod any_value;
mod assemble;
mod check;
mod extract;
mod field;
mod fragment;
mod json;
mod member;
mod record;
mod reject;
mod scan;
mod section;
mod span;
mod split;
mod tracestate;
mod weight;
mod writing;

pub use any_value::{
    AnyValue, LIST_TAG, any_value, attribute_value, elements, key_values, write_any_value,
    write_entry, write_entry_bytes,
};
pub use assemble::BatchBuilder;
pub use extract::{
    KeyFilter, Scalar, SpanFields, Wanted, read_resource, read_span, scalar_value,
    stated_randomness, string_value,
};
pub use fragment::{
    Fragment, FragmentView, Fragments, HeaderView, ScopeView, request_len, write_request,
};
pub use json::{JsonError, json_to_protobuf, protobuf_bytes_max};
pub use member::{is_member_key, is_member_value, member_value};
pub use record::{
    EVENT_ATTRIBUTES, EventRecord, RESOURCE_ATTRIBUTES, ResourceRecord, SCOPE_ATTRIBUTES,
    SPAN_ATTRIBUTES, ScopeRecord, SpanRecord, read_attributes,
};
pub use reject::{RejectReason, Rejection, Rejections};
pub use scan::{Scan, ScanError, ScanLimits, SpanEntry};
pub use section::{leading_span_id, span_id_of, spans_in};
pub use split::{Part, split};
pub use weight::{Unwritten, UnwrittenSpans, Weight};
