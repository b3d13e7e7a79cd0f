//! Frames of the console: bodies of the frontend's messages taken apart, the backend's put together
//! (manual, 55.7).

use bytes::{BufMut, BytesMut};

use super::console_rows::{Cell, Column};
use crate::{error::ClientError, wire::frame};

/// How values are written.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Format {
    Text,
    Binary,
}

/// A message's body, read from the front. Every method fails with 08P01 when the body is too short.
#[derive(Debug)]
pub(super) struct Body<'a>(&'a [u8]);

impl<'a> Body<'a> {
    pub(super) fn new(body: &'a [u8]) -> Self {
        Self(body)
    }

    pub(super) fn byte(&mut self) -> Result<u8, ClientError> {
        self.array::<1>().map(|[byte]| byte)
    }

    pub(super) fn int32(&mut self) -> Result<i32, ClientError> {
        self.array().map(i32::from_be_bytes)
    }

    /// A count of what follows: Postgres reads it as unsigned too.
    pub(super) fn count(&mut self) -> Result<u16, ClientError> {
        self.array().map(u16::from_be_bytes)
    }

    /// A format code.
    pub(super) fn format(&mut self) -> Result<Format, ClientError> {
        match self.count()? {
            0 => Ok(Format::Text),
            1 => Ok(Format::Binary),
            other => Err(ClientError::error("22023", format!("unsupported format code: {other}"))),
        }
    }

    /// Text up to its NUL.
    pub(super) fn string(&mut self) -> Result<&'a str, ClientError> {
        let end = self.0.iter().position(|&b| b == 0).ok_or_else(malformed)?;
        let (text, rest) = self.0.split_at(end);
        self.0 = &rest[1..];
        let not_utf8 = |_| ClientError::error("22021", "invalid byte sequence for encoding \"UTF8\"");
        std::str::from_utf8(text).map_err(not_utf8)
    }

    /// Length and bytes; -1 is NULL.
    pub(super) fn value(&mut self) -> Result<Option<&'a [u8]>, ClientError> {
        match self.int32()? {
            -1 => Ok(None),
            length => {
                let length = usize::try_from(length).map_err(|_| malformed())?;
                let (value, rest) = self.0.split_at_checked(length).ok_or_else(malformed)?;
                self.0 = rest;
                Ok(Some(value))
            }
        }
    }

    /// Nothing may be left.
    pub(super) fn end(&self) -> Result<(), ClientError> {
        if self.0.is_empty() { Ok(()) } else { Err(malformed()) }
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], ClientError> {
        let (array, rest) = self.0.split_first_chunk().ok_or_else(malformed)?;
        self.0 = rest;
        Ok(*array)
    }
}

fn malformed() -> ClientError {
    ClientError::error("08P01", "invalid message format")
}

fn put_string(out: &mut BytesMut, text: &str) {
    out.extend(text.bytes().filter(|&b| b != 0));
    out.put_u8(0);
}

fn put_count(out: &mut BytesMut, count: usize) {
    out.put_i16(i16::try_from(count).expect("the console has few columns"));
}

pub(super) fn parameter_status(out: &mut BytesMut, name: &str, value: &str) {
    frame::put(out, b'S', |out| {
        put_string(out, name);
        put_string(out, value);
    });
}

pub(super) fn command_complete(out: &mut BytesMut, tag: &str) {
    frame::put(out, b'C', |out| put_string(out, tag));
}

pub(super) fn notice(out: &mut BytesMut, text: &str) {
    frame::put(out, b'N', |out| {
        for (field, value) in [(b'S', "NOTICE"), (b'V', "NOTICE"), (b'C', "00000"), (b'M', text)] {
            out.put_u8(field);
            put_string(out, value);
        }
        out.put_u8(0);
    });
}

pub(super) fn row_description(out: &mut BytesMut, columns: &[Column], formats: &[Format]) {
    frame::put(out, b'T', |out| {
        put_count(out, columns.len());
        for (column, format) in columns.iter().zip(formats) {
            let (oid, size) = column.kind.oid_and_size();
            put_string(out, &column.name);
            out.put_i32(0); // of no table
            out.put_i16(0);
            out.put_u32(oid);
            out.put_i16(size);
            out.put_i32(-1); // no type modifier
            out.put_i16(i16::from(*format == Format::Binary));
        }
    });
}

pub(super) fn data_row(out: &mut BytesMut, row: &[Cell], formats: &[Format]) {
    frame::put(out, b'D', |out| {
        put_count(out, row.len());
        for (cell, format) in row.iter().zip(formats) {
            if *cell == Cell::Null {
                out.put_i32(-1);
                continue;
            }
            let at = out.len();
            out.put_u32(0);
            match format {
                Format::Text => put_text(out, cell),
                Format::Binary => put_binary(out, cell),
            }
            let length = u32::try_from(out.len() - at - 4).expect("a value of the console is short");
            out[at..at + 4].copy_from_slice(&length.to_be_bytes());
        }
    });
}

fn put_text(out: &mut BytesMut, cell: &Cell) {
    match cell {
        Cell::Null | Cell::Void => {}
        Cell::Text(text) => out.put_slice(text.as_bytes()),
        Cell::Int4(value) => out.put_slice(value.to_string().as_bytes()),
        Cell::Int8(value) => out.put_slice(value.to_string().as_bytes()),
        Cell::Float8(value) if value.is_infinite() => {
            out.put_slice(if *value > 0.0 { b"Infinity" } else { b"-Infinity" });
        }
        Cell::Float8(value) => out.put_slice(value.to_string().as_bytes()),
        Cell::Bool(value) => out.put_u8(if *value { b't' } else { b'f' }),
    }
}

fn put_binary(out: &mut BytesMut, cell: &Cell) {
    match cell {
        Cell::Null | Cell::Void => {}
        Cell::Text(text) => out.put_slice(text.as_bytes()),
        Cell::Int4(value) => out.put_i32(*value),
        Cell::Int8(value) => out.put_i64(*value),
        Cell::Float8(value) => out.put_f64(*value),
        Cell::Bool(value) => out.put_u8(u8::from(*value)),
    }
}
