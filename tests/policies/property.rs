//! Random traces by random policies: the fold, the votes and the windows against the reference.
//!
//! Spans come in random requests, with those of other traces between them. For the policies that are free of
//! order they come once more, in other requests and another order.
//!
//! `TAILRING_POLICY_CASES` says how many rounds of eight traces; 1,250 are 10,000 traces.

use std::collections::BTreeMap;

use opentelemetry_proto::tonic::common::v1::{KeyValue, any_value::Value};
use opentelemetry_proto::tonic::trace::v1::Span;
use rand::rngs::SmallRng;
use rand::seq::{IndexedRandom as _, SliceRandom as _};
use rand::{Rng as _, SeedableRng as _};
use serde_json::json;
use tailring::model::{Threshold, TraceId, Verdict};
use tailring::policy::{Complete, Explained, LimitAnswers, Rules};

use crate::given::{
    Part, attribute, complete, delivered, explained, folded_apart, judged, messages, rules, span,
    status, text,
};
use crate::reference::{Asked, Held, RANGE, Tree};

const TRACES: usize = 8;

fn pick<T: Clone>(rng: &mut SmallRng, of: &[T]) -> T {
    of.choose(rng).unwrap().clone()
}

fn leaf(rng: &mut SmallRng) -> Tree {
    let key = pick(rng, &["a", "b"]).to_owned();
    match rng.random_range(0..14) {
        0 => Tree::Always,
        1 | 2 => Tree::Share(pick(rng, &[6.25, 25.0, 50.0, 75.0])),
        3 => Tree::Hash(pick(rng, &[20.0, 60.0]), pick(rng, &["x", "yy"]).to_owned()),
        4 => Tree::Status(pick(rng, &[vec![0], vec![2], vec![1, 2]])),
        5 | 6 => {
            let low = rng.random_range(0..30);
            Tree::Latency(low, pick(rng, &[0, low + 5, low + 20]))
        }
        7 => {
            let min = rng.random_range(1..6);
            Tree::Count(min, pick(rng, &[0, min, min + 3]))
        }
        8 => {
            let regex = rng.random();
            let values = pick(
                rng,
                &[vec!["x"], vec!["", "y"], vec!["^y$", "x+"], vec!["z"]],
            );
            let values = values.iter().map(|it| (*it).to_owned()).collect();
            Tree::Text(key, values, regex, rng.random())
        }
        9 => {
            let (min, max) = pick(rng, &[(1, 5), (0, 5), (3, 0), (-5, 5), (-9, -1)]);
            Tree::Number(key, min, max, rng.random())
        }
        10 => Tree::Truth(key, rng.random(), rng.random()),
        11 => Tree::State(
            "k".into(),
            vec!["v".into(), pick(rng, &["w", "u"]).to_owned()],
        ),
        12 => Tree::Condition(
            (0..rng.random_range(1..3))
                .map(|_| match rng.random_range(0..4) {
                    0 => Asked::Span(key.clone(), pick(rng, &["x", "y", ""]).to_owned()),
                    1 => Asked::Resource(key.clone(), pick(rng, &["x", "z"]).to_owned()),
                    2 => Asked::Status(rng.random_range(0..3)),
                    _ => Asked::Both(key.clone(), "z".into(), rng.random_range(0..3)),
                })
                .collect(),
        ),
        _ => Tree::Flags,
    }
}

fn condition(rng: &mut SmallRng, depth: u32) -> Tree {
    let subs = |rng: &mut SmallRng| -> Vec<Tree> {
        (0..rng.random_range(1..4))
            .map(|_| condition(rng, depth - 1))
            .collect()
    };
    match rng.random_range(0..6) {
        0 | 1 if depth > 0 => Tree::And(subs(rng)),
        2 if depth > 0 => Tree::Not(Box::new(condition(rng, depth - 1))),
        _ => leaf(rng),
    }
}

fn limit(rng: &mut SmallRng) -> Tree {
    let burst: u64 = rng.random_range(1..25);
    match rng.random() {
        true => Tree::Rate(burst.div_ceil(2), burst),
        false => Tree::Bytes(burst * 50, burst * 100),
    }
}

