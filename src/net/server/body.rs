//! Reads one message from a request's body, for both protocols.
//!
//! Order of things, for every byte: compare with the bound, pay the [`Budget`], only then hold.
//! A length that a client declares buys nothing by itself: at most 1 MiB is reserved on its word,
//! and the buffer doubles as bytes really come. Compressed bytes are inflated as they arrive and
//! never collected. A message that came in one DATA frame is handed on as it lies there.
//!
//! Not counted: what hyper holds below us, at most one frame or read buffer a connection.

use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf as _, Bytes};
use http_body::Body;
use http_body_util::BodyExt as _;
use tokio::time::{Instant, timeout_at};

use super::inflate::{Decoder, Encoding};
use crate::net::admission::{Budget, Permit};
use crate::net::status::{Refusal, RefusalReason};

/// Reserved on a declared length alone.
const TRUST_BYTES: usize = 1 << 20;
/// Smaller messages are copied out of their frame: a slice of it pins the connection's whole read
/// buffer, 8 KiB to 1 MiB, while a tier holds it.
const COPY_BYTES: usize = 4 << 10;
/// Room a decoder is given at a time, and after how much output other tasks get a turn: a bomb
/// makes 64 MiB of a few KiB.
const STEP_BYTES: usize = 256 << 10;
const TURN_BYTES: usize = 1 << 20;

/// Bounds of one read.
#[derive(Debug, Clone)]
pub(super) struct Limits {
    pub(super) request_bytes_max: usize,
    pub(super) idle_max: Duration,
    pub(super) total_max: Duration,
}

/// A message and what it costs.
#[derive(Debug)]
pub(super) struct Message {
    pub(super) bytes: Bytes,
    pub(super) permit: Permit,
}

#[derive(Debug)]
pub(super) enum BodyError {
    Refused(Refusal),
    /// The client went away inside the message.
    Disconnected(String),
}

impl From<Refusal> for BodyError {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}

/// A request's body with its deadlines.
pub(super) struct Frames<B> {
    body: B,
    limits: Limits,
    deadline: Instant,
    wire_bytes: u64,
    polled: bool,
}

impl<B> Frames<B>
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: std::fmt::Display,
{
    pub(super) fn new(body: B, limits: &Limits) -> Self {
        Self {
            body,
            limits: limits.clone(),
            deadline: Instant::now() + limits.total_max,
            wire_bytes: 0,
            polled: false,
        }
    }

    /// Bytes of the body so far.
    pub(super) fn wire_bytes(&self) -> u64 {
        self.wire_bytes
    }

    /// Whether anything was read; over HTTP/1 that is what answers `expect: 100-continue`.
    pub(super) fn was_polled(&self) -> bool {
        self.polled
    }

    /// The next bytes, never empty; `None` at the end.
    async fn next(&mut self) -> Result<Option<Bytes>, BodyError> {
        self.polled = true;
        loop {
            let deadline = self.deadline.min(Instant::now() + self.limits.idle_max);
            let Ok(frame) = timeout_at(deadline, self.body.frame()).await else {
                return Err(self.slow().into());
            };
            match frame {
                None => return Ok(None),
                Some(Err(error)) => return Err(BodyError::Disconnected(error.to_string())),
                Some(Ok(frame)) => {
                    // Anything else is trailers, which no OTLP client has a use for.
                    if let Ok(data) = frame.into_data()
                        && data.has_remaining()
                    {
                        self.wire_bytes += data.len() as u64;
                        return Ok(Some(data));
                    }
                }
            }
        }
    }

    /// Reads and forgets, so that an HTTP/1 client that only listens once it has sent everything
    /// hears the refusal instead of a reset. Gives up after `bytes_max`.
    pub(super) async fn drain(&mut self, bytes_max: u64) {
        let until = self.wire_bytes.saturating_add(bytes_max);
        while self.wire_bytes < until {
            match self.next().await {
                Ok(Some(_)) => {}
                Ok(None) | Err(_) => return,
            }
        }
    }

    fn slow(&self) -> Refusal {
        let detail = format!(
            "the message did not arrive: {} bytes came, then nothing for {:?}, or not all within {:?}",
            self.wire_bytes, self.limits.idle_max, self.limits.total_max
        );
        Refusal::new(RefusalReason::SlowClient, detail)
    }
}

