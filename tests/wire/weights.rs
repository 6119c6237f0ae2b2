//! Sampling thresholds in trace states: what is written is what the rules say, nothing else of a
//! span changes, and lengths are known beforehand. The rules are written out a second time here,
//! with strings and lists.

use bytes::Bytes;
use opentelemetry_proto::tonic::trace::v1::Span;
use proptest::prelude::*;
use prost::Message as _;
use tailring::model::{Randomness, Threshold, TraceId};
use tailring::wire::{BatchBuilder, Unwritten, Weight};

use crate::{noise, oracle};

/// A weight that changes no span that nobody sampled before.
pub(crate) fn none() -> Weight {
    Weight::new(
        Some(Threshold::ALWAYS),
        Randomness::from_bits(0).unwrap(),
        false,
    )
}

/// What a trace was kept with.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Kept {
    pub(crate) trace: [u8; 16],
    pub(crate) threshold: u64,
    pub(crate) assume: bool,
}

impl Kept {
    fn randomness(&self) -> u64 {
        let low: [u8; 8] = self.trace[8..].try_into().unwrap();
        u64::from_be_bytes(low) & ((1 << 56) - 1)
    }

    pub(crate) fn weight(&self) -> Weight {
        let trace = TraceId::new(self.trace).unwrap();
        Weight::new(
            Some(Threshold::from_bits(self.threshold).unwrap()),
            Randomness::of(trace),
            self.assume,
        )
    }

    /// The trace state that a span with this one leaves with.
    pub(crate) fn expect(&self, text: &str) -> (String, Option<Unwritten>) {
        let members: Vec<&str> = text
            .split(',')
            .filter(|it| !it.trim_matches([' ', '\t']).is_empty())
            .collect();
        let is_ours = |it: &&&str| it.trim_matches([' ', '\t']).starts_with("ot=");
        let ours: Vec<&str> = members
            .iter()
            .filter(is_ours)
            .map(|it| &it.trim_matches([' ', '\t'])[3..])
            .collect();
        let others: Vec<&str> = members.iter().filter(|it| !is_ours(it)).copied().collect();
        let is_th = |sub: &&str| *sub == "th" || sub.starts_with("th:");
        let ths: Vec<&str> = ours
            .iter()
            .flat_map(|it| it.split(';'))
            .filter(is_th)
            .collect();
        let with = |th: Option<String>| {
            let mut values: Vec<String> = Vec::new();
            for value in &ours {
                let subs = value.split(';').filter(|it| !it.is_empty() && !is_th(it));
                values.push(subs.collect::<Vec<_>>().join(";"));
            }
            values.retain(|it| !it.is_empty());
            if let Some(th) = th {
                match values.first_mut() {
                    Some(value) => *value += &format!(";{th}"),
                    None => values.push(th),
                }
            }
            let longest = values.iter().map(String::len).max().unwrap_or(0);
            let list: Vec<String> = values
                .iter()
                .map(|it| format!("ot={it}"))
                .chain(others.iter().map(|it| it.to_string()))
                .collect();
            (list.join(","), list.len(), longest)
        };
        let erase = |reason| {
            let text = if ths.is_empty() {
                text.to_owned()
            } else {
                with(None).0
            };
            (text, Some(reason))
        };

        let mut rv = None;
        let mut before = None;
        if !ours.is_empty() {
            let grammar = |sub: &str| {
                let Some((key, value)) = sub.split_once(':') else {
                    return false;
                };
                key.starts_with(|it: char| it.is_ascii_lowercase())
                    && key
                        .chars()
                        .all(|it| it.is_ascii_lowercase() || it.is_ascii_digit())
                    && value
                        .chars()
                        .all(|it| it.is_ascii_alphanumeric() || "._-".contains(it))
            };
            let subs: Vec<&str> = ours[0].split(';').collect();
            let rvs: Vec<&str> = subs
                .iter()
                .filter_map(|it| it.strip_prefix("rv:"))
                .collect();
            let hex = |it: &str| it.chars().all(|it| "0123456789abcdef".contains(it));
            if ours.len() > 1
                || ours[0].len() > 256
                || !subs.iter().all(|it| grammar(it))
                || ths.len() > 1
                || rvs.len() > 1
                || ths
                    .iter()
                    .any(|it| !(4..=17).contains(&it.len()) || !hex(&it[3..]))
            {
                return erase(Unwritten::Malformed);
            }
            before = ths
                .first()
                .map(|it| u64::from_str_radix(&format!("{:0<14}", &it[3..]), 16).unwrap());
            rv = rvs
                .first()
                .filter(|it| it.len() == 14 && hex(it))
                .map(|it| u64::from_str_radix(it, 16).unwrap());
        }
        if before.is_none() && !self.assume {
            return (text.to_owned(), Some(Unwritten::UpstreamUnknown));
        }
        let after = before.unwrap_or(0).max(self.threshold);
        if rv.unwrap_or(self.randomness()) < after {
            return erase(Unwritten::Inconsistent);
        }
        if before == Some(after) {
            return (text.to_owned(), None);
        }
        let digits = format!("{after:014x}");
        let digits = match digits.trim_end_matches('0') {
            "" => "0",
            digits => digits,
        };
        let (list, count, value) = with(Some(format!("th:{digits}")));
        if value > 256
            || count > 32 && ours.is_empty()
            || list.len() > 512 && list.len() > text.len()
        {
            return erase(Unwritten::Overflow);
        }
        (list, None)
    }
}

