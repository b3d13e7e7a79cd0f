//! Statements of crossfade's own on a server connection, by the extended protocol: prepared once a connection,
//! parameters and results as text, all of a batch sent before the first answer is read.
//!
//! The client's unnamed statement and portal are left alone (manual, 55.2.3: a simple Query, or a Parse and Bind without a name,
//! would destroy them).

use std::{
    future::poll_fn,
    io,
    task::{Context, Poll, ready},
};

use bytes::{BufMut, Bytes, BytesMut};

use super::server::Server;
use crate::{
    session::transaction::Status,
    wire::{
        conn::Buffers,
        frame::{self, HEADER},
    },
};

/// A statement that is prepared under a name of its own.
#[derive(Clone, Copy, Debug)]
pub struct Own<'a> {
    /// Unique for the text; no application uses such a name.
    pub name: &'a str,
    /// With `$1`...
    pub sql: &'a str,
}

/// Messages that were written to a server's output and are not answered yet.
#[derive(Debug, Default)]
pub struct Script {
    /// In a block of the client's, whose portals must stay.
    beside: bool,
    /// Names prepared by it, in order.
    fresh: Vec<String>,
}

impl Script {
    /// One that runs in the middle of a client's block.
    pub fn beside() -> Self {
        Self { beside: true, ..Self::default() }
    }

    /// Appends one execution, preparing the statement where the server does not know it.
    pub fn call(&mut self, server: &mut Server, own: Own<'_>, parameters: &[Option<&[u8]>]) {
        self.call_as(server, own, parameters, TEXT);
    }

    /// As [`Script::call`]; the results come in binary.
    pub fn call_binary(&mut self, server: &mut Server, own: Own<'_>, parameters: &[Option<&[u8]>]) {
        self.call_as(server, own, parameters, BINARY);
    }

    fn call_as(&mut self, server: &mut Server, own: Own<'_>, parameters: &[Option<&[u8]>], results: &[u8]) {
        if server.known.get(own.name.as_bytes()).is_none() {
            server.known.set(own.name.as_bytes(), Some(NUMBER));
            server.known.settle();
            self.fresh.push(own.name.to_owned());
            frame::put_parse(&mut server.conn.output, own.name.as_bytes(), own.sql.as_bytes(), &[0, 0]);
        }
        let portal = if self.beside { PORTAL } else { b"\0" };
        let out = &mut server.conn.output;
        if self.beside {
            // One that failed may have left its portal open: what follows an error is skipped.
            close(out);
        }
        put_bind(out, portal, own.name, parameters, results);
        put_execute(out, portal);
        if self.beside {
            close(out);
        }
    }

    /// Appends one execution of a text that will not come again, under no name. Only where no client's unnamed
    /// statement can be.
    pub fn once(&mut self, server: &mut Server, sql: &str) {
        server.known.remove(b"");
        let out = &mut server.conn.output;
        frame::put_parse(out, b"", sql.as_bytes(), &[0, 0]);
        frame::put(out, b'B', |b| b.put_slice(&[0; 8]));
        frame::put(out, b'E', |b| b.put_slice(&[0; 5]));
        self.fresh.push(String::new());
    }

    /// Appends the Sync that ends it.
    pub fn sync(server: &mut Server) {
        frame::put(&mut server.conn.output, b'S', |_| {});
    }

    /// Reads the answer to it; its Sync has been written.
    pub async fn reply(self, server: &mut Server, buffers: &Buffers) -> io::Result<Reply> {
        let reply = server.reply(buffers).await?;
        self.answered(server, &reply);
        Ok(reply)
    }

    /// Ends it and reads its answer.
    pub async fn run(self, server: &mut Server, buffers: &Buffers) -> io::Result<Reply> {
        Self::sync(server);
        self.reply(server, buffers).await
    }

    /// The answer is in: what was not prepared after all is not known.
    pub fn answered(self, server: &mut Server, reply: &Reply) {
        if reply.error.is_some() {
            for name in self.fresh.iter().skip(reply.parsed) {
                server.known.remove(name.as_bytes());
            }
        }
    }
}

/// What a server said to a [`Script`].
#[derive(Debug, Default)]
pub struct Reply {
    /// Command tags, in order, without the zero at their end.
    pub tags: Vec<Bytes>,
    /// Bodies of `DataRow`s, in order.
    pub rows: Vec<Bytes>,
    /// The first ErrorResponse, whole.
    pub error: Option<Vec<u8>>,
    /// Statements that were prepared.
    parsed: usize,
}

impl Reply {
    /// SQLSTATE of the error.
    pub fn sqlstate(&self) -> Option<&[u8]> {
        self.error.as_deref().and_then(|e| frame::error_field(&e[HEADER..], b'C'))
    }

    /// Takes one frame; the status when it was ReadyForQuery.
    pub fn take(&mut self, tag: u8, frame: &[u8]) -> Option<Status> {
        let body = &frame[HEADER..];
        match tag {
            b'1' => self.parsed += 1,
            b'C' => self.tags.push(Bytes::copy_from_slice(body.strip_suffix(b"\0").unwrap_or(body))),
            b'D' => self.rows.push(Bytes::copy_from_slice(body)),
            b'E' => drop(self.error.get_or_insert_with(|| frame.to_vec())),
            b'Z' => return Some(body.first().and_then(|&b| Status::from_byte(b)).unwrap_or(Status::Failed)),
            _ => {}
        }
        None
    }
}