/// Reads the one length-prefixed message of a unary gRPC call.
pub(super) async fn read_grpc<B>(
    frames: &mut Frames<B>,
    encoding: Encoding,
    budget: &Arc<Budget>,
) -> Result<Message, BodyError>
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: std::fmt::Display,
{
    let bytes_max = frames.limits.request_bytes_max;
    let mut prefix = Vec::with_capacity(5);
    let mut open: Option<(Sink, usize)> = None;
    while let Some(mut chunk) = frames.next().await? {
        if open.is_none() {
            let missing = (5 - prefix.len()).min(chunk.len());
            prefix.extend_from_slice(&chunk.split_to(missing));
            let Some((flag, length)) = prefix.split_first_chunk::<1>() else {
                continue;
            };
            let Ok(length) = <[u8; 4]>::try_from(length) else {
                continue; // the prefix is split over frames
            };
            let length = u32::from_be_bytes(length) as usize;
            let encoding = match (flag[0], encoding) {
                (0, _) => Encoding::Identity,
                (1, Encoding::Identity) => {
                    return Err(invalid("a compressed message without grpc-encoding").into());
                }
                (1, encoding) => encoding,
                (flag, _) => {
                    return Err(invalid(format!("flag {flag} before a gRPC message")).into());
                }
            };
            if length > bytes_max {
                return Err(too_large(length as u64, bytes_max).into());
            }
            open = Some((
                Sink::new(encoding, Some(length), bytes_max, budget)?,
                length,
            ));
        }
        let Some((sink, remaining)) = &mut open else {
            continue;
        };
        let part = chunk.split_to((*remaining).min(chunk.len()));
        *remaining -= part.len();
        if !part.is_empty() {
            sink.push(part).await?;
        }
        if !chunk.is_empty() {
            return Err(invalid("more than one message; Export is a unary call").into());
        }
    }
    match open {
        Some((sink, 0)) => Ok(sink.finish()?),
        Some((_, remaining)) => Err(invalid(format!(
            "the stream ended {remaining} bytes before the message did"
        ))
        .into()),
        None => Err(invalid("no message; Export takes one ExportTraceServiceRequest").into()),
    }
}

/// Reads a whole body as one message. `declared`: its content-length.
pub(super) async fn read_whole<B>(
    frames: &mut Frames<B>,
    encoding: Encoding,
    declared: Option<u64>,
    budget: &Arc<Budget>,
) -> Result<Message, BodyError>
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: std::fmt::Display,
{
    let bytes_max = frames.limits.request_bytes_max;
    if let Some(declared) = declared
        && declared > bytes_max as u64
    {
        return Err(too_large(declared, bytes_max).into());
    }
    // Not above bytes_max, so it fits.
    let declared = declared.map(|declared| declared as usize);
    let mut sink = Sink::new(encoding, declared, bytes_max, budget)?;
    while let Some(chunk) = frames.next().await? {
        if frames.wire_bytes > bytes_max as u64 {
            return Err(too_large(frames.wire_bytes, bytes_max).into());
        }
        sink.push(chunk).await?;
    }
    Ok(sink.finish()?)
}

enum Sink {
    Plain(Plain),
    Inflate(Inflate),
}

