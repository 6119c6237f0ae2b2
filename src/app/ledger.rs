//! The books that prove a run: what `load` sent and what was acknowledged, what `sink` got.
//! `verify` compares the two; judging is left to it.
//!
//! ```text
//! file    = "TAILRING-LEDGER" kind(1 byte: 'S' sent, 'G' got) record*
//! record  = len u32 · crc32c u32 · payload           (len and checksum are of the payload)
//! payload = 1 · batch u64 · (trace 16 · span 8)*      sent:   a batch, queued before its first byte leaves
//!         | 2 · batch u64                             sent:   the batch was acknowledged whole
//!         | 4 · batch u64 · sent_unix_nanos u64 · acknowledged_unix_nanos u64
//!             · (trace 16 · span 8 · start u64 · end u64 · flags u8 · tenant_len u8 · tenant)*
//!                                                 sent:   the batch was acknowledged whole, and what a
//!                                                         policy can see of its spans (flags 1: status
//!                                                         ERROR, 2: of a broken turn, 4: has a tenant)
//!         | 3 · unix_nanos u64 · flags u8 · member_len u16 · member
//!             · (trace 16 · span 8 · verdict u32)*    got:    one export (flags 1: has a member, 2: has verdicts)
//! ```
//!
//! Integers are little endian. A file is only appended to, in whole records, so a killed process
//! leaves at most one torn record at the end, which readers tolerate and report.

mod record;

use std::fs::{File, OpenOptions};
use std::io::{self, BufReader, BufWriter, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;

use tokio::sync::{mpsc, oneshot};

use crate::model::{Member, Moment, SpanId, TraceId, VerdictId};

const MAGIC: &[u8; 15] = b"TAILRING-LEDGER";
const HEADER_BYTES: usize = MAGIC.len() + 1;
/// A request of 64 MiB of the smallest legal spans has about 2 million of them, 56 MB here.
const RECORD_BYTES_MAX: usize = 128 << 20;
/// Records that may wait for the writer thread; then senders wait. 64 batches of 512 spans are
/// 0.8 MB, and at a million spans/s half a second of a disk's hiccup is 1000 batches: the load
/// would rather be seen to slow down than grow without bound.
const QUEUE_RECORDS_MAX: usize = 64;

/// One span, as the books know it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SpanKey {
    pub trace: TraceId,
    pub span: SpanId,
}

/// Which book a file is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LedgerKind {
    /// Written by `tailring load --ledger` and by the fleet of `tailring demo`.
    Sent,
    /// Written by `tailring sink --ledger`.
    Got,
}

/// One entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Record {
    Sent { batch: u64, spans: Arc<[SpanKey]> },
    Acknowledged { batch: u64 },
    Played(PlayedBatch),
    Got(GotExport),
}

/// An acknowledged batch with what rules are about, for who has to judge the judges.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlayedBatch {
    pub batch: u64,
    /// Before its first byte left.
    pub sent_at: Moment,
    pub acknowledged_at: Moment,
    pub spans: Arc<[SpanFacts]>,
}

/// What a policy can see of a span that was sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SpanFacts {
    pub key: SpanKey,
    pub start_unix_nanos: u64,
    pub end_unix_nanos: u64,
    /// Status ERROR.
    pub has_error: bool,
    /// Its turn was made to be one of the broken ones; nothing in the span need show it.
    pub of_broken_turn: bool,
    /// The attribute `tenant.id`, 255 bytes at most.
    pub tenant: Option<Arc<str>>,
}

/// One export request as the sink received it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GotExport {
    pub at: Moment,
    /// Who exported; `None` when the request did not say.
    pub member: Option<Member>,
    pub spans: Vec<GotSpan>,
}

/// One received span with the verdict it was exported under.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GotSpan {
    pub key: SpanKey,
    pub verdict: Option<VerdictId>,
}

/// How reading ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LedgerEnd {
    pub records: u64,
    /// Bytes up to the end of the last whole record.
    pub whole_bytes: u64,
    /// The writer was killed in the middle of a record, which is ignored.
    pub torn: bool,
}

/// Why a ledger cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum LedgerError {
    #[error("{}: cannot be read: {source}", path.display())]
    Unreadable { path: PathBuf, source: io::Error },
    #[error("{}: cannot be written: {source}", path.display())]
    Unwritable { path: PathBuf, source: io::Error },
    #[error("{}: is empty; was the run killed before it began?", path.display())]
    Empty { path: PathBuf },
    #[error("{}: is not a ledger of `tailring load` or `tailring sink`", path.display())]
    Foreign { path: PathBuf },
    #[error(
        "{}: is a ledger of {} where one of {} is wanted; are the two swapped?",
        path.display(), found.writer(), wanted.writer()
    )]
    OtherKind {
        path: PathBuf,
        found: LedgerKind,
        wanted: LedgerKind,
    },
    #[error("{}: is damaged at byte {offset}: {what}", path.display())]
    Damaged {
        path: PathBuf,
        offset: u64,
        what: &'static str,
    },
}

