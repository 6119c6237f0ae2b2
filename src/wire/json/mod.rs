//! OTLP/JSON of an `ExportTraceServiceRequest` as protobuf bytes.
//!
//! One pass: `text` reads tokens, `fields` knows the messages, `transcoder` walks both and writes
//! what `output` holds; `scalar` has the values that are no messages. No structs and no tree in between; the stack is a bounded list, so the
//! sender's nesting costs no stack of ours. What comes out is judged by [`crate::wire::Scan`] like
//! any other message: an ID of the wrong length costs its span, not the request.
//!
//! What is read (ProtoJSON, opentelemetry-proto's JSON encoding, and what SDKs really write):
//! - keys in lowerCamelCase or by their names in the .proto; unknown ones are passed over;
//! - `null` for anything is its absence, in a list an empty message (as the Collector has it);
//! - integers as numbers, as strings, and as floats without a fraction (`1e3`); enums by number
//!   or name; `"NaN"`, `"Infinity"`, `"-Infinity"` (and `"+Inf"`, `"-Inf"` of Go);
//! - IDs in hex of either case; bytes in base64, either alphabet, with or without padding;
//! - a surrogate that has lost its other half (JavaScript cuts emoji in two) becomes U+FFFD;
//! - 64-bit integers as `{"low": …, "high": …}` and bytes as `{"0": …, "1": …}`, as older releases
//!   of JavaScript's otlp-transformer write them;
//! - a byte order mark before it all.
//!
//! A key given twice, in either spelling, and a second value of an AnyValue are errors: ProtoJSON
//! parsers differ about them (its conformance suite wants an error, its text the last one), and
//! no SDK writes them.

mod digits;
mod error;
mod fields;
mod number;
mod output;
mod scalar;
mod text;
mod transcoder;

pub use error::JsonError;

/// Messages inside messages, the request included. Far above what a scan accepts (99), so that
/// a span somewhat too deep is rejected alone; far below what costs anything.
const LEVELS_MAX: usize = 200;

/// Longest protobuf that so many bytes of JSON become, and what [`json_to_protobuf`] allocates.
/// Messages shrink to a half as a rule. They grow only by `{"kind":-1},`: 12 bytes that become 13.
/// The rest is room for the lengths of open messages and for a longest scalar.
pub fn protobuf_bytes_max(json_bytes: usize) -> usize {
    json_bytes
        .saturating_add(json_bytes / 8)
        .saturating_add(5 * LEVELS_MAX + 64)
}

/// The request as protobuf, of at most [`protobuf_bytes_max`] bytes and never more than
/// `bytes_max`.
pub fn json_to_protobuf(json: &[u8], bytes_max: usize) -> Result<Vec<u8>, JsonError> {
    let message = transcoder::transcode(json)?;
    if message.len() > bytes_max {
        return Err(JsonError::TooLarge {
            bytes: message.len(),
            bytes_max,
        });
    }
    Ok(message)
}
