//! A trace taken apart: what each of its resources and spans, alone, leaves on a state, and what their
//! attributes hold. What that means for a policy is `reason`'s.

use std::collections::HashMap;
use std::rc::Rc;

use crate::model::Moment;
use crate::policy::fold::Fact;
use crate::policy::tree::shortened;
use crate::policy::{FoldState, Rules};
use crate::wire::{
    AnyValue, FragmentView, KeyFilter, RESOURCE_ATTRIBUTES, ResourceRecord, SpanRecord,
    attribute_value, read_attributes, spans_in,
};

/// What single resources and spans of a trace leave on a state.
pub(super) struct Evidence<'a> {
    pub(super) resources: Vec<OfResource>,
    pub(super) spans: Vec<OfSpan<'a>>,
    pub(super) arrival: Moment,
}

pub(super) struct OfResource {
    pub(super) header: Vec<u8>,
    pub(super) state: FoldState,
}

pub(super) struct OfSpan<'a> {
    pub(super) record: SpanRecord<'a>,
    /// Index into the resources.
    pub(super) resource: usize,
    pub(super) scope_header: Rc<[u8]>,
    /// Without its resource.
    pub(super) state: FoldState,
    /// `(12 len span)`
    pub(super) section: Vec<u8>,
}

impl<'a> Evidence<'a> {
    pub(super) fn of(rules: &Rules, fragments: &[FragmentView<'a>], arrival: Moment) -> Self {
        let mut resources = Vec::new();
        let mut spans = Vec::new();
        let mut by_hash = HashMap::new();
        for fragment in fragments {
            let header = fragment.resource();
            let resource = *by_hash.entry(header.hash).or_insert_with(|| {
                let mut bytes = Vec::with_capacity(header.len());
                header.write_to(&mut bytes);
                let mut state = rules.begin();
                rules.fold_stored(&mut state, &bytes, std::iter::empty(), arrival);
                resources.push(OfResource {
                    header: bytes,
                    state,
                });
                resources.len() - 1
            });
            for scope in fragment.scopes() {
                let mut bytes = Vec::with_capacity(scope.header.len());
                scope.header.write_to(&mut bytes);
                let scope_header: Rc<[u8]> = bytes.into();
                let mut sections = Vec::with_capacity(scope.spans_len);
                scope.write_spans_to(&mut sections);
                for ((section, _), span) in spans_in(&sections).zip(scope.spans()) {
                    let mut state = rules.begin();
                    let alone = std::iter::once((&scope_header[..], section));
                    rules.fold_stored(&mut state, &[], alone, arrival);
                    spans.push(OfSpan {
                        record: SpanRecord::read(span, &KeyFilter::default(), &mut |_, _| {}),
                        resource,
                        scope_header: Rc::clone(&scope_header),
                        state,
                        section: section.to_vec(),
                    });
                }
            }
        }
        Self {
            resources,
            spans,
            arrival,
        }
    }

    pub(super) fn spans_with(&self, fact: Fact) -> impl Iterator<Item = &OfSpan<'a>> {
        self.spans.iter().filter(move |it| it.state.has(fact))
    }
}

/// For a line of text: short, and without what a terminal would obey.
pub(super) fn plain(text: &[u8]) -> String {
    let text = String::from_utf8_lossy(text);
    shortened(&text.replace(|c: char| c.is_control(), " "))
}

/// The value of an attribute of a resource; of equal keys the first one.
pub(super) fn on_resource(header: &[u8], key: &str) -> Option<String> {
    let resource = ResourceRecord::read(header.into());
    let mut value = None;
    let keys = only(key);
    read_attributes(
        &resource.bytes,
        RESOURCE_ATTRIBUTES,
        &keys,
        &mut |name, key_value| {
            if name == key.as_bytes() && value.is_none() {
                value = Some(shown(&attribute_value(key_value)));
            }
        },
    );
    value
}

/// The same of a span.
pub(super) fn on_span(span: &[u8], key: &str) -> Option<String> {
    let mut value = None;
    SpanRecord::read(span, &only(key), &mut |name, key_value| {
        if name == key.as_bytes() && value.is_none() {
            value = Some(shown(&attribute_value(key_value)));
        }
    });
    value
}

fn only(key: &str) -> KeyFilter {
    let mut keys = KeyFilter::default();
    keys.add(key.as_bytes());
    keys
}

fn shown(value: &AnyValue<'_>) -> String {
    match value {
        AnyValue::Empty => "nothing".to_owned(),
        AnyValue::Str(text) => format!("{:?}", plain(text)),
        AnyValue::Bool(value) => value.to_string(),
        AnyValue::Int(value) => value.to_string(),
        AnyValue::Double(value) => format!("{value:?} (a double)"),
        AnyValue::Array(_) => "a list".to_owned(),
        AnyValue::Map(_) => "a map".to_owned(),
        AnyValue::Bytes(_) => "bytes".to_owned(),
    }
}
