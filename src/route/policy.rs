//! Weights and switches of every repository.

use std::time::Duration;

use crate::{Side, statement::Table};

/// Most repositories a policy may have, `default` included: a set of them is one `u64`.
pub const MAX_REPOSITORIES: usize = 64;

/// What the operator wants, published as one immutable value.
#[derive(Clone, Debug)]
pub struct Policy {
    /// Rises by one with every published policy; memoised footprints carry it.
    pub generation: u64,
    /// Index 0 is the built-in repository `default`.
    pub repositories: Vec<Repository>,
    /// A statement whose tables cannot be known.
    pub on_unknown: OnUnknown,
    /// Reads in a read-write transaction block.
    pub transactions: TransactionReads,
    /// Reads of a session stay on the lead for this long after its own write; zero is off.
    pub sticky: Duration,
}

impl Policy {
    /// The repositories of a set (bit `i` is `repositories[i]`), with their indices.
    pub fn of(&self, set: u64) -> impl Iterator<Item = (usize, &Repository)> {
        self.repositories.iter().enumerate().filter(move |(index, _)| set >> index & 1 == 1)
    }

    /// The side that leads the writes of a repository in a transaction with this ticket; `default` is the source's.
    pub fn lead(&self, index: usize, ticket: u16) -> Side {
        if index == 0 { Side::Source } else { self.repositories[index].writes.draw(ticket) }
    }

    /// Those of a set whose mode is one of these.
    pub fn in_mode(&self, set: u64, wanted: impl Fn(Mode) -> bool) -> u64 {
        self.of(set).filter(|(_, r)| wanted(r.mirror.mode)).fold(0, |all, (index, _)| all | 1 << index)
    }

    /// Is any repository mirrored?
    pub fn mirrors(&self) -> bool {
        self.repositories.iter().any(|r| r.mirror.mode.is_mirrored())
    }
}

/// A named group of tables: the unit that is migrated.
#[derive(Clone, Debug)]
pub struct Repository {
    /// Unique; `default` is built in.
    pub name: String,
    /// `schema.table`, each part may hold `*` and `?`; lower case unless quoted in the file.
    pub tables: Vec<Pattern>,
    /// Functions whose effects stay within this repository's tables and count as writes of it.
    pub functions: Vec<Pattern>,
    /// Share of reads that the target answers.
    pub reads: Share,
    /// Share of write transactions that the target leads.
    pub writes: Share,
    /// Does the other side get the writes, and how?
    pub mirror: Mirror,
}

/// How the follower gets the rows that the lead's transactions wrote.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Mirror {
    /// When, and with what promise.
    pub mode: Mode,
    /// When the client hears of its COMMIT.
    pub ack: Ack,
    /// What becomes of a write that the follower cannot take.
    pub on_failure: OnFailure,
    /// What becomes of DDL on its tables.
    pub ddl: Ddl,
}

/// `mirror`
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum Mode {
    /// The follower gets nothing.
    #[default]
    Off,
    /// From the journal, behind the client's back.
    Async,
    /// Before the client hears of its COMMIT; the journal holds what a crash leaves.
    Journaled,
    /// The same by PREPARE TRANSACTION on the follower.
    Atomic,
}

impl Mode {
    /// As written.
    pub fn name(self) -> &'static str {
        match self {
            Mode::Off => "off",
            Mode::Async => "async",
            Mode::Journaled => "journaled",
            Mode::Atomic => "atomic",
        }
    }

    /// Does the follower get anything?
    pub fn is_mirrored(self) -> bool {
        self != Mode::Off
    }

    /// Does the proxy itself ship the rows, inside the client's COMMIT?
    pub fn is_synchronous(self) -> bool {
        matches!(self, Mode::Journaled | Mode::Atomic)
    }
}

/// `ack`
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum Ack {
    /// After both sides when reads may go to the follower, else after the lead.
    #[default]
    Auto,
    /// After both sides.
    Both,
    /// After the lead.
    Lead,
}

