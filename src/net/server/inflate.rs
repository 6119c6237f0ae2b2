//! Decompression, piece by piece, into whatever room the caller has paid for.
//!
//! A decoder never allocates by what the message claims: gzip's window is 32 KiB by its format, and
//! zstd's is read from the frame's header and paid for by the caller before the decoder sees it.
//! Bounds on the output are `body`'s.

use flate2::{Decompress, FlushDecompress, Status};
use zstd::zstd_safe::{DCtx, DParameter, InBuffer, OutBuffer};

/// How a message's bytes are packed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Encoding {
    Identity,
    Gzip,
    Zstd,
}

/// What we name when something else is asked for.
pub(super) const ENCODINGS: &str = "gzip, zstd and identity";

impl Encoding {
    /// Reads one value of `content-encoding` or `grpc-encoding`.
    pub(super) fn parse(text: &str) -> Option<Self> {
        match text.trim() {
            "" => Some(Self::Identity),
            text if text.eq_ignore_ascii_case("identity") => Some(Self::Identity),
            text if text.eq_ignore_ascii_case("gzip") => Some(Self::Gzip),
            text if text.eq_ignore_ascii_case("zstd") => Some(Self::Zstd),
            _ => None,
        }
    }
}

/// The largest zstd window we decode. RFC 8878 asks for 8 MiB, and every common encoder stays
/// within it up to level 19; a frame may ask for 2 GiB.
const ZSTD_WINDOW_LOG_MAX: u32 = 23;
/// A decoder without its window: its tables (95 KiB), one block of 128 KiB in and two out.
const ZSTD_BYTES: u64 = 512 << 10;
/// zlib's state with its window of 32 KiB.
const GZIP_BYTES: u64 = 48 << 10;
/// A gzip stream may be many members. Each costs a decoder, and an empty one has 20 bytes, so that
/// a small message could ask for millions.
const GZIP_MEMBERS_MAX: u32 = 64;

/// See the module.
pub(super) enum Decoder {
    Gzip {
        inner: Box<Decompress>,
        members: u32,
        /// At the start, or right after a member.
        between: bool,
    },
    Zstd {
        inner: DCtx<'static>,
        between: bool,
    },
}

/// What one step did.
#[derive(Debug)]
pub(super) struct Step {
    pub(super) consumed: usize,
    pub(super) produced: usize,
}

impl Decoder {
    /// `None` for [`Encoding::Identity`]. The error is an allocation that failed.
    pub(super) fn new(encoding: Encoding) -> Result<Option<Self>, String> {
        Ok(match encoding {
            Encoding::Identity => None,
            Encoding::Gzip => Some(Self::Gzip {
                inner: Box::new(Decompress::new_gzip(15)),
                members: 1,
                between: true,
            }),
            Encoding::Zstd => {
                let mut inner = DCtx::try_create().ok_or("no memory for a zstd decoder")?;
                inner
                    .set_parameter(DParameter::WindowLogMax(ZSTD_WINDOW_LOG_MAX))
                    .map_err(zstd_error)?;
                Some(Self::Zstd {
                    inner,
                    between: true,
                })
            }
        })
    }

    /// Bytes this decoder will hold once it has seen `input`, which is what comes next.
    pub(super) fn needs_bytes(&self, input: &[u8]) -> u64 {
        match self {
            Self::Gzip { .. } => GZIP_BYTES,
            Self::Zstd { between: true, .. } => ZSTD_BYTES + zstd_window_bytes(input),
            Self::Zstd { between: false, .. } => 0, // paid when the frame began
        }
    }

