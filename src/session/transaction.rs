//! The transaction a session is in, as far as routing must know.

use crate::{Side, route::Work, statement::Isolation};

/// ReadyForQuery's transaction status.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum Status {
    /// `I`: outside a transaction block.
    #[default]
    Idle,
    /// `T`: inside one.
    Block,
    /// `E`: inside one that failed.
    Failed,
}

impl Status {
    /// From the byte of a ReadyForQuery.
    pub fn from_byte(byte: u8) -> Option<Self> {
        match byte {
            b'I' => Some(Self::Idle),
            b'T' => Some(Self::Block),
            b'E' => Some(Self::Failed),
            _ => None,
        }
    }

    /// The byte of a ReadyForQuery.
    pub fn byte(self) -> u8 {
        match self {
            Self::Idle => b'I',
            Self::Block => b'T',
            Self::Failed => b'E',
        }
    }
}

/// A transaction block and what has happened in it.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Transaction {
    /// As the server said last.
    pub status: Status,
    /// Where it runs.
    pub side: Option<Side>,
    /// Below 10 000, drawn when it began.
    pub ticket: u16,
    /// What it has done so far.
    pub work: Work,
    /// Repositories it has read, as a set of indices.
    pub read: u64,
    /// As written in BEGIN or SET TRANSACTION; `None` is the session's default.
    pub isolation: Option<Isolation>,
    /// As written; `None` is the session's default.
    pub read_only: Option<bool>,
    /// Statements that must be repeated where the transaction moves to: BEGIN, SAVEPOINT, SET LOCAL, ...
    pub prologue: Vec<String>,
    /// It cannot move: a cursor, an open portal, a text that mixed transaction control with other statements.
    pub fixed: bool,
}

impl Transaction {
    /// The server said that no transaction is open.
    pub fn ended(&mut self) {
        let prologue = std::mem::take(&mut self.prologue);
        *self = Self { prologue, ..Self::default() };
        self.prologue.clear();
    }
}
