//! Large buffers that are lent and come back, so that a read of megabytes costs neither fresh pages
//! nor zeroes. (Fresh memory cost the exporter a tenth of its CPU: page faults and memset.)

use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;

/// A few spare buffers.
#[derive(Debug)]
pub struct Buffers {
    spare: Mutex<Vec<Vec<u8>>>,
    kept_max: usize,
    bytes_max: usize,
}

/// A buffer of a wanted length, back in its [`Buffers`] when the last [`Bytes`] of it is dropped.
#[derive(Debug)]
pub struct Lent {
    /// Longer than `len` if it served a longer one before: its bytes stay initialised.
    bytes: Vec<u8>,
    len: usize,
    home: Arc<Buffers>,
}

/// Shorter ones are cheap to make, and would take the places of long ones.
const KEPT_BYTES_MIN: usize = 64 << 10;

/// Beyond what was asked for.
const ROOM_BYTES_MAX: usize = 512 << 10;

impl Buffers {
    /// Keeps at most `kept_max` buffers of at most `bytes_max` each.
    pub fn new(kept_max: usize, bytes_max: usize) -> Arc<Self> {
        Arc::new(Self {
            spare: Mutex::default(),
            kept_max,
            bytes_max,
        })
    }

    /// A buffer of `len` bytes of whatever they held before: the caller writes all of them.
    pub fn take(self: &Arc<Self>, len: usize) -> Lent {
        let mut spare = self.spare();
        let kept = spare.iter().position(|bytes| bytes.len() >= len);
        let kept = kept.map(|index| spare.swap_remove(index));
        drop(spare);
        Lent {
            // Rounded up, so that the next one, a little longer, finds it long enough. Long ones less:
            // 4 MiB and a header are not worth 8.
            bytes: kept
                .unwrap_or_else(|| vec![0; len.next_power_of_two().min(len + ROOM_BYTES_MAX)]),
            len,
            home: Arc::clone(self),
        }
    }

    fn spare(&self) -> std::sync::MutexGuard<'_, Vec<Vec<u8>>> {
        self.spare.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Lent {
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.bytes[..self.len]
    }

    pub fn freeze(self) -> Bytes {
        Bytes::from_owner(self)
    }
}

impl AsRef<[u8]> for Lent {
    fn as_ref(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        let bytes = std::mem::take(&mut self.bytes);
        if (KEPT_BYTES_MIN..=self.home.bytes_max).contains(&bytes.len()) {
            let mut spare = self.home.spare();
            if spare.len() < self.home.kept_max {
                spare.push(bytes);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_comes_back_with_its_last_slice_and_serves_again() {
        let buffers = Buffers::new(1, 1 << 20);
        let mut lent = buffers.take(80_000);
        lent.bytes_mut().fill(7);
        let place = lent.as_ref().as_ptr();
        let bytes = lent.freeze();
        let slice = bytes.slice(10..20);
        drop(bytes);
        assert!(buffers.spare().is_empty(), "still lent");
        drop(slice);
        drop(buffers.take(2 << 20)); // too long to keep
        drop(buffers.take(100)); // too short
        let again = buffers.take(100_000);
        assert_eq!(again.as_ref().len(), 100_000);
        assert_eq!(again.as_ref().as_ptr(), place);
    }
}
