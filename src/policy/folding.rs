//! What whoever folds keeps from one fragment to the next: what policies saw in resources, and which
//! conditions had no answer.
//!
//! A process sends the same resource with every request, and a pattern takes longer to match than its
//! attributes to compare: what was seen in a resource is remembered by its bytes.

use std::collections::HashMap;

use crate::policy::fold::Facts;
use crate::policy::ottl::EvalError;

/// See the module. One for each thread that folds; made anew it only has forgotten.
#[derive(Debug, Default)]
pub struct Folding {
    pub(super) resources: Resources,
    failures: Vec<Failure>,
}

/// What one policy's conditions failed at: never for what value, which is a client's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Failure {
    /// Index into [`crate::policy::Rules::policies`]: the one at the top, if it stands in others.
    pub policy: u16,
    pub error: EvalError,
    /// With `error_mode: ignore`.
    pub is_logged: bool,
    /// Answers that were missing. One about a resource is missing once for all of its spans.
    pub times: u64,
}

/// Facts by the bytes of a resource's header, under one version of the rules.
#[derive(Debug, Default)]
pub(super) struct Resources {
    version: u64,
    facts: HashMap<Box<[u8]>, Facts, foldhash::quality::RandomState>,
    bytes: usize,
}

/// Reached, all is forgotten: clients may make up resources.
const RESOURCE_BYTES_MAX: usize = 1 << 20;
/// A longer one is read each time.
const HEADER_BYTES_MAX: usize = 16 << 10;
/// What one costs beside its bytes, roughly.
const ENTRY_BYTES: usize = 64;

impl Folding {
    pub(super) fn failed(&mut self, policy: u16, error: EvalError, is_logged: bool) {
        let same =
            |it: &&mut Failure| (it.policy, it.error, it.is_logged) == (policy, error, is_logged);
        match self.failures.iter_mut().find(same) {
            Some(failure) => failure.times += 1,
            None => self.failures.push(Failure {
                policy,
                error,
                is_logged,
                times: 1,
            }),
        }
    }

    /// Since this was asked last. None in all but wrong files, and few in these.
    pub fn take_failures(&mut self) -> impl Iterator<Item = Failure> + '_ {
        self.failures.drain(..)
    }
}

impl Resources {
    /// What these rules see in the resource; `see` looks, if that is not known.
    pub(super) fn facts(
        &mut self,
        version: u64,
        header: &[u8],
        see: impl FnOnce() -> Facts,
    ) -> Facts {
        if self.version != version {
            *self = Self {
                version,
                ..Self::default()
            };
        }
        if let Some(known) = self.facts.get(header) {
            return known.clone();
        }
        let facts = see();
        let bytes = header.len() + ENTRY_BYTES;
        if header.len() <= HEADER_BYTES_MAX {
            if self.bytes + bytes > RESOURCE_BYTES_MAX {
                self.facts.clear();
                self.bytes = 0;
            }
            self.bytes += bytes;
            self.facts.insert(header.into(), facts.clone());
        }
        facts
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_resource_is_looked_at_once_under_each_version_and_memory_is_bounded() {
        let mut resources = Resources::default();
        let mut looked = 0;
        let mut look = |resources: &mut Resources, version, header: &[u8]| {
            resources.facts(version, header, || {
                looked += 1;
                let mut facts = Facts::none(64);
                facts.add(looked);
                facts
            })
        };
        let first = look(&mut resources, 1, b"a");
        assert_eq!(look(&mut resources, 1, b"a"), first);
        assert_ne!(look(&mut resources, 1, b"b"), first);
        assert_eq!(look(&mut resources, 1, b"a"), first);
        assert_ne!(look(&mut resources, 2, b"a"), first);
        let long = vec![0; HEADER_BYTES_MAX + 1];
        assert_ne!(
            look(&mut resources, 2, &long),
            look(&mut resources, 2, &long)
        );
        assert_eq!(looked, 5);
        let mut longest = 0;
        for number in 0..1_000_u32 {
            let mut header = vec![1; 4_000];
            header[..4].copy_from_slice(&number.to_le_bytes());
            resources.facts(2, &header, || Facts::none(1));
            longest = longest.max(resources.bytes);
            assert_eq!(
                resources.bytes,
                resources
                    .facts
                    .keys()
                    .map(|it| it.len() + ENTRY_BYTES)
                    .sum::<usize>()
            );
        }
        assert!((RESOURCE_BYTES_MAX / 2..=RESOURCE_BYTES_MAX).contains(&longest));
    }
}
