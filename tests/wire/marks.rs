//! Attributes that exported spans and scopes get: `SampleRate`, and the name of the policy. All else is
//! as it was, rates are right on average, and lengths are known beforehand.

use std::collections::BTreeMap;

use opentelemetry_proto::tonic::common::v1::{
    AnyValue, InstrumentationScope, KeyValue, any_value::Value,
};
use opentelemetry_proto::tonic::trace::v1::{ScopeSpans, Span};
use proptest::prelude::*;
use prost::Message as _;
use rand::rngs::SmallRng;
use rand::{Rng as _, SeedableRng as _};
use tailring::model::{Randomness, Threshold, TraceId};
use tailring::wire::{Attribute, Unwritten, Weight, Weights, scope_with};

use crate::weights::{Kept, batch, kept, section_of, state};
use crate::{noise, oracle};

const POLICY: &str = "tailring.policy";
const RATES: [&str; 2] = ["SampleRate", "sampleRate"];

fn attribute(key: &str, value: Value) -> KeyValue {
    KeyValue {
        key: key.to_owned(),
        value: Some(AnyValue { value: Some(value) }),
        ..KeyValue::default()
    }
}

/// Attributes that a span may come with beside others, and how a span spells them.
fn planted() -> impl Strategy<Value = KeyValue> {
    let value = prop_oneof![
        4 => (-3i64..500).prop_map(Value::IntValue),
        1 => any::<i64>().prop_map(Value::IntValue),
        1 => (0.0..99.0f64).prop_map(Value::DoubleValue),
        1 => "[0-9]{0,4}".prop_map(Value::StringValue),
        1 => any::<bool>().prop_map(Value::BoolValue),
    ];
    let key =
        prop::sample::select(&["SampleRate", "sampleRate", POLICY, "samplerate", "policy"][..]);
    (key, value).prop_map(|(key, value)| attribute(key, value))
}

/// A strange span with these attributes at its front, in its middle or at its end.
fn with_attributes(span: &[u8], planted: &[(prop::sample::Index, KeyValue)]) -> Vec<u8> {
    let mut fields: Vec<Vec<u8>> = oracle::fields(span)
        .into_iter()
        .map(|it| it.whole.to_vec())
        .collect();
    for (at, key_value) in planted {
        let mut field = vec![0x4A];
        prost::encoding::encode_varint(key_value.encoded_len() as u64, &mut field);
        field.extend(key_value.encode_to_vec());
        fields.insert(at.index(fields.len() + 1), field);
    }
    fields.concat()
}

/// The rate that a span came with: the first one counts.
fn stated(span: &Span) -> u64 {
    let first = span
        .attributes
        .iter()
        .find(|it| RATES.contains(&it.key.as_str()));
    let value = first.and_then(|it| it.value.clone()?.value);
    let number = match value {
        Some(Value::IntValue(number)) => number,
        Some(Value::DoubleValue(number)) => number.trunc() as i64,
        Some(Value::StringValue(digits)) => digits.parse().unwrap_or(1),
        _ => 1,
    };
    number.max(1) as u64
}

/// `th` of a trace state that is well.
fn th(state: &str) -> Option<u64> {
    let subs = state
        .split(',')
        .find_map(|it| it.trim().strip_prefix("ot="))?;
    let digits = subs.split(';').find_map(|it| it.strip_prefix("th:"))?;
    u64::from_str_radix(&format!("{digits:0<14}"), 16).ok()
}

/// 2^56 / (2^56 - T), as a lower and an upper whole number.
fn counts(stated: u64, threshold: u64) -> [u64; 2] {
    let kept = (1u128 << 56) - u128::from(threshold);
    let spans = u128::from(stated) << 56;
    [spans / kept, spans.div_ceil(kept)].map(|it| it.min(i64::MAX as u128) as u64)
}

