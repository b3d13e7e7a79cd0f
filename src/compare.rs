//! Two answers to one read -> what differs, if anything. Pure.
//!
//! The answering side's answer is only *digested* while it is relayed ([`digest`]); the shadow's likewise. Equal
//! digests are the end of it ([`quick`]). Unequal ones are a suspicion: both sides are asked again, their rows are
//! recorded by type and rules ([`record::Recorder`]), and [`order::compare`] says what differs, in constant memory.

pub mod digest;
mod json;
pub mod order;
pub mod record;
pub mod rules;
mod text;
pub mod value;

use digest::Summary;

/// What differs between two answers.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd, serde::Deserialize, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Class {
    /// A value in a row that both have.
    Cell,
    /// A row that the shadow lacks.
    MissingRow,
    /// A row that only the shadow has.
    ExtraRow,
    /// The same rows, in another order than the query demands.
    Order,
    /// The type or the format of a column.
    Type,
    /// The number or the names of the columns.
    Columns,
    /// The number of rows; which ones is not known (too many).
    Count,
    /// One side failed, or both did with different SQLSTATEs.
    Error,
    /// The command tag.
    Tag,
}

impl Class {
    /// All of them, in the order of reports.
    pub const ALL: [Class; 9] = [
        Class::Cell,
        Class::MissingRow,
        Class::ExtraRow,
        Class::Order,
        Class::Type,
        Class::Columns,
        Class::Count,
        Class::Error,
        Class::Tag,
    ];

    /// The word used in metrics and reports.
    pub fn name(self) -> &'static str {
        match self {
            Class::Cell => "cell",
            Class::MissingRow => "missing_row",
            Class::ExtraRow => "extra_row",
            Class::Order => "order",
            Class::Type => "type",
            Class::Columns => "columns",
            Class::Count => "count",
            Class::Error => "error",
            Class::Tag => "tag",
        }
    }
}

/// One thing that differs.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Difference {
    /// What kind.
    pub class: Class,
    /// Name of the column, of a cell.
    pub column: Option<String>,
    /// The row's key, `id=42`, where the columns of a key are among the result's.
    pub key: Option<String>,
    /// The answering side's value, SQLSTATE, tag or count as text.
    pub answering: Option<String>,
    /// The shadow's.
    pub shadow: Option<String>,
    /// The same for the same difference in another execution; another one once a value has changed.
    pub mark: u64,
}

/// What the digests alone say.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Quick {
    /// Equal answers.
    Match,
    /// Equal rows in another order, which the query leaves open.
    OrderOnly,
    /// Not equal byte for byte: look again, by type and rules.
    Suspicion,
    /// Cannot be compared this way.
    Unfit(Unfit),
}

/// Why two answers cannot be compared.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Unfit {
    /// The portal was suspended: the rows are the first of more.
    Suspended,
    /// COPY data.
    Copy,
    /// The answer did not come to its end.
    Cut,
    /// What differs is among more rows than may be kept.
    Large,
}

impl Unfit {
    /// The word used in metrics.
    pub fn name(self) -> &'static str {
        match self {
            Unfit::Suspended => "suspended",
            Unfit::Copy => "copy",
            Unfit::Cut => "cut",
            Unfit::Large => "large",
        }
    }
}

/// Compares two digests. `total_order`: the query gives the rows one order only.
pub fn quick(answering: &Summary, shadow: &Summary, total_order: bool) -> Quick {
    if let Some(unfit) = answering.unfit().or_else(|| shadow.unfit()) {
        return Quick::Unfit(unfit);
    }
    if answering.sqlstate.is_some() || shadow.sqlstate.is_some() {
        // What a failed statement had sent before is nobody's answer.
        return if answering.sqlstate == shadow.sqlstate { Quick::Match } else { Quick::Suspicion };
    }
    let described = |s: &Summary| s.columns;
    let columns = match (described(answering), described(shadow)) {
        (Some(a), Some(b)) => a == b,
        // Who does not ask for a description knows it already.
        (None, _) | (_, None) => true,
    };
    if !columns || answering.tag != shadow.tag || answering.rows != shadow.rows || answering.bag != shadow.bag
    {
        return Quick::Suspicion;
    }
    match (answering.list == shadow.list, total_order) {
        (true, _) => Quick::Match,
        (false, false) => Quick::OrderOnly,
        (false, true) => Quick::Suspicion,
    }
}