impl Sink {
    fn new(
        encoding: Encoding,
        declared: Option<usize>,
        bytes_max: usize,
        budget: &Arc<Budget>,
    ) -> Result<Self, Refusal> {
        let decoder = Decoder::new(encoding)
            .map_err(|detail| Refusal::new(RefusalReason::MemoryPressure, detail))?;
        Ok(match decoder {
            None => Self::Plain(Plain {
                declared,
                bytes_max,
                whole: None,
                held: None,
                budget: Arc::clone(budget),
            }),
            Some(decoder) => {
                // Telemetry packs 4 to 10 times; what is not used is never touched.
                let first = declared.unwrap_or(0).saturating_mul(4).max(COPY_BYTES);
                Self::Inflate(Inflate {
                    decoder,
                    decoder_permit: take(budget, 0)?,
                    held: Held::new(first, bytes_max, budget)?,
                })
            }
        })
    }

    async fn push(&mut self, chunk: Bytes) -> Result<(), Refusal> {
        match self {
            Self::Plain(plain) => plain.push(chunk),
            Self::Inflate(inflate) => inflate.push(&chunk).await,
        }
    }

    fn finish(self) -> Result<Message, Refusal> {
        match self {
            Self::Plain(plain) => plain.finish(),
            Self::Inflate(inflate) if inflate.decoder.is_whole() => Ok(inflate.held.into_message()),
            Self::Inflate(_) => Err(invalid("the compressed message is cut short")),
        }
    }
}

/// Uncompressed bytes: as they lie if they come in one piece, else collected.
struct Plain {
    declared: Option<usize>,
    bytes_max: usize,
    whole: Option<Message>,
    held: Option<Held>,
    budget: Arc<Budget>,
}

impl Plain {
    fn push(&mut self, chunk: Bytes) -> Result<(), Refusal> {
        let may_be_all = self.declared.is_none_or(|declared| declared == chunk.len());
        if self.whole.is_none() && self.held.is_none() && may_be_all {
            let permit = take(&self.budget, chunk.len())?;
            self.whole = Some(Message {
                bytes: chunk,
                permit,
            });
            return Ok(());
        }
        let first = self.whole.take();
        let held = match &mut self.held {
            Some(held) => held,
            none => {
                let came = first.as_ref().map_or(0, |first| first.bytes.len()) + chunk.len();
                let expected = self.declared.unwrap_or(came);
                none.insert(Held::new(expected, self.bytes_max, &self.budget)?)
            }
        };
        if let Some(first) = first {
            held.extend(&first.bytes)?;
        }
        held.extend(&chunk)
    }

    fn finish(self) -> Result<Message, Refusal> {
        match (self.whole, self.held) {
            (Some(message), _) if message.bytes.len() < COPY_BYTES => Ok(Message {
                bytes: Bytes::copy_from_slice(&message.bytes),
                permit: message.permit,
            }),
            (Some(message), _) => Ok(message),
            (None, Some(held)) => Ok(held.into_message()),
            (None, None) => Ok(Message {
                bytes: Bytes::new(),
                permit: take(&self.budget, 0)?,
            }),
        }
    }
}

struct Inflate {
    decoder: Decoder,
    /// Pays the decoder's own memory.
    decoder_permit: Permit,
    held: Held,
}

impl Inflate {
    async fn push(&mut self, mut input: &[u8]) -> Result<(), Refusal> {
        let mut since_turn = 0;
        loop {
            if input.is_empty() && self.decoder.is_whole() {
                return Ok(());
            }
            let needs = self.decoder.needs_bytes(input);
            let more = needs.saturating_sub(self.decoder_permit.bytes());
            if !self.decoder_permit.grow(more) {
                return Err(pressure(more));
            }
            let room = self.held.room()?;
            let room_len = room.len();
            let step = self.decoder.step(input, room).map_err(invalid)?;
            self.held.fill(step.produced)?;
            input = input.get(step.consumed..).unwrap_or_default();
            if input.is_empty() && step.produced < room_len {
                return Ok(());
            }
            if step.consumed == 0 && step.produced == 0 {
                return Err(invalid("the compressed message does not go on"));
            }
            since_turn += step.produced;
            if since_turn >= TURN_BYTES {
                since_turn = 0;
                tokio::task::yield_now().await;
            }
        }
    }
}