/// Writes a ledger from a thread of its own. Dropping it without [`LedgerWriter::close`] leaves
/// what was queued to be written in the background.
#[derive(Debug)]
pub struct LedgerWriter {
    queue: mpsc::Sender<Entry>,
    thread: JoinHandle<Result<(), LedgerError>>,
}

/// Queues records for a [`LedgerWriter`]; cheap to clone.
#[derive(Debug, Clone)]
pub struct LedgerQueue(mpsc::Sender<Entry>);

#[derive(Debug)]
struct Entry {
    record: Record,
    /// Told once the record has been handed to the operating system.
    written: Option<oneshot::Sender<()>>,
}

/// The writer thread has ended: [`LedgerWriter::close`] tells why.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the ledger can no longer be written")]
pub struct LedgerStopped;

impl LedgerKind {
    fn tag(self) -> u8 {
        match self {
            Self::Sent => b'S',
            Self::Got => b'G',
        }
    }

    fn writer(self) -> &'static str {
        match self {
            Self::Sent => "`tailring load`",
            Self::Got => "`tailring sink`",
        }
    }
}

impl LedgerWriter {
    /// Starts an empty ledger. An older ledger of this kind is overwritten, any other file is not.
    pub fn create(path: &Path, kind: LedgerKind) -> Result<Self, LedgerError> {
        if let Ok(mut file) = File::open(path) {
            match check_header(&mut file, path, kind) {
                Ok(()) | Err(LedgerError::Empty { .. }) => {}
                Err(other) => return Err(other),
            }
        }
        let unwritable = |source| LedgerError::Unwritable {
            path: path.to_owned(),
            source,
        };
        let mut file = File::create(path).map_err(unwritable)?;
        write_header(&mut file, kind).map_err(unwritable)?;
        Self::spawn(file, path).map_err(unwritable)
    }

    /// Goes on with a ledger that may exist, after its last whole record.
    pub fn append(path: &Path, kind: LedgerKind) -> Result<Self, LedgerError> {
        let whole_bytes = match read(path, kind, |_| ()) {
            Ok(end) => end.whole_bytes,
            Err(LedgerError::Empty { .. }) => return Self::create(path, kind),
            Err(LedgerError::Unreadable { source, .. })
                if source.kind() == io::ErrorKind::NotFound =>
            {
                return Self::create(path, kind);
            }
            Err(other) => return Err(other),
        };
        let unwritable = |source| LedgerError::Unwritable {
            path: path.to_owned(),
            source,
        };
        let mut file = OpenOptions::new()
            .write(true)
            .open(path)
            .map_err(unwritable)?;
        file.set_len(whole_bytes).map_err(unwritable)?;
        file.seek(SeekFrom::End(0)).map_err(unwritable)?;
        Self::spawn(file, path).map_err(unwritable)
    }

    fn spawn(file: File, path: &Path) -> io::Result<Self> {
        let (queue, entries) = mpsc::channel(QUEUE_RECORDS_MAX);
        let path = path.to_owned();
        let thread = std::thread::Builder::new()
            .name("ledger".into())
            .spawn(move || {
                write_records(file, entries)
                    .map_err(|source| LedgerError::Unwritable { path, source })
            })?;
        Ok(Self { queue, thread })
    }

    pub fn queue(&self) -> LedgerQueue {
        LedgerQueue(self.queue.clone())
    }

    /// Waits until everything queued is in the file. Returns once every [`LedgerQueue`] is gone.
    pub async fn close(self) -> Result<(), LedgerError> {
        drop(self.queue);
        let ended = tokio::task::spawn_blocking(move || self.thread.join()).await;
        match ended {
            Ok(Ok(result)) => result,
            // The thread only encodes and writes; if it did panic, the runtime has printed why.
            Ok(Err(_)) | Err(_) => Err(LedgerError::Unwritable {
                path: PathBuf::from("ledger"),
                source: io::Error::other("the ledger's thread died"),
            }),
        }
    }
}

impl LedgerQueue {
    /// Waits while the disk is behind.
    pub async fn put(&self, record: Record) -> Result<(), LedgerStopped> {
        let written = None;
        let entry = Entry { record, written };
        self.0.send(entry).await.map_err(|_| LedgerStopped)
    }

    /// Returns when the record is in the file, where it survives the process.
    pub async fn put_written(&self, record: Record) -> Result<(), LedgerStopped> {
        let (written, is_written) = oneshot::channel();
        let written = Some(written);
        let entry = Entry { record, written };
        self.0.send(entry).await.map_err(|_| LedgerStopped)?;
        is_written.await.map_err(|_| LedgerStopped)
    }

    /// Whether the writer thread has ended.
    pub fn is_stopped(&self) -> bool {
        self.0.is_closed()
    }
}

