//! What should be installed, from the policy and the shape of both sides. Pure.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    capture::{Captured, KeyColumn},
    facts::Facts,
    preflight::{self, Finding, Severity},
    shape::{Pins, Shape, TableShape, Unique},
};
use crate::{
    Side,
    route::policy::{Mode, Policy, Share},
    statement::Table,
};

/// A table that a mirrored repository has.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Wanted {
    /// The table, or the root of its partitions.
    pub table: Table,
    /// Name of the repository.
    pub repository: String,
}

/// A row of `crossfade.tables`.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct TableRow {
    /// Given once and never used again.
    pub number: i32,
    /// Name of the repository.
    pub repository: String,
    /// Empty: rows are captured whole.
    pub key_columns: Vec<String>,
    /// What an image holds, in this order.
    pub columns: Vec<String>,
    /// Their types on the source.
    pub column_types: Vec<String>,
}

/// A row of `crossfade.repositories`.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct RepositoryRow {
    /// Given once and never used again.
    pub number: i32,
    /// Who leads its writes now.
    pub lead: Side,
    /// Rises with every change of `lead`.
    pub epoch: i64,
}

/// What is written in `crossfade.tables` and `crossfade.repositories`, the same on both sides.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Registry {
    /// By table.
    pub tables: BTreeMap<Table, TableRow>,
    /// By name.
    pub repositories: BTreeMap<String, RepositoryRow>,
    /// The next number of a table.
    pub next_table: i32,
    /// The next number of a repository.
    pub next_repository: i32,
}

/// What is to be installed.
#[derive(Clone, Debug, Default)]
pub struct Plan {
    /// What the control tables will say.
    pub registry: Registry,
    /// Tables of repositories that are mirrored and may be installed.
    pub install: Vec<Wanted>,
    /// What is in the way, or worth knowing.
    pub findings: Vec<Finding>,
}

/// Tables of the mirrored repositories (of `only` that one), by the names that the source or the target has.
pub fn wanted(policy: &Policy, shapes: &[Shape; 2], only: Option<&str>) -> Vec<Wanted> {
    let names: BTreeSet<&Table> = shapes.iter().flat_map(|shape| shape.tables.keys()).collect();
    let root = |table: &Table| shapes.iter().any(|s| s.tables.get(table).is_some_and(|t| t.root.is_some()));
    names
        .into_iter()
        .filter(|table| !root(table))
        .filter_map(|table| {
            let repository = &policy.repositories[repository_of(policy, table)?];
            let mirrored = repository.mirror.mode != Mode::Off;
            let asked = only.is_none_or(|only| only == repository.name);
            (mirrored && asked).then(|| Wanted { table: table.clone(), repository: repository.name.clone() })
        })
        .collect()
}

/// The repository whose patterns mean this name; an exact one wins, as in routing.
pub fn repository_of(policy: &Policy, table: &Table) -> Option<usize> {
    let matching = |exact: bool| {
        policy.repositories.iter().position(|repository| {
            repository.tables.iter().any(|p| p.matches(table) && (!exact || p.is_exact()))
        })
    };
    matching(true).or_else(|| matching(false))
}

/// Decides what is installed. A table that cannot be mirrored keeps its whole repository out: half of one is worse.
pub fn plan(
    policy: &Policy,
    shapes: &[Shape; 2],
    facts: &[Facts; 2],
    known: &Registry,
    only: Option<&str>,
) -> Plan {
    let wanted = wanted(policy, shapes, only);
    let findings = preflight::all(policy, shapes, facts, &wanted);
    let none = findings.iter().any(|f| f.severity == Severity::Refused && f.repository.is_none());
    let refused: BTreeSet<&str> = findings
        .iter()
        .filter(|f| f.severity == Severity::Refused)
        .filter_map(|f| f.repository.as_deref())
        .collect();
    let install: Vec<Wanted> =
        wanted.iter().filter(|w| !none && !refused.contains(w.repository.as_str())).cloned().collect();
    let mut registry = known.clone();
    registry.tables.retain(|table, _| shapes.iter().any(|shape| shape.tables.contains_key(table)));
    for one in &install {
        register(&mut registry, policy, shapes, one);
    }
    Plan { registry, install, findings }
}

