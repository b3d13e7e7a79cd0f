//! Errors that crossfade itself raises towards a client: whose fault, SQLSTATE, and the way out.

use bytes::{BufMut, BytesMut};

use crate::wire::frame;

/// An ErrorResponse of crossfade's own.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct ClientError {
    /// Five characters, Postgres' appendix A.
    pub sqlstate: &'static str,
    /// FATAL: the connection ends after it.
    pub fatal: bool,
    /// Primary message, without the prefix.
    pub message: String,
    /// What to do about it.
    pub hint: Option<String>,
    /// More about the cause.
    pub detail: Option<String>,
}

impl ClientError {
    /// An error after which the session goes on.
    pub fn error(sqlstate: &'static str, message: impl Into<String>) -> Self {
        Self { sqlstate, fatal: false, message: message.into(), hint: None, detail: None }
    }

    /// An error that ends the connection.
    pub fn fatal(sqlstate: &'static str, message: impl Into<String>) -> Self {
        Self { fatal: true, ..Self::error(sqlstate, message) }
    }

    /// Adds the way out.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// Adds the cause.
    #[must_use]
    pub fn detail(mut self, detail: impl Into<String>) -> Self {
        self.detail = Some(detail.into());
        self
    }

    /// Appends the ErrorResponse (manual, 55.8). `client` is the id shown by SHOW CLIENTS and in the log.
    pub fn encode(&self, client: u64, out: &mut BytesMut) {
        frame::put(out, b'E', |out| self.fields(client, out));
    }

    fn fields(&self, client: u64, out: &mut BytesMut) {
        let severity = if self.fatal { "FATAL" } else { "ERROR" };
        let mut field = |code: u8, text: &str| {
            out.put_u8(code);
            out.extend(text.bytes().filter(|&b| b != 0));
            out.put_u8(0);
        };
        field(b'S', severity);
        field(b'V', severity);
        field(b'C', self.sqlstate);
        field(b'M', &format!("crossfade: {}", self.message));
        if let Some(detail) = &self.detail {
            field(b'D', detail);
        }
        if let Some(hint) = &self.hint {
            field(b'H', hint);
        }
        field(b'W', &format!("crossfade client {client}"));
        out.put_u8(0);
    }
}
