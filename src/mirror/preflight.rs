//! What stands in the way of mirroring a table, or is worth knowing: with the reason and the way out. Pure.

mod server;

use std::collections::BTreeSet;

use serde::Serialize;

use super::{
    facts::Facts,
    plan::{Wanted, common_key, repository_of},
    shape::{Column, Shape, TableShape},
};
use crate::{Side, route::policy::Policy};

/// How bad it is.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Good to know.
    Note,
    /// Mirroring works, with a limit.
    Warning,
    /// Its repository is not installed.
    Refused,
}

/// One answer of preflight.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
pub struct Finding {
    /// How bad it is.
    pub severity: Severity,
    /// The server it is about; both when there is none.
    pub side: Option<Side>,
    /// The repository it is about.
    pub repository: Option<String>,
    /// `schema.table`, when it is about one.
    pub table: Option<String>,
    /// What is the matter.
    pub reason: String,
    /// What to do about it.
    pub way_out: String,
}

impl std::fmt::Display for Finding {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let severity = match self.severity {
            Severity::Note => "note",
            Severity::Warning => "warning",
            Severity::Refused => "refused",
        };
        write!(f, "{severity}: ")?;
        if let Some(side) = self.side {
            write!(f, "{side}: ")?;
        }
        match (&self.table, &self.repository) {
            (Some(table), _) => write!(f, "{table}: ")?,
            (None, Some(repository)) => write!(f, "repository {repository}: ")?,
            (None, None) => {}
        }
        write!(f, "{}", self.reason)?;
        if self.way_out.is_empty() { Ok(()) } else { write!(f, ". {}", self.way_out) }
    }
}

/// Collects what is found about one table.
struct Findings<'a> {
    wanted: &'a Wanted,
    list: Vec<Finding>,
}

impl Findings<'_> {
    fn add(
        &mut self,
        severity: Severity,
        side: impl Into<Option<Side>>,
        reason: impl Into<String>,
        way_out: &str,
    ) {
        let Wanted { table, repository } = self.wanted;
        self.list.push(Finding {
            severity,
            side: side.into(),
            repository: Some(repository.clone()),
            table: Some(format!("{}.{}", table.schema, table.name)),
            reason: reason.into(),
            way_out: way_out.to_owned(),
        });
    }
}

/// What both sides say to the tables of the mirrored repositories.
pub fn all(policy: &Policy, shapes: &[Shape; 2], facts: &[Facts; 2], wanted: &[Wanted]) -> Vec<Finding> {
    if wanted.is_empty() {
        return Vec::new();
    }
    let mut list = server::servers(policy, facts, wanted);
    for one in wanted {
        list.extend(table(policy, shapes, facts, one));
    }
    list
}

fn table(policy: &Policy, shapes: &[Shape; 2], facts: &[Facts; 2], wanted: &Wanted) -> Vec<Finding> {
    let mut found = Findings { wanted, list: Vec::new() };
    let both = [0, 1].map(|i| shapes[i].tables.get(&wanted.table));
    for side in Side::BOTH {
        if both[side.index()].is_none() {
            let way_out = "Create it there, or leave it out of the repository's tables";
            found.add(Severity::Refused, side, "does not exist", way_out);
        }
    }
    let [Some(source), Some(target)] = both else { return found.list };
    kinds(policy, shapes, [source, target], &mut found);
    columns(source, target, &mut found);
    keys(source, target, &mut found);
    constraints(source, target, &mut found);
    server::rights(facts, [source, target], &mut found);
    found.list
}

