//! Buffers that chunks arrive in, or the pieces of long ones, kept from one to the next.
//!
//! A buffer that comes new from the kernel costs a page fault for every 4 KiB, which is as much as
//! decrypting what it is filled with. How many there are at once is decided by whoever bounds the
//! chunks in flight.

use std::sync::{Mutex, PoisonError};

/// Bytes kept in free buffers at most: the 8 chunks, or pieces, of 256 KiB that a node has in flight. It is what
/// a node pays beside its image until it is complete, and only if so many were in use at once.
const KEPT_BYTES: usize = 2 << 20;

/// Free buffers, empty, last used first.
#[derive(Debug, Default)]
pub(crate) struct ChunkBuffers(Mutex<Free>);

#[derive(Debug, Default)]
struct Free {
    buffers: Vec<Vec<u8>>,
    bytes: usize,
    is_closed: bool,
}

impl ChunkBuffers {
    /// An empty buffer, of whatever capacity.
    pub(crate) fn take(&self) -> Vec<u8> {
        let mut free = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let buffer = free.buffers.pop().unwrap_or_default();
        free.bytes -= buffer.capacity();
        buffer
    }

    /// Keeps the buffer for the next chunk, or frees it.
    pub(crate) fn give_back(&self, mut buffer: Vec<u8>) {
        buffer.clear();
        let mut free = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if !free.is_closed && free.bytes + buffer.capacity() <= KEPT_BYTES {
            free.bytes += buffer.capacity();
            free.buffers.push(buffer);
        }
    }

    /// Frees all of them, now and from now on: no more chunks are expected.
    pub(crate) fn close(&self) {
        let closed = Free {
            is_closed: true,
            ..Free::default()
        };
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = closed;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(buffers: &ChunkBuffers) -> usize {
        let free = buffers.0.lock().unwrap();
        assert_eq!(
            free.bytes,
            free.buffers.iter().map(Vec::capacity).sum::<usize>()
        );
        free.bytes
    }

    #[test]
    fn a_buffer_comes_back_empty_and_as_large_as_it_was() {
        let buffers = ChunkBuffers::default();
        assert_eq!(buffers.take().capacity(), 0);
        let buffer = vec![7; 1000];
        let capacity = buffer.capacity();
        buffers.give_back(buffer);
        assert_eq!(bytes(&buffers), capacity);
        let again = buffers.take();
        assert!(again.is_empty());
        assert_eq!(again.capacity(), capacity);
        assert_eq!(bytes(&buffers), 0);
    }

    #[test]
    fn no_more_than_the_bound_is_kept() {
        let buffers = ChunkBuffers::default();
        for _ in 0..3 {
            buffers.give_back(Vec::with_capacity(KEPT_BYTES / 2));
            assert!(bytes(&buffers) <= KEPT_BYTES);
        }
        assert_eq!(buffers.0.lock().unwrap().buffers.len(), 2);
        buffers.take();
        buffers.give_back(Vec::with_capacity(KEPT_BYTES + 1));
        assert_eq!(buffers.0.lock().unwrap().buffers.len(), 1);
    }

    #[test]
    fn nothing_is_kept_after_the_last_chunk() {
        let buffers = ChunkBuffers::default();
        buffers.give_back(Vec::with_capacity(1000));
        let late = Vec::with_capacity(1000);
        buffers.close();
        buffers.give_back(late);
        assert_eq!(bytes(&buffers), 0);
        assert_eq!(buffers.take().capacity(), 0);
    }
}
