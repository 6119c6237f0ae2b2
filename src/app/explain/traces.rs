//! A file of traces as OTLP/JSON: read as a worker reads requests, and sorted by trace.

use std::collections::{HashMap, HashSet};
use std::io::{self, Read as _};

use serde::de::IgnoredAny;

use crate::model::{Moment, TraceId};
use crate::wire::{
    FragmentView, Fragments, JsonError, KeyFilter, Scan, ScanError, ScanLimits, SpanRecord,
    json_to_protobuf,
};

/// Longer files are cut up by whoever wrote them.
const FILE_BYTES_MAX: u64 = 1 << 30;

/// See the module.
#[derive(Debug, Default)]
pub struct Traces {
    requests: Vec<Request>,
    /// In the order of their first fragments: where its fragments are, request and index there.
    traces: Vec<(TraceId, Vec<(usize, usize)>)>,
    /// Fragments that were in the file before.
    copies: HashMap<TraceId, usize>,
    rejected: Vec<String>,
}

#[derive(Debug)]
struct Request {
    message: Vec<u8>,
    scan: Scan,
    fragments: Fragments,
}

/// One trace.
pub(super) struct Trace<'a> {
    pub(super) id: TraceId,
    /// In the order of their arrival.
    pub(super) fragments: Vec<FragmentView<'a>>,
    /// Byte-identical ones that were left out, as a worker leaves them out.
    pub(super) copies: usize,
    /// Of its last span.
    pub(super) end: Moment,
}

/// Why there is no trace to explain. Names the file, and the place in it.
#[derive(Debug, thiserror::Error)]
pub enum TracesError {
    #[error("{file} cannot be read: {error}")]
    Unreadable { file: String, error: io::Error },
    #[error(
        "{file} is longer than {FILE_BYTES_MAX} bytes; write some of its lines into a file of their own"
    )]
    TooLong { file: String },
    #[error("{file}:{line}:{column}: {problem}")]
    Malformed {
        file: String,
        line: usize,
        /// In bytes, from 1.
        column: usize,
        problem: String,
    },
    #[error(
        "{file} has no span; an ExportTraceServiceRequest as JSON begins with {{\"resourceSpans\":["
    )]
    NoSpan { file: String },
}

impl Traces {
    /// `file` is a path, or - for stdin.
    pub fn read(file: &str) -> Result<Self, TracesError> {
        let unreadable = |error| TracesError::Unreadable {
            file: file.to_owned(),
            error,
        };
        let mut text = Vec::new();
        match file {
            "-" => io::stdin()
                .lock()
                .take(FILE_BYTES_MAX + 1)
                .read_to_end(&mut text),
            path => std::fs::File::open(path)
                .and_then(|it| it.take(FILE_BYTES_MAX + 1).read_to_end(&mut text)),
        }
        .map_err(unreadable)?;
        let file = if file == "-" { "stdin" } else { file };
        if text.len() as u64 > FILE_BYTES_MAX {
            return Err(TracesError::TooLong {
                file: file.to_owned(),
            });
        }
        Self::parse(file, &text)
    }

    /// `file` is for the errors.
    pub fn parse(file: &str, text: &[u8]) -> Result<Self, TracesError> {
        let mut traces = Self::default();
        let mut by_id: HashMap<TraceId, usize> = HashMap::new();
        let mut known = HashSet::new();
        for (offset, json) in requests_in(text) {
            let malformed = |at: usize, problem: String| {
                let (line, column) = place_of(text, at);
                TracesError::Malformed {
                    file: file.to_owned(),
                    line,
                    column,
                    problem,
                }
            };
            let message = json_to_protobuf(json, usize::MAX).map_err(|error| match error {
                JsonError::Unreadable {
                    path,
                    expected,
                    found,
                    offset: within,
                } => malformed(
                    offset + within,
                    format!("{path}: expected {expected}, found {found}"),
                ),
                too_large => malformed(offset, too_large.to_string()),
            })?;
            let mut scan = Scan::default();
            scan.read(&message, &ScanLimits::default())
                .map_err(|error: ScanError| malformed(offset, error.to_string()))?;
            if !scan.is_whole() {
                let (line, _) = place_of(text, offset);
                let rejections = scan.rejections();
                traces.rejected.push(format!(
                    "{file}:{line}: left out, as a worker does: {rejections}"
                ));
            }
            let mut fragments = Fragments::default();
            fragments.group(&message, &scan);
            let request = traces.requests.len();
            for (index, fragment) in fragments.all().iter().enumerate() {
                if !known.insert((fragment.trace, fragment.hash)) {
                    *traces.copies.entry(fragment.trace).or_default() += 1;
                    continue;
                }
                let place = *by_id.entry(fragment.trace).or_insert_with(|| {
                    traces.traces.push((fragment.trace, Vec::new()));
                    traces.traces.len() - 1
                });
                if let Some((_, of_trace)) = traces.traces.get_mut(place) {
                    of_trace.push((request, index));
                }
            }
            traces.requests.push(Request {
                message,
                scan,
                fragments,
            });
        }
        if traces.traces.is_empty() && traces.rejected.is_empty() {
            return Err(TracesError::NoSpan {
                file: file.to_owned(),
            });
        }
        Ok(traces)
    }