/// `on_follower_failure`
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum OnFailure {
    /// The lead commits; the keys stay in the journal.
    #[default]
    Journal,
    /// Rolled back on both sides, with an error.
    Fail,
}

/// `ddl`
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum Ddl {
    /// Refused with 0A000.
    #[default]
    Refuse,
    /// Runs on the lead; the operator runs it on the other side.
    Lead,
}

/// `schema.name` with wildcards.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Pattern {
    /// Schema part.
    pub schema: String,
    /// Name part.
    pub name: String,
}

impl Pattern {
    /// Does it mean this name? An empty schema is one that is not known, so any may be meant.
    pub fn matches(&self, table: &Table) -> bool {
        (table.schema.is_empty() || wildcard(&self.schema, &table.schema))
            && wildcard(&self.name, &table.name)
    }

    /// Without wildcards: it means one name, and wins over a pattern that means it too.
    pub fn is_exact(&self) -> bool {
        !self.schema.contains(['*', '?']) && !self.name.contains(['*', '?'])
    }
}

/// `*` is any text, `?` any one character. Linear but for the last `*`, which is tried again.
fn wildcard(pattern: &str, text: &str) -> bool {
    let pattern: Vec<char> = pattern.chars().collect();
    let text: Vec<char> = text.chars().collect();
    let (mut p, mut t, mut star) = (0, 0, None);
    while t < text.len() {
        match pattern.get(p) {
            Some('*') => {
                star = Some((p, t));
                p += 1;
            }
            Some(&c) if c == '?' || c == text[t] => {
                p += 1;
                t += 1;
            }
            Some(_) | None => {
                let Some((at, from)) = star else { return false };
                star = Some((at, from + 1));
                p = at + 1;
                t = from + 1;
            }
        }
    }
    pattern[p..].iter().all(|&c| c == '*')
}

/// A statement whose effect is not understood.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum OnUnknown {
    /// Refused with 0A000 unless only the source can be concerned. The default.
    Refuse,
    /// Sent to the source.
    Source,
    /// Sent to the target.
    Target,
}

/// Where reads of a read-write transaction block go.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum TransactionReads {
    /// By weight at READ COMMITTED, until the first write moves the transaction to the lead. The default.
    Weighted,
    /// To the lead, from the first statement.
    Lead,
}

/// A share of traffic in basis points. [`Share::new`] is the only way in, so it is at most 100 %.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Share(u16);

impl Share {
    /// Nothing.
    pub const NONE: Share = Share(0);
    /// Everything.
    pub const ALL: Share = Share(10_000);

    /// Returns `None` above 10 000 basis points.
    pub fn new(basis_points: u16) -> Option<Self> {
        (basis_points <= 10_000).then_some(Self(basis_points))
    }

    /// Basis points, 0 to 10 000.
    pub fn basis_points(self) -> u16 {
        self.0
    }

    /// 0.0 to 1.0.
    pub fn fraction(self) -> f64 {
        f64::from(self.0) / 10_000.0
    }

    /// The side that `ticket` (below 10 000) falls on.
    pub fn draw(self, ticket: u16) -> Side {
        debug_assert!(ticket < 10_000, "ticket {ticket} is not in basis points");
        if ticket < self.0 { Side::Target } else { Side::Source }
    }

    /// May this side be drawn at all?
    pub fn allows(self, side: Side) -> bool {
        match side {
            Side::Source => self.0 < 10_000,
            Side::Target => self.0 > 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wildcards() {
        for (pattern, text, expected) in [
            ("documents", "documents", true),
            ("documents", "document", false),
            ("document_*", "document_tags", true),
            ("document_*", "document_", true),
            ("document_*", "documents", false),
            ("*", "", true),
            ("", "", true),
            ("", "a", false),
            ("a?c", "abc", true),
            ("a?c", "ac", false),
            ("*a*b", "xaybzab", true),
            ("*a*b", "xaybza", false),
            ("a**", "a", true),
        ] {
            assert_eq!(wildcard(pattern, text), expected, "{pattern} {text}");
        }
    }
}
