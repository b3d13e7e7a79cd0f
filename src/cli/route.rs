//! `crossfade route`: for each statement of a file its kind, tables, repositories, and where it would
//! go and why. Each statement is taken by itself, outside of a transaction.

use std::{collections::BTreeMap, fmt::Write as _};

use serde::Serialize;

use crate::{
    Side,
    catalog::Catalog,
    route::{
        Decision, Footprint, Reason, TransactionState, decide,
        policy::{Policy, Share},
    },
    statement::{Context, Kind, Statement, Table, Unknown, analyze, cut},
};

/// How the answer is printed.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Format {
    /// For people.
    Table,
    /// One array of objects.
    Json,
}

/// Explains every statement of `sql`. `search_path` as in [`Context`].
pub fn run(
    sql: &str,
    policy: &Policy,
    catalog: &Catalog,
    search_path: Option<&[String]>,
    format: Format,
) -> String {
    let context = Context { catalog, search_path, standard_conforming_strings: true, max_bytes: usize::MAX };
    let rows: Vec<Row> = statements(sql, &context)
        .iter()
        .map(|(at, text, s)| row(line(sql, *at), text, s, policy, catalog))
        .collect();
    match format {
        Format::Table => table(&rows),
        Format::Json => serde_json::to_string_pretty(&rows).expect("strings and numbers") + "\n",
    }
}

/// One statement, explained.
#[derive(Debug, Serialize)]
struct Row {
    /// Of the file, from 1.
    line: usize,
    /// The text, white space folded.
    statement: String,
    kind: String,
    reads: Vec<String>,
    writes: Vec<String>,
    functions: Vec<String>,
    repositories: Vec<String>,
    /// Outcome -> percent of the tickets.
    goes_to: BTreeMap<String, f64>,
    why: Vec<String>,
}

/// Statements with their place and text. A mistake in one must not hide the others, so when the
/// grammar refuses the file, it is cut at its semicolons and each part is read alone.
fn statements(sql: &str, context: &Context<'_>) -> Vec<(usize, String, Statement)> {
    let plan = analyze(sql.as_bytes(), context);
    let refused =
        matches!(plan.statements.as_slice(), [Statement { kind: Kind::Unknown(Unknown::Syntax), .. }]);
    let text = |span: &std::ops::Range<usize>| sql.get(span.clone()).unwrap_or_default().to_owned();
    if !refused {
        return plan.statements.iter().map(|s| (s.span.start, text(&s.span), s.clone())).collect();
    }
    let (mut found, mut from) = (Vec::new(), 0);
    for part in cut(sql) {
        for s in analyze(part.as_bytes(), context).statements {
            let bare = part[s.span.clone()].trim_ascii_start();
            let start = from + s.span.end - bare.len();
            let span = start..start + bare.trim_end_matches(|c: char| c == ';' || c.is_whitespace()).len();
            found.push((span.start, text(&span), s));
        }
        from += part.len();
    }
    found
}

fn row(line: usize, text: &str, statement: &Statement, policy: &Policy, catalog: &Catalog) -> Row {
    let footprint = Footprint::new(std::slice::from_ref(statement), policy, catalog);
    let repositories = policy.of(footprint.reads | footprint.writes);
    let (goes_to, why) = outcomes(&footprint, policy);
    Row {
        line,
        statement: text.split_whitespace().collect::<Vec<_>>().join(" "),
        kind: kind(statement, &footprint),
        reads: names(&statement.reads),
        writes: names(&statement.writes),
        functions: names(&statement.functions),
        repositories: repositories.map(|(_, r)| r.name.clone()).collect(),
        goes_to,
        why,
    }
}

#[expect(clippy::wildcard_enum_match_arm, reason = "all others are named by their class")]
fn kind(statement: &Statement, footprint: &Footprint) -> String {
    match &statement.kind {
        Kind::Unknown(why) => format!("unknown ({})", format!("{why:?}").to_lowercase()),
        Kind::Prepare { inner, .. } => format!("prepare of a {:?}", inner.kind).to_lowercase(),
        _ => footprint.class.name().to_owned(),
    }
}

fn names<'a>(tables: impl IntoIterator<Item = &'a Table>) -> Vec<String> {
    let name =
        |t: &Table| if t.schema.is_empty() { t.name.clone() } else { format!("{}.{}", t.schema, t.name) };
    tables.into_iter().map(name).collect()
}

/// Every outcome with its share of the tickets, exact: between two weights nothing changes. Sides that lead by turns have
/// shares of time that nest as those of the tickets do.
fn outcomes(footprint: &Footprint, policy: &Policy) -> (BTreeMap<String, f64>, Vec<String>) {
    let shares = policy.repositories.iter().flat_map(|r| [r.reads, r.writes]);
    let mut edges: Vec<u16> = shares.map(Share::basis_points).chain([0, 10_000]).collect();
    edges.sort_unstable();
    edges.dedup();
    let (mut goes_to, mut why) = (BTreeMap::new(), Vec::new());
    let fraction = |share: Share| share.allows(Side::Source) && share.allows(Side::Target);
    let turns = policy.of(footprint.writes).any(|(_, r)| fraction(r.writes));
    for pair in edges.windows(2) {
        let (outcome, reason) = match decide(footprint, policy, &TransactionState::default(), pair[0]) {
            Decision::Run(side, Reason::Lead) | Decision::Move(side, Reason::Lead) if turns => {
                (side.to_string(), "its repositories are led there, by turns".to_owned())
            }
            Decision::Run(side, reason) | Decision::Move(side, reason) => {
                (side.to_string(), reason.to_string())
            }
            Decision::Refuse(refusal) => ("refused".to_owned(), refusal.to_string()),
        };
        *goes_to.entry(outcome).or_insert(0.0) += f64::from(pair[1] - pair[0]) / 100.0;
        if !why.contains(&reason) {
            why.push(reason);
        }
    }
    (goes_to, why)
}

