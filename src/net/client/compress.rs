//! Compression of a whole message before it is sent.

use std::io::Write;

use bytes::Bytes;

use super::ExportError;

/// How a message is compressed on the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Compression {
    #[default]
    None,
    Gzip,
    Zstd,
}

/// Level 1 of both: gzip at its usual 6 was measured at 2.5 CPU seconds a million spans, 20 times
/// what sending costs, and zstd at 1 at 0.5 to 0.7.
const LEVEL: u32 = 1;

/// zstd at level 1 takes 0.1 ms for this much (717 MB/s measured); more would hold up the other
/// tasks of the runtime's thread.
const INLINE_BYTES_MAX: usize = 64 << 10;

impl Compression {
    /// Name in `grpc-encoding` and `content-encoding`; `None` when there is nothing to name.
    pub fn encoding(self) -> Option<&'static str> {
        match self {
            Self::None => None,
            Self::Gzip => Some("gzip"),
            Self::Zstd => Some("zstd"),
        }
    }
}

/// A message as it goes over the wire; cheap to clone and to send again.
#[derive(Debug, Clone)]
pub struct Encoded {
    pub(super) pieces: Vec<Bytes>,
    pub(super) compression: Compression,
    /// Bytes on the wire, without framing. Fits gRPC's length prefix.
    pub(super) length: u32,
}

impl Encoded {
    /// Compresses the concatenation of `pieces`; without compression they are kept as they are.
    pub async fn new(pieces: Vec<Bytes>, compression: Compression) -> Result<Self, ExportError> {
        let plain_bytes: usize = pieces.iter().map(Bytes::len).sum();
        let pieces = match compression {
            Compression::None => pieces,
            _ if plain_bytes <= INLINE_BYTES_MAX => vec![compress(&pieces, compression)?],
            _ => {
                let compressing =
                    tokio::task::spawn_blocking(move || compress(&pieces, compression));
                vec![compressing.await.map_err(|e| failed(&e))??]
            }
        };
        let bytes: usize = pieces.iter().map(Bytes::len).sum();
        let length = u32::try_from(bytes).map_err(|_| ExportError::Refused {
            code: "RESOURCE_EXHAUSTED".to_owned(),
            message: format!("a message of {bytes} bytes is longer than gRPC's 4 GiB"),
            retryable: false,
            retry_after: None,
        })?;
        Ok(Self {
            pieces,
            compression,
            length,
        })
    }

    /// Bytes on the wire, without framing.
    pub fn bytes(&self) -> u64 {
        u64::from(self.length)
    }
}

fn compress(pieces: &[Bytes], compression: Compression) -> Result<Bytes, ExportError> {
    let plain_bytes: usize = pieces.iter().map(Bytes::len).sum();
    // Spans shrink to a fifth or less; the buffer grows if these do not.
    let out = Vec::with_capacity(plain_bytes / 4 + 64);
    let compressed = match compression {
        Compression::None => return Ok(pieces.concat().into()),
        Compression::Gzip => {
            let mut encoder = flate2::write::GzEncoder::new(out, flate2::Compression::new(LEVEL));
            write_all(&mut encoder, pieces).and_then(|()| encoder.finish())
        }
        Compression::Zstd => {
            zstd::stream::write::Encoder::new(out, LEVEL as i32).and_then(|mut encoder| {
                write_all(&mut encoder, pieces)?;
                encoder.finish()
            })
        }
    };
    compressed.map(Bytes::from).map_err(|e| failed(&e))
}

fn write_all(encoder: &mut impl Write, pieces: &[Bytes]) -> std::io::Result<()> {
    pieces.iter().try_for_each(|piece| encoder.write_all(piece))
}

/// Writing into memory does not fail; but if it does, the same message fails again.
fn failed(error: &dyn std::error::Error) -> ExportError {
    ExportError::Refused {
        code: "INTERNAL".to_owned(),
        message: format!("the message could not be compressed: {error}"),
        retryable: false,
        retry_after: None,
    }
}
