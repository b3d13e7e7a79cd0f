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
    /// Mirrored repositories that it may have written with its changes captured in the transaction: they go to the
    /// follower at COMMIT.
    pub captured: u64,
    /// Those for which capture is on now; ROLLBACK TO may have switched it off.
    pub armed: u64,
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

    /// The block has carried out `text`, which must be repeated where it moves to; `None` when it cannot be. A block
    /// of very many such texts (a savepoint per row) stays where it is rather than keep them all.
    pub fn note(&mut self, text: Option<&str>) {
        let bytes: usize = self.prologue.iter().map(String::len).sum();
        match text.map(|text| text.trim_end().trim_end_matches(';')) {
            Some(text) if self.prologue.len() < MOST_TEXTS && bytes + text.len() <= MOST_BYTES => {
                self.prologue.push(text.to_owned());
            }
            Some(_) => {
                self.prologue = Vec::new();
                self.fixed = true;
            }
            None => self.fixed = true,
        }
    }
}

const MOST_TEXTS: usize = 1000;
const MOST_BYTES: usize = 1 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prologue_is_bounded() {
        for (text, times, kept, fixed) in [
            ("savepoint s; ", 1000, 1000, false),
            ("savepoint s", 1001, 0, true),
            (&*"x".repeat(MOST_BYTES), 1, 1, false),
            (&*"x".repeat(MOST_BYTES), 2, 0, true),
            (&*"x".repeat(MOST_BYTES + 1), 1, 0, true),
        ] {
            let mut block = Transaction::default();
            (0..times).for_each(|_| block.note(Some(text)));
            assert_eq!((block.prologue.len(), block.fixed), (kept, fixed), "{times} of {} bytes", text.len());
        }
    }
}
