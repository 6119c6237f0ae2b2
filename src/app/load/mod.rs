//! `tailring load`: real traffic for any OTLP endpoint, with books that tell what was sent.

mod generator;
mod repertoire;
mod request;
mod service;
mod template;
mod turn;

pub use generator::{Batch, Generator, GeneratorPlan, Shape};

use rand::Rng;
use rand::rngs::SmallRng;

/// Text of common words, its length in bytes drawn from the range.
fn salad(random: &mut SmallRng, bytes: std::ops::Range<usize>) -> String {
    const WORDS: &[&str] = &[
        "the", "customer", "order", "was", "shipped", "before", "invoice", "please", "check",
        "status", "of", "and", "return", "policy", "refund", "account", "open", "ticket", "with",
        "priority", "summary", "next", "step", "query", "result", "table", "user", "asked", "for",
        "details", "about", "delivery", "in", "region", "error", "log", "shows", "timeout",
    ];
    let bytes = random.random_range(bytes);
    let mut text = String::with_capacity(bytes + 12);
    while text.len() < bytes {
        if !text.is_empty() {
            text.push(' ');
        }
        text.push_str(WORDS[random.random_range(0..WORDS.len())]);
    }
    text
}
