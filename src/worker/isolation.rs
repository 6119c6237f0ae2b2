//! Finds out what the backend refuses in a message: sees all else to it and the culprits to the
//! dead letters.
//!
//! A refused message is halved until single traces are refused, and those until single spans are:
//! about 2 log2(n) attempts a culprit, each by the same rules as any. A backend that refuses
//! everything looks just like a message full of culprits, so nobody is called a culprit on the word of a
//! backend that takes nothing: see [`Trust`]. Spans of a trace are settled in their order, so that one
//! number says how far a fragment has come.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use crate::log::Disk;
use crate::worker::dead_letters::{FILE, Letter, NoLetter};
use crate::worker::export::{Blame, Fault, Refusal};
use crate::worker::exporter::Exporter;
use crate::worker::message::{Message, Origin};

/// Traces with culprits in a row, nothing being taken in between, until it must be the backend.
const CULPRITS_IN_A_ROW: u32 = 10;
/// Of a backend that has taken nothing yet: traces, and spans of each, that it may refuse until
/// we wait for it to get well. Each attempt is one more that nobody gains by.
const UNTRUSTED_TRACES_MAX: usize = 3;
const UNTRUSTED_SPANS_MAX: usize = 4;
/// A backend that failed over a span and did not say why is asked once more.
const ASK_AGAIN_AFTER: Duration = Duration::from_secs(1);

/// Whether the backend takes anything at all, by what it did last. Shared by all exporters.
#[derive(Debug)]
pub(crate) struct Trust {
    /// Traces with culprits since it took something.
    culprits: AtomicU32,
}

impl Default for Trust {
    /// None, until it takes something.
    fn default() -> Self {
        Self {
            culprits: AtomicU32::new(CULPRITS_IN_A_ROW),
        }
    }
}

impl Trust {
    pub(crate) fn taken(&self) {
        if self.culprits.load(Ordering::Relaxed) > 0 {
            self.culprits.store(0, Ordering::Relaxed);
        }
    }

    fn is_there(&self) -> bool {
        self.culprits.load(Ordering::Relaxed) < CULPRITS_IN_A_ROW
    }

    fn culprit(&self) {
        self.culprits.fetch_add(1, Ordering::Relaxed);
    }
}

/// What became of a message.
#[derive(Debug, Default)]
pub(crate) struct Settled {
    /// The first span of each trace that is neither at the backend nor in a dead letter.
    pub(crate) stuck: Vec<Origin>,
    /// There is no use in sending more for now.
    pub(crate) is_backend: bool,
}

/// See the module.
pub(crate) struct Isolation<'a, D: Disk> {
    exporter: &'a Exporter<D>,
    message: &'a Message,
    traces: Vec<Share>,
}

/// The spans of one trace in the message.
struct Share {
    spans: Range<u32>,
    /// Those before this one are settled.
    settled: u32,
}

/// Why an isolation ends before it is through.
enum End {
    /// The backend refuses whatever it is sent.
    Backend(Refusal),
    /// The process stops.
    Stopping,
}

/// A culprit whose letter waits until the backend has taken something.
struct Waiting {
    /// Its place in the message.
    span: u32,
    line: Arc<Vec<u8>>,
    refusal: Refusal,
    fault: Fault,
}

impl<'a, D: Disk> Isolation<'a, D> {
    pub(crate) fn new(exporter: &'a Exporter<D>, message: &'a Message) -> Self {
        let traces = message.traces().into_iter();
        let traces = traces.map(|(_, spans)| Share {
            settled: spans.start,
            spans,
        });
        Self {
            exporter,
            message,
            traces: traces.collect(),
        }
    }

    /// `refusal` is what the backend said of the whole message.
    pub(crate) async fn settle(mut self, refusal: Refusal) -> Settled {
        let end = match refusal.blame {
            Blame::Backend => Err(End::Backend(refusal)),
            Blame::Message(fault) => self.halve_traces(refusal, fault).await,
        };
        if let Err(End::Backend(refusal)) = &end {
            tracing::error!(
                code = refusal.code,
                message = refusal.message,
                destination = self.exporter.destination.name(),
                "the backend refuses whatever it is sent; kept traces stay in the log and are offered again in a minute"
            );
        }
        let unsettled = self.traces.iter().filter(|it| it.settled < it.spans.end);
        Settled {
            stuck: unsettled
                .filter_map(|it| self.message.origin(it.settled))
                .collect(),
            is_backend: end.is_err(),
        }
    }

    async fn halve_traces(&mut self, refusal: Refusal, fault: Fault) -> Result<(), End> {
        let mut later = Vec::new();
        // The next one is last. What was refused already is not sent again.
        let mut parts = vec![(0..self.traces.len(), Some((refusal, fault)))];
        while let Some((part, refused)) = parts.pop() {
            if self.exporter.shard.exports_stopped() {
                return Err(End::Stopping);
            }
            let refused = match refused {
                Some(refused) => Some(refused),
                None => {
                    let spans =
                        self.traces[part.start].spans.start..self.traces[part.end - 1].spans.end;
                    self.send(spans).await?
                }
            };
            let Some((refusal, fault)) = refused else {
                for share in &mut self.traces[part] {
                    share.settled = share.spans.end;
                }
                continue;
            };
            if part.len() > 1 {
                let middle = part.start + part.len() / 2;
                parts.push((middle..part.end, None));
                parts.push((part.start..middle, None));
                continue;
            }
            let was_trusted = self.exporter.trust.is_there();
            self.halve_spans(part.start, refusal.clone(), fault).await?;
            let share = &self.traces[part.start];
            if share.settled < share.spans.end && !was_trusted {
                later.push((part.start, refusal.clone(), fault));
            }
            if later.len() >= UNTRUSTED_TRACES_MAX && !self.exporter.trust.is_there() {
                return Err(End::Backend(refusal));
            }
        }
        for (trace, refusal, fault) in later {
            if !self.exporter.trust.is_there() {
                return Err(End::Backend(refusal));
            }
            self.halve_spans(trace, refusal, fault).await?;
        }
        Ok(())
    }