fn kinds(policy: &Policy, shapes: &[Shape; 2], both: [&TableShape; 2], found: &mut Findings<'_>) {
    for (side, table) in Side::BOTH.into_iter().zip(both) {
        if table.kind == 'f' {
            found.add(
                Severity::Refused,
                side,
                "is a foreign table",
                "Mirror it where its rows are, or leave it out",
            );
        }
        if table.inherits {
            let way_out = "Turn it into declarative partitioning, or leave it and its relatives out";
            found.add(Severity::Refused, side, "takes part in old-style inheritance", way_out);
        }
        if table.persistence == 'u' {
            let way_out = "ALTER TABLE ... SET LOGGED, or know that a crash empties it on this side alone";
            found.add(Severity::Warning, side, "is unlogged", way_out);
        }
        let own = repository_of(policy, &found.wanted.table);
        for (name, partition) in shapes[side.index()].partitions(&found.wanted.table) {
            let other = repository_of(policy, name);
            let name = format!("{}.{}", name.schema, name.name);
            if partition.kind == 'f' {
                let reason = format!("its partition {name} is a foreign table");
                found.add(Severity::Refused, side, reason, "Detach it, or leave the table out");
            }
            if other.is_some() && other != own {
                let reason = format!("its partition {name} belongs to another repository");
                found.add(Severity::Refused, side, reason, "Give both the same repository");
            }
        }
    }
}

/// Columns are matched by name; their order may differ.
fn columns(source: &TableShape, target: &TableShape, found: &mut Findings<'_>) {
    for (side, here, there) in [(Side::Target, source, target), (Side::Source, target, source)] {
        for column in here.columns.iter().filter(|column| there.column(&column.name).is_none()) {
            let name = &column.name;
            let reason = format!("has no column {name}, which the {} has", side.other());
            // Only rows of the other side go to this one, and none can be made of nothing on the way back.
            let (severity, way_out) = match side {
                Side::Target if column.generated => (Severity::Note, ""),
                Side::Target => (Severity::Refused, "Add it there: its values would be lost"),
                Side::Source if column.generated || column.default || !column.not_null => {
                    (Severity::Warning, "Rows that come from the source have its default there")
                }
                Side::Source => (
                    Severity::Refused,
                    "Give it a default, or drop NOT NULL: rows from the source have no value for it",
                ),
            };
            found.add(severity, side, reason, way_out);
        }
    }
    for column in &source.columns {
        let Some(other) = target.column(&column.name) else { continue };
        both_have(column, other, found);
    }
}

fn both_have(source: &Column, target: &Column, found: &mut Findings<'_>) {
    let name = &source.name;
    if source.generated != target.generated {
        let side = if source.generated { Side::Source } else { Side::Target };
        let reason = format!("{name} is generated on the {side} alone");
        found.add(Severity::Refused, None, reason, "Make it the same on both sides");
    } else if source.type_name != target.type_name {
        let reason =
            format!("{name} is {} on the source and {} on the target", source.type_name, target.type_name);
        if widens(&source.kind.built_in, &target.kind.built_in) {
            found.add(
                Severity::Warning,
                None,
                reason,
                "A value that only one of them can hold is refused by the other",
            );
        } else {
            found.add(Severity::Refused, None, reason, "Make the types the same");
        }
    }
    if source.identity || target.identity {
        let reason = format!(
            "{name} is an identity column: values are copied, its sequence on the follower stays where it is"
        );
        found.add(Severity::Note, None, reason, "The sequence is moved before the other side leads");
    }
    if source.not_null != target.not_null {
        let side = if source.not_null { Side::Source } else { Side::Target };
        let reason = format!("{name} is NOT NULL on the {side} alone");
        found.add(Severity::Warning, None, reason, "A NULL that the lead takes, the follower refuses");
    }
    if source.kind.may_be_large_object || target.kind.may_be_large_object {
        let reason = format!(
            "{name} may point to large objects, which are not mirrored: the number is copied, not the object"
        );
        found.add(Severity::Warning, None, reason, "Move them to bytea, or copy them by hand");
    }
}

/// May the text of a value of one type be read as the other?
fn widens(a: &str, b: &str) -> bool {
    let families: [&[&str]; 4] = [
        &["int2", "int4", "int8", "numeric"],
        &["text", "varchar", "bpchar"],
        &["float4", "float8"],
        &["json", "jsonb"],
    ];
    families.iter().any(|family| family.contains(&a) && family.contains(&b)) || (!a.is_empty() && a == b)
}

