//! Cuts frames and builds the few that crossfade sends itself (manual, 55.7 message formats).
//!
//! A frame is one tag byte, a big-endian length that counts itself but not the tag, and a body.
//! Nothing here reads past the frame it was given.

use bytes::{BufMut, BytesMut};

/// Tag and length: the bytes every frame begins with.
pub const HEADER: usize = 5;

/// Messages of a frontend after start-up.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Frontend {
    /// `B`
    Bind,
    /// `C`
    Close,
    /// `d`
    CopyData,
    /// `c`
    CopyDone,
    /// `f`
    CopyFail,
    /// `D`
    Describe,
    /// `E`
    Execute,
    /// `H`
    Flush,
    /// `F`
    FunctionCall,
    /// `P`
    Parse,
    /// `p`: password family, out of place after login
    Password,
    /// `Q`
    Query,
    /// `S`
    Sync,
    /// `X`
    Terminate,
}

impl Frontend {
    /// `None` for a byte that no frontend message begins with.
    pub fn from_tag(tag: u8) -> Option<Self> {
        Some(match tag {
            b'B' => Self::Bind,
            b'C' => Self::Close,
            b'd' => Self::CopyData,
            b'c' => Self::CopyDone,
            b'f' => Self::CopyFail,
            b'D' => Self::Describe,
            b'E' => Self::Execute,
            b'H' => Self::Flush,
            b'F' => Self::FunctionCall,
            b'P' => Self::Parse,
            b'p' => Self::Password,
            b'Q' => Self::Query,
            b'S' => Self::Sync,
            b'X' => Self::Terminate,
            _ => return None,
        })
    }
}

/// Messages of a backend after login.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Backend {
    /// `2`
    BindComplete,
    /// `3`
    CloseComplete,
    /// `C`
    CommandComplete,
    /// `G`
    CopyInResponse,
    /// `D`, `d`, `H`, `c`, `V`, `A`, `W`: only relayed, any length
    Relayed,
    /// `I`
    EmptyQuery,
    /// `E`
    Error,
    /// `n`
    NoData,
    /// `N`
    Notice,
    /// `t`
    ParameterDescription,
    /// `S`
    ParameterStatus,
    /// `1`
    ParseComplete,
    /// `s`
    PortalSuspended,
    /// `Z`
    Ready,
    /// `T`
    RowDescription,
}

impl Backend {
    /// `None` for a byte that no backend message begins with.
    pub fn from_tag(tag: u8) -> Option<Self> {
        Some(match tag {
            b'D' | b'd' | b'H' | b'c' | b'V' | b'A' | b'W' => Self::Relayed,
            b'C' => Self::CommandComplete,
            b'Z' => Self::Ready,
            b'T' => Self::RowDescription,
            b'1' => Self::ParseComplete,
            b'2' => Self::BindComplete,
            b'3' => Self::CloseComplete,
            b'E' => Self::Error,
            b'G' => Self::CopyInResponse,
            b'I' => Self::EmptyQuery,
            b'n' => Self::NoData,
            b'N' => Self::Notice,
            b't' => Self::ParameterDescription,
            b'S' => Self::ParameterStatus,
            b's' => Self::PortalSuspended,
            _ => return None,
        })
    }
}

/// Tag and whole length (tag included) of the frame that `buf` begins with; `None` until the header is there.
/// A length below 4 is [`Malformed`].
pub fn header(buf: &[u8]) -> Result<Option<(u8, usize)>, Malformed> {
    let Some((&tag, rest)) = buf.split_first() else { return Ok(None) };
    let Some(length) = rest.first_chunk::<4>() else { return Ok(None) };
    let length = i32::from_be_bytes(*length);
    if length < 4 {
        return Err(Malformed("invalid message length"));
    }
    let length = usize::try_from(length).map_err(|_| Malformed("invalid message length"))?;
    Ok(Some((tag, length + 1)))
}

/// A frame that breaks the protocol; the text is Postgres' own.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("{0}")]
pub struct Malformed(pub &'static str);

/// Reads the fields of one frame's body.
#[derive(Clone, Copy, Debug)]
pub struct Fields<'a>(pub &'a [u8]);

impl<'a> Fields<'a> {
    /// A NUL-terminated string, without its NUL.
    pub fn cstr(&mut self) -> Result<&'a [u8], Malformed> {
        let at = self.0.iter().position(|&b| b == 0).ok_or(Malformed("invalid string in message"))?;
        let text = &self.0[..at];
        self.0 = &self.0[at + 1..];
        Ok(text)
    }

    /// One byte.
    pub fn byte(&mut self) -> Result<u8, Malformed> {
        let (&b, rest) = self.0.split_first().ok_or(Malformed("no data left in message"))?;
        self.0 = rest;
        Ok(b)
    }

    /// A signed 16-bit integer.
    pub fn int16(&mut self) -> Result<i16, Malformed> {
        self.array().map(i16::from_be_bytes)
    }

    /// A signed 32-bit integer.
    pub fn int32(&mut self) -> Result<i32, Malformed> {
        self.array().map(i32::from_be_bytes)
    }

    /// A length and that many bytes; a length of -1 is NULL.
    pub fn value(&mut self) -> Result<Option<&'a [u8]>, Malformed> {
        let Ok(length) = usize::try_from(self.int32()?) else { return Ok(None) };
        let (value, rest) = self.0.split_at_checked(length).ok_or(Malformed("no data left in message"))?;
        self.0 = rest;
        Ok(Some(value))
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Malformed> {
        let (&bytes, rest) = self.0.split_first_chunk().ok_or(Malformed("no data left in message"))?;
        self.0 = rest;
        Ok(bytes)
    }
}

