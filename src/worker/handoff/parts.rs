//! One call carries at most 4 MiB; a message that is longer, because one fragment of it is, goes in parts.
//!
//! ```text
//! call := message u64 (random)  part u16 (from 0)  parts u16  bytes (of the message, the parts in a row)
//! ```

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use bytes::{Bytes, BytesMut};

use crate::model::{Member, Moment};

const HEAD_BYTES: usize = 12;
/// A request of `--max-request-bytes` is one fragment at most; with its headers and what else is in the message.
pub(crate) const MESSAGE_BYTES_MAX: usize = 96 << 20;
/// Messages of which a part is here. Senders give up after some seconds.
const UNFINISHED_MAX: usize = 4;
const UNFINISHED_FOR: Duration = Duration::from_secs(30);

/// A message as calls of at most `call_bytes_max`.
pub(crate) fn cut(message: &Bytes, id: u64, call_bytes_max: usize) -> Vec<Bytes> {
    let room = call_bytes_max - HEAD_BYTES;
    // Below 2^16, with calls of 4 MiB and messages of 96 MiB.
    let parts = message.len().div_ceil(room).max(1);
    (0..parts)
        .map(|part| {
            let bytes = message.slice(part * room..message.len().min((part + 1) * room));
            let mut call = BytesMut::with_capacity(HEAD_BYTES + bytes.len());
            call.extend_from_slice(&id.to_le_bytes());
            call.extend_from_slice(&(part as u16).to_le_bytes());
            call.extend_from_slice(&(parts as u16).to_le_bytes());
            call.extend_from_slice(&bytes);
            call.freeze()
        })
        .collect()
}

/// Puts messages together again.
#[derive(Debug, Default)]
pub(crate) struct Unfinished(Mutex<HashMap<(Member, u64), Parts>>);

#[derive(Debug)]
struct Parts {
    since: Moment,
    bytes: BytesMut,
    next: u16,
}

/// What a call made of its message.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Joined {
    Whole(Bytes),
    MoreToCome,
    /// Not a call, not the next part, or too many are unfinished.
    Refused(&'static str),
}

impl Unfinished {
    pub(crate) fn take(&self, from: &Member, call: &Bytes, now: Moment) -> Joined {
        let Some((head, _)) = call.split_first_chunk::<HEAD_BYTES>() else {
            return Joined::Refused("it is shorter than its head");
        };
        let [i0, i1, i2, i3, i4, i5, i6, i7, p0, p1, n0, n1] = *head;
        let id = u64::from_le_bytes([i0, i1, i2, i3, i4, i5, i6, i7]);
        let (part, parts) = (u16::from_le_bytes([p0, p1]), u16::from_le_bytes([n0, n1]));
        let bytes = call.slice(HEAD_BYTES..);
        if parts == 1 && part == 0 {
            return Joined::Whole(bytes);
        }
        let mut unfinished = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        unfinished.retain(|_, parts| parts.since + UNFINISHED_FOR > now);
        let key = (from.clone(), id);
        if part == 0 {
            if unfinished.len() >= UNFINISHED_MAX {
                return Joined::Refused("too many long messages are on their way");
            }
            let begun = Parts {
                since: now,
                bytes: BytesMut::new(),
                next: 0,
            };
            unfinished.insert(key.clone(), begun);
        }
        let Some(held) = unfinished.get_mut(&key) else {
            return Joined::Refused("an earlier part of the message is not here");
        };
        let is_next = held.next == part && part < parts;
        if !is_next || held.bytes.len() + bytes.len() > MESSAGE_BYTES_MAX {
            unfinished.remove(&key);
            return Joined::Refused("the parts of the message do not fit together");
        }
        held.bytes.extend_from_slice(&bytes);
        held.next += 1;
        if held.next < parts {
            return Joined::MoreToCome;
        }
        let whole = unfinished.remove(&key).map(|held| held.bytes.freeze());
        whole.map_or(Joined::MoreToCome, Joined::Whole)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_put_together_whoever_else_sends_and_a_wrong_one_ends_its_message() {
        let member = |name: &str| Member::parse(name).unwrap();
        let (a, b) = (member("a"), member("b"));
        let unfinished = Unfinished::default();
        let now = Moment::from_unix_millis(1);
        let message: Bytes = (0..=255).collect::<Vec<u8>>().into();
        let calls = cut(&message, 7, HEAD_BYTES + 100);
        assert_eq!(calls.len(), 3);
        assert_eq!(unfinished.take(&a, &calls[0], now), Joined::MoreToCome);
        assert_eq!(unfinished.take(&b, &calls[0], now), Joined::MoreToCome);
        assert_eq!(unfinished.take(&a, &calls[1], now), Joined::MoreToCome);
        assert_eq!(
            unfinished.take(&a, &calls[2], now),
            Joined::Whole(message.clone())
        );
        // Of the other one a part is left out.
        assert!(matches!(
            unfinished.take(&b, &calls[2], now),
            Joined::Refused(_)
        ));
        assert!(matches!(
            unfinished.take(&b, &calls[1], now),
            Joined::Refused(_)
        ));
        let one = cut(&message, 8, 4 << 20);
        assert_eq!(unfinished.take(&a, &one[0], now), Joined::Whole(message));
        assert!(matches!(
            unfinished.take(&a, &Bytes::from_static(b"short"), now),
            Joined::Refused(_)
        ));
        // Senders that vanish in the middle do not take the places for ever.
        for id in 0..4 {
            let calls = cut(&Bytes::from(vec![0; 200]), id, HEAD_BYTES + 100);
            assert_eq!(unfinished.take(&a, &calls[0], now), Joined::MoreToCome);
        }
        assert!(matches!(
            unfinished.take(&a, &calls[0], now),
            Joined::Refused(_)
        ));
        let later = now + UNFINISHED_FOR;
        assert_eq!(unfinished.take(&a, &calls[0], later), Joined::MoreToCome);
    }
}