fn write_header(file: &mut File, kind: LedgerKind) -> io::Result<()> {
    let mut header = [0; HEADER_BYTES];
    header[..MAGIC.len()].copy_from_slice(MAGIC);
    header[MAGIC.len()] = kind.tag();
    file.write_all(&header)
}

fn write_records(file: File, mut entries: mpsc::Receiver<Entry>) -> io::Result<()> {
    let mut out = BufWriter::with_capacity(1 << 18, file);
    let mut payload = Vec::new();
    let mut waiting = Vec::new();
    while let Some(mut entry) = entries.blocking_recv() {
        loop {
            write_record(&mut out, &mut payload, &entry.record)?;
            waiting.extend(entry.written);
            // A bounded group, so that nobody waits behind an endless stream of others.
            if waiting.len() >= QUEUE_RECORDS_MAX {
                break;
            }
            match entries.try_recv() {
                Ok(next) => entry = next,
                Err(_) => break,
            }
        }
        // Nothing waits: let a reader, or a kill, find whole records.
        out.flush()?;
        for written in waiting.drain(..) {
            // An error: who asked has gone away, with its request.
            written.send(()).unwrap_or(());
        }
    }
    out.flush()?;
    out.get_ref().sync_data()
}

fn write_record(out: &mut impl Write, payload: &mut Vec<u8>, record: &Record) -> io::Result<()> {
    payload.clear();
    record::encode(record, payload);
    let len = u32::try_from(payload.len())
        .ok()
        .filter(|len| *len as usize <= RECORD_BYTES_MAX)
        .ok_or_else(|| io::Error::other("a record longer than a ledger takes"))?;
    out.write_all(&len.to_le_bytes())?;
    out.write_all(&crc32c::crc32c(payload).to_le_bytes())?;
    out.write_all(payload)
}

/// Reads every whole record of a ledger of one kind, in the order they were written.
pub fn read(
    path: &Path,
    kind: LedgerKind,
    mut each: impl FnMut(Record),
) -> Result<LedgerEnd, LedgerError> {
    let unreadable = |source| LedgerError::Unreadable {
        path: path.to_owned(),
        source,
    };
    let damaged = |offset, what| LedgerError::Damaged {
        path: path.to_owned(),
        offset,
        what,
    };
    let file = File::open(path).map_err(unreadable)?;
    let file_bytes = file.metadata().map_err(unreadable)?.len();
    let mut input = BufReader::with_capacity(1 << 18, file);
    check_header(&mut input, path, kind)?;

    let mut end = LedgerEnd {
        records: 0,
        whole_bytes: HEADER_BYTES as u64,
        torn: false,
    };
    let mut payload = Vec::new();
    loop {
        let offset = end.whole_bytes;
        let left = file_bytes.saturating_sub(offset);
        if left == 0 {
            return Ok(end);
        }
        let mut frame = [0; 8];
        if left < frame.len() as u64 {
            end.torn = true;
            return Ok(end);
        }
        input.read_exact(&mut frame).map_err(unreadable)?;
        let [l0, l1, l2, l3, c0, c1, c2, c3] = frame;
        let len = u32::from_le_bytes([l0, l1, l2, l3]) as usize;
        if len > RECORD_BYTES_MAX {
            return Err(damaged(offset, "a record longer than any is"));
        }
        let record_bytes = (frame.len() + len) as u64;
        if record_bytes > left {
            end.torn = true;
            return Ok(end);
        }
        payload.resize(len, 0);
        input.read_exact(&mut payload).map_err(unreadable)?;
        if crc32c::crc32c(&payload) != u32::from_le_bytes([c0, c1, c2, c3]) {
            if record_bytes == left {
                end.torn = true;
                return Ok(end);
            }
            return Err(damaged(offset, "a checksum does not match"));
        }
        let record = record::decode(&payload, kind).map_err(|what| damaged(offset, what))?;
        each(record);
        end.records += 1;
        end.whole_bytes += record_bytes;
    }
}

fn check_header(input: &mut impl Read, path: &Path, wanted: LedgerKind) -> Result<(), LedgerError> {
    let path = || path.to_owned();
    let mut header = Vec::with_capacity(HEADER_BYTES);
    input
        .take(HEADER_BYTES as u64)
        .read_to_end(&mut header)
        .map_err(|source| LedgerError::Unreadable {
            path: path(),
            source,
        })?;
    if header.len() < HEADER_BYTES && MAGIC.starts_with(&header) {
        return Err(LedgerError::Empty { path: path() });
    }
    let found = match header.strip_prefix(MAGIC) {
        Some(b"S") => LedgerKind::Sent,
        Some(b"G") => LedgerKind::Got,
        _ => return Err(LedgerError::Foreign { path: path() }),
    };
    if found != wanted {
        return Err(LedgerError::OtherKind {
            path: path(),
            found,
            wanted,
        });
    }
    Ok(())
}
