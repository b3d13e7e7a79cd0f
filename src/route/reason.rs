//! Why a statement goes where it goes, or nowhere.

use std::fmt;

use crate::{Side, error::ClientError};

/// Why a side was chosen. Counted, logged and asserted on.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Reason {
    /// Concerns no repository: the side where the session lives.
    Home,
    /// The transaction block is there.
    Block,
    /// The block has failed: only its own server knows its way out.
    Failed,
    /// The read weights of its repositories drew it.
    Weighted,
    /// The weights of its repositories drew different sides; this one may answer all.
    Agreed,
    /// No other side may run it.
    OnlySide,
    /// The follower is not known to be current: the journal holds rows for it.
    Stale,
    /// Writes: its repositories are led there.
    Lead,
    /// The session has just written, and reads what it wrote.
    Sticky,
    /// A block that may write reads from the lead.
    BlockLead,
    /// The session has temporary tables there.
    Temporary,
    /// What it touches is not known, and everything is led there.
    AllLedThere,
    /// What it touches is not known, and `routing.on_unknown` says so.
    OnUnknown,
    /// The session drew from a sequence there.
    SequenceState,
    /// The side that was drawn does not answer; the lead does.
    Fallback,
}

impl Reason {
    /// The word used in metrics and logs.
    pub fn name(self) -> &'static str {
        match self {
            Reason::Home => "home",
            Reason::Block => "block",
            Reason::Failed => "failed",
            Reason::Weighted => "weighted",
            Reason::Agreed => "agreed",
            Reason::OnlySide => "only_side",
            Reason::Stale => "stale",
            Reason::Lead => "lead",
            Reason::Sticky => "sticky",
            Reason::BlockLead => "block_lead",
            Reason::Temporary => "temporary",
            Reason::AllLedThere => "all_led_there",
            Reason::OnUnknown => "on_unknown",
            Reason::SequenceState => "sequence_state",
            Reason::Fallback => "fallback",
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Reason::Home => "it concerns no repository",
            Reason::Block => "the transaction is there",
            Reason::Failed => "the transaction has failed there",
            Reason::Weighted => "drawn by the read weights",
            Reason::Agreed => "the side that may answer all its repositories",
            Reason::OnlySide => "no other side may run it",
            Reason::Stale => "the follower is not known to be current",
            Reason::Lead => "its repositories are led there",
            Reason::Sticky => "the session has just written",
            Reason::BlockLead => "the transaction may write",
            Reason::Temporary => "the session has temporary tables",
            Reason::AllLedThere => "what it touches is not known, and everything is led there",
            Reason::OnUnknown => "what it touches is not known, and routing.on_unknown says so",
            Reason::SequenceState => "the session drew from a sequence there",
            Reason::Fallback => "the side that was drawn does not answer",
        })
    }
}

/// Why nobody may run a statement.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Refusal {
    /// The rule that refuses.
    pub rule: Rule,
    /// Repositories that must be on the source, by name.
    pub source: Vec<String>,
    /// Repositories that must be on the target, by name.
    pub target: Vec<String>,
}

/// The rule that refuses a statement.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Rule {
    /// It writes repositories with different leads.
    TwoLeads,
    /// No side may read, or read and write, all its repositories.
    NoSide,
    /// What it touches is not known, and not everything is led by the source.
    Unknown,
    /// Its transaction has written, locked or left something on the other side.
    BlockWrote(Side),
    /// Its transaction has read a snapshot (or opened a cursor) on the other side that must not change.
    BlockRead(Side),
}

impl Rule {
    /// The word used in metrics and logs.
    pub fn name(self) -> &'static str {
        match self {
            Rule::TwoLeads => "two_leads",
            Rule::NoSide => "no_side",
            Rule::Unknown => "unknown",
            Rule::BlockWrote(_) => "block_wrote",
            Rule::BlockRead(_) => "block_read",
        }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.rule {
            Rule::TwoLeads => f.write_str("the statement writes repositories that different databases lead"),
            Rule::NoSide => f.write_str("no database may run a statement over all its repositories"),
            Rule::Unknown => f.write_str("the tables that the statement touches cannot be known"),
            Rule::BlockWrote(side) => {
                write!(
                    f,
                    "the transaction has written on the {side}, and this statement must run on the {}",
                    side.other()
                )
            }
            Rule::BlockRead(side) => {
                write!(
                    f,
                    "the transaction has read on the {side}, and this statement must run on the {}",
                    side.other()
                )
            }
        }
    }
}

impl From<&Refusal> for ClientError {
    /// 0A000, with the repositories and the way out.
    fn from(refusal: &Refusal) -> Self {
        let error = ClientError::error("0A000", refusal.to_string()).hint(match refusal.rule {
            Rule::TwoLeads | Rule::NoSide => "Give these repositories weights that one database can serve together.",
            Rule::Unknown => {
                "Declare the functions that it calls in the `functions` of a repository, or set routing.on_unknown."
            }
            Rule::BlockWrote(_) => "Write these repositories in transactions of their own, or move them together.",
            Rule::BlockRead(_) => {
                "Begin the transaction with its write, at READ COMMITTED, or set routing.transactions = \"lead\"."
            }
        });
        let list = |side: &str, names: &[String]| {
            (!names.is_empty()).then(|| format!("{side}: {}", names.join(", ")))
        };
        let sides = [list("source", &refusal.source), list("target", &refusal.target)];
        let detail = sides.into_iter().flatten().collect::<Vec<_>>().join("; ");
        if detail.is_empty() {
            error
        } else {
            error.detail(format!("Repositories by the database they need: {detail}."))
        }
    }
}
