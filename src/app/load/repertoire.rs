//! The traces of a shape, made once, and how often each kind of them comes.

use rand::Rng;
use rand::rngs::SmallRng;

use super::generator::Shape;
use super::request;
use super::service::ServiceKind;
use super::template::TraceTemplate;
use super::turn::{self, Fate, TurnPlan};

/// What cells draw their traces from.
#[derive(Debug)]
pub(super) struct Repertoire {
    pub(super) services: &'static [ServiceKind],
    pub(super) classes: Vec<TraceClass>,
    /// Traces under way in a cell.
    pub(super) active_traces: usize,
}

/// Traces of one kind.
#[derive(Debug)]
pub(super) struct TraceClass {
    /// Traces of this class in 1000.
    share_per_mille: u32,
    /// What an operator would want to see: an error, cut off, or far too slow.
    pub(super) is_broken: bool,
    pub(super) templates: Vec<TraceTemplate>,
}

/// Templates of an agent shape's main class. Two of them ask the guardrail: one turn in 37.
const TURNS: usize = 74;
const REQUESTS: usize = 78;
/// Whose every turn is to be kept, by the policy files that are shipped.
const DEBUG_TENANTS: [&str; 2] = ["acme-corp", "big-bank-inc"];

impl Repertoire {
    pub(super) fn new(shape: Shape, random: &mut SmallRng) -> Self {
        match shape {
            Shape::Agent => Self {
                services: turn::SERVICES,
                // A 512-span batch finishes 6.4 turns, so it has pieces of 41 to 42.
                active_traces: 35,
                classes: vec![
                    TraceClass::of_turns(980, TURNS, long, Fate::Clean, random),
                    TraceClass::of_turns(20, 8, long, Fate::Error, random),
                ],
            },
            Shape::Fleet => Self {
                services: turn::SERVICES,
                active_traces: 35,
                classes: vec![
                    TraceClass::of_turns(890, TURNS, short, Fate::Clean, random),
                    TraceClass::of_turns(70, 16, long, Fate::Clean, random),
                    TraceClass::of_turns(10, 8, short, Fate::Error, random),
                    TraceClass::of_turns(10, 8, long, Fate::MaxTokens, random),
                    TraceClass::of_turns(10, 8, short, Fate::Slow, random),
                    TraceClass::of_turns_of(&DEBUG_TENANTS, 10, 8, short, Fate::Clean, random),
                ],
            },
            Shape::Micro => Self {
                services: request::SERVICES,
                // 51 requests end in a 512-span batch: pieces of 216.
                active_traces: 195,
                classes: vec![TraceClass {
                    share_per_mille: 1000,
                    is_broken: false,
                    templates: (0..REQUESTS)
                        .map(|index| TraceTemplate::encode(&request::request(index == 0, random)))
                        .collect(),
                }],
            },
        }
    }

    /// Class and template of the next trace.
    pub(super) fn choose(&self, random: &mut SmallRng) -> (usize, usize) {
        let mut drawn = random.random_range(0..1000);
        let mut class = 0;
        while class + 1 < self.classes.len() && drawn >= self.classes[class].share_per_mille {
            drawn -= self.classes[class].share_per_mille;
            class += 1;
        }
        (
            class,
            random.random_range(0..self.classes[class].templates.len()),
        )
    }
}

impl TraceClass {
    fn of_turns(
        share_per_mille: u32,
        count: usize,
        spans: impl Fn(&mut SmallRng) -> usize,
        fate: Fate,
        random: &mut SmallRng,
    ) -> Self {
        Self::of_turns_of(&[], share_per_mille, count, spans, fate, random)
    }

    /// Turns of these tenants in turn; of anybody when there are none.
    fn of_turns_of(
        tenants: &[&'static str],
        share_per_mille: u32,
        count: usize,
        spans: impl Fn(&mut SmallRng) -> usize,
        fate: Fate,
        random: &mut SmallRng,
    ) -> Self {
        let templates = (0..count)
            .map(|index| {
                let plan = TurnPlan {
                    spans: spans(random),
                    fate,
                    asks_guardrail: index % 37 == 36,
                    tenant: tenants.iter().cycle().nth(index).copied(),
                };
                TraceTemplate::encode(&turn::turn(plan, random))
            })
            .collect();
        Self {
            share_per_mille,
            is_broken: fate != Fate::Clean,
            templates,
        }
    }
}

/// 60 to 120 spans, 80 in the mean.
fn long(random: &mut SmallRng) -> usize {
    60 + (random.random::<f64>().powi(2) * 61.0) as usize
}

fn short(random: &mut SmallRng) -> usize {
    random.random_range(8..=18)
}