impl Server {
    /// Sends what is in the output and reads answers up to the next ReadyForQuery.
    pub async fn reply(&mut self, buffers: &Buffers) -> io::Result<Reply> {
        let mut reply = Reply::default();
        poll_fn(|cx| self.poll_reply(cx, buffers, &mut reply)).await?;
        Ok(reply)
    }

    fn poll_reply(
        &mut self,
        cx: &mut Context<'_>,
        buffers: &Buffers,
        reply: &mut Reply,
    ) -> Poll<io::Result<()>> {
        loop {
            // A server that answers while it is still being told must be read, or both wait for each other.
            let _ = self.conn.poll_flush(cx, buffers)?;
            while let Some((tag, length)) = frame::header(&self.conn.input).map_err(io::Error::other)? {
                if self.conn.input.len() < length {
                    break;
                }
                let done = reply.take(tag, &self.conn.input[..length]);
                if tag == b'S' {
                    self.note_parameter(length);
                }
                self.conn.consume(length, buffers);
                if let Some(status) = done {
                    self.status = status;
                    return Poll::Ready(Ok(()));
                }
            }
            if ready!(self.conn.poll_fill(cx, buffers))? == 0 {
                return Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into()));
            }
        }
    }
}

/// The values of a `DataRow`; `None` when it is malformed.
pub fn values(row: &Bytes) -> Option<Vec<Option<Bytes>>> {
    let (count, _) = row.split_first_chunk::<2>()?;
    let mut at = 2;
    let mut values = Vec::with_capacity(usize::from(u16::from_be_bytes(*count)));
    for _ in 0..u16::from_be_bytes(*count) {
        let length = i32::from_be_bytes(row.get(at..at + 4)?.try_into().ok()?);
        at += 4;
        let Ok(length) = usize::try_from(length) else {
            values.push(None);
            continue;
        };
        if row.len() < at + length {
            return None;
        }
        values.push(Some(row.slice(at..at + length)));
        at += length;
    }
    Some(values)
}

/// Appends a Bind; `portal` with the zero at its end, `results` are [`TEXT`] or [`BINARY`].
pub fn put_bind(out: &mut BytesMut, portal: &[u8], name: &str, parameters: &[Option<&[u8]>], results: &[u8]) {
    frame::put(out, b'B', |b| {
        b.put_slice(portal);
        b.put_slice(name.as_bytes());
        b.put_slice(&[0, 0, 0]);
        b.put_u16(u16::try_from(parameters.len()).expect("a table has at most 1,600 columns"));
        for parameter in parameters {
            match parameter {
                None => b.put_i32(-1),
                Some(text) => {
                    b.put_i32(i32::try_from(text.len()).expect("below the 1 GiB of a message"));
                    b.put_slice(text);
                }
            }
        }
        b.put_slice(results);
    });
}

/// Appends an Execute of all rows; `portal` with the zero at its end.
pub fn put_execute(out: &mut BytesMut, portal: &[u8]) {
    frame::put(out, b'E', |b| {
        b.put_slice(portal);
        b.put_i32(0);
    });
}

/// Appends a Close of the portal of our own statements.
pub fn close(out: &mut BytesMut) {
    frame::put(out, b'C', |b| {
        b.put_u8(b'P');
        b.put_slice(PORTAL);
    });
}

/// Result formats of a Bind: none given, which is text for all.
pub const TEXT: &[u8] = &[0, 0];
/// One given, binary, for all.
pub const BINARY: &[u8] = &[0, 1, 0, 1];
/// The portal of our own statements beside a client's: with the zero at its end.
pub const PORTAL: &[u8] = b"crossfade\0";
/// Stands for every statement of ours in [`crate::session::prepared::Known`]; a client's never has it.
pub const NUMBER: u64 = u64::MAX - 1;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_cut() {
        let row = Bytes::from_static(b"\0\x02\0\0\0\x01a\xff\xff\xff\xff");
        assert_eq!(values(&row), Some(vec![Some(Bytes::from_static(b"a")), None]));
        assert_eq!(values(&Bytes::from_static(b"\0\x02\0\0\0\x05a")), None);
        assert_eq!(values(&Bytes::new()), None);
    }

    #[test]
    fn a_reply_is_gathered() {
        let mut reply = Reply::default();
        assert_eq!(reply.take(b'1', b"1\0\0\0\x04"), None);
        assert_eq!(reply.take(b'C', b"C\0\0\0\x0dDELETE 1\0"), None);
        assert_eq!(reply.take(b'E', b"E\0\0\0\x0dC40P01\0\0"), None);
        assert_eq!(reply.take(b'E', b"E\0\0\0\x0dC25P02\0\0"), None);
        assert_eq!(reply.take(b'Z', b"Z\0\0\0\x05E"), Some(Status::Failed));
        assert_eq!((reply.parsed, reply.sqlstate()), (1, Some(&b"40P01"[..])));
        assert_eq!(reply.tags, [&b"DELETE 1"[..]]);
    }
}
