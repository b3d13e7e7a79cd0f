//! A stream with its two buffers; an idle connection holds none.

use std::{
    cell::RefCell,
    future::Future,
    io,
    pin::{Pin, pin},
    task::{Context, Poll, ready},
};

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWrite};

use super::stream::Stream;

/// Free buffers of one data thread.
#[derive(Debug, Default)]
pub struct Buffers {
    small: RefCell<Vec<BytesMut>>,
    large: RefCell<Vec<BytesMut>>,
}

impl Buffers {
    fn take(&self, large: bool) -> BytesMut {
        let (list, size) = if large { (&self.large, LARGE) } else { (&self.small, SMALL) };
        list.borrow_mut().pop().unwrap_or_else(|| BytesMut::with_capacity(size))
    }

    /// Takes an empty buffer back, whatever grew it.
    pub fn give(&self, buf: &mut BytesMut) {
        debug_assert!(buf.is_empty(), "bytes would be lost");
        let mut buf = std::mem::take(buf);
        buf.clear();
        // Makes all of its room usable again.
        if !buf.try_reclaim(SMALL) {
            return;
        }
        let (list, most) = match buf.capacity() {
            ..LARGE => (&self.small, KEPT_SMALL),
            LARGE..VAST => (&self.large, KEPT_LARGE),
            VAST.. => return,
        };
        let mut list = list.borrow_mut();
        if list.len() < most {
            list.push(buf);
        }
    }
}

/// A connection to a client or to a backend.
#[derive(Debug)]
pub struct Conn {
    /// What carries the bytes.
    pub stream: Stream,
    /// Read and not yet consumed.
    pub input: BytesMut,
    /// To be written.
    pub output: BytesMut,
    /// Bytes read and written since the last look at them.
    pub traffic: [u64; 2],
    bulk: bool,
}

impl Conn {
    /// Wraps a stream; `input` is what was already read from it.
    pub fn new(stream: Stream, input: BytesMut) -> Self {
        Self { stream, input, output: BytesMut::new(), traffic: [0; 2], bulk: false }
    }

    /// Reads once into `input`. `Ready(0)` is the end of the stream.
    pub fn poll_fill(&mut self, cx: &mut Context<'_>, buffers: &Buffers) -> Poll<io::Result<usize>> {
        if self.input.capacity() == 0 {
            // Most looks find nothing, and need no buffer.
            ready!(self.stream.poll_read_ready(cx))?;
            self.input = buffers.take(self.bulk);
        } else if self.input.capacity() - self.input.len() < SMALL / 2 {
            self.input.reserve(SMALL.max(self.input.len()));
        }
        let room = self.input.capacity() - self.input.len();
        let read = pin!(self.stream.read_buf(&mut self.input)).poll(cx);
        match &read {
            Poll::Ready(Ok(n)) => {
                self.bulk = *n == room;
                self.traffic[0] += *n as u64;
            }
            Poll::Ready(Err(_)) | Poll::Pending if self.input.is_empty() => buffers.give(&mut self.input),
            Poll::Ready(Err(_)) | Poll::Pending => {}
        }
        read
    }

    /// Writes `output` until it is empty or the socket is full.
    pub fn poll_flush(&mut self, cx: &mut Context<'_>, buffers: &Buffers) -> Poll<io::Result<()>> {
        if self.output.is_empty() && !self.stream.is_tls() {
            return Poll::Ready(Ok(()));
        }
        while !self.output.is_empty() {
            match Pin::new(&mut self.stream).poll_write(cx, &self.output) {
                Poll::Ready(Ok(0)) => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                Poll::Ready(Ok(n)) => {
                    self.output.advance(n);
                    self.traffic[1] += n as u64;
                }
                Poll::Ready(Err(e)) => return Poll::Ready(Err(e)),
                Poll::Pending => return Poll::Pending,
            }
        }
        if self.output.capacity() > 0 {
            buffers.give(&mut self.output);
        }
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    /// Drops `n` bytes from the front of `input`; an emptied buffer goes back to the free list.
    pub fn consume(&mut self, n: usize, buffers: &Buffers) {
        self.input.advance(n);
        if self.input.is_empty() {
            buffers.give(&mut self.input);
        }
    }
}

/// Moves the first `n` bytes of `from` behind `to`: by swapping when that is all there is, else by copying.
pub fn shift(from: &mut BytesMut, n: usize, to: &mut BytesMut, buffers: &Buffers) {
    if n == 0 {
        return;
    }
    if n == from.len() && to.is_empty() {
        std::mem::swap(from, to);
        if from.capacity() > 0 {
            buffers.give(from);
        }
        return;
    }
    append(&from[..n], to, buffers);
    from.advance(n);
    if from.is_empty() {
        buffers.give(from);
    }
}

/// Copies `bytes` behind `to`, into a free buffer when it has none.
pub fn append(bytes: &[u8], to: &mut BytesMut, buffers: &Buffers) {
    if to.capacity() == 0 {
        *to = buffers.take(false);
    }
    to.extend_from_slice(bytes);
}

/// Buffer of a quiet connection.
const SMALL: usize = 8 << 10;
/// Buffer of a connection whose last read filled its buffer.
const LARGE: usize = 128 << 10;
/// A buffer that a long message has grown to this is not kept.
const VAST: usize = 4 * LARGE;
const KEPT_SMALL: usize = 256;
const KEPT_LARGE: usize = 16;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shift_swaps_or_copies() {
        let buffers = Buffers::default();
        let mut from = BytesMut::from(&b"abcdef"[..]);
        let mut to = BytesMut::new();
        shift(&mut from, 4, &mut to, &buffers);
        assert_eq!((&from[..], &to[..]), (&b"ef"[..], &b"abcd"[..]));
        shift(&mut from, 2, &mut to, &buffers);
        assert_eq!((&from[..], &to[..]), (&b""[..], &b"abcdef"[..]));
        let mut all = BytesMut::from(&b"xyz"[..]);
        let mut out = BytesMut::new();
        shift(&mut all, 3, &mut out, &buffers);
        assert_eq!((&all[..], &out[..]), (&b""[..], &b"xyz"[..]));
    }
}