/// The text of a Query frame: the body without its NUL, which must be the last byte and the only one.
pub fn query_text(body: &[u8]) -> Result<&[u8], Malformed> {
    let (&last, text) = body.split_last().ok_or(Malformed("invalid string in message"))?;
    if last != 0 {
        return Err(Malformed("invalid string in message"));
    }
    if text.contains(&0) {
        return Err(Malformed("invalid message format"));
    }
    Ok(text)
}

/// The value of a field of an ErrorResponse or NoticeResponse body (`C` is the SQLSTATE).
pub fn error_field(body: &[u8], code: u8) -> Option<&[u8]> {
    let mut fields = Fields(body);
    loop {
        let this = fields.byte().ok().filter(|&c| c != 0)?;
        let value = fields.cstr().ok()?;
        if this == code {
            return Some(value);
        }
    }
}

/// SQLSTATE and message of an ErrorResponse frame, for logs and for errors of our own.
pub fn error_text(frame: &[u8]) -> String {
    let body = frame.get(HEADER..).unwrap_or_default();
    let field = |code| String::from_utf8_lossy(error_field(body, code).unwrap_or_default()).into_owned();
    format!("{} {}", field(b'C'), field(b'M'))
}

/// Appends a frame whose body `fill` writes.
pub fn put(out: &mut BytesMut, tag: u8, fill: impl FnOnce(&mut BytesMut)) {
    out.put_u8(tag);
    put_body(out, fill);
}

/// Appends a length and what `fill` writes, without a tag: start-up packets.
pub fn put_body(out: &mut BytesMut, fill: impl FnOnce(&mut BytesMut)) {
    let at = out.len();
    out.put_u32(0);
    fill(out);
    let length = u32::try_from(out.len() - at).expect("frames of our own stay below 4 GiB");
    out[at..at + 4].copy_from_slice(&length.to_be_bytes());
}

/// Appends a simple Query.
pub fn put_query(out: &mut BytesMut, sql: &str) {
    put(out, b'Q', |b| {
        b.put_slice(sql.as_bytes());
        b.put_u8(0);
    });
}

/// Appends a Parse; `types` is the raw tail: count and OIDs.
pub fn put_parse(out: &mut BytesMut, name: &[u8], sql: &[u8], types: &[u8]) {
    put(out, b'P', |b| {
        b.put_slice(name);
        b.put_u8(0);
        b.put_slice(sql);
        b.put_u8(0);
        b.put_slice(types);
    });
}

/// Appends a Close of a statement.
pub fn put_close_statement(out: &mut BytesMut, name: &[u8]) {
    put(out, b'C', |b| {
        b.put_u8(b'S');
        b.put_slice(name);
        b.put_u8(0);
    });
}

/// Appends a ReadyForQuery.
pub fn put_ready(out: &mut BytesMut, status: u8) {
    put(out, b'Z', |b| b.put_u8(status));
}

/// Appends a ParameterStatus.
pub fn put_parameter_status(out: &mut BytesMut, name: &str, value: &str) {
    put(out, b'S', |b| {
        b.put_slice(name.as_bytes());
        b.put_u8(0);
        b.put_slice(value.as_bytes());
        b.put_u8(0);
    });
}

/// Appends a BackendKeyData.
pub fn put_key_data(out: &mut BytesMut, process_id: i32, key: &[u8]) {
    put(out, b'K', |b| {
        b.put_i32(process_id);
        b.put_slice(key);
    });
}

/// `'...'` that reads back as `text` whatever `standard_conforming_strings` is.
pub fn quote_literal(text: &str) -> String {
    let quoted = text.replace('\'', "''");
    if quoted.contains('\\') {
        format!(" E'{}'", quoted.replace('\\', "\\\\"))
    } else {
        format!("'{quoted}'")
    }
}

/// `"..."`
pub fn quote_ident(text: &str) -> String {
    format!("\"{}\"", text.replace('"', "\"\""))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers() {
        type Case = (&'static [u8], Result<Option<(u8, usize)>, ()>);
        let cases: &[Case] = &[
            (b"", Ok(None)),
            (b"Q\0\0\0", Ok(None)),
            (b"S\0\0\0\x04", Ok(Some((b'S', 5)))),
            (b"Q\0\0\0\x05\0", Ok(Some((b'Q', 6)))),
            (b"Q\0\0\0\x03", Err(())),
            (b"Q\xff\xff\xff\xff", Err(())),
            (b"Q\x7f\xff\xff\xff", Ok(Some((b'Q', 0x8000_0000)))),
        ];
        for (bytes, want) in cases {
            assert_eq!(header(bytes).map_err(|_| ()), *want, "{bytes:?}");
        }
    }

    #[test]
    fn query_text_is_the_whole_body() {
        assert_eq!(query_text(b"select 1\0"), Ok(&b"select 1"[..]));
        assert!(query_text(b"select 1").is_err());
        assert!(query_text(b"a\0b\0").is_err());
        assert!(query_text(b"").is_err());
    }

    #[test]
    fn literals_and_identifiers_cannot_escape() {
        assert_eq!(quote_literal("a'b"), "'a''b'");
        assert_eq!(quote_literal(r"a\'b"), r" E'a\\''b'");
        assert_eq!(quote_ident("a\"b"), "\"a\"\"b\"");
    }

    #[test]
    fn error_fields() {
        let body = b"SERROR\0C23505\0Mdup\0\0";
        assert_eq!(error_field(body, b'C'), Some(&b"23505"[..]));
        assert_eq!(error_field(body, b'H'), None);
        assert_eq!(error_field(b"SERROR", b'C'), None);
    }
}