/// The message that one section makes.
pub(crate) fn batch(section: &[u8], weight: &Weight) -> (Vec<u8>, BatchBuilder) {
    let mut batch = BatchBuilder::default();
    batch.add(b"", b"", Bytes::copy_from_slice(section), weight);
    let len = batch.encoded_len();
    // Into a buffer that is too long, twice: all that was promised is written, and no more.
    let written = [0x55, 0xAA].map(|fill| {
        let mut out = vec![fill; len + 100];
        batch.write_to(&mut out);
        assert!(out[len..].iter().all(|byte| *byte == fill));
        out.truncate(len);
        out
    });
    assert_eq!(written[0], written[1]);
    let [out, _] = written;
    (out, batch)
}

pub(crate) fn section_of(spans: &[Vec<u8>]) -> Vec<u8> {
    let mut section = Vec::new();
    for span in spans {
        section.push(0x12);
        prost::encoding::encode_varint(span.len() as u64, &mut section);
        section.extend_from_slice(span);
    }
    section
}

/// The fields of a span, and which of them is the trace state.
fn fields(span: &[u8]) -> (Vec<oracle::Field<'_>>, Option<usize>) {
    let fields = oracle::fields(span);
    let last = fields.iter().rposition(|it| it.number == 3);
    (fields, last)
}

fn claim(kept: Kept, spans: &[Vec<u8>]) {
    let (out, batch) = batch(&section_of(spans), &kept.weight());
    let written = oracle::spans(&out);
    assert_eq!(written.len(), spans.len());
    let mut reasons = Vec::new();
    for (span, written) in spans.iter().zip(&written) {
        let mut before = Span::decode(&span[..]).unwrap();
        let mut after = Span::decode(&written.span[..]).unwrap();
        let (expect, reason) = kept.expect(&before.trace_state);
        assert_eq!(
            after.trace_state, expect,
            "{kept:x?}: {:?}",
            before.trace_state
        );
        reasons.extend(reason);
        if after.trace_state == before.trace_state {
            assert_eq!(
                &written.span, span,
                "nothing changes, not even how it is written"
            );
        }
        before.trace_state.clear();
        after.trace_state.clear();
        assert_eq!(after, before);

        // What prost does not know is where it was, as it was.
        let (mut before, place) = fields(span);
        let (mut after, new_place) = fields(&written.span);
        if let Some(place) = place {
            assert_eq!(new_place, Some(place));
            before.remove(place);
            after.remove(place);
        } else if let Some(place) = new_place {
            assert_eq!(place, before.len(), "a new trace state is at the end");
            after.pop();
        }
        assert!(
            before
                .iter()
                .map(|it| it.whole)
                .eq(after.iter().map(|it| it.whole))
        );
    }
    for reason in Unwritten::ALL {
        let times = reasons.iter().filter(|it| **it == reason).count();
        assert_eq!(batch.unwritten().of(reason) as usize, times, "{reason:?}");
    }
}

fn threshold() -> impl Strategy<Value = u64> {
    prop_oneof![
        Just(0),
        Just(0x80_0000_0000_0000),
        Just(0xc0_0000_0000_0000),
        Just(0xaa_ab00_0000_0000),
        Just(0x08_0000_0000_0000),
        0..1u64 << 56,
    ]
}

fn sub() -> impl Strategy<Value = String> {
    let lawful = prop_oneof![
        6 => threshold().prop_map(|it| format!("th:{it:014x}")),
        6 => prop::sample::select(&["th:0", "th:08", "th:8", "th:c", "th:e", "th:ff"][..]).prop_map(str::to_owned),
        6 => (0..1u64 << 56).prop_map(|it| format!("rv:{it:014x}")),
        3 => "[a-z][a-z0-9]{0,2}:[A-Za-z0-9._-]{0,4}",
        1 => (225..250usize).prop_map(|len| format!("x:{}", "1".repeat(len))),
    ];
    let strange = prop::sample::select(
        &[
            "",
            "th",
            "th:",
            "th:C",
            "th:000000000000000",
            "rv:1",
            "rv:0123456789ABCD",
            "x",
            "T:1",
            "x:é",
            " th:8",
        ][..],
    );
    prop_oneof![12 => lawful, 1 => strange.prop_map(str::to_owned)]
}

