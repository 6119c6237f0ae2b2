//! The payloads of records, in bytes. The format stands at the top of the folder's module.

use super::{GotExport, GotSpan, LedgerKind, PlayedBatch, Record, SpanFacts, SpanKey};
use crate::model::{Member, Moment, SpanId, TraceId, VerdictId};

const SPAN_KEY_BYTES: usize = 24;
const GOT_SPAN_BYTES: usize = 28;
const TAG_SENT: u8 = 1;
const TAG_ACKNOWLEDGED: u8 = 2;
const TAG_GOT: u8 = 3;
const TAG_PLAYED: u8 = 4;
const FLAG_MEMBER: u8 = 1;
const FLAG_VERDICTS: u8 = 2;
const FLAG_ERROR: u8 = 1;
const FLAG_BROKEN: u8 = 2;
const FLAG_TENANT: u8 = 4;
const SHORT: &str = "a record shorter than its kind";

pub(super) fn encode(record: &Record, payload: &mut Vec<u8>) {
    match record {
        Record::Sent { batch, spans } => {
            payload.push(TAG_SENT);
            payload.extend_from_slice(&batch.to_le_bytes());
            for key in spans.iter() {
                encode_key(key, payload);
            }
        }
        Record::Acknowledged { batch } => {
            payload.push(TAG_ACKNOWLEDGED);
            payload.extend_from_slice(&batch.to_le_bytes());
        }
        Record::Played(played) => {
            payload.push(TAG_PLAYED);
            payload.extend_from_slice(&played.batch.to_le_bytes());
            payload.extend_from_slice(&played.sent_at.unix_nanos.to_le_bytes());
            payload.extend_from_slice(&played.acknowledged_at.unix_nanos.to_le_bytes());
            for facts in played.spans.iter() {
                encode_facts(facts, payload);
            }
        }
        Record::Got(export) => {
            let member = export.member.as_ref().map_or("", Member::as_str);
            // Verdicts come for a whole export or not at all.
            let verdicts =
                !export.spans.is_empty() && export.spans.iter().all(|span| span.verdict.is_some());
            payload.push(TAG_GOT);
            payload.extend_from_slice(&export.at.unix_nanos.to_le_bytes());
            payload.push(
                if export.member.is_some() {
                    FLAG_MEMBER
                } else {
                    0
                } | if verdicts { FLAG_VERDICTS } else { 0 },
            );
            // A member's name has at most 253 bytes.
            payload.extend_from_slice(&(member.len() as u16).to_le_bytes());
            payload.extend_from_slice(member.as_bytes());
            for span in &export.spans {
                encode_key(&span.key, payload);
                let verdict = span.verdict.map_or(0, |verdict| verdict.0);
                payload.extend_from_slice(&verdict.to_le_bytes());
            }
        }
    }
}

fn encode_facts(facts: &SpanFacts, payload: &mut Vec<u8>) {
    encode_key(&facts.key, payload);
    payload.extend_from_slice(&facts.start_unix_nanos.to_le_bytes());
    payload.extend_from_slice(&facts.end_unix_nanos.to_le_bytes());
    // A longer one is left out: half a name would be another tenant's.
    let tenant = facts.tenant.as_deref().filter(|name| name.len() <= 255);
    let flag = |is: bool, flag: u8| if is { flag } else { 0 };
    payload.push(
        flag(facts.has_error, FLAG_ERROR)
            | flag(facts.of_broken_turn, FLAG_BROKEN)
            | flag(tenant.is_some(), FLAG_TENANT),
    );
    let tenant = tenant.unwrap_or_default();
    payload.push(tenant.len() as u8);
    payload.extend_from_slice(tenant.as_bytes());
}

fn encode_key(key: &SpanKey, payload: &mut Vec<u8>) {
    payload.extend_from_slice(key.trace.as_bytes());
    payload.extend_from_slice(key.span.as_bytes());
}