fn claim(kept: Kept, weights: Weights, name: Option<&str>, spans: &[Vec<u8>]) {
    let trace = TraceId::new(kept.trace).unwrap();
    let mut weight = kept.weight().written_as(weights, trace);
    if let Some(name) = name {
        weight = weight.with_attribute(Attribute::text(POLICY, name));
    }
    let growth_max = weight.growth_max();
    let (out, batch) = batch(&section_of(spans), &weight);
    let written = oracle::spans(&out);
    assert_eq!(written.len(), spans.len());
    // Spans that are kept with one threshold have one rate.
    let mut rates = BTreeMap::new();
    for (bytes, written) in spans.iter().zip(&written) {
        let mut before = Span::decode(&bytes[..]).unwrap();
        let mut after = Span::decode(&written.span[..]).unwrap();
        assert!(
            section_of(std::slice::from_ref(&written.span)).len()
                <= section_of(std::slice::from_ref(bytes)).len() + growth_max
        );

        // What is ours stands at the end, once.
        if let Some(name) = name {
            let last = after.attributes.pop().unwrap();
            assert_eq!(last, attribute(POLICY, Value::StringValue(name.into())));
        }
        let rate = match after.attributes.last() {
            Some(last) if weights == Weights::SampleRate && last.key == "SampleRate" => {
                let Some(Value::IntValue(rate)) = last.value.clone().unwrap().value else {
                    panic!("{last:?}");
                };
                after.attributes.pop();
                Some(u64::try_from(rate).unwrap())
            }
            _ => None,
        };
        let stated = stated(&before);
        before.attributes.retain(|it| match it.key.as_str() {
            POLICY => name.is_none(),
            key => weights != Weights::SampleRate || !RATES.contains(&key),
        });

        let (expected, reason) = kept.expect(&before.trace_state);
        if weights == Weights::None {
            // Only what is not true any more goes.
            let is_true = th(&before.trace_state).is_some() && expected == before.trace_state;
            let has_th = before.trace_state != after.trace_state;
            assert!(!is_true || !has_th, "{:?}", before.trace_state);
            assert!(after.trace_state.len() <= before.trace_state.len());
            assert_eq!(batch.unwritten(), Default::default());
        } else if weights == Weights::SampleRate && stated > 1 && th(&before.trace_state).is_none()
        {
            // Sampled by somebody else: there is no threshold that says it.
            assert_eq!(th(&after.trace_state), None);
        } else {
            assert_eq!(after.trace_state, expected);
        }
        if weights == Weights::SampleRate {
            let known = match (th(&after.trace_state), reason) {
                (Some(th), None) => Some((1, th)),
                // The count is known, and only found no room.
                (_, Some(Unwritten::Overflow)) => {
                    let mine = kept.threshold.max(th(&before.trace_state).unwrap_or(0));
                    Some((
                        if th(&before.trace_state).is_some() {
                            1
                        } else {
                            stated
                        },
                        mine,
                    ))
                }
                (None, Some(Unwritten::UpstreamUnknown) | None) if stated > 1 => {
                    Some((stated, kept.threshold))
                }
                _ => None,
            };
            if let (Some((of, threshold)), Some(rate)) = (known, rate) {
                assert!(
                    counts(of, threshold).contains(&rate),
                    "{rate} of {of} at {threshold:x}"
                );
                assert_eq!(*rates.entry((of, threshold)).or_insert(rate), rate);
            } else if rate.is_some() {
                panic!(
                    "a rate of {rate:?} that nobody knows: {:?}",
                    before.trace_state
                );
            }
            let is_known = th(&after.trace_state).is_some();
            assert!(!is_known || rate.is_some());
        } else {
            assert_eq!(rate, None);
        }
        before.trace_state.clear();
        after.trace_state.clear();
        assert_eq!(after, before);

        // What prost does not know is where it was, as it was.
        let ours = |field: &oracle::Field<'_>| {
            let key = || KeyValue::decode(field.body.unwrap()).unwrap().key;
            let gone = |key: &str| {
                weights == Weights::SampleRate && RATES.contains(&key)
                    || name.is_some() && key == POLICY
            };
            field.number == 3 || field.number == 9 && gone(&key())
        };
        let rest = |span: &[u8]| {
            let mut rest = Vec::new();
            for field in oracle::fields(span).iter().filter(|it| !ours(it)) {
                rest.extend_from_slice(field.whole);
            }
            rest
        };
        assert_eq!(rest(&written.span), rest(bytes));
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn spans_get_their_attributes_and_are_otherwise_as_they_came(
        kept in kept(),
        weights in prop::sample::select(&[Weights::TraceState, Weights::SampleRate, Weights::SampleRate, Weights::None][..]),
        name in prop::option::of(prop_oneof![Just(String::new()), Just("keep errors".to_owned()), "[a-zé]{100,900}"]),
        spans in prop::collection::vec(
            (any::<u64>(), prop::collection::vec(state(), 0..3),
             prop::collection::vec((any::<prop::sample::Index>(), planted()), 0..4)),
            1..4),
    ) {
        let spans: Vec<_> = spans.iter().map(|(seed, states, planted)| {
            with_attributes(&noise::span(*seed, kept.trace, states), planted)
        }).collect();
        claim(kept, weights, name.as_deref(), &spans);
    }

    #[test]
    fn no_bytes_whatever_break_a_promise(kept in kept(), bytes in prop::collection::vec(any::<u8>(), 0..80), whole: bool) {
        let section = if whole { section_of(&[bytes]) } else { bytes };
        let weight = kept.weight()
            .written_as(Weights::SampleRate, TraceId::new(kept.trace).unwrap())
            .with_attribute(Attribute::text(POLICY, "p"));
        batch(&section, &weight);
    }

    #[test]
    fn a_scope_gets_its_attributes_and_is_otherwise_as_it_came(
        name in "[a-z]{0,6}", schema in "[a-z]{0,6}",
        held in prop::collection::vec(planted(), 0..4),
        instalments in 0..3usize, late: bool,
    ) {
        let scope = InstrumentationScope { name, attributes: held.clone(), ..InstrumentationScope::default() };
        let mut header = Vec::new();
        for _ in 0..instalments {
            let message = ScopeSpans { scope: Some(scope.clone()), ..ScopeSpans::default() };
            header.extend(message.encode_to_vec());
        }
        // A field that nobody knows, between the scope and its schema.
        header.extend([0xF8, 0x7F, 7]);
        header.extend(ScopeSpans { schema_url: schema, ..ScopeSpans::default() }.encode_to_vec());
        let mut added = vec![Attribute::text(POLICY, "new")];
        if late {
            added.push(Attribute::truth("late", true));
        }
        let written = scope_with(&header, &added);
        let mut expected = ScopeSpans::decode(&header[..]).unwrap();
        let scope = expected.scope.get_or_insert_default();
        scope.attributes.retain(|it| it.key != POLICY);
        scope.attributes.push(attribute(POLICY, Value::StringValue("new".into())));
        if late {
            scope.attributes.push(attribute("late", Value::BoolValue(true)));
        }
        prop_assert_eq!(ScopeSpans::decode(&written[..]).unwrap(), expected);
        let unknown = oracle::fields(&written).iter().filter(|it| it.number == 2047).count();
        prop_assert_eq!(unknown, 1);
        // And again: nothing is there twice.
        prop_assert_eq!(scope_with(&written, &added), written);
    }
}

