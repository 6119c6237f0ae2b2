//! The payloads of records, in bytes. The format stands at the top of the folder's module.

use super::{GotExport, GotSpan, LedgerKind, Record, SpanKey};
use crate::model::{Member, Moment, SpanId, TraceId, VerdictId};

const SPAN_KEY_BYTES: usize = 24;
const GOT_SPAN_BYTES: usize = 28;
const TAG_SENT: u8 = 1;
const TAG_ACKNOWLEDGED: u8 = 2;
const TAG_GOT: u8 = 3;
const FLAG_MEMBER: u8 = 1;
const FLAG_VERDICTS: u8 = 2;

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

fn encode_key(key: &SpanKey, payload: &mut Vec<u8>) {
    payload.extend_from_slice(key.trace.as_bytes());
    payload.extend_from_slice(key.span.as_bytes());
}

pub(super) fn decode(payload: &[u8], kind: LedgerKind) -> Result<Record, &'static str> {
    const SHORT: &str = "a record shorter than its kind";
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