pub(super) fn decode(payload: &[u8], kind: LedgerKind) -> Result<Record, &'static str> {
    let (tag, rest) = payload.split_first().ok_or(SHORT)?;
    let (number, rest) = rest.split_first_chunk::<8>().ok_or(SHORT)?;
    let number = u64::from_le_bytes(*number);
    match (kind, *tag) {
        (LedgerKind::Sent, TAG_SENT) => {
            let (keys, odd) = rest.as_chunks::<SPAN_KEY_BYTES>();
            if !odd.is_empty() {
                return Err("half a span");
            }
            let spans = keys
                .iter()
                .map(|key| decode_key(key))
                .collect::<Result<_, _>>()?;
            Ok(Record::Sent {
                batch: number,
                spans,
            })
        }
        (LedgerKind::Sent, TAG_ACKNOWLEDGED) => Ok(Record::Acknowledged { batch: number }),
        (LedgerKind::Sent, TAG_PLAYED) => {
            let (sent_at, rest) = number_of(rest)?;
            let (acknowledged_at, mut rest) = number_of(rest)?;
            let mut spans = Vec::new();
            while !rest.is_empty() {
                let (facts, left) = decode_facts(rest)?;
                spans.push(facts);
                rest = left;
            }
            Ok(Record::Played(PlayedBatch {
                batch: number,
                sent_at: Moment {
                    unix_nanos: sent_at,
                },
                acknowledged_at: Moment {
                    unix_nanos: acknowledged_at,
                },
                spans: spans.into(),
            }))
        }
        (LedgerKind::Got, TAG_GOT) => {
            let ([flags, low, high], rest) = rest.split_first_chunk::<3>().ok_or(SHORT)?;
            let member_len = usize::from(u16::from_le_bytes([*low, *high]));
            let (member, rest) = rest.split_at_checked(member_len).ok_or(SHORT)?;
            let member = (flags & FLAG_MEMBER != 0)
                .then(|| {
                    let name = std::str::from_utf8(member).ok()?;
                    Member::parse(name).ok()
                })
                .map(|member| member.ok_or("not a member's name"))
                .transpose()?;
            let (spans, odd) = rest.as_chunks::<GOT_SPAN_BYTES>();
            if !odd.is_empty() {
                return Err("half a span");
            }
            let spans = spans
                .iter()
                .map(|bytes| {
                    let (key, verdict) = bytes.split_first_chunk().ok_or(SHORT)?;
                    let verdict = verdict.first_chunk::<4>().ok_or(SHORT)?;
                    Ok(GotSpan {
                        key: decode_key(key)?,
                        verdict: (flags & FLAG_VERDICTS != 0)
                            .then(|| VerdictId(u32::from_le_bytes(*verdict))),
                    })
                })
                .collect::<Result<_, &'static str>>()?;
            Ok(Record::Got(GotExport {
                at: Moment { unix_nanos: number },
                member,
                spans,
            }))
        }
        _ => Err("a kind of record that does not belong here"),
    }
}

fn number_of(bytes: &[u8]) -> Result<(u64, &[u8]), &'static str> {
    let (number, rest) = bytes.split_first_chunk().ok_or(SHORT)?;
    Ok((u64::from_le_bytes(*number), rest))
}

fn decode_facts(bytes: &[u8]) -> Result<(SpanFacts, &[u8]), &'static str> {
    let (key, rest) = bytes.split_first_chunk().ok_or(SHORT)?;
    let (start_unix_nanos, rest) = number_of(rest)?;
    let (end_unix_nanos, rest) = number_of(rest)?;
    let ([flags, tenant_len], rest) = rest.split_first_chunk::<2>().ok_or(SHORT)?;
    let (tenant, rest) = rest
        .split_at_checked(usize::from(*tenant_len))
        .ok_or(SHORT)?;
    let tenant = std::str::from_utf8(tenant).map_err(|_| "a tenant that is not UTF-8")?;
    let facts = SpanFacts {
        key: decode_key(key)?,
        start_unix_nanos,
        end_unix_nanos,
        has_error: flags & FLAG_ERROR != 0,
        of_broken_turn: flags & FLAG_BROKEN != 0,
        tenant: (flags & FLAG_TENANT != 0).then(|| tenant.into()),
    };
    Ok((facts, rest))
}

fn decode_key(bytes: &[u8; SPAN_KEY_BYTES]) -> Result<SpanKey, &'static str> {
    const ZERO: &str = "an ID of zeros";
    let mut trace = [0; 16];
    let mut span = [0; 8];
    trace.copy_from_slice(&bytes[..16]);
    span.copy_from_slice(&bytes[16..]);
    Ok(SpanKey {
        trace: TraceId::new(trace).ok_or(ZERO)?,
        span: SpanId::new(span).ok_or(ZERO)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_played_comes_back_as_it_was() {
        let facts = |number: u8, flags: u8, tenant: Option<&str>| SpanFacts {
            key: SpanKey {
                trace: TraceId::new([number; 16]).unwrap(),
                span: SpanId::new([number; 8]).unwrap(),
            },
            start_unix_nanos: u64::from(number),
            end_unix_nanos: u64::MAX - u64::from(number),
            has_error: flags & 1 != 0,
            of_broken_turn: flags & 2 != 0,
            tenant: tenant.map(Into::into),
        };
        let played = |spans: Vec<SpanFacts>| {
            Record::Played(PlayedBatch {
                batch: 7,
                sent_at: Moment { unix_nanos: 8 },
                acknowledged_at: Moment { unix_nanos: 9 },
                spans: spans.into(),
            })
        };
        let long = "x".repeat(255);
        let record = played(vec![
            facts(1, 0, None),
            facts(2, 1, Some("acme-corp")),
            facts(3, 2, Some("")),
            facts(4, 3, Some(&long)),
        ]);
        let mut payload = Vec::new();
        encode(&record, &mut payload);
        assert_eq!(decode(&payload, LedgerKind::Sent), Ok(record));
        assert!(decode(&payload, LedgerKind::Got).is_err());
        // Cut anywhere but between two spans it is refused, and never read beyond its end.
        let whole: Vec<_> = (0..payload.len())
            .filter(|cut| decode(&payload[..*cut], LedgerKind::Sent).is_ok())
            .collect();
        assert_eq!(whole.len(), 4, "{whole:?}");

        let mut payload = Vec::new();
        encode(
            &played(vec![facts(1, 0, Some(&(long + "y")))]),
            &mut payload,
        );
        let without = played(vec![facts(1, 0, None)]);
        assert_eq!(decode(&payload, LedgerKind::Sent), Ok(without));
    }
}