/// A policy of the file. Limits stand where everybody who reaches them does so at the same time.
fn policy(rng: &mut SmallRng) -> Tree {
    match rng.random_range(0..13) {
        0 => Tree::Drop(
            (0..rng.random_range(1..3))
                .map(|_| condition(rng, 2))
                .collect(),
        ),
        1 => limit(rng),
        2 => {
            let mut subs: Vec<_> = (0..rng.random_range(0..3))
                .map(|_| condition(rng, 1))
                .collect();
            subs.push(limit(rng));
            if rng.random() {
                subs.push(condition(rng, 1));
                subs.push(limit(rng));
            }
            Tree::And(subs)
        }
        3 | 4 => composite(rng),
        5 => Tree::And(vec![condition(rng, 2), composite(rng)]),
        6 => {
            let inner = if rng.random() {
                limit(rng)
            } else {
                composite(rng)
            };
            Tree::Not(Box::new(inner))
        }
        _ => condition(rng, 3),
    }
}

fn composite(rng: &mut SmallRng) -> Tree {
    let count = rng.random_range(1..5);
    let percents = [0, 10, 25, 50, 100];
    let subs: Vec<_> = (0..count)
        .map(|_| (pick(rng, &percents), condition(rng, 2)))
        .collect();
    let mut order: Vec<usize> = (0..count).collect();
    order.shuffle(rng);
    Tree::Composite(rng.random_range(4..40), subs, order)
}

fn attributes(rng: &mut SmallRng) -> Vec<KeyValue> {
    (0..rng.random_range(0..3))
        .map(|_| {
            let value = match rng.random_range(0..6) {
                0 => text(""),
                1 => text(pick(rng, &["x", "y", "xy"])),
                2 => Value::IntValue(rng.random_range(-9..9)),
                3 => Value::BoolValue(rng.random()),
                4 => Value::DoubleValue(4.0),
                _ => text("z"),
            };
            attribute(pick(rng, &["a", "b", "c"]), value)
        })
        .collect()
}

fn one_span(rng: &mut SmallRng, plain: bool) -> Span {
    let start = rng.random_range(0..30);
    let mut it = Span {
        attributes: attributes(rng),
        flags: pick(rng, &[0, 0, 0x100, 0x101]),
        status: status(pick(rng, &[0, 0, 1, 2])).status,
        ..span(start, start + rng.random_range(0..15))
    };
    // No two traces have one randomness: a limit takes none of equals at its boundary.
    let rv = format!("k=v,ot=rv:{:014x}", rng.random_range(0..RANGE));
    let mut states = vec!["", "", "", "k=v", "l=v,k=w", "k=v,!", "k=u,ot=th:8"];
    if !plain {
        states.push(&rv);
        if rng.random_range(0..20) == 0 {
            it.start_time_unix_nano = 0;
        }
        if rng.random_range(0..20) == 0 {
            it.end_time_unix_nano = 0;
        }
    }
    it.trace_state = pick(rng, &states).to_owned();
    it
}

/// `plain`: the order of arrival is of no matter to any policy.
fn held(rng: &mut SmallRng, plain: bool) -> Held {
    let parts: Vec<Part> = (0..rng.random_range(1..4))
        .map(|_| Part {
            resource: attributes(rng),
            spans: (0..rng.random_range(1..4))
                .map(|_| one_span(rng, plain))
                .collect(),
        })
        .collect();
    let id = rng.random::<u128>() | 1;
    let mut held = Held {
        id,
        parts,
        bytes: 0,
    };
    // One fragment each, as it came.
    let trace = TraceId::new(id.to_be_bytes()).unwrap();
    held.bytes = messages(trace, &held.parts)
        .iter()
        .map(|it| it.len() as u64)
        .sum();
    held
}

/// Verdicts by what is said of when which policy is asked.
fn verdicts(trees: &[Tree], traces: &[Held], rs: &[u64], first_match: bool) -> Vec<bool> {
    let mut reach = vec![true; traces.len()];
    for tree in trees.iter().filter(|it| matches!(it, Tree::Drop(_))) {
        let said = tree.says(traces, rs, &reach);
        for (reaches, dropped) in reach.iter_mut().zip(said) {
            *reaches &= !dropped;
        }
    }
    let mut kept = vec![false; traces.len()];
    for tree in trees.iter().filter(|it| !matches!(it, Tree::Drop(_))) {
        let asked: Vec<bool> = reach
            .iter()
            .zip(&kept)
            .map(|(reaches, kept)| *reaches && !(first_match && *kept))
            .collect();
        for (kept, said) in kept.iter_mut().zip(tree.says(traces, rs, &asked)) {
            *kept |= said;
        }
    }
    kept
}

