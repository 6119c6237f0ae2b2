//! What the product counts of itself, as it shows it: for the checker to compare with what it saw, and
//! to see which branches of the code were ever taken.

use std::collections::BTreeMap;

use prometheus_client::registry::Registry;

/// By name and labels. Histograms are left out.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(crate) struct Counters(BTreeMap<String, u64>);

impl Counters {
    pub(crate) fn read(registry: &Registry) -> Self {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, registry).expect("a String takes it");
        let lines = text.lines().filter_map(|line| {
            let (name, value) = line.rsplit_once(' ')?;
            let is_counter = name.split('{').next()?.ends_with("_total");
            Some((name.to_owned(), value.parse().ok()?)).filter(|_| is_counter)
        });
        Self(lines.collect())
    }

    pub(crate) fn since(&self, before: &Self) -> Self {
        let grown = self.0.iter().map(|(name, value)| {
            let before = before.0.get(name).copied().unwrap_or(0);
            (name.clone(), value - before)
        });
        Self(grown.filter(|(_, value)| *value > 0).collect())
    }

    pub(crate) fn add(&mut self, other: &Self) {
        for (name, value) in &other.0 {
            *self.0.entry(name.clone()).or_default() += value;
        }
    }

    /// All that begin like this.
    pub(crate) fn sum(&self, prefix: &str) -> u64 {
        let found = self.0.iter().filter(|(name, _)| name.starts_with(prefix));
        found.map(|(_, value)| value).sum()
    }

    pub(crate) fn all(&self) -> impl Iterator<Item = (&str, u64)> {
        self.0.iter().map(|(name, value)| (name.as_str(), *value))
    }
}
