//! One byte stream, whatever carries it.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll},
};

use bytes::{Buf, BytesMut};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf},
    net::{TcpStream, UnixStream},
};
use tokio_rustls::{client, server};

/// A connection to a client or to a backend.
#[derive(Debug)]
pub enum Stream {
    /// Plain TCP.
    Tcp(TcpStream),
    /// Unix socket.
    Unix(UnixStream),
    /// TLS, we are the server.
    TlsServer(Box<server::TlsStream<TcpStream>>),
    /// TLS, we are the client.
    TlsClient(Box<client::TlsStream<TcpStream>>),
}

impl AsyncRead for Stream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Stream::Tcp(s) => Pin::new(s).poll_read(cx, buf),
            Stream::Unix(s) => Pin::new(s).poll_read(cx, buf),
            Stream::TlsServer(s) => Pin::new(s).poll_read(cx, buf),
            Stream::TlsClient(s) => Pin::new(s).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Stream::Tcp(s) => Pin::new(s).poll_write(cx, buf),
            Stream::Unix(s) => Pin::new(s).poll_write(cx, buf),
            Stream::TlsServer(s) => Pin::new(s).poll_write(cx, buf),
            Stream::TlsClient(s) => Pin::new(s).poll_write(cx, buf),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Stream::Tcp(_) | Stream::Unix(_) => Poll::Ready(Ok(())),
            Stream::TlsServer(s) => Pin::new(s).poll_flush(cx),
            Stream::TlsClient(s) => Pin::new(s).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Stream::Tcp(s) => Pin::new(s).poll_shutdown(cx),
            Stream::Unix(s) => Pin::new(s).poll_shutdown(cx),
            Stream::TlsServer(s) => Pin::new(s).poll_shutdown(cx),
            Stream::TlsClient(s) => Pin::new(s).poll_shutdown(cx),
        }
    }
}

/// A [`Stream`] on its way to another thread.
#[derive(Debug)]
pub enum Detached {
    /// Known to no reactor.
    Tcp(std::net::TcpStream),
    /// Known to no reactor.
    Unix(std::os::unix::net::UnixStream),
    /// TLS cannot be taken off its socket: the thread that opened it goes on to watch it for the other.
    Tls(Stream),
}

impl Detached {
    /// Puts it under the reactor of this thread.
    pub fn attach(self) -> io::Result<Stream> {
        Ok(match self {
            Detached::Tcp(s) => Stream::Tcp(TcpStream::from_std(s)?),
            Detached::Unix(s) => Stream::Unix(UnixStream::from_std(s)?),
            Detached::Tls(s) => s,
        })
    }
}

impl Stream {
    /// Is it worth while to read? Under TLS nobody knows.
    pub fn poll_read_ready(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            Stream::Tcp(s) => s.poll_read_ready(cx),
            Stream::Unix(s) => s.poll_read_ready(cx),
            Stream::TlsServer(_) | Stream::TlsClient(_) => Poll::Ready(Ok(())),
        }
    }

    /// Takes it from the reactor of this thread.
    pub fn detach(self) -> io::Result<Detached> {
        Ok(match self {
            Stream::Tcp(s) => Detached::Tcp(s.into_std()?),
            Stream::Unix(s) => Detached::Unix(s.into_std()?),
            tls @ (Stream::TlsServer(_) | Stream::TlsClient(_)) => Detached::Tls(tls),
        })
    }

    /// Is there TLS on it?
    pub fn is_tls(&self) -> bool {
        matches!(self, Stream::TlsServer(_) | Stream::TlsClient(_))
    }
}

/// A [`Stream`] with what was read ahead and what is to be written: for the few messages of a login. Room is made for
/// bytes as they arrive, never for a length that the peer claims.
#[derive(Debug)]
pub struct Buffered {
    /// The socket.
    pub stream: Stream,
    /// Read, not yet taken.
    pub input: BytesMut,
    /// To be sent by [`Buffered::flush`].
    pub output: BytesMut,
}

/// Why the next message of a login did not come.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The peer closed the connection.
    #[error("the connection was closed")]
    Eof,
    /// The peer claims a length below 4 or above the limit of this state.
    #[error("message type 0x{tag:02x} of {length} bytes")]
    Length {
        /// Type byte.
        tag: u8,
        /// As claimed, the length field included.
        length: u32,
    },
    /// The socket failed.
    #[error(transparent)]
    Io(#[from] io::Error),
}

impl Buffered {
    /// Nothing read, nothing to write.
    pub fn new(stream: Stream) -> Self {
        Self { stream, input: BytesMut::new(), output: BytesMut::new() }
    }

    /// Reads once; fails at the end of the stream.
    pub async fn fill(&mut self) -> Result<(), ReadError> {
        if self.input.capacity() - self.input.len() < 256 {
            self.input.reserve(1024);
        }
        if self.stream.read_buf(&mut self.input).await? == 0 { Err(ReadError::Eof) } else { Ok(()) }
    }

    /// Reads until `count` bytes are there.
    pub async fn need(&mut self, count: usize) -> Result<(), ReadError> {
        while self.input.len() < count {
            self.fill().await?;
        }
        Ok(())
    }

    /// Takes the next typed message: its type and its body. `max` bounds the body, in bytes.
    pub async fn message(&mut self, max: usize) -> Result<(u8, BytesMut), ReadError> {
        self.need(5).await?;
        let tag = self.input[0];
        let length = u32::from_be_bytes([self.input[1], self.input[2], self.input[3], self.input[4]]);
        let body = length
            .checked_sub(4)
            .and_then(|body| usize::try_from(body).ok())
            .filter(|&body| body <= max)
            .ok_or(ReadError::Length { tag, length })?;
        self.need(5 + body).await?;
        self.input.advance(5);
        Ok((tag, self.input.split_to(body)))
    }

    /// Sends everything in `output`.
    pub async fn flush(&mut self) -> io::Result<()> {
        self.stream.write_all(&self.output).await?;
        self.output.clear();
        self.stream.flush().await
    }

    /// Reads and drops what has already arrived: closing a socket with unread bytes resets it, and the peer would lose
    /// the error that it was sent.
    pub fn drain_arrived(&mut self) {
        let mut scrap = [0; 4096];
        for _ in 0..16 {
            let read = match &self.stream {
                Stream::Tcp(s) => s.try_read(&mut scrap),
                Stream::Unix(s) => s.try_read(&mut scrap),
                Stream::TlsServer(s) => s.get_ref().0.try_read(&mut scrap),
                Stream::TlsClient(s) => s.get_ref().0.try_read(&mut scrap),
            };
            if !matches!(read, Ok(n) if n > 0) {
                return;
            }
        }
    }
}