    /// Decodes from `input` into `output`; either may be used up only in part.
    pub(super) fn step(&mut self, input: &[u8], output: &mut [u8]) -> Result<Step, String> {
        match self {
            Self::Gzip {
                inner,
                members,
                between,
            } => {
                if *between && *members > 1 {
                    if *members > GZIP_MEMBERS_MAX {
                        return Err(format!("gzip of more than {GZIP_MEMBERS_MAX} members"));
                    }
                    **inner = Decompress::new_gzip(15);
                }
                let (before_in, before_out) = (inner.total_in(), inner.total_out());
                let status = inner
                    .decompress(input, output, FlushDecompress::None)
                    .map_err(|error| format!("bad gzip: {error}"))?;
                *between = status == Status::StreamEnd;
                if *between {
                    *members += 1;
                }
                // Both differences are at most the lengths of the slices.
                Ok(Step {
                    consumed: (inner.total_in() - before_in) as usize,
                    produced: (inner.total_out() - before_out) as usize,
                })
            }
            Self::Zstd { inner, between } => {
                let mut from = InBuffer::around(input);
                let mut to = OutBuffer::around(output);
                let hint = inner
                    .decompress_stream(&mut to, &mut from)
                    .map_err(zstd_error)?;
                *between = hint == 0;
                Ok(Step {
                    consumed: from.pos(),
                    produced: to.pos(),
                })
            }
        }
    }

    /// Whether the input may end here.
    pub(super) fn is_whole(&self) -> bool {
        match self {
            Self::Gzip { between, .. } | Self::Zstd { between, .. } => *between,
        }
    }
}

fn zstd_error(code: zstd::zstd_safe::ErrorCode) -> String {
    format!("bad zstd: {}", zstd::zstd_safe::get_error_name(code))
}