fn line(sql: &str, at: usize) -> usize {
    sql.as_bytes()[..at].split(|&byte| byte == b'\n').count()
}

fn table(rows: &[Row]) -> String {
    let header = ["LINE", "KIND", "TABLES", "REPOSITORIES", "GOES TO", "WHY", "STATEMENT"].map(str::to_owned);
    let cells: Vec<[String; 7]> = std::iter::once(header).chain(rows.iter().map(cells)).collect();
    let width = |column: usize| cells.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..7).map(width).collect();
    let mut out = String::new();
    for row in &cells {
        let mut text = String::new();
        for (cell, width) in row.iter().zip(&widths) {
            write!(text, "{cell:width$}  ").expect("a string takes all");
        }
        out.push_str(text.trim_end());
        out.push('\n');
    }
    out
}

fn cells(row: &Row) -> [String; 7] {
    let marked =
        |sign: &str, names: &[String]| names.iter().map(|n| format!("{n}{sign}")).collect::<Vec<_>>();
    let tables = [marked("", &row.reads), marked("!", &row.writes), marked("()", &row.functions)].concat();
    let share = |(side, percent): (&String, &f64)| {
        if row.goes_to.len() == 1 { side.clone() } else { format!("{side} {percent} %") }
    };
    let goes_to: Vec<String> = row.goes_to.iter().map(share).collect();
    let or_dash = |text: String| if text.is_empty() { "-".to_owned() } else { text };
    let short: String = row.statement.chars().take(STATEMENT_WIDTH).collect();
    [
        row.line.to_string(),
        row.kind.clone(),
        or_dash(tables.join(" ")),
        or_dash(row.repositories.join(" ")),
        goes_to.join(", "),
        row.why.join("; "),
        if short.len() < row.statement.len() { short + "..." } else { short },
    ]
}

/// Characters of a statement that the table shows.
const STATEMENT_WIDTH: usize = 60;

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::{
        route::policy::{OnUnknown, Pattern, Repository, Share, TransactionReads},
        statement::sample,
    };

    fn policy() -> Policy {
        let repository = |name: &str, table: &str, reads, writes| Repository {
            name: name.into(),
            tables: vec![Pattern { schema: "public".into(), name: table.into() }],
            functions: Vec::new(),
            reads: Share::new(reads).unwrap(),
            writes: Share::new(writes).unwrap(),
            mirror: crate::route::policy::Mirror::default(),
        };
        let mut default = repository("default", "", 0, 0);
        default.tables.clear();
        Policy {
            generation: 1,
            repositories: vec![
                default,
                repository("document", "document*", 1_250, 0),
                repository("user", "users", 10_000, 10_000),
                repository("event", "event*", 0, 1_000),
            ],
            on_unknown: OnUnknown::Refuse,
            transactions: TransactionReads::Weighted,
            sticky: Duration::ZERO,
        }
    }

    const SQL: &str = "select * from documents;\nupdate users\n  set a = 1; begin;\nselect * from users, things;\ndo 'x';\nupdate events set a = 1";

    #[test]
    fn people_read_a_table() {
        let found = run(SQL, &policy(), &sample::catalog(), None, Format::Table);
        let words = |line: &str| line.split_whitespace().collect::<Vec<_>>().join(" ");
        let lines: Vec<String> = found.lines().map(words).collect();
        assert_eq!(
            lines,
            [
                "LINE KIND TABLES REPOSITORIES GOES TO WHY STATEMENT",
                "1 read public.documents document source 87.5 %, target 12.5 % drawn by the read weights select * from documents",
                "2 write public.users! user target its repositories are led there update users set a = 1",
                "3 transaction - - source it concerns no repository begin",
                "4 read things public.users default user refused no database may run a statement over all its repositories \
             select * from users, things",
                "5 code - - refused the tables that the statement touches cannot be known do 'x'",
                "6 write public.events! event source 90 %, target 10 % its repositories are led there, by turns \
                 update events set a = 1",
            ]
        );
    }

    #[test]
    fn programs_read_json() {
        let found = run(SQL, &policy(), &sample::catalog(), None, Format::Json);
        let rows: serde_json::Value = serde_json::from_str(&found).unwrap();
        assert_eq!(rows[0]["goes_to"]["target"], 12.5);
        assert_eq!(rows[1]["writes"][0], "public.users");
        assert_eq!(rows[4]["kind"], "code");
    }

    #[test]
    fn a_mistake_does_not_hide_the_rest() {
        let found = run(
            "select 1;\nselec 2;\nselect * from users;",
            &policy(),
            &sample::catalog(),
            None,
            Format::Json,
        );
        let rows: serde_json::Value = serde_json::from_str(&found).unwrap();
        let kinds: Vec<&str> = (0..3).map(|i| rows[i]["kind"].as_str().unwrap()).collect();
        assert_eq!(kinds, ["introspection", "unknown (syntax)", "read"]);
        assert_eq!((rows[1]["line"].as_u64(), rows[1]["statement"].as_str()), (Some(2), Some("selec 2")));
        assert_eq!(rows[2]["line"], 3);
    }
}
