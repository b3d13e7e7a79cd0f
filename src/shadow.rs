//! A read again on the other side, later: which reads, when to look again, and what the looks come to. Pure.
//!
//! A sampled read is executed on the shadow side once; unequal digests make it a [`recheck::Suspicion`], which says
//! what to do next and ends in one [`Outcome`].

pub mod eligible;
pub mod noise;
pub mod recheck;

use std::time::Duration;

use crate::compare::Difference;

/// What became of one comparison.
#[derive(Clone, Debug, PartialEq)]
pub enum Outcome {
    /// Equal answers.
    Match,
    /// Equal rows in another order, which the query leaves open.
    OrderOnly,
    /// Equal by the rules of the repository.
    Ignored,
    /// What differs also differs between two executions on the answering side.
    Noise,
    /// It was different, and is no more: for about this long readers of the other side saw something else.
    Transient(Duration),
    /// Nobody can say.
    Indeterminate(Why),
    /// The sides differ, and stay so.
    Divergence(Vec<Difference>),
}

impl Outcome {
    /// Words of [`Outcome::name`], in the order of reports.
    pub const NAMES: [&str; 7] =
        ["match", "order_only", "ignored", "noise", "transient", "indeterminate", "divergence"];

    /// The word used in metrics and reports.
    pub fn name(&self) -> &'static str {
        Self::NAMES[self.index()]
    }

    /// Where its word stands in [`Outcome::NAMES`].
    pub fn index(&self) -> usize {
        match self {
            Outcome::Match => 0,
            Outcome::OrderOnly => 1,
            Outcome::Ignored => 2,
            Outcome::Noise => 3,
            Outcome::Transient(_) => 4,
            Outcome::Indeterminate(_) => 5,
            Outcome::Divergence(_) => 6,
        }
    }
}

/// Why nobody can say.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Why {
    /// LIMIT, or an aggregate, over an order that is not total.
    Limit,
    /// The rows change faster than both sides can be asked.
    Restless,
    /// The follower did not get the newest writes in all that time.
    Behind,
    /// More rows than may be kept, a suspended portal, an answer without its end.
    Unfit(crate::compare::Unfit),
    /// A side did not answer when it was asked again.
    Unanswered,
}

impl Why {
    /// The word used in reports.
    pub fn name(self) -> &'static str {
        match self {
            Why::Limit => "limit",
            Why::Restless => "restless",
            Why::Behind => "behind",
            Why::Unfit(unfit) => unfit.name(),
            Why::Unanswered => "unanswered",
        }
    }
}