/// The window that the frame at the start of `input` asks for; the largest allowed if the header is
/// not all there. 0 for what is no data frame, and for windows beyond the bound: the decoder
/// refuses those without allocating.
fn zstd_window_bytes(input: &[u8]) -> u64 {
    const LARGEST: u64 = 1 << ZSTD_WINDOW_LOG_MAX;
    const MAGIC: [u8; 4] = 0xFD2F_B528_u32.to_le_bytes();
    let Some((magic, rest)) = input.split_first_chunk::<4>() else {
        return LARGEST;
    };
    if *magic != MAGIC {
        return 0;
    }
    let Some((descriptor, rest)) = rest.split_first() else {
        return LARGEST;
    };
    let is_single_segment = descriptor & 0x20 != 0;
    let window = if is_single_segment {
        // The window is the content; its size stands behind the dictionary ID.
        let skip = [0, 1, 2, 4][usize::from(descriptor & 3)];
        let len = [1, 2, 4, 8][usize::from(descriptor >> 6)];
        let Some(size) = rest.get(skip..skip + len) else {
            return LARGEST;
        };
        let mut bytes = [0; 8];
        bytes[..len].copy_from_slice(size);
        let size = u64::from_le_bytes(bytes);
        if len == 2 { size + 256 } else { size }
    } else {
        let Some(window) = rest.first() else {
            return LARGEST;
        };
        let base = 1_u64 << (10 + (window >> 3));
        base + base / 8 * u64::from(window & 7)
    };
    if window > LARGEST { 0 } else { window }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    /// Decodes all of `packed`, giving `piece` bytes of input and `room` of output at a time.
    fn unpack(
        encoding: Encoding,
        packed: &[u8],
        piece: usize,
        room: usize,
    ) -> Result<Vec<u8>, String> {
        let mut decoder = Decoder::new(encoding)?.unwrap();
        let (mut out, mut buffer) = (Vec::new(), vec![0; room]);
        for mut input in packed.chunks(piece) {
            loop {
                let step = decoder.step(input, &mut buffer)?;
                out.extend_from_slice(&buffer[..step.produced]);
                input = &input[step.consumed..];
                if input.is_empty() && (step.produced < room || decoder.is_whole()) {
                    break;
                }
                assert!(step.consumed + step.produced > 0, "no progress");
            }
        }
        if decoder.is_whole() {
            Ok(out)
        } else {
            Err("truncated".into())
        }
    }

    fn gzip(data: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(data).unwrap();
        encoder.finish().unwrap()
    }

    #[test]
    fn any_cut_of_input_and_output_gives_the_same_bytes() {
        let data: Vec<u8> = (0..200_000_u32)
            .flat_map(|i| (i / 7).to_le_bytes())
            .collect();
        let two = data.len() / 2;
        for (encoding, one, several) in [
            (
                Encoding::Gzip,
                gzip(&data),
                [gzip(&data[..two]), gzip(&data[two..])].concat(),
            ),
            (
                Encoding::Zstd,
                zstd::encode_all(&data[..], 3).unwrap(),
                [
                    zstd::encode_all(&data[..two], 1).unwrap(),
                    zstd::encode_all(&data[two..], 7).unwrap(),
                ]
                .concat(),
            ),
        ] {
            for (piece, room) in [
                (1 << 20, 1 << 20),
                (1000, 333),
                (17, 100_000),
                (100_000, 64),
            ] {
                assert!(unpack(encoding, &one, piece, room).unwrap() == data);
                assert!(unpack(encoding, &several, piece, room).unwrap() == data);
            }
        }
    }

    #[test]
    fn every_truncation_is_noticed() {
        let data = b"sixteen byte ids".repeat(20);
        for (encoding, packed) in [
            (Encoding::Gzip, gzip(&data)),
            (Encoding::Zstd, zstd::encode_all(&data[..], 3).unwrap()),
        ] {
            for len in 1..packed.len() {
                assert!(
                    unpack(encoding, &packed[..len], 64, 4096).is_err(),
                    "{encoding:?} {len}"
                );
            }
        }
    }

    #[test]
    fn members_without_end_are_refused() {
        let many = gzip(b"").repeat(GZIP_MEMBERS_MAX as usize + 1);
        assert!(
            unpack(Encoding::Gzip, &many, 1 << 20, 1024)
                .unwrap_err()
                .contains("members")
        );
        let some = gzip(b"x").repeat(GZIP_MEMBERS_MAX as usize);
        assert_eq!(
            unpack(Encoding::Gzip, &some, 1 << 20, 1024).unwrap().len(),
            64
        );
    }

    #[test]
    fn a_zstd_window_beyond_the_bound_is_refused_without_its_memory() {
        let mut encoder = zstd::Encoder::new(Vec::new(), 3).unwrap();
        encoder.window_log(27).unwrap();
        encoder.write_all(&vec![7; 1 << 20]).unwrap();
        let packed = encoder.finish().unwrap();
        let mut decoder = Decoder::new(Encoding::Zstd).unwrap().unwrap();
        assert_eq!(decoder.needs_bytes(&packed), ZSTD_BYTES);
        assert!(decoder.step(&packed, &mut [0; 1024]).is_err());
        let Decoder::Zstd { inner, .. } = &decoder else {
            panic!("not zstd")
        };
        assert!(inner.sizeof() as u64 <= ZSTD_BYTES, "{}", inner.sizeof());
    }

    #[test]
    fn what_a_zstd_decoder_holds_is_what_it_said_it_needs() {
        for (level, size, streamed) in [
            (1, 1000, false),
            (3, 300_000, false),
            (3, 300, true),
            (19, 20 << 20, true),
            (19, 9 << 20, false),
            (3, 9 << 20, false),
        ] {
            let data = vec![7_u8; size];
            let packed = if streamed {
                zstd::encode_all(&data[..], level).unwrap()
            } else {
                zstd::bulk::compress(&data, level).unwrap()
            };
            let mut decoder = Decoder::new(Encoding::Zstd).unwrap().unwrap();
            let said = decoder.needs_bytes(&packed);
            assert!(
                said <= decoder.needs_bytes(&packed[..5]),
                "a cut header counts as the largest"
            );
            decoder.step(&packed, &mut vec![0; 4096]).unwrap();
            let Decoder::Zstd { inner, .. } = &decoder else {
                panic!("not zstd")
            };
            assert!(
                inner.sizeof() as u64 <= said,
                "{level} {size} {streamed}: {} > {said}",
                inner.sizeof()
            );
        }
    }
}
