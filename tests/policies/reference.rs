//! Policies a second time, as plainly as can be: whole traces in hand, each policy asked as its
//! description says. Shares no code with `tailring::policy`.

use opentelemetry_proto::tonic::common::v1::{KeyValue, any_value::Value};
use opentelemetry_proto::tonic::trace::v1::Span;
use regex::Regex;
use serde_json::{Value as Json, json};

use tailring::model::TraceId;

use crate::given::Part;

pub(crate) const RANGE: u64 = 1 << 56;

/// One policy.
#[derive(Debug, Clone)]
pub(crate) enum Tree {
    Always,
    /// Percent; whole hex digits, so that nobody rounds.
    Share(f64),
    Hash(f64, String),
    Status(Vec<usize>),
    Latency(i64, i64),
    Count(u32, u32),
    Text(String, Vec<String>, bool, bool),
    Number(String, i64, i64, bool),
    Truth(String, bool, bool),
    State(String, Vec<String>),
    Flags,
    /// An `ottl_condition` with these.
    Condition(Vec<Asked>),
    /// Per second, burst.
    Rate(u64, u64),
    Bytes(u64, u64),
    And(Vec<Tree>),
    Not(Box<Tree>),
    Drop(Vec<Tree>),
    /// Whole rate; each with its percentage; the order in which they are asked.
    Composite(u64, Vec<(u64, Tree)>, Vec<usize>),
}

/// One OTTL condition.
#[derive(Debug, Clone)]
pub(crate) enum Asked {
    /// Key and text of an attribute.
    Span(String, String),
    Resource(String, String),
    Status(i32),
    /// Of one span.
    Both(String, String, i32),
}

/// One trace, its fragments in the order of their arrival.
#[derive(Debug, Clone)]
pub(crate) struct Held {
    pub(crate) id: u128,
    pub(crate) parts: Vec<Part>,
    pub(crate) bytes: u64,
}

const STATUSES: [&str; 3] = ["UNSET", "OK", "ERROR"];

impl Tree {
    pub(crate) fn json(&self, name: &str) -> Json {
        let of = |kind: &str, block: Json| json!({"name": name, "type": kind, kind: block});
        let subs = |subs: &[Self]| -> Vec<Json> {
            subs.iter()
                .zip(0..)
                .map(|(it, n)| it.json(&format!("s{n}")))
                .collect()
        };
        match self {
            Self::Always => json!({"name": name, "type": "always_sample"}),
            Self::Share(percent) => of("probabilistic", json!({"sampling_percentage": percent})),
            Self::Hash(percent, salt) => of(
                "probabilistic",
                json!({"sampling_percentage": percent, "hash_salt": salt, "mode": "hash_seed"}),
            ),
            Self::Status(codes) => {
                let codes: Vec<_> = codes.iter().map(|code| STATUSES[*code]).collect();
                of("status_code", json!({"status_codes": codes}))
            }
            Self::Latency(low, high) => of(
                "latency",
                json!({"threshold_ms": low, "upper_threshold_ms": high}),
            ),
            Self::Count(min, max) => of("span_count", json!({"min_spans": min, "max_spans": max})),
            Self::Text(key, values, regex, invert) => of(
                "string_attribute",
                json!({"key": key, "values": values, "enabled_regex_matching": regex, "invert_match": invert}),
            ),
            Self::Number(key, min, max, invert) => of(
                "numeric_attribute",
                json!({"key": key, "min_value": min, "max_value": max, "invert_match": invert}),
            ),
            Self::Truth(key, value, invert) => of(
                "boolean_attribute",
                json!({"key": key, "value": value, "invert_match": invert}),
            ),
            Self::State(key, values) => of("trace_state", json!({"key": key, "values": values})),
            Self::Flags => json!({"name": name, "type": "trace_flags"}),
            Self::Condition(asked) => {
                let asked: Vec<_> = asked.iter().map(Asked::text).collect();
                of("ottl_condition", json!({"span": asked}))
            }
            Self::Rate(rate, burst) => of(
                "rate_limiting",
                json!({"spans_per_second": rate, "burst_capacity": burst}),
            ),
            Self::Bytes(rate, burst) => of(
                "bytes_limiting",
                json!({"bytes_per_second": rate, "burst_capacity": burst}),
            ),
            Self::And(all) => of("and", json!({"and_sub_policy": subs(all)})),
            Self::Not(one) => of("not", json!({"not_sub_policy": one.json("s")})),
            Self::Drop(all) => of("drop", json!({"drop_sub_policy": subs(all)})),
            Self::Composite(max, all, order) => {
                let name = |n: usize| format!("s{n}");
                let policies: Vec<_> = all.iter().map(|(_, it)| it.clone()).collect();
                let allocation: Vec<_> = all
                    .iter()
                    .enumerate()
                    .map(|(n, (percent, _))| json!({"policy": name(n), "percent": percent}))
                    .collect();
                let order: Vec<_> = order.iter().map(|n| name(*n)).collect();
                of(
                    "composite",
                    json!({
                        "max_total_spans_per_second": max,
                        "policy_order": order,
                        "composite_sub_policy": subs(&policies),
                        "rate_allocation": allocation,
                    }),
                )
            }
        }
    }

