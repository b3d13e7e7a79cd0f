//! Weights and switches of every repository.

use std::time::Duration;

use crate::Side;

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
}

/// `schema.name` with wildcards.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Pattern {
    /// Schema part.
    pub schema: String,
    /// Name part.
    pub name: String,
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