/// A buffer that pays for its capacity before it has it.
struct Held {
    /// Its length is what was ever written or zeroed; `filled` is what counts.
    bytes: Vec<u8>,
    filled: usize,
    bytes_max: usize,
    probe: [u8; 1],
    permit: Permit,
}

impl Held {
    fn new(expected: usize, bytes_max: usize, budget: &Arc<Budget>) -> Result<Self, Refusal> {
        let capacity = expected.min(TRUST_BYTES).min(bytes_max);
        let permit = take(budget, capacity)?;
        Ok(Self {
            bytes: Vec::with_capacity(capacity),
            filled: 0,
            bytes_max,
            probe: [0],
            permit,
        })
    }

    /// Makes the capacity at least `needed`, doubling. While the bytes move, the old buffer and the
    /// new one exist side by side; only the new one is paid.
    fn reserve(&mut self, needed: usize) -> Result<(), Refusal> {
        let capacity = self.bytes.capacity();
        if needed <= capacity {
            return Ok(());
        }
        if needed > self.bytes_max {
            return Err(too_large(needed as u64, self.bytes_max));
        }
        let target = capacity.saturating_mul(2).clamp(needed, self.bytes_max);
        let more = (target as u64).saturating_sub(self.permit.bytes());
        if !self.permit.grow(more) {
            return Err(pressure(more));
        }
        self.bytes.reserve_exact(target - self.bytes.len());
        Ok(())
    }

    fn extend(&mut self, chunk: &[u8]) -> Result<(), Refusal> {
        self.reserve(self.filled + chunk.len())?;
        self.bytes.truncate(self.filled);
        self.bytes.extend_from_slice(chunk);
        self.filled = self.bytes.len();
        Ok(())
    }

    /// Up to [`STEP_BYTES`] for a decoder to write to, at least one. At the bound that is the
    /// probe: a decoder that can fill it has proved the message too large.
    fn room(&mut self) -> Result<&mut [u8], Refusal> {
        if self.filled == self.bytes_max {
            return Ok(&mut self.probe);
        }
        self.reserve(self.filled + 1)?;
        let end = (self.filled + STEP_BYTES).min(self.bytes.capacity());
        if self.bytes.len() < end {
            // Every byte is zeroed once, not once a step.
            self.bytes.resize(end, 0);
        }
        Ok(&mut self.bytes[self.filled..end])
    }

    /// `more` bytes of the room are used.
    fn fill(&mut self, more: usize) -> Result<(), Refusal> {
        self.filled += more;
        if self.filled > self.bytes_max {
            return Err(too_large(self.filled as u64, self.bytes_max));
        }
        Ok(())
    }

    fn into_message(mut self) -> Message {
        self.bytes.truncate(self.filled);
        if self.filled < self.bytes.capacity() / 2 {
            self.bytes.shrink_to_fit();
        }
        self.permit.shrink_to(self.bytes.capacity() as u64);
        Message {
            bytes: Bytes::from(self.bytes),
            permit: self.permit,
        }
    }
}

fn take(budget: &Arc<Budget>, bytes: usize) -> Result<Permit, Refusal> {
    budget
        .try_take(bytes as u64)
        .ok_or_else(|| pressure(bytes as u64))
}

fn pressure(bytes: u64) -> Refusal {
    let detail =
        format!("no room for {bytes} more bytes: messages in flight are at their bound; try again");
    Refusal::new(RefusalReason::MemoryPressure, detail)
}

fn too_large(bytes: u64, bytes_max: usize) -> Refusal {
    let detail = format!(
        "a message of {bytes} bytes or more, over the limit of {bytes_max} (--max-request-bytes, \
         before and after decompression); send smaller batches"
    );
    Refusal::new(RefusalReason::TooLarge, detail)
}

fn invalid(detail: impl Into<String>) -> Refusal {
    Refusal::new(RefusalReason::InvalidRequest, detail)
}
