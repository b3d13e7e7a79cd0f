//! Journal to follower: each ends with equal tables and an empty journal, or with the reason in sight.

mod conflicts;
mod cuts;
mod keyless;
mod races;
mod recovery;
mod serve;
mod storm;

use std::{sync::Arc, time::Duration};

use crossfade::{
    Side,
    backend::control::Manager,
    config::{Backend, BackendTls, Secret, TlsMode},
    mirror::{
        repair::{Hook, Repairer, Round, Settings},
        session::Session,
        status::Status,
        tables::{Published, Tables},
    },
};

use crate::{
    mirror_install::Pair,
    support::{
        cluster::{Cluster, newest, oldest},
        wire::Wire,
    },
};

/// Two databases, mirrored, and what a repairer needs.
pub(crate) struct Bench {
    pub(crate) ports: [u16; 2],
    name: String,
    pub(crate) status: Arc<Status>,
    pub(crate) settings: Settings,
}

impl Bench {
    /// Fresh databases with `schema` on both sides, installed.
    pub(crate) fn new(name: &str, schema: &str) -> Self {
        Self::between(oldest(), newest(), name, schema)
    }

    pub(crate) fn between(source: &Cluster, target: &Cluster, name: &str, schema: &str) -> Self {
        let pair = Pair::between(source, target, name, schema);
        pair.install();
        let settings = Settings {
            grace: Duration::from_secs(600),
            lock_timeout: Duration::from_millis(400),
            patience: Duration::from_secs(10),
        };
        let ports = [source.port, target.port];
        Self { ports, name: name.to_owned(), status: Status::new(), settings }
    }

    pub(crate) fn manager(&self, side: Side) -> Manager {
        let backend = Backend {
            host: "127.0.0.1".to_owned(),
            port: self.ports[side.index()],
            database: self.name.clone(),
            tls: BackendTls { mode: TlsMode::Disable, ca: None, identity: None },
            control_user: "postgres".to_owned(),
            control_secret: Secret::Password("secret".to_owned()),
        };
        Manager::new(&backend, Duration::from_secs(5)).expect("no files to read")
    }

    pub(crate) fn managers(&self) -> [Manager; 2] {
        Side::BOTH.map(|side| self.manager(side))
    }

    /// A repairer of one side's journal.
    pub(crate) fn repairer(&self, journal: Side) -> Repairer {
        let tables = Arc::new(Published::default());
        Repairer::new(journal, self.managers(), self.settings, tables, Arc::clone(&self.status))
    }

    /// Rounds on the source's journal until there is nothing to do; a journal that does not get empty is a failure.
    #[track_caller]
    pub(crate) fn drain(&self) {
        self.drain_with(self.repairer(Side::Source));
    }

