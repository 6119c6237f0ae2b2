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

use super::held::{Held, Message, pressure, take, too_large};
use super::inflate::{Decoder, Encoding};
use crate::net::admission::{Budget, Permit};
use crate::net::status::{Refusal, RefusalReason};

/// Smaller messages are copied out of their frame: a slice of it pins the connection's whole read
/// buffer, 8 KiB to 1 MiB, while a tier holds it.
const COPY_BYTES: usize = 4 << 10;
/// After how much output of a decoder other tasks get a turn: a bomb makes 64 MiB of a few KiB.
const TURN_BYTES: usize = 1 << 20;

/// Bounds of one read.
#[derive(Debug, Clone)]
pub(super) struct Limits {
    pub(super) request_bytes_max: usize,
    pub(super) idle_max: Duration,
    pub(super) total_max: Duration,
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

fn invalid(detail: impl Into<String>) -> Refusal {
    Refusal::new(RefusalReason::InvalidRequest, detail)
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;
    use std::convert::Infallible;
    use std::io::Write as _;
    use std::pin::Pin;
    use std::task::{Context, Poll};

    use http_body::Frame;
    use proptest::prelude::*;

    use super::super::held::TRUST_BYTES;
    use super::*;

    /// A body of given frames, then silence or the end.
    struct Given {
        frames: VecDeque<Bytes>,
        is_silent: bool,
    }

    impl Body for Given {
        type Data = Bytes;
        type Error = Infallible;

        fn poll_frame(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
            match self.frames.pop_front() {
                Some(frame) => Poll::Ready(Some(Ok(Frame::data(frame)))),
                None if self.is_silent => Poll::Pending,
                None => Poll::Ready(None),
            }
        }
    }

    fn frames(bytes: &[u8], cuts: &[usize], bytes_max: usize, is_silent: bool) -> Frames<Given> {
        let mut cuts: Vec<_> = cuts.iter().map(|cut| cut % (bytes.len() + 1)).collect();
        cuts.extend([0, bytes.len()]);
        cuts.sort_unstable();
        let bytes = Bytes::copy_from_slice(bytes);
        let frames = cuts.windows(2).map(|pair| bytes.slice(pair[0]..pair[1]));
        let limits = Limits {
            request_bytes_max: bytes_max,
            idle_max: Duration::from_millis(if is_silent { 20 } else { 10_000 }),
            total_max: Duration::from_secs(60),
        };
        let body = Given {
            frames: frames.collect(),
            is_silent,
        };
        Frames::new(body, &limits)
    }

    fn run<T>(future: impl Future<Output = T>) -> T {
        tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .build()
            .unwrap()
            .block_on(future)
    }

    fn pack(encoding: Encoding, data: &[u8]) -> Vec<u8> {
        match encoding {
            Encoding::Identity => data.to_vec(),
            Encoding::Zstd => zstd::encode_all(data, 1).unwrap(),
            Encoding::Gzip => {
                let level = flate2::Compression::fast();
                let mut encoder = flate2::write::GzEncoder::new(Vec::new(), level);
                encoder.write_all(data).unwrap();
                encoder.finish().unwrap()
            }
        }
    }

    fn reason(error: BodyError) -> RefusalReason {
        match error {
            BodyError::Refused(refusal) => refusal.reason,
            BodyError::Disconnected(text) => panic!("{text}"),
        }
    }

    fn encoding() -> impl Strategy<Value = Encoding> {
        prop_oneof![
            Just(Encoding::Identity),
            Just(Encoding::Gzip),
            Just(Encoding::Zstd)
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(300))]

        /// For any message, packing, cut into frames, limit and budget: the message itself, or the
        /// refusal that the numbers ask for; and every byte is given back.
        #[test]
        fn a_message_is_read_whole_or_refused_for_the_right_reason(
            length in prop_oneof![0..10_000_usize, Just(65_536), 900_000..1_300_000_usize],
            step in 1..200_u8,
            encoding in encoding(),
            cuts in proptest::collection::vec(any::<usize>(), 0..6),
            room in -2..3_isize,
            budget_bytes in prop_oneof![Just(64_u64 << 20), 0..3_000_000_u64],
            is_grpc in any::<bool>(),
            is_declared in any::<bool>(),
        ) {
            let data: Vec<u8> = (0..length).map(|i| (i / 5) as u8 / step).collect();
            let packed = pack(encoding, &data);
            let bytes_max = length.saturating_add_signed(room);
            let budget = Budget::new(budget_bytes);
            let result = run(async {
                if is_grpc {
                    let mut wire = vec![u8::from(encoding != Encoding::Identity)];
                    wire.extend_from_slice(&(packed.len() as u32).to_be_bytes());
                    wire.extend_from_slice(&packed);
                    read_grpc(&mut frames(&wire, &cuts, bytes_max, false), encoding, &budget).await
                } else {
                    let declared = is_declared.then_some(packed.len() as u64);
                    let mut frames = frames(&packed, &cuts, bytes_max, false);
                    read_whole(&mut frames, encoding, declared, &budget).await
                }
            });
            match result {
                Ok(message) => {
                    prop_assert!(message.bytes == data);
                    prop_assert!(length <= bytes_max && packed.len() <= bytes_max);
                    prop_assert!(message.permit.bytes() >= length as u64);
                    prop_assert!(message.permit.bytes() <= 2 * length as u64 + COPY_BYTES as u64);
                }
                Err(error) => match reason(error) {
                    RefusalReason::TooLarge => {
                        prop_assert!(length > bytes_max || packed.len() > bytes_max);
                    }
                    RefusalReason::MemoryPressure => {
                        // Never because of more than twice the message, what is trusted to a
                        // declared length, and the decoder.
                        let most = 2 * length + TRUST_BYTES + (9 << 20);
                        prop_assert!(budget_bytes < most as u64);
                    }
                    other => prop_assert!(false, "{other:?}"),
                },
            }
            prop_assert_eq!(budget.taken_bytes(), 0);
        }

        #[test]
        fn garbage_is_refused_without_a_panic(
            bytes in proptest::collection::vec(any::<u8>(), 0..300),
            cuts in proptest::collection::vec(any::<usize>(), 0..4),
            encoding in encoding(),
        ) {
            let budget = Budget::new(16 << 20);
            run(async {
                drop(read_grpc(&mut frames(&bytes, &cuts, 1000, false), encoding, &budget).await);
                let mut frames = frames(&bytes, &cuts, 1000, false);
                drop(read_whole(&mut frames, encoding, None, &budget).await);
            });
            assert_eq!(budget.taken_bytes(), 0);
        }
    }

    #[test]
    fn one_frame_is_handed_on_without_a_copy() {
        let data = Bytes::from(vec![7; 100_000]);
        let budget = Budget::new(1 << 20);
        run(async {
            let mut frames = frames(&[], &[], 1 << 20, false);
            frames.body.frames.push_back(data.clone());
            let read = read_whole(&mut frames, Encoding::Identity, None, &budget);
            assert_eq!(read.await.unwrap().bytes.as_ptr(), data.as_ptr());
        });
    }

    #[test]
    fn silence_inside_a_message_ends_it_and_gives_its_bytes_back() {
        let budget = Budget::new(1 << 20);
        run(async {
            let mut frames = frames(&[0, 0, 0, 0, 9, 1], &[3, 5], 1 << 20, true);
            let error = read_grpc(&mut frames, Encoding::Identity, &budget).await;
            assert_eq!(reason(error.unwrap_err()), RefusalReason::SlowClient);
        });
        assert_eq!((budget.taken_bytes(), budget.peak_bytes()), (0, 9));
    }
}