fn register(registry: &mut Registry, policy: &Policy, shapes: &[Shape; 2], one: &Wanted) {
    if !registry.repositories.contains_key(&one.repository) {
        let policy = policy.repositories.iter().find(|r| r.name == one.repository);
        let lead = policy.is_some_and(|r| r.writes == Share::ALL);
        let lead = if lead { Side::Target } else { Side::Source };
        let row = RepositoryRow { number: registry.next_repository, lead, epoch: 1 };
        registry.next_repository += 1;
        registry.repositories.insert(one.repository.clone(), row);
    }
    let [Some(source), Some(target)] = [0, 1].map(|i| shapes[i].tables.get(&one.table)) else { return };
    let number = registry.tables.get(&one.table).map_or(registry.next_table, |row| row.number);
    registry.next_table = registry.next_table.max(number + 1);
    let columns: Vec<_> = source
        .columns
        .iter()
        .filter(|c| !c.generated && target.column(&c.name).is_some_and(|t| !t.generated))
        .collect();
    let key = common_key(source, target).map(|(key, _)| key);
    let row = TableRow {
        number,
        repository: one.repository.clone(),
        key_columns: key
            .into_iter()
            .flat_map(|key| key.columns.iter().map(|(name, _)| name.clone()))
            .collect(),
        columns: columns.iter().map(|c| c.name.clone()).collect(),
        column_types: columns.iter().map(|c| c.type_name.clone()).collect(),
    };
    registry.tables.insert(one.table.clone(), row);
}

/// The source's best key that the target has too, and the target's.
pub fn common_key<'a>(source: &'a TableShape, target: &'a TableShape) -> Option<(&'a Unique, &'a Unique)> {
    let names =
        |unique: &Unique| unique.columns.iter().map(|(name, _)| name.clone()).collect::<BTreeSet<_>>();
    source.uniques.iter().filter(|key| key.is_key()).find_map(|key| {
        let same = |other: &&Unique| other.is_key() && names(other) == names(key);
        Some((key, target.uniques.iter().find(same)?))
    })
}

/// Every registered table as this side captures it; those it does not have are left out.
pub fn captured(registry: &Registry, shape: &Shape) -> Vec<Captured> {
    let one = |(table, row): (&Table, &TableRow)| {
        let found = shape.tables.get(table)?;
        let repository = registry.repositories.get(&row.repository)?.number;
        let unique = found.uniques.iter().find(|unique| {
            let has = |name: &String| unique.columns.iter().any(|(n, _)| n == name);
            unique.is_key()
                && unique.columns.len() == row.key_columns.len()
                && row.key_columns.iter().all(has)
        });
        let key = row.key_columns.iter().map(|name| {
            let kind = found.column(name)?.kind.clone();
            let operator = unique.and_then(|u| u.columns.iter().find(|(n, _)| n == name));
            let operator = operator.map_or("OPERATOR(pg_catalog.=)".to_owned(), |(_, o)| o.clone());
            Some(KeyColumn { name: name.clone(), kind, operator })
        });
        let pins = row.columns.iter().filter_map(|name| found.column(name));
        Some(Captured {
            number: row.number,
            repository,
            schema: table.schema.clone(),
            name: table.name.clone(),
            key: key.collect::<Option<_>>()?,
            // A column that is gone since: what is left of the row is still right.
            columns: row.columns.iter().filter(|name| found.column(name).is_some()).cloned().collect(),
            column_types: row.column_types.clone(),
            pins: pins.fold(Pins::default(), |all, column| all.with(column.kind.pins)),
        })
    };
    registry.tables.iter().filter_map(one).collect()
}