    #[track_caller]
    pub(crate) fn drain_with(&self, mut repairer: Repairer) {
        let rounds = async {
            let end = std::time::Instant::now() + crate::support::PATIENCE;
            loop {
                match repairer.round().await {
                    Ok(Round::Idle) if self.journal_rows() == 0 => return true,
                    Ok(_) => {}
                    Err(error) => println!("round: {error}"),
                }
                if std::time::Instant::now() > end {
                    return false;
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        assert!(block_on(rounds), "the journal stays: {:?}", self.status.state().journals);
    }

    /// One round.
    #[track_caller]
    pub(crate) fn round(&self, hook: Hook) -> Result<Round, crossfade::mirror::session::Error> {
        let mut repairer = self.repairer(Side::Source).hooked(hook);
        block_on(repairer.round())
    }

    pub(crate) fn source(&self) -> Wire {
        self.wire(Side::Source)
    }

    pub(crate) fn target(&self) -> Wire {
        self.wire(Side::Target)
    }

    pub(crate) fn wire(&self, side: Side) -> Wire {
        let login = crate::support::wire::Login::new("postgres", "secret", &self.name);
        Wire::connect(self.ports[side.index()], &login).expect("the cluster answers")
    }

    pub(crate) fn journal_rows(&self) -> u64 {
        let count = self.source().run("SELECT count(*) FROM crossfade.journal");
        count.expect("a count").parse().expect("a number")
    }

    /// All rows of a table on one side, in text.
    pub(crate) fn rows(&self, side: Side, table: &str) -> Vec<String> {
        let sql = format!("SELECT t::text FROM {table} AS t ORDER BY 1");
        let rows = self.wire(side).query(&sql).expect("rows");
        rows.iter().map(|row| row[0].clone().unwrap_or_default()).collect()
    }

    /// Both sides have the same rows.
    #[track_caller]
    pub(crate) fn equal(&self, tables: &[&str]) {
        for table in tables {
            let [source, target] = Side::BOTH.map(|side| self.rows(side, table));
            let differs = source.iter().zip(&target).find(|(s, t)| s != t);
            let counts = [source.len(), target.len()];
            assert!(source == target, "{table}: {counts:?} rows; the first that differ: {differs:?}");
        }
    }
}

pub(crate) fn block_on<T>(future: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.expect("a runtime").block_on(future)
}

/// Statements on the lead, in the order in which they are committed.
const EVERYTHING: &[&str] = &[
    "INSERT INTO documents VALUES (1, 'a', 1), (2, 'b', 2), (3, 'c', 3)",
    "UPDATE documents SET n = n + 10 WHERE id = 2",
    "DELETE FROM documents WHERE id = 3",
    "INSERT INTO two VALUES (1, 'x,\"y\" \\z', NULL), (2, '', 'null'), (3, 'NULL', '(1,2)')",
    "UPDATE two SET b = 'moved' WHERE a = 1",
    "INSERT INTO many (code, note) VALUES ('k', 'first')",
    "UPDATE many SET note = 'second' WHERE code = 'k'",
    "DELETE FROM many; INSERT INTO many (code, note) VALUES ('k', 'third')",
    "INSERT INTO only_key VALUES (1), (2)",
    "INSERT INTO numbers VALUES (1.0, 'NaN'), (2, 'Infinity'), (3, '-0'), ('NaN', 0.1)",
    "UPDATE numbers SET n = 1.00 WHERE n = 1",
    "INSERT INTO people VALUES (1, 'sad'), (2, NULL)",
    "INSERT INTO parted VALUES (1, 'low'), (101, 'high')",
    "UPDATE parted SET id = 102 WHERE id = 1",
    "INSERT INTO types VALUES (1, '{1,NULL,3}', '{\"a\": 1, \"a\": null}', 'null', '\\xdeadbeef', '[1,5)', \
       '1 mon -3 days', '12.34', 'ab', '2026-01-01 10:00:00.123456+02', 'infinity', B'101', '(1,\"a b\")')",
    "INSERT INTO types (id) VALUES (2)",
];

const SCHEMA: &str = "
CREATE TYPE pair AS (a int, b text);
CREATE TABLE two (a int, b text, c text, PRIMARY KEY (a, b));
CREATE TABLE many (id int GENERATED ALWAYS AS IDENTITY, code text PRIMARY KEY, note text,
  twice text GENERATED ALWAYS AS (note || note) STORED);
CREATE TABLE only_key (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY);
ALTER TABLE only_key ALTER id SET GENERATED BY DEFAULT;
CREATE TABLE numbers (n numeric PRIMARY KEY, f float8);
CREATE TABLE parted (id int PRIMARY KEY, note text) PARTITION BY RANGE (id);
CREATE TABLE parted_low PARTITION OF parted FOR VALUES FROM (0) TO (100);
CREATE TABLE parted_high PARTITION OF parted FOR VALUES FROM (100) TO (1000);
CREATE TABLE types (id int PRIMARY KEY, a int[], j json, jb jsonb, b bytea, r int4range, i interval, m money,
  c char(5), t timestamptz, d date, bits bit varying, p pair);
";

const TABLES: &[&str] = &["documents", "two", "many", "only_key", "numbers", "people", "parted", "types"];

#[test]
fn rows_of_every_kind_arrive() {
    let bench = Bench::new("repair_kinds", SCHEMA);
    let mut source = bench.source();
    source.run("SET lc_monetary TO 'C'; SET IntervalStyle TO sql_standard; SET DateStyle TO German");
    for sql in EVERYTHING {
        source.run(sql);
        bench.drain();
        bench.equal(TABLES);
    }
    // Once more from nothing, all at once.
    let mut target = bench.target();
    target.run("SET crossfade.role TO 'apply'");
    target.run(&format!("TRUNCATE {}", TABLES.join(", ")));
    for table in TABLES {
        let column = first_column(table);
        source.run(&format!("UPDATE {table} SET {column} = {column}"));
    }
    bench.drain();
    bench.equal(TABLES);
}

/// A column that may be set to itself.
fn first_column(table: &str) -> &'static str {
    match table {
        "documents" => "title",
        "many" | "parted" => "note",
        "numbers" => "f",
        "people" => "mood",
        "types" => "a",
        "two" => "c",
        _ => "id",
    }
}

#[test]
fn a_row_of_many_columns_and_a_large_one_arrive() {
    let columns: Vec<String> = (0..1_599).map(|n| format!("c{n} int DEFAULT {n}")).collect();
    let schema = format!(
        "CREATE TABLE wide (id int PRIMARY KEY, {}); CREATE TABLE large (id int PRIMARY KEY, t text)",
        columns.join(", ")
    );
    let bench = Bench::new("repair_wide", &schema);
    let mut source = bench.source();
    source.run("INSERT INTO wide (id) VALUES (1), (2)");
    source.run("INSERT INTO large SELECT n, repeat('a\"b\\', 2000000) FROM generate_series(1, 4) n");
    bench.drain();
    bench.equal(&["wide"]);
    let sums = |mut wire: Wire| wire.run("SELECT string_agg(md5(t), ' ' ORDER BY id) FROM large");
    assert_eq!(sums(bench.source()), sums(bench.target()));
}

#[test]
fn rows_of_the_data_path_are_left_alone_until_they_are_old() {
    let mut bench = Bench::new("repair_grace", "");
    let mut source = bench.source();
    source.run("INSERT INTO documents VALUES (1, 'a', 1)");
    source.run("UPDATE crossfade.journal SET sync = true");
    assert_eq!(bench.round(Hook::default()).expect("a round"), Round::Idle);
    assert_eq!(bench.journal_rows(), 1);
    bench.settings.grace = Duration::ZERO;
    bench.drain();
    bench.equal(&["documents"]);
}

#[test]
fn a_truncated_table_is_looked_at_row_by_row() {
    let bench = Bench::new("repair_truncate", SCHEMA);
    let mut source = bench.source();
    source.run("INSERT INTO documents SELECT n, 'a', n FROM generate_series(1, 1200) n");
    source.run("INSERT INTO parted VALUES (1, 'low'), (101, 'high')");
    bench.drain();
    bench.equal(&["documents", "parted"]);
    source.run("BEGIN; TRUNCATE documents; INSERT INTO documents VALUES (7, 'again', 7); COMMIT");
    source.run("TRUNCATE parted_low");
    bench.drain();
    bench.equal(&["documents", "parted"]);
    assert_eq!(bench.rows(Side::Target, "parted"), ["(101,high)"]);
}

#[test]
fn a_table_that_is_not_installed_is_reported_and_kept() {
    let bench = Bench::new("repair_unknown", "");
    let mut source = bench.source();
    source.run("INSERT INTO crossfade.journal (xid, sync, entries) VALUES (pg_current_xact_id(), false, '{I999:1,T998:}')");
    source.run("INSERT INTO documents VALUES (1, 'a', 1)");
    bench.round(Hook::default()).expect("a round");
    assert_eq!(bench.journal_rows(), 1, "the other row is shipped");
    bench.equal(&["documents"]);
    let held = bench.status.state().journals[0].held.clone();
    assert_eq!(held.len(), 1);
    assert!(held[0].reason.contains("998"), "{held:?}");
}

#[test]
fn a_poisoned_row_stops_no_other() {
    let bench = Bench::new("repair_poison", "");
    bench.target().run("ALTER TABLE documents ADD CHECK (title <> 'poison')");
    let mut source = bench.source();
    source.run("INSERT INTO documents SELECT n, CASE WHEN n % 700 = 0 THEN 'poison' ELSE 'a' END, n FROM generate_series(1, 1500) n");
    bench.round(Hook::default()).expect("a round");
    assert_eq!(bench.rows(Side::Target, "documents").len(), 1_498);
    let held = bench.status.state().journals[0].held.clone();
    assert!(!held.is_empty() && held[0].reason.contains("documents_title_check"), "{held:?}");
    assert!(!held[0].reason.contains("700"), "no values: {held:?}");
    bench.target().run("ALTER TABLE documents DROP CONSTRAINT documents_title_check");
    bench.drain();
    bench.equal(&["documents"]);
}

#[test]
fn the_lead_may_be_the_target() {
    let bench = Bench::new("repair_lead", "");
    for side in Side::BOTH {
        bench.wire(side).run("UPDATE crossfade.repositories SET lead = 'target', epoch = epoch + 1");
    }
    bench.target().run("INSERT INTO documents VALUES (1, 'a', 1)");
    // Left over on the old lead, and by now older than what the new one has.
    bench.source().run("INSERT INTO crossfade.journal (xid, sync, entries) SELECT pg_current_xact_id(), false, ARRAY['U' || number || ':1'] FROM crossfade.tables WHERE table_name = 'documents'");
    for side in Side::BOTH {
        let mut repairer = bench.repairer(side);
        let rounds = async { while !matches!(repairer.round().await.expect("a round"), Round::Idle) {} };
        block_on(rounds);
        assert_eq!(bench.wire(side).run("SELECT count(*) FROM crossfade.journal").as_deref(), Some("0"));
    }
    bench.equal(&["documents"]);
    assert_eq!(bench.rows(Side::Source, "documents"), ["(1,a,1)"]);
}

#[test]
fn one_works_the_others_wait_until_it_dies() {
    let bench = Bench::new("repair_lock", "");
    let (mut first, mut second) = (bench.repairer(Side::Source), bench.repairer(Side::Source));
    block_on(async {
        assert_eq!(first.round().await.expect("a round"), Round::Idle);
        assert_eq!(second.round().await.expect("a round"), Round::Elsewhere);
        drop(first);
        // Its connection says good-bye on this runtime.
        let end = std::time::Instant::now() + crate::support::PATIENCE;
        while second.round().await.expect("a round") != Round::Idle {
            assert!(std::time::Instant::now() < end, "the lock of a dead repairer stays");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    });
}

#[test]
fn what_is_mirrored_is_read_from_the_catalogs() {
    let bench = Bench::new("repair_tables", SCHEMA);
    let tables = block_on(async {
        let session = Session::look(&bench.manager(Side::Source), Side::Source, Duration::from_secs(5)).await;
        Tables::load(&session.expect("a connection")).await.expect("tables")
    });
    let of =
        |name: &str| tables.tables.values().find(|t| t.meta.name == name).expect("installed").meta.clone();
    assert_eq!(of("many").identity_always, ["id"]);
    assert_eq!(of("many").columns, ["id", "code", "note"]);
    assert!(of("parted").partitioned && !of("two").partitioned);
    assert_eq!(of("two").key_operators, ["pg_catalog.=", "pg_catalog.="]);
    assert_eq!(tables.repositories["all"].lead, Side::Source);
}