    /// Whether `wanted` is anywhere in it.
    pub(crate) fn has(&self, wanted: &dyn Fn(&Self) -> bool) -> bool {
        wanted(self)
            || match self {
                Self::And(subs) | Self::Drop(subs) => subs.iter().any(|it| it.has(wanted)),
                Self::Not(sub) => sub.has(wanted),
                Self::Composite(_, subs, _) => subs.iter().any(|(_, it)| it.has(wanted)),
                _ => false,
            }
    }

    pub(crate) fn is_limited(&self) -> bool {
        self.has(&|it| matches!(it, Self::Rate(..) | Self::Bytes(..) | Self::Composite(..)))
    }

    /// What it says of each trace; a limit is asked by all of them together. `None`s do not reach
    /// it. `rs` are their randomnesses.
    pub(crate) fn says(&self, traces: &[Held], rs: &[u64], reach: &[bool]) -> Vec<bool> {
        let each = |says: &dyn Fn(&Held) -> bool| -> Vec<bool> {
            let asked = traces.iter().zip(reach);
            asked.map(|(it, reaches)| *reaches && says(it)).collect()
        };
        match self {
            Self::Rate(_, burst) => {
                let costs: Vec<_> = traces.iter().map(|it| it.spans().count() as u64).collect();
                taken(&costs, rs, reach, *burst)
            }
            Self::Bytes(_, burst) => {
                let costs: Vec<_> = traces.iter().map(|it| it.bytes).collect();
                taken(&costs, rs, reach, *burst)
            }
            Self::And(subs) => {
                // Behind a no nobody is asked.
                let mut reach = reach.to_vec();
                for sub in subs {
                    reach = sub.says(traces, rs, &reach);
                }
                reach
            }
            Self::Drop(subs) => Self::And(subs.clone()).says(traces, rs, reach),
            Self::Not(sub) => {
                let said = sub.says(traces, rs, reach);
                said.iter()
                    .zip(reach)
                    .map(|(said, reaches)| *reaches && !said)
                    .collect()
            }
            Self::Composite(max, subs, order) => {
                let says: Vec<Vec<bool>> = order
                    .iter()
                    .map(|place| subs[*place].1.says(traces, rs, reach))
                    .collect();
                let parts: Vec<f64> = order
                    .iter()
                    .map(|place| match subs[*place].0 {
                        0 => (max / subs.len() as u64) as f64,
                        percent => (percent as f64 / 100.0 * *max as f64).floor(),
                    })
                    .collect();
                shared(*max as f64, parts, &says, traces, rs)
            }
            Self::Share(percent) => {
                let threshold = RANGE - (percent / 100.0 * RANGE as f64) as u64;
                rs.iter()
                    .zip(reach)
                    .map(|(r, reaches)| *reaches && *r >= threshold)
                    .collect()
            }
            _ => each(&|it| self.says_alone(it)),
        }
    }