    /// What was left out of which line.
    pub fn rejected(&self) -> &[String] {
        &self.rejected
    }

    pub(super) fn all(&self) -> impl Iterator<Item = Trace<'_>> {
        self.traces.iter().map(|(id, places)| {
            let fragments: Vec<_> = places
                .iter()
                .filter_map(|(request, index)| {
                    let it = self.requests.get(*request)?;
                    Some(it.fragments.view(&it.message, &it.scan, *index))
                })
                .collect();
            let spans = fragments.iter().flat_map(FragmentView::scopes);
            let ends = spans.flat_map(|scope| scope.spans()).map(|span| {
                let record = SpanRecord::read(span, &KeyFilter::default(), &mut |_, _| {});
                record.end_unix_nanos
            });
            let end = Moment {
                unix_nanos: ends.max().unwrap_or(0),
            };
            Trace {
                id: *id,
                copies: self.copies.get(id).copied().unwrap_or(0),
                end,
                fragments,
            }
        })
    }
}

/// JSON values one behind the other, in lines or not, each with its offset. The last one may be
/// broken, and is all of the rest then: whoever reads it says what is wrong.
fn requests_in(text: &[u8]) -> Vec<(usize, &[u8])> {
    // A byte order mark, as Windows' editors write it.
    let start = if text.starts_with(b"\xEF\xBB\xBF") {
        3
    } else {
        0
    };
    let rest = text.get(start..).unwrap_or_default();
    let mut values = serde_json::Deserializer::from_slice(rest).into_iter::<IgnoredAny>();
    let mut requests = Vec::new();
    loop {
        let from = start + values.byte_offset();
        let value = values.next();
        let to = match value {
            None => return requests,
            Some(Ok(_)) => start + values.byte_offset(),
            Some(Err(_)) => text.len(),
        };
        let json = text.get(from..to).unwrap_or_default();
        // Blanks between two values are nobody's.
        let blanks = json.len() - json.trim_ascii_start().len();
        requests.push((from + blanks, &json[blanks..]));
        if to == text.len() {
            return requests;
        }
    }
}

/// Line and column of an offset, both from 1.
fn place_of(text: &[u8], offset: usize) -> (usize, usize) {
    let before = text.get(..offset).unwrap_or(text);
    let line = before.iter().filter(|byte| **byte == b'\n').count() + 1;
    let line_start = before
        .iter()
        .rposition(|byte| *byte == b'\n')
        .map_or(0, |it| it + 1);
    (line, before.len() - line_start + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_lines_or_not() {
        let text = b" {\"a\": 1}\n\n{\n\"b\":[ ]}{\"c\":\"\\ud83d\"}\n{\"d\"";
        let found = requests_in(text);
        let found: Vec<_> = found
            .iter()
            .map(|(at, it)| (*at, std::str::from_utf8(it).unwrap()))
            .collect();
        assert_eq!(
            found,
            [
                (1, "{\"a\": 1}"),
                (11, "{\n\"b\":[ ]}"),
                (21, "{\"c\":\"\\ud83d\"}"),
                (36, "{\"d\"")
            ]
        );
        assert_eq!(place_of(text, 13), (4, 1));
        assert!(requests_in(b" \n").is_empty());
    }
}