fn keys(source: &TableShape, target: &TableShape, found: &mut Findings<'_>) {
    let Some((key, _)) = common_key(source, target) else {
        no_key(source, target, found);
        return;
    };
    for (name, _) in &key.columns {
        let unsafe_on = [source, target].iter().any(|t| t.column(name).is_some_and(|c| !c.kind.safe_input));
        if unsafe_on {
            let reason = format!("{name} of its key is of a type whose input may run code of its owner's");
            found.add(
                Severity::Refused,
                None,
                reason,
                "Take a key of built-in types, enums or domains over them",
            );
        }
        if [source, target].iter().any(|t| t.column(name).is_some_and(|c| c.generated)) {
            let reason = format!("{name} of its key is a generated column, which cannot be copied");
            found.add(Severity::Refused, None, reason, "Take a key of plain columns");
        }
    }
}

fn no_key(source: &TableShape, target: &TableShape, found: &mut Findings<'_>) {
    let mut other = false;
    for (side, table) in [(Side::Source, source), (Side::Target, target)] {
        if table.key().is_none()
            && let Some(deferrable) = table.uniques.iter().find(|u| u.whole && !u.partial && u.deferrable)
        {
            other = true;
            let reason =
                format!("its only key, {}, is DEFERRABLE: it cannot decide a conflict", deferrable.name);
            found.add(Severity::Refused, side, reason, "Make it NOT DEFERRABLE, or add another unique index");
        }
    }
    if other {
        return;
    }
    match (source.key(), target.key()) {
        (None, None) => {
            let reason = "has no primary key and no unique index over columns that are NOT NULL: only INSERT and TRUNCATE \
                          are mirrored, UPDATE and DELETE are refused";
            found.add(Severity::Warning, None, reason, "Add a primary key on both sides");
        }
        (Some(key), _) => {
            let reason = format!("lacks the key {} of the source", key.definition);
            found.add(
                Severity::Refused,
                Side::Target,
                reason,
                "Create the same unique index or primary key there",
            );
        }
        (None, Some(key)) => {
            let reason = format!("lacks the key {} of the target", key.definition);
            found.add(
                Severity::Refused,
                Side::Source,
                reason,
                "Create the same unique index or primary key there",
            );
        }
    }
}

/// What one side enforces and the other does not.
fn constraints(source: &TableShape, target: &TableShape, found: &mut Findings<'_>) {
    let uniques = |t: &TableShape| t.uniques.iter().map(|u| u.definition.clone()).collect::<BTreeSet<_>>();
    let foreign =
        |t: &TableShape| t.foreign_keys.iter().map(|k| k.definition.clone()).collect::<BTreeSet<_>>();
    let key = common_key(source, target);
    for definition in uniques(target).difference(&uniques(source)) {
        let reason = format!(
            "has the unique index {definition}, which the source has not: rows that the source takes are refused"
        );
        found.add(
            Severity::Refused,
            Side::Target,
            reason,
            "Create it on the source, or drop it on the target",
        );
    }
    for definition in uniques(source).difference(&uniques(target)) {
        let reason = format!("lacks the unique index {definition} of the source");
        found.add(Severity::Warning, Side::Target, reason, "Create it before the target leads");
    }
    for (side, here, there) in [(Side::Source, target, source), (Side::Target, source, target)] {
        for definition in foreign(here).difference(&foreign(there)) {
            let reason = format!("lacks the foreign key {definition} of the {}", side.other());
            found.add(Severity::Warning, side, reason, "Make the foreign keys the same on both sides");
        }
        let deferrable = there.uniques.iter().filter(|u| u.deferrable);
        for unique in deferrable.filter(|u| key.is_none_or(|(s, t)| u.name != s.name && u.name != t.name)) {
            let reason = format!(
                "{} is DEFERRABLE: sessions that apply rows in replica role do not check it, so a duplicate would go unseen",
                unique.name
            );
            found.add(
                Severity::Warning,
                side,
                reason,
                "Make it NOT DEFERRABLE, or let verify look for duplicates",
            );
        }
    }
}
