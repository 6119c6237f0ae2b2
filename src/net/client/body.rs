//! Request bodies that send pieces as they are: no copy, and as few DATA frames as the peer allows.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::io::IoSlice;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::{Buf, Bytes};
use http_body::{Body, Frame};

/// Pieces that read as one buffer. h2 cuts it at the peer's frame size, not at the pieces' ends,
/// and writes it with writev.
#[derive(Debug)]
pub(super) struct Rope {
    /// None is empty.
    pieces: VecDeque<Bytes>,
    remaining: usize,
}

impl Rope {
    pub(super) fn new(pieces: impl IntoIterator<Item = Bytes>) -> Self {
        let pieces: VecDeque<Bytes> = pieces.into_iter().filter(|p| !p.is_empty()).collect();
        let remaining = pieces.iter().map(Bytes::len).sum();
        Self { pieces, remaining }
    }
}

impl Buf for Rope {
    fn remaining(&self) -> usize {
        self.remaining
    }

    fn chunk(&self) -> &[u8] {
        self.pieces.front().map_or(&[], |piece| piece)
    }

    fn chunks_vectored<'a>(&'a self, slices: &mut [IoSlice<'a>]) -> usize {
        let mut filled = 0;
        for (slice, piece) in slices.iter_mut().zip(&self.pieces) {
            *slice = IoSlice::new(piece);
            filled += 1;
        }
        filled
    }

    fn advance(&mut self, mut count: usize) {
        // Buf demands this panic; hyper advances by what it wrote, which is never more.
        assert!(count <= self.remaining, "advanced beyond the end of a rope");
        self.remaining -= count;
        while count > 0 {
            // There is a front piece: the pieces' lengths add up to `remaining`.
            let Some(front) = self.pieces.front_mut() else {
                return;
            };
            if count < front.len() {
                front.advance(count);
                return;
            }
            count -= front.len();
            self.pieces.pop_front();
        }
    }
}

/// One gRPC message as a request body: a single chunk that ends the stream. Without a size hint,
/// so that hyper adds no content-length, which gRPC does not use.
#[derive(Debug)]
pub(super) struct MessageBody {
    message: Option<Rope>,
}

impl MessageBody {
    /// `compressed` goes into the five bytes before the message.
    pub(super) fn new(pieces: &[Bytes], length: u32, compressed: bool) -> Self {
        let mut prefix = [u8::from(compressed), 0, 0, 0, 0];
        prefix[1..].copy_from_slice(&length.to_be_bytes());
        let prefix = Bytes::copy_from_slice(&prefix);
        Self {
            message: Some(Rope::new(
                std::iter::once(prefix).chain(pieces.iter().cloned()),
            )),
        }
    }
}

impl Body for MessageBody {
    type Data = Rope;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Rope>, Infallible>>> {
        Poll::Ready(self.message.take().map(|rope| Ok(Frame::data(rope))))
    }

    fn is_end_stream(&self) -> bool {
        self.message.is_none()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_rope_reads_as_the_concatenation_however_it_is_advanced(
            pieces in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..9), 0..9),
            steps in proptest::collection::vec(1usize..12, 1..40),
        ) {
            let whole = pieces.concat();
            let mut rope = Rope::new(pieces.into_iter().map(Bytes::from));
            let mut read = Vec::new();
            for step in steps.into_iter().cycle() {
                prop_assert_eq!(rope.remaining(), whole.len() - read.len());
                if !rope.has_remaining() {
                    break;
                }
                let mut slices = [IoSlice::new(&[]); 16];
                let filled = rope.chunks_vectored(&mut slices);
                let ahead: Vec<u8> = slices[..filled].iter().flat_map(|s| s.to_vec()).collect();
                prop_assert_eq!(&ahead[..], &whole[read.len()..]);
                prop_assert!(!rope.chunk().is_empty());
                let step = step.min(rope.remaining());
                read.extend_from_slice(&ahead[..step]);
                rope.advance(step);
            }
            prop_assert_eq!(read, whole);
        }
    }
}