fn member() -> impl Strategy<Value = String> {
    let ours =
        || prop::collection::vec(sub(), 0..4).prop_map(|subs| format!("ot={}", subs.join(";")));
    prop_oneof![
        4 => ours(),
        1 => ours().prop_map(|it| format!(" \t{it} ")),
        3 => "[a-z]=[ -+.-<>-~]{0,8}",
        1 => prop::sample::select(&["", " ", "é", "tenant@ot=th:8", "ot", "aot=th:8", "ot =th:8"][..]).prop_map(str::to_owned),
        1 => (200..300usize).prop_map(|len| format!("a={}", "1".repeat(len))),
    ]
}

pub(crate) fn state() -> impl Strategy<Value = String> {
    prop_oneof![
        8 => prop::collection::vec(member(), 0..4).prop_map(|it| it.join(",")),
        1 => (28..34usize, any::<bool>()).prop_map(|(count, has_ours)| {
            let ours = if has_ours { "ot=th:8" } else { "b=1" };
            [&vec!["a=1"; count].join(","), ours].join(",")
        }),
    ]
}

pub(crate) fn kept() -> impl Strategy<Value = Kept> {
    (any::<[u8; 16]>(), threshold(), any::<bool>(), any::<bool>()).prop_map(
        |(mut trace, threshold, assume, high)| {
            trace[0] |= 1;
            if high {
                trace[9] = 0xff; // few thresholds reject it
            }
            Kept {
                trace,
                threshold,
                assume,
            }
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 3000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn spans_leave_with_the_trace_state_that_the_rules_say_and_otherwise_as_they_came(
        kept in kept(),
        spans in prop::collection::vec((any::<u64>(), prop::collection::vec(state(), 0..3)), 1..4),
    ) {
        let spans: Vec<_> = spans.iter().map(|(seed, states)| noise::span(*seed, kept.trace, states)).collect();
        claim(kept, &spans);
    }

    #[test]
    fn no_bytes_whatever_break_the_promised_length(kept in kept(), mut section in prop::collection::vec(any::<u8>(), 0..80), whole: bool) {
        if whole {
            section = section_of(&[section]);
        }
        batch(&section, &kept.weight());
    }

    #[test]
    fn a_span_with_some_bytes_changed_leaves_as_prost_reads_it(
        kept in kept(), seed: u64, states in prop::collection::vec(state(), 0..3),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
    ) {
        let mut span = noise::span(seed, kept.trace, &states);
        for (at, byte) in changes {
            let at = at.index(span.len());
            span[at] = byte;
        }
        let (out, batch) = batch(&section_of(&[span.clone()]), &kept.weight());
        let Ok(before) = Span::decode(&span[..]) else {
            return Ok(()); // the log has no such span
        };
        let (expect, reason) = kept.expect(&before.trace_state);
        let after = Span::decode(&oracle::spans(&out)[0].span[..]).unwrap();
        prop_assert_eq!(&after.trace_state, &expect);
        prop_assert_eq!(Span { trace_state: String::new(), ..after }, Span { trace_state: String::new(), ..before });
        if let Some(reason) = reason {
            prop_assert_eq!(batch.unwritten().of(reason), 1);
        }
    }
}

/// Spans of one trace with `R = 0xd0...`, kept with T.
fn edited(threshold: u64, assume: bool, state: &str) -> String {
    let mut trace = [1; 16];
    trace[9] = 0xd0;
    let kept = Kept {
        trace,
        threshold: threshold << 48,
        assume,
    };
    let span = Span {
        trace_id: trace.to_vec(),
        span_id: vec![2; 8],
        trace_state: state.to_owned(),
        ..Span::default()
    };
    claim(kept, &[span.encode_to_vec()]);
    let (out, _) = batch(&section_of(&[span.encode_to_vec()]), &kept.weight());
    Span::decode(&oracle::spans(&out)[0].span[..])
        .unwrap()
        .trace_state
}

#[test]
fn the_larger_threshold_wins_and_a_wrong_one_is_erased() {
    let rows = [
        // T, without and with a threshold from before.
        (0x00, "", "ot=th:0"),
        (0xc0, "", "ot=th:c"),
        (0xc0, "ot=th:8", "ot=th:c"),
        (0x80, "ot=th:c", "ot=th:c"),
        (
            0x80,
            "a=1,ot=th:c;rv:d0000000000000",
            "a=1,ot=th:c;rv:d0000000000000",
        ),
        // The threshold that was: 8 rejects half, 08 one in 32.
        (0x10, "ot=th:08", "ot=th:1"),
        (0x10, "ot=th:8", "ot=th:8"),
        // Sampled although R is below: nobody knows.
        (0x00, "ot=th:e", ""),
        (0x00, "a=1,ot=th:e;x:1,b=2", "ot=x:1,a=1,b=2"),
        (0xc0, "ot=rv:c0000000000000", "ot=rv:c0000000000000;th:c"),
        (0xc0, "ot=rv:bfffffffffffff;th:8", "ot=rv:bfffffffffffff"),
        (
            0x00,
            "ot=rv:f0000000000000;th:e",
            "ot=rv:f0000000000000;th:e",
        ),
        (0xc0, "ot=th:8x;y:z", "ot=y:z"),
        (0xc0, "vendor=1,other=x:y", "ot=th:c,vendor=1,other=x:y"),
    ];
    for (threshold, state, expect) in rows {
        assert_eq!(edited(threshold, true, state), expect, "{state}");
    }
}

#[test]
fn odds_that_nobody_knows_erase_every_threshold_and_nothing_else() {
    let weight = Weight::new(None, Randomness::from_bits(1 << 55).unwrap(), true);
    let rows = [
        ("", ""),
        ("ot=th:8", ""),
        (
            "a=1,ot=th:8;rv:c0000000000000;x:1",
            "ot=rv:c0000000000000;x:1,a=1",
        ),
        ("ot=rv:c0000000000000", "ot=rv:c0000000000000"),
        ("a=1", "a=1"),
        ("ot=th:wrong", ""),
    ];
    let spans: Vec<Vec<u8>> = rows
        .iter()
        .map(|(state, _)| {
            let span = Span {
                trace_id: vec![1; 16],
                span_id: vec![2; 8],
                trace_state: (*state).to_owned(),
                ..Span::default()
            };
            span.encode_to_vec()
        })
        .collect();
    let (out, builder) = batch(&section_of(&spans), &weight);
    let found = oracle::spans(&out);
    for (span, (state, expected)) in found.iter().zip(rows) {
        let span = Span::decode(&span.span[..]).unwrap();
        assert_eq!(span.trace_state, expected, "{state}");
    }
    assert_eq!(
        builder.unwritten().of(Unwritten::ProbabilityUnknown),
        rows.len() as u32
    );
}

#[test]
fn spans_of_unknown_origin_get_no_threshold_and_keep_theirs() {
    let rows = [
        (0xc0, "", ""),
        (0xc0, "a=1", "a=1"),
        (0xc0, "ot=x:1", "ot=x:1"),
        (0xc0, "ot=th:8", "ot=th:c"),
        (0x80, "ot=th:c", "ot=th:c"),
    ];
    for (threshold, state, expect) in rows {
        assert_eq!(edited(threshold, false, state), expect, "{state}");
    }
}

#[test]
fn what_finds_no_room_is_left_and_what_is_no_longer_true_is_erased() {
    let full = format!("ot=x:{}", "1".repeat(251));
    assert_eq!(edited(0xc0, true, &full), full);
    let full = format!("a={},ot=th:8", "1".repeat(510));
    assert_eq!(edited(0xc1, true, &full), full.replace(",ot=th:8", ""));
    let full = vec!["a=1"; 32].join(",");
    assert_eq!(edited(0xc0, true, &full), full);
}

#[test]
fn a_state_at_any_of_several_places_is_the_last_one() {
    let field = |state: &str| [&[0x1A, state.len() as u8][..], state.as_bytes()].concat();
    let ids = [&[0x0A, 16][..], &[0xff; 16], &[0x12, 8], &[2; 8]].concat();
    let kept = Kept {
        trace: [0xff; 16],
        threshold: 0xc0 << 48,
        assume: true,
    };
    let spans = [
        [
            &field("ot=th:8"),
            &ids[..],
            &field("ot=th:e"),
            &[0x2A, 1, b'x'],
        ]
        .concat(),
        [
            &field("ot=th:e"),
            &ids[..],
            &field("ot=th:8"),
            &[0x2A, 1, b'x'],
        ]
        .concat(),
        // The last one is empty, and so is the trace state.
        [&ids[..], &field("ot=th:e"), &field("")].concat(),
        // Erased: the one before must not come back.
        [&ids[..], &field("ot=th:e"), &field("ot=th:C")].concat(),
        // Tag and length in more bytes than they need.
        [&ids[..], &[0x9A, 0x00, 0x87, 0x80, 0x00], b"ot=th:8"].concat(),
    ];
    claim(kept, &spans);
}