    /// Settles the spans of a refused trace, up to the first one for which there is no letter.
    async fn halve_spans(
        &mut self,
        trace: usize,
        refusal: Refusal,
        fault: Fault,
    ) -> Result<(), End> {
        let spans = self.traces[trace].settled..self.traces[trace].spans.end;
        let mut is_trusted = self.exporter.trust.is_there();
        let mut has_letters = false;
        let mut waiting: Vec<Waiting> = Vec::new();
        let mut parts = vec![(spans, Some((refusal, fault)))];
        while let Some((part, refused)) = parts.pop() {
            let refused = match refused {
                Some(refused) => Some(refused),
                None => self.send(part.clone()).await?,
            };
            let (refused, part) = match refused {
                Some(_) if part.len() > 1 => {
                    let middle = part.start + part.len() as u32 / 2;
                    parts.push((middle..part.end, None));
                    parts.push((part.start..middle, None));
                    continue;
                }
                Some((_, Fault::Unclear)) => {
                    tokio::time::sleep(ASK_AGAIN_AFTER).await;
                    (self.send(part.clone()).await?, part)
                }
                refused => (refused, part),
            };
            let was_taken = refused.is_none();
            if let Some((refusal, fault)) = refused {
                let Some(line) = self.letter(part.start, &refusal).await else {
                    return Err(End::Stopping);
                };
                waiting.push(Waiting {
                    span: part.start,
                    line: Arc::new(line),
                    refusal,
                    fault,
                });
                is_trusted |= self.exporter.trust.is_there();
            } else {
                is_trusted = true;
            }
            if is_trusted {
                for letter in waiting.drain(..) {
                    if !has_letters {
                        self.exporter.trust.culprit();
                    }
                    if !self.write(&letter, !has_letters).await {
                        self.traces[trace].settled = letter.span;
                        return Ok(());
                    }
                    has_letters = true;
                }
                if was_taken {
                    self.exporter.trust.taken();
                }
                self.traces[trace].settled = part.end;
            } else if waiting.len() >= UNTRUSTED_SPANS_MAX || !self.has_room(&waiting).await {
                // Nothing was taken, so none of them is settled.
                return Ok(());
            }
        }
        Ok(())
    }

    /// `None`: the backend has it.
    async fn send(&self, spans: Range<u32>) -> Result<Option<(Refusal, Fault)>, End> {
        let part = self.message.part(spans);
        match self.exporter.send(&part).await {
            Ok(()) => Ok(None),
            Err(refusal) => match refusal.blame {
                Blame::Backend => Err(End::Backend(refusal)),
                Blame::Message(fault) => Ok(Some((refusal, fault))),
            },
        }
    }

    /// `None`: the runtime is shutting down.
    async fn letter(&self, span: u32, refusal: &Refusal) -> Option<Vec<u8>> {
        let part = self.message.part(span..span + 1);
        let (trace, id) = part.first()?;
        let refusal = refusal.clone();
        let destination = self.exporter.destination.name().to_owned();
        let at = self.exporter.clock.now();
        // As protobuf, as JSON values and as a line.
        let paid = self
            .exporter
            .memory
            .charge(3 * part.builder.encoded_len() as u64);
        let line = move || {
            let _paid = paid;
            Letter {
                message: &part.encoded(),
                trace,
                span: id,
                refusal: &refusal,
                destination: &destination,
                at,
            }
            .line()
        };
        tokio::task::spawn_blocking(line).await.ok()
    }

    async fn write(&self, letter: &Waiting, is_first: bool) -> bool {
        let (letters, line) = (self.exporter.dead_letters.clone(), letter.line.clone());
        let written = tokio::task::spawn_blocking(move || letters.append(&line)).await;
        let metrics = &self.exporter.metrics.dead_letters;
        match written {
            Ok(Ok(())) => {
                metrics.written(letter.fault, is_first);
                let part = self.message.part(letter.span..letter.span + 1);
                if let Some((trace, span)) = part.first() {
                    tracing::warn!(
                        %trace,
                        span = span.map(|span| span.to_string()),
                        code = letter.refusal.code,
                        message = letter.refusal.message,
                        "the backend refuses a span for good; it is in {FILE} in the data dir"
                    );
                }
                true
            }
            Ok(Err(error)) => {
                self.no_letter(&error);
                false
            }
            Err(_) => false,
        }
    }

    async fn has_room(&self, waiting: &[Waiting]) -> bool {
        let bytes = waiting.iter().map(|it| it.line.len() as u64).sum();
        let letters = self.exporter.dead_letters.clone();
        match tokio::task::spawn_blocking(move || letters.has_room(bytes)).await {
            Ok(Ok(())) => true,
            Ok(Err(error)) => {
                self.no_letter(&error);
                false
            }
            Err(_) => false,
        }
    }

    fn no_letter(&self, error: &NoLetter) {
        self.exporter.metrics.dead_letters.not_written(error);
        tracing::error!(
            %error,
            "a span that the backend refuses for good finds no room among the dead letters; its trace stays in the log and is offered again in a minute"
        );
    }
}