/// The state and the rate with which a span of this trace leaves.
fn left(
    trace: [u8; 16],
    threshold: Option<u64>,
    assume: bool,
    state: &str,
    held: &[KeyValue],
) -> (String, Option<i64>) {
    let trace = TraceId::new(trace).unwrap();
    let threshold = threshold.map(|it| Threshold::from_bits(it << 48).unwrap());
    let weight = Weight::new(threshold, Randomness::of(trace), assume)
        .written_as(Weights::SampleRate, trace);
    let span = Span {
        trace_id: trace.as_bytes().to_vec(),
        span_id: vec![2; 8],
        trace_state: state.to_owned(),
        attributes: held.to_vec(),
        ..Span::default()
    };
    let (out, _) = batch(&section_of(&[span.encode_to_vec()]), &weight);
    let span = Span::decode(&oracle::spans(&out)[0].span[..]).unwrap();
    let rates: Vec<_> = span
        .attributes
        .iter()
        .filter(|it| RATES.contains(&it.key.as_str()))
        .collect();
    assert!(rates.len() <= 1);
    let rate = rates
        .first()
        .map(|it| match it.value.clone().unwrap().value {
            Some(Value::IntValue(rate)) => rate,
            other => panic!("{other:?}"),
        });
    (span.trace_state, rate)
}

