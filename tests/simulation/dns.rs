//! Who answers to which name, and what those who ask are told of it: late, and not always the truth.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use tailring::model::Member;

use crate::fault::Lie;
use crate::plan::Millis;

/// The records of the one zone there is, with their past.
#[derive(Debug, Default)]
pub(crate) struct Zone {
    /// In the order of time.
    changes: Vec<(Millis, Member, Option<SocketAddr>)>,
}

/// How one who asks is served.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Service {
    pub(crate) lag: Millis,
    /// Answers are those of this moment.
    pub(crate) frozen_at: Option<Millis>,
    pub(crate) lie: Option<Lie>,
}

pub(crate) type Records = BTreeMap<Member, SocketAddr>;

impl Zone {
    pub(crate) fn set(&mut self, at: Millis, member: &Member, address: Option<SocketAddr>) {
        self.changes.push((at, member.clone(), address));
    }

    fn at(&self, moment: Millis) -> Records {
        let mut records = Records::new();
        for (_, member, address) in self.changes.iter().take_while(|(at, ..)| *at <= moment) {
            match address {
                Some(address) => records.insert(member.clone(), *address),
                None => records.remove(member),
            };
        }
        records
    }

    /// `None`: the question failed.
    pub(crate) fn ask(&self, service: &Service, now: Millis) -> Option<Records> {
        let moment = service.frozen_at.unwrap_or(now.saturating_sub(service.lag));
        let mut records = self.at(moment);
        match service.lie {
            None => {}
            Some(Lie::Nothing) => return None,
            Some(Lie::Half) => {
                let half = records.len() / 2;
                records = records.into_iter().skip(half).collect();
            }
            Some(Lie::SwappedAddresses) => {
                let mut addresses: Vec<SocketAddr> = records.values().copied().collect();
                addresses.rotate_left(1);
                for (held, address) in records.values_mut().zip(addresses) {
                    *held = address;
                }
            }
        }
        // An empty answer is no answer.
        (!records.is_empty()).then_some(records)
    }
}
