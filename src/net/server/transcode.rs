//! Turns a message that came as JSON into protobuf: paid before it is written, and off the
//! runtime's threads when it takes long.

use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::Semaphore;

use super::held::{Message, take, too_large};
use crate::net::admission::Budget;
use crate::net::status::{Refusal, RefusalReason};
use crate::wire::{JsonError, json_to_protobuf, protobuf_bytes_max};

/// JSON was read at 100 to 230 MB/s on a core that others were using too, so a longer text would hold
/// a runtime thread for 2 to 5 ms or more, and everyone else who is served by it. Batches of 512
/// spans are shorter.
const INLINE_BYTES_MAX: usize = 512 << 10;
/// Long texts read at the same time.
const LONG_TEXTS_MAX: usize = 2;

/// What a listener needs for it.
#[derive(Debug)]
pub(super) struct Transcoding {
    budget: Arc<Budget>,
    request_bytes_max: usize,
    long_texts: Arc<Semaphore>,
}

impl Transcoding {
    pub(super) fn new(budget: Arc<Budget>, request_bytes_max: usize) -> Self {
        Self {
            budget,
            request_bytes_max,
            long_texts: Arc::new(Semaphore::new(LONG_TEXTS_MAX)),
        }
    }

    /// The text and its bytes are given back when the message is there.
    pub(super) async fn protobuf_of(&self, text: Message) -> Result<Message, Refusal> {
        if text.bytes.len() <= INLINE_BYTES_MAX {
            return transcode(&text, self.request_bytes_max, &self.budget);
        }
        // Nobody closes the semaphore.
        let turn = Arc::clone(&self.long_texts).acquire_owned().await;
        let budget = Arc::clone(&self.budget);
        let request_bytes_max = self.request_bytes_max;
        let work = tokio::task::spawn_blocking(move || {
            let _held = turn;
            transcode(&text, request_bytes_max, &budget)
        });
        match work.await {
            Ok(done) => done,
            Err(error) => match error.try_into_panic() {
                Ok(panic) => std::panic::resume_unwind(panic), // counted where all panics are
                Err(_) => Err(Refusal::new(
                    RefusalReason::Unready,
                    "the process is stopping; send this again",
                )),
            },
        }
    }
}

fn transcode(
    text: &Message,
    request_bytes_max: usize,
    budget: &Arc<Budget>,
) -> Result<Message, Refusal> {
    let bytes_max = protobuf_bytes_max(text.bytes.len());
    if text.permit.bytes().saturating_add(bytes_max as u64) > budget.bytes_max() {
        return Err(Refusal::new(
            RefusalReason::TooLarge,
            format!(
                "{} bytes of JSON need {bytes_max} more to be read, and all messages together may \
                 have {}; send smaller batches, or protobuf",
                text.bytes.len(),
                budget.bytes_max()
            ),
        ));
    }
    let mut permit = take(budget, bytes_max)?;
    let mut bytes = json_to_protobuf(&text.bytes, request_bytes_max).map_err(refusal_of)?;
    // Half of it is air as a rule, and a tier may hold the message for long.
    bytes.shrink_to_fit();
    permit.shrink_to(bytes.capacity() as u64);
    Ok(Message {
        bytes: Bytes::from(bytes),
        permit,
    })
}

fn refusal_of(error: JsonError) -> Refusal {
    match error {
        JsonError::TooLarge { bytes, bytes_max } => too_large(bytes as u64, bytes_max),
        JsonError::Unreadable { .. } => {
            Refusal::new(RefusalReason::InvalidRequest, error.to_string())
        }
    }
}
