//! Weights that are allowed and yet surprise: what `crossfade check` warns of.

use std::fmt;

use super::policy::{OnUnknown, Policy, Repository};
use crate::Side;

/// Something that the operator should know about a policy.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Warning {
    /// No side may answer a read over both: such statements get 0A000.
    NeverReadTogether(String, String),
    /// Different sides lead them: no transaction can write both.
    NeverWrittenTogether(String, String),
    /// A side answers reads that does not lead the writes, and crossfade does not mirror.
    StaleReads {
        /// The repository.
        repository: String,
        /// The side that answers without leading.
        side: Side,
    },
    /// No table belongs to it.
    NoTables(String),
    /// Some side but the source leads, so statements that are not understood get 0A000.
    UnknownRefused,
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Warning::NeverReadTogether(a, b) => write!(
                f,
                "no database may answer a query over both {a} and {b}: such queries get an error (0A000)"
            ),
            Warning::NeverWrittenTogether(a, b) => write!(
                f,
                "{a} and {b} are led by different databases: a transaction that writes both gets an error (0A000)"
            ),
            Warning::StaleReads { repository, side } => write!(
                f,
                "reads of {repository} go to the {side}, its writes to the {}, and mirror is \"off\": \
                 unless something else replicates them, the {side} answers with old rows",
                side.other()
            ),
            Warning::NoTables(name) => write!(f, "repository {name} has no tables"),
            Warning::UnknownRefused => f.write_str(
                "the target leads a repository and routing.on_unknown is \"refuse\": DO blocks, calls of undeclared \
                 volatile functions and statements that cannot be understood get an error (0A000)",
            ),
        }
    }
}

/// Looks at all pairs; `default` is one of them. Knows of no mirroring: every repository is `mirror = "off"`.
pub fn check_policy(policy: &Policy) -> Vec<Warning> {
    let mut warnings = Vec::new();
    for (index, a) in policy.repositories.iter().enumerate() {
        for (offset, b) in policy.repositories[index + 1..].iter().enumerate() {
            let serves = |side| readable(index, a, side) && readable(index + 1 + offset, b, side);
            if !Side::BOTH.into_iter().any(serves) {
                warnings.push(Warning::NeverReadTogether(a.name.clone(), b.name.clone()));
            }
            let leads = |side| leads(index, a, side) && leads(index + 1 + offset, b, side);
            if !Side::BOTH.into_iter().any(leads) {
                warnings.push(Warning::NeverWrittenTogether(a.name.clone(), b.name.clone()));
            }
        }
    }
    for repository in policy.repositories.iter().skip(1) {
        if repository.tables.is_empty() {
            warnings.push(Warning::NoTables(repository.name.clone()));
        }
        for side in Side::BOTH {
            if repository.reads.allows(side) && !repository.writes.allows(side) {
                warnings.push(Warning::StaleReads { repository: repository.name.clone(), side });
            }
        }
    }
    let led_by_target = policy.repositories.iter().skip(1).any(|r| r.writes.allows(Side::Target));
    if led_by_target && policy.on_unknown == OnUnknown::Refuse {
        warnings.push(Warning::UnknownRefused);
    }
    warnings
}

/// May this side answer at least some of its reads? `default` (index 0) lives on the source alone.
fn readable(index: usize, repository: &Repository, side: Side) -> bool {
    leads(index, repository, side) || (index != 0 && repository.reads.allows(side))
}

fn leads(index: usize, repository: &Repository, side: Side) -> bool {
    if index == 0 { side == Side::Source } else { repository.writes.allows(side) }
}