fn round(seed: u64) -> Vec<&'static str> {
    let mut rng = SmallRng::seed_from_u64(seed);
    let rng = &mut rng;
    let plain = rng.random();
    let traces: Vec<Held> = (0..TRACES).map(|_| held(rng, plain)).collect();
    let mut trees: Vec<Tree> = (0..rng.random_range(1..5)).map(|_| policy(rng)).collect();
    let first_match = rng.random_range(0..4) == 0;
    if first_match {
        // Behind a limit that is asked, others wait for the answer.
        let mut limits = 0;
        trees.retain(|tree| {
            limits += usize::from(tree.is_limited());
            !tree.is_limited() || limits == 1
        });
        trees.push(Tree::Flags);
    }
    let policies: Vec<_> = trees
        .iter()
        .zip(0..)
        .map(|(it, n)| it.json(&format!("p{n}")))
        .collect();
    let file = json!({"sample_on_first_match": first_match, "policies": policies}).to_string();
    let rules = rules(&file);

    let rs: Vec<u64> = traces.iter().map(Held::randomness).collect();
    let expected = verdicts(&trees, &traces, &rs, first_match);
    let judge = |rng: &mut SmallRng, traces: &[Held]| {
        let parts: Vec<_> = traces
            .iter()
            .map(|it| (it.trace(), &it.parts[..]))
            .collect();
        let mut states = folded_apart(&rules, &delivered(rng, &parts));
        let complete: Vec<_> = traces
            .iter()
            .map(|it| {
                let (state, spans) = states.remove(&it.trace()).unwrap();
                Complete {
                    trace: it.trace(),
                    state,
                    spans,
                }
            })
            .collect();
        judged(&rules, &complete)
    };
    let votes = judge(rng, &traces);
    for (place, (vote, expected)) in votes.iter().zip(&expected).enumerate() {
        // What each says if all reach it, for whoever looks into a failure.
        let alone = || -> Vec<Vec<bool>> {
            trees
                .iter()
                .map(|it| it.says(&traces, &rs, &[true; TRACES]))
                .collect()
        };
        assert_eq!(
            vote.verdict == Verdict::Keep,
            *expected,
            "seed {seed}, trace {place}: {:?}\nby {file}\nall by R: {rs:?}\n{:?}\nfound {votes:?}",
            traces[place],
            alone()
        );
        if let (Verdict::Keep, Some(threshold)) = (vote.verdict, vote.threshold) {
            assert!(threshold.bits() <= rs[place], "seed {seed}");
        }
    }
    if !trees.iter().any(Tree::is_limited) {
        for (place, vote) in votes
            .iter()
            .enumerate()
            .filter(|(_, it)| it.verdict == Verdict::Keep)
        {
            check_threshold(
                seed,
                &trees,
                &traces[place],
                rs[place],
                first_match,
                vote.threshold,
            );
        }
    }
    if plain {
        let weighs = |it: &Tree| matches!(it, Tree::Bytes(..));
        let is_weighed = trees.iter().any(|it| it.has(&weighs));
        let mut otherwise = traces.clone();
        for it in &mut otherwise {
            if !is_weighed {
                // The headers that come once more have bytes.
                it.parts = it.parts.drain(..).flat_map(|it| cut(rng, it)).collect();
            }
            it.parts.shuffle(rng);
            for part in &mut it.parts {
                part.spans.shuffle(rng);
            }
        }
        assert_eq!(
            judge(rng, &otherwise),
            votes,
            "seed {seed}: the order of arrival matters\n{file}"
        );
    }
    check_explanation(seed, &rules, &traces[0]);
    subjects(&trees, plain)
}

/// The same spans in more requests than one.
fn cut(rng: &mut SmallRng, part: Part) -> Vec<Part> {
    let mut parts: Vec<Part> = Vec::new();
    for span in part.spans {
        match parts.last_mut().filter(|_| rng.random()) {
            Some(part) => part.spans.push(span),
            None => parts.push(Part {
                resource: part.resource.clone(),
                spans: vec![span],
            }),
        }
    }
    parts
}