    fn says_alone(&self, it: &Held) -> bool {
        match self {
            Self::Always => true,
            Self::Hash(percent, salt) => {
                let mut hash = 0xcbf2_9ce4_8422_2325_u64;
                for byte in salt.bytes().chain(it.id.to_be_bytes()) {
                    hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
                }
                // Not rounded as Go does; the difference is one in 2^50.
                (hash as f64) <= percent / 100.0 * u64::MAX as f64
            }
            Self::Status(codes) => it.spans().any(|span| {
                let code = span.status.as_ref().map_or(0, |status| status.code);
                codes.iter().any(|wanted| *wanted as i32 == code)
            }),
            Self::Latency(low, high) => {
                let (mut start, mut end, mut longest) = (0, 0, i64::MIN);
                for span in it.spans() {
                    if start == 0 || span.start_time_unix_nano < start {
                        start = span.start_time_unix_nano;
                    }
                    if end == 0 || span.end_time_unix_nano > end {
                        end = span.end_time_unix_nano;
                    }
                    longest = longest.max((end as i64 - start as i64) / 1_000_000);
                }
                let last = (end as i64 - start as i64) / 1_000_000;
                match high {
                    0 => longest > *low,
                    high => last > *low && last <= *high,
                }
            }
            Self::Count(min, max) => {
                let spans = it.spans().count() as u32;
                spans >= *min && (*max == 0 || spans <= *max)
            }
            Self::Text(key, values, regex, invert) => {
                let matches = |text: &str| {
                    values.iter().any(|value| match regex {
                        true => Regex::new(value).unwrap().is_match(text),
                        false => !value.is_empty() && value == text,
                    })
                };
                let text = |attribute: &KeyValue| match value(attribute) {
                    Some(Value::StringValue(text)) => text.clone(),
                    _ => String::new(),
                };
                let found = it.resources(key).any(|it| matches(&text(it)))
                    || it
                        .on_spans(key)
                        .any(|it| !text(it).is_empty() && matches(&text(it)));
                found != *invert
            }
            Self::Number(key, min, max, invert) => {
                let min = if *min == 0 { i64::MIN } else { *min };
                let max = if *max == 0 { i64::MAX } else { *max };
                let found = it.resources(key).chain(it.on_spans(key)).any(|attribute| {
                    let number = match value(attribute) {
                        Some(Value::IntValue(number)) => *number,
                        _ => 0,
                    };
                    min <= number && number <= max
                });
                found != *invert
            }
            Self::Truth(key, wanted, invert) => {
                let found = it.resources(key).chain(it.on_spans(key)).any(|attribute| {
                    let truth = match value(attribute) {
                        Some(Value::BoolValue(truth)) => *truth,
                        _ => false,
                    };
                    truth == *wanted
                });
                found != *invert
            }
            Self::State(key, values) => it.spans().any(|span| {
                // Those that are drawn are lawful, or not at all.
                if span.trace_state.contains('!') {
                    return false;
                }
                let member = span.trace_state.split(',').find_map(|member| {
                    let (name, value) = member.split_once('=')?;
                    (name == key).then_some(value)
                });
                member.is_some_and(|it| values.iter().any(|value| value == it))
            }),
            Self::Flags => it.spans().any(|span| span.flags & 1 == 1),
            Self::Condition(asked) => it.parts.iter().any(|part| {
                let holds = |span| asked.iter().any(|it| it.holds(&part.resource, span));
                part.spans.iter().any(holds)
            }),
            _ => unreachable!("said above"),
        }
    }
}

impl Asked {
    fn text(&self) -> String {
        match self {
            Self::Span(key, text) => format!("attributes[{key:?}] == {text:?}"),
            Self::Resource(key, text) => format!("resource.attributes[{key:?}] == {text:?}"),
            Self::Status(code) => format!("status.code == {code}"),
            Self::Both(key, text, code) => {
                format!("attributes[{key:?}] == {text:?} and not (status.code != {code})")
            }
        }
    }

    fn holds(&self, resource: &[KeyValue], span: &Span) -> bool {
        let is = |attributes: &[KeyValue], key: &str, text: &str| {
            let value = first(attributes, key).and_then(value);
            matches!(value, Some(Value::StringValue(it)) if it == text)
        };
        let code = span.status.as_ref().map_or(0, |status| status.code);
        match self {
            Self::Span(key, text) => is(&span.attributes, key, text),
            Self::Resource(key, text) => is(resource, key, text),
            Self::Status(wanted) => code == *wanted,
            Self::Both(key, text, wanted) => is(&span.attributes, key, text) && code == *wanted,
        }
    }
}

fn value(attribute: &KeyValue) -> Option<&Value> {
    attribute.value.as_ref()?.value.as_ref()
}

/// The first of each key.
fn first<'a>(attributes: &'a [KeyValue], key: &str) -> Option<&'a KeyValue> {
    attributes.iter().find(|it| it.key == key)
}

