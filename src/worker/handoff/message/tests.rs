//! What is written is read back in the other member's time, and bytes from anywhere are an error at worst.

use std::time::Duration;

use bytes::Bytes;
use proptest::prelude::*;

use super::*;
use crate::log::StoredScope;
use crate::model::{Extent, SegmentId};
use crate::trace::FragmentRef;

const HERE: Moment = Moment {
    unix_nanos: 1_800_000_000_000_000_000,
};
/// The receiver's clock is wrong by a day.
const THERE: Moment = Moment {
    unix_nanos: 1_800_086_400_000_000_000,
};

fn moments() -> impl Strategy<Value = Duration> {
    (0..1_000_000_000_000_u64).prop_map(Duration::from_nanos)
}

fn traces() -> impl Strategy<Value = TraceId> {
    any::<[u8; 16]>().prop_filter_map("all zeroes", TraceId::new)
}

fn decisions() -> impl Strategy<Value = (Decision, Duration)> {
    let parts = (
        traces(),
        any::<bool>(),
        any::<u32>(),
        any::<u64>(),
        any::<u16>(),
        moments(),
    );
    parts.prop_map(|(trace, keeps, id, bits, policy, age)| {
        let decision = Decision {
            trace,
            verdict: if keeps { Verdict::Keep } else { Verdict::Drop },
            id: VerdictId(id),
            threshold: Threshold::from_bits(bits >> 7),
            policy: Some(policy).filter(|it| *it != NO_POLICY),
            rules_version: bits,
            decided_at: HERE.before(age),
        };
        (decision, age)
    })
}

type Given = (
    TraceId,
    u64,
    bool,
    Option<Duration>,
    Vec<(u128, Duration, u8)>,
);

fn generations() -> impl Strategy<Value = Given> {
    let fragment = (any::<u128>(), moments(), any::<u8>());
    let fragments = prop::collection::vec(fragment, 0..4);
    let root = prop::option::of(moments());
    (traces(), any::<u64>(), any::<bool>(), root, fragments)
}

fn made_of(given: &Given) -> (HandoffTrace, Vec<StoredFragment>) {
    let (trace, generation, has_more, root, fragments) = given;
    let extent = Extent {
        segment: SegmentId(1),
        offset: 0,
        len: 1,
    };
    let stored: Vec<StoredFragment> = fragments
        .iter()
        .map(|(hash, age, spans)| StoredFragment {
            extent,
            trace: *trace,
            hash: FragmentHash(*hash),
            arrival: HERE.before(*age),
            previous: None,
            spans: 1,
            has_root: false,
            is_received: false,
            resource_header: Bytes::from_static(b"\x0a\x00"),
            scopes: vec![StoredScope {
                header: Bytes::new(),
                spans: vec![*spans; 5].into(),
            }],
        })
        .collect();
    let trace = HandoffTrace {
        trace: *trace,
        generation: *generation,
        first_seen: HERE.before(Duration::from_secs(9)),
        last_seen: HERE,
        root_seen: root.map(|age| HERE.before(age)),
        has_more: *has_more,
        fragments: stored
            .iter()
            .map(|it| FragmentRef::new(it.hash, extent))
            .collect(),
    };
    (trace, stored)
}

proptest! {
    #[test]
    fn a_message_is_read_back_in_the_receivers_time(
        decisions in prop::collection::vec(decisions(), 0..5),
        given in prop::collection::vec(generations(), 0..5),
    ) {
        let made: Vec<_> = given.iter().map(made_of).collect();
        let traces: Vec<_> = made.iter().map(|(trace, stored)| (trace, &stored[..])).collect();
        let told: Vec<Decision> = decisions.iter().map(|it| it.0).collect();
        let bytes: Bytes = encode(&told, &traces, HERE).into();
        let read = decode(&bytes, THERE).unwrap();
        let expected: Vec<Decision> = decisions
            .iter()
            .map(|(decision, age)| Decision { decided_at: THERE.before(*age), ..*decision })
            .collect();
        prop_assert_eq!(&read.decisions, &expected);
        prop_assert_eq!(read.traces.len(), given.len());
        let mut spans = 0;
        for (read, (trace, generation, has_more, root, fragments)) in read.traces.iter().zip(&given) {
            prop_assert_eq!((read.trace, read.generation, read.has_more), (*trace, *generation, *has_more));
            prop_assert_eq!(read.first_seen, THERE.before(Duration::from_secs(9)));
            prop_assert_eq!(read.last_seen, THERE);
            prop_assert_eq!(read.root_seen, root.map(|age| THERE.before(age)));
            let expected: Vec<_> = fragments
                .iter()
                .map(|(hash, age, _)| (FragmentHash(*hash), THERE.before(*age)))
                .collect();
            prop_assert_eq!(&read.fragments, &expected);
            // 0a len, the resource, 12 len, five bytes.
            spans += fragments.len() * 11;
        }
        prop_assert_eq!(read.spans.len(), spans);
        for end in 0..bytes.len() - spans {
            prop_assert!(decode(&bytes.slice(..end), THERE).is_err());
        }
    }

    #[test]
    fn an_answer_is_read_back(
        committed in prop::collection::vec(any::<u64>(), 0..9),
        verdicts in prop::collection::vec(decisions(), 0..3),
        untold in prop::collection::vec(traces(), 0..3),
        has_refused in any::<bool>(),
    ) {
        let answer = HandoffAnswer {
            committed,
            has_refused,
            verdicts: verdicts.iter().map(|it| it.0).collect(),
            untold,
        };
        let bytes = encode_answer(&answer, HERE);
        prop_assert_eq!(decode_answer(&bytes, HERE), Ok(answer));
        for end in 0..bytes.len() {
            prop_assert!(decode_answer(&bytes[..end], HERE).is_err());
        }
    }

    #[test]
    fn bytes_from_anywhere_are_an_error_at_worst(
        bytes in prop::collection::vec(any::<u8>(), 0..300),
        is_version_1 in any::<bool>(),
    ) {
        let mut bytes = bytes;
        if let Some(version) = bytes.first_mut().filter(|_| is_version_1) {
            *version = VERSION;
        }
        drop(decode(&Bytes::from(bytes.clone()), HERE));
        drop(decode_answer(&bytes, HERE));
        decode_sync(&bytes).ok();
        decode_left(&bytes).ok();
    }
}

#[test]
fn another_version_is_refused_before_anything_is_read() {
    let error = decode(&Bytes::from_static(&[2, 0, 0]), HERE).unwrap_err();
    assert_eq!(error, MessageError::Version(2));
    assert_eq!(decode_sync(&encode_sync(true)), Ok(true));
    assert_eq!(decode_sync(&encode_sync(false)), Ok(false));
    assert_eq!(decode_left(&encode_left(77)), Ok(77));
}