/// An explanation has the verdict that the trace gets when it is alone, and says of every policy what that said.
fn check_explanation(seed: u64, rules: &Rules, held: &Held) {
    let alone = complete(rules, held.trace(), &held.parts);
    let explanation = explained(rules, held.trace(), &held.parts);
    assert_eq!(
        explanation.vote,
        judged(rules, std::slice::from_ref(&alone))[0],
        "seed {seed}"
    );
    let votes = rules.votes(
        alone.trace,
        &alone.state,
        alone.spans,
        &LimitAnswers::default(),
    );
    for (explained, said) in explanation.policies.iter().zip(votes) {
        if !has_limit(explained) {
            assert_eq!(explained.said, said, "seed {seed}: {}", explained.name);
        }
        assert!(
            !explained.reasons.is_empty(),
            "seed {seed}: {}",
            explained.name
        );
    }
}

fn has_limit(explained: &Explained) -> bool {
    explained.kind.ends_with("limiting")
        || explained.kind == "composite"
        || explained.policies.iter().any(has_limit)
}

/// A threshold is where the verdict, over all R, turns from a drop to a keep. If something is
/// inverted, hashed or dropped by luck there may be none, or there may be keeps below it, of odds
/// that nobody states.
fn check_threshold(
    seed: u64,
    trees: &[Tree],
    held: &Held,
    r: u64,
    first_match: bool,
    threshold: Option<Threshold>,
) {
    let kept = |r: u64| verdicts(trees, std::slice::from_ref(held), &[r], first_match)[0];
    assert!(kept(r));
    let special = |it: &Tree| matches!(it, Tree::Not(_) | Tree::Hash(..) | Tree::Drop(_));
    let is_special = trees.iter().any(|it| it.has(&special));
    let Some(threshold) = threshold else {
        assert!(is_special, "seed {seed}: {trees:?}");
        return;
    };
    let bits = threshold.bits();
    let steps = (0..64).map(|it| it * (RANGE / 64));
    for at in steps.chain([bits, bits.saturating_sub(1)]) {
        let is_wrong = match at >= bits {
            true => !kept(at),
            false => !is_special && kept(at),
        };
        assert!(!is_wrong, "seed {seed}: {bits:014x}, {at:014x} {trees:?}");
    }
}

/// What a round was about, so that all of it is in the 10,000 traces.
fn subjects(trees: &[Tree], plain: bool) -> Vec<&'static str> {
    let inside = |it: &Tree, wanted: &dyn Fn(&Tree) -> bool| match it {
        Tree::And(subs) | Tree::Drop(subs) => subs.iter().any(|it| it.has(wanted)),
        Tree::Not(sub) => sub.has(wanted),
        Tree::Composite(_, subs, _) => subs.iter().any(|(_, it)| it.has(wanted)),
        _ => false,
    };
    let nests = |it: &Tree| matches!(it, Tree::And(_) | Tree::Not(_));
    let limit = |it: &Tree| matches!(it, Tree::Rate(..) | Tree::Bytes(..));
    let composite = |it: &Tree| matches!(it, Tree::Composite(..));
    let condition = |it: &Tree| matches!(it, Tree::Condition(_));
    let any = |is: &dyn Fn(&Tree) -> bool| trees.iter().any(is);
    [
        ("free of order", plain),
        (
            "and with and, not inside",
            any(&|it| matches!(it, Tree::And(_)) && inside(it, &nests)),
        ),
        (
            "not with and, not inside",
            any(&|it| matches!(it, Tree::Not(_)) && inside(it, &nests)),
        ),
        (
            "drop with and, not inside",
            any(&|it| matches!(it, Tree::Drop(_)) && inside(it, &nests)),
        ),
        (
            "composite with and, not inside",
            any(&|it| composite(it) && inside(it, &nests)),
        ),
        ("a limit inside", any(&|it| inside(it, &limit))),
        ("a composite inside", any(&|it| inside(it, &composite))),
        ("a condition inside", any(&|it| inside(it, &condition))),
    ]
    .into_iter()
    .filter_map(|(subject, is_there)| is_there.then_some(subject))
    .collect()
}

#[test]
fn verdicts_are_those_of_the_reference() {
    let rounds = std::env::var("TAILRING_POLICY_CASES")
        .ok()
        .and_then(|it| it.parse().ok());
    let rounds = rounds.unwrap_or(1_250);
    let mut rounds_about: BTreeMap<&str, u64> = BTreeMap::new();
    for seed in 1..=rounds {
        for subject in round(seed) {
            *rounds_about.entry(subject).or_default() += 1;
        }
    }
    let is_seldom = |rounds_of: &u64| rounds_of * 50 < rounds;
    assert!(
        rounds_about.len() == 8 && !rounds_about.values().any(is_seldom),
        "{rounds_about:?} of {rounds}"
    );
}