impl Held {
    pub(crate) fn trace(&self) -> TraceId {
        TraceId::new(self.id.to_be_bytes()).unwrap()
    }

    pub(crate) fn spans(&self) -> impl Iterator<Item = &Span> {
        self.parts.iter().flat_map(|part| &part.spans)
    }

    fn resources(&self, key: &str) -> impl Iterator<Item = &KeyValue> {
        self.parts
            .iter()
            .filter_map(move |part| first(&part.resource, key))
    }

    fn on_spans(&self, key: &str) -> impl Iterator<Item = &KeyValue> {
        self.spans()
            .filter_map(move |span| first(&span.attributes, key))
    }

    /// What the first span that says so says, or else the lower 56 bits of the ID.
    pub(crate) fn randomness(&self) -> u64 {
        let stated = self.spans().find_map(|span| {
            let (_, rv) = span.trace_state.split_once("rv:")?;
            u64::from_str_radix(&rv[..14], 16).ok()
        });
        stated.unwrap_or(self.id as u64 & (RANGE - 1))
    }
}

/// One window: by descending R, while anything is left.
fn taken(costs: &[u64], rs: &[u64], reach: &[bool], burst: u64) -> Vec<bool> {
    let mut order: Vec<usize> = (0..rs.len()).filter(|it| reach[*it]).collect();
    order.sort_by_key(|it| std::cmp::Reverse(rs[*it]));
    let mut left = burst as i64;
    let mut taken = vec![false; rs.len()];
    for (place, it) in order.iter().enumerate() {
        if left <= 0 {
            // Its equals go with it.
            for before in &order[..place] {
                taken[*before] &= rs[*before] != rs[*it];
            }
            break;
        }
        left -= costs[*it].max(1) as i64;
        taken[*it] = true;
    }
    taken
}

/// One window of a composite: by descending R, whoever can have a place, others moving if need be.
fn shared(max: f64, parts: Vec<f64>, says: &[Vec<bool>], traces: &[Held], rs: &[u64]) -> Vec<bool> {
    let costs: Vec<f64> = traces.iter().map(|it| it.spans().count() as f64).collect();
    let mut order: Vec<usize> = (0..rs.len()).collect();
    order.retain(|it| says.iter().any(|says| says[*it]));
    order.sort_by_key(|it| std::cmp::Reverse(rs[*it]));
    let (mut left, mut total) = (parts, max);
    let mut place: Vec<Option<usize>> = vec![None; rs.len()];
    let mut refused: Option<u64> = None;
    for it in order {
        let mut paths: Vec<Vec<usize>> = (0..says.len())
            .filter(|sub| says[*sub][it])
            .map(|sub| vec![sub])
            .collect();
        let mut found = None;
        let mut seen: Vec<usize> = paths.iter().map(|path| path[0]).collect();
        // Who moves from one to the other: the dearest, and only if that makes room.
        let moves = |from: usize, to: usize, place: &[Option<usize>], left: &[f64]| {
            let movable = (0..rs.len()).filter(|it| place[*it] == Some(from) && says[to][*it]);
            let dearest = movable.reduce(|best, it| {
                let better =
                    costs[it] > costs[best] || costs[it] == costs[best] && rs[it] > rs[best];
                if better { it } else { best }
            });
            dearest.filter(|it| left[from] + costs[*it] > 0.0)
        };
        while !paths.is_empty() && found.is_none() && total > 0.0 {
            let path = paths.remove(0);
            let end = path[path.len() - 1];
            if left[end] > 0.0 {
                found = Some(path);
                break;
            }
            for next in 0..says.len() {
                if !seen.contains(&next) && moves(end, next, &place, &left).is_some() {
                    seen.push(next);
                    paths.push([path.clone(), vec![next]].concat());
                }
            }
        }
        let Some(path) = found else {
            refused = refused.max(Some(rs[it]));
            continue;
        };
        for step in path.windows(2).rev() {
            let moved = moves(step[0], step[1], &place, &left).unwrap();
            left[step[0]] += costs[moved];
            left[step[1]] -= costs[moved];
            place[moved] = Some(step[1]);
        }
        place[it] = Some(path[0]);
        left[path[0]] -= costs[it];
        total -= costs[it];
    }
    place.iter().map(Option::is_some).collect()
}