#[test]
fn a_rate_is_what_a_span_stands_for_or_is_not_there() {
    let mut trace = [1; 16];
    trace[9] = 0xd0;
    let int = |key: &str, number| attribute(key, Value::IntValue(number));
    let four = || vec![int("SampleRate", 4)];
    let text = |digits: &str| vec![attribute("sampleRate", Value::StringValue(digits.into()))];
    let rows = [
        // T, assumed unsampled, state, attributes; state and rate that it leaves with.
        (Some(0x00), true, "", vec![], "ot=th:0", Some(1)),
        (Some(0xc0), true, "", vec![], "ot=th:c", Some(4)),
        (Some(0x80), true, "ot=th:c", vec![], "ot=th:c", Some(4)),
        (Some(0xc0), true, "ot=th:8", vec![], "ot=th:c", Some(4)),
        // Another sampler before, which says so in one way or the other.
        (Some(0xc0), true, "", four(), "", Some(16)),
        (Some(0x00), true, "", four(), "", Some(4)),
        (Some(0x80), true, "", text("10"), "", Some(20)),
        (Some(0x80), false, "", four(), "", Some(8)),
        (Some(0x80), true, "ot=th:c", four(), "ot=th:c", Some(4)),
        (
            Some(0xc0),
            true,
            "ot=th:8",
            vec![int("SampleRate", 2)],
            "ot=th:c",
            Some(4),
        ),
        (
            Some(0xc0),
            true,
            "",
            vec![int("sampleRate", 3), int("SampleRate", 5)],
            "",
            Some(12),
        ),
        (
            Some(0x80),
            true,
            "",
            vec![attribute("SampleRate", Value::DoubleValue(10.9))],
            "",
            Some(20),
        ),
        // What says nothing says 1.
        (
            Some(0xc0),
            true,
            "",
            vec![int("SampleRate", 0)],
            "ot=th:c",
            Some(4),
        ),
        (
            Some(0xc0),
            true,
            "",
            vec![int("SampleRate", -7)],
            "ot=th:c",
            Some(4),
        ),
        (Some(0xc0), true, "", text("9.99"), "ot=th:c", Some(4)),
        (
            Some(0xc0),
            true,
            "",
            vec![int("SampleRate", 1)],
            "ot=th:c",
            Some(4),
        ),
        // Nobody knows.
        (None, true, "", vec![], "", None),
        (None, true, "ot=th:8", four(), "", None),
        (Some(0x80), false, "", vec![], "", None),
        (Some(0x80), true, "ot=th:x", four(), "", None),
        (Some(0x00), true, "ot=th:e", four(), "", None),
        (Some(0xe0), true, "", vec![], "", None),
        (Some(0xe0), true, "", four(), "", None),
        (
            Some(0x80),
            true,
            "",
            vec![int("SampleRate", i64::MAX)],
            "",
            Some(i64::MAX),
        ),
    ];
    for (threshold, assume, state, held, after, rate) in rows {
        let got = left(trace, threshold, assume, state, &held);
        assert_eq!(
            got,
            (after.to_owned(), rate),
            "{threshold:?} {state} {held:?}"
        );
    }
    // No room for `th`, and still the count is known.
    let full = format!("ot=x:{}", "1".repeat(251));
    assert_eq!(left(trace, Some(0xc0), true, &full, &[]), (full, Some(4)));
}

/// Seeds 1 to 100, each with 2,000 traces; half of them had a head sampler, and one in five another one.
#[test]
fn rates_add_up_to_all_spans() {
    let mut worst: f64 = 0.0;
    for (share, seeds) in [
        (0.7, 1..=25u64),
        (0.3, 26..=50),
        (0.013, 51..=75),
        (1.0 / 3.0, 76..=100),
    ] {
        let threshold = Threshold::keeping(share).unwrap();
        for seed in seeds {
            let mut rng = SmallRng::seed_from_u64(seed);
            let (mut sum, mut truth, mut variance) = (0.0, 0.0, 0.0);
            for number in 0..2_000 {
                let trace: [u8; 16] = rng.random();
                let trace_id = TraceId::new(trace).unwrap();
                let randomness = Randomness::of(trace_id);
                truth += 1.0;
                let (state, held, before) = match number % 10 {
                    0..5 => ("ot=th:6", vec![], 1.0 - 6.0 / 16.0),
                    5..7 => ("", vec![attribute("SampleRate", Value::IntValue(2))], 0.5),
                    _ => ("", vec![], 1.0),
                };
                let arrives = match number % 10 {
                    0..5 => randomness.bits() >= 6 << 52,
                    5..7 => rng.random_bool(0.5),
                    _ => true,
                };
                let by_luck = number % 10 >= 5;
                let p = if by_luck {
                    before * threshold.share()
                } else {
                    threshold.share().min(before)
                };
                // With at most a quarter more for the rounding.
                variance += (1.0 - p) / p + 0.25;
                if arrives && threshold.admits(randomness) {
                    let weight = Weight::new(Some(threshold), randomness, true)
                        .written_as(Weights::SampleRate, trace_id);
                    let span = Span {
                        trace_id: trace.to_vec(),
                        span_id: vec![2; 8],
                        trace_state: state.to_owned(),
                        attributes: held,
                        ..Span::default()
                    };
                    let (out, _) = batch(&section_of(&[span.encode_to_vec()]), &weight);
                    let span = Span::decode(&oracle::spans(&out)[0].span[..]).unwrap();
                    let rate = span.attributes.last().unwrap().value.clone().unwrap().value;
                    let Some(Value::IntValue(rate)) = rate else {
                        panic!("{rate:?}")
                    };
                    sum += rate as f64;
                }
            }
            let off: f64 = (sum - truth) / variance.sqrt();
            assert!(
                off.abs() < 4.0,
                "seed {seed}: {sum} for {truth}, {off} standard errors"
            );
            worst = worst.max(off.abs());
        }
    }
    assert!(worst > 0.0, "a sample that is no sample");
}
