//! Tables without a key: each row once, and TRUNCATE in its place.

use crossfade::{
    Side,
    mirror::{
        repair::{Hook, Step},
        session::Error,
    },
};

use super::Bench;

const SCHEMA: &str = "CREATE TABLE log (at int, what text); CREATE TABLE other (a int)";

#[test]
fn each_row_arrives_once() {
    let bench = Bench::new("repair_once", SCHEMA);
    let mut source = bench.source();
    source.run("INSERT INTO log SELECT n % 3, NULLIF('x,\"y\" \\' || n, 'x') FROM generate_series(1, 50) n");
    source.run("INSERT INTO log VALUES (1, NULL), (1, NULL), (1, '')");
    // The follower has committed, the journal does not know yet.
    let seen = std::sync::atomic::AtomicUsize::new(0);
    let cut = Hook::new(move |step| {
        step != Step::Committed || seen.fetch_add(1, std::sync::atomic::Ordering::Relaxed) < 20
    });
    assert!(matches!(bench.round(cut), Err(Error::Cut)));
    assert_eq!(bench.rows(Side::Target, "log").len(), 21, "one more than was known to be over");
    assert_eq!(bench.journal_rows(), 53);
    bench.drain();
    bench.equal(&["log"]);
}

/// The data path has applied the rows and died before it removed its journal row.
#[test]
fn what_the_data_path_applied_is_not_applied_again() {
    let mut bench = Bench::new("repair_marked", SCHEMA);
    bench.settings.grace = std::time::Duration::ZERO;
    let mut source = bench.source();
    source.run("BEGIN; INSERT INTO log VALUES (1, 'a'); INSERT INTO log VALUES (2, 'b'); COMMIT");
    source.run("UPDATE crossfade.journal SET sync = true WHERE entries[1] LIKE '%(1,a)'");
    let xid = source.run("SELECT xid FROM crossfade.journal WHERE sync").expect("one row");
    let mut target = bench.target();
    target.run("SET crossfade.role TO 'apply'");
    target.run(&format!("INSERT INTO crossfade.applied VALUES ('source', '{xid}')"));
    target.run("INSERT INTO log VALUES (1, 'a')");
    bench.drain();
    bench.equal(&["log"]);
}

/// Two have read the same journal rows; the second comes to them when the first is through and the rows are gone.
#[test]
fn who_comes_late_applies_nothing_twice() {
    let bench = std::sync::Arc::new(Bench::new("repair_late", SCHEMA));
    bench.source().run("INSERT INTO log VALUES (1, 'a'), (2, 'b')");
    let other = std::sync::Arc::clone(&bench);
    let overtaken = Hook::new(move |step| {
        if step == Step::Read {
            let other = std::sync::Arc::clone(&other);
            std::thread::spawn(move || other.drain_with(other.repairer(Side::Source).unlocked()))
                .join()
                .expect("drained");
        }
        true
    });
    bench.round(overtaken).expect("a round");
    bench.equal(&["log"]);
}

/// A crash between the last journal row and its marker leaves the marker.
#[test]
fn markers_go_after_their_journal_rows() {
    let bench = Bench::new("repair_sweep", SCHEMA);
    bench.source().run("INSERT INTO log VALUES (1, 'a'), (2, 'b')");
    let cut = Hook::new(|step| step != Step::Committed);
    assert!(matches!(bench.round(cut), Err(Error::Cut)));
    bench.target().run("INSERT INTO crossfade.applied VALUES ('source', '3'), ('target', '3')");
    let sweep = |age| {
        let mut repairer = bench.repairer(Side::Source);
        super::block_on(repairer.sweep(age)).expect("a sweep");
        bench.target().run("SELECT count(*) FROM crossfade.applied").expect("a count")
    };
    assert_eq!(sweep(std::time::Duration::from_secs(3_600)), "3", "all are young");
    assert_eq!(sweep(std::time::Duration::ZERO), "2", "that of a journal row, and the other lead's");
    bench.drain();
    bench.equal(&["log"]);
}

#[test]
fn nothing_overtakes_a_truncation() {
    let bench = Bench::new("repair_overtake", SCHEMA);
    let mut source = bench.source();
    source.run("INSERT INTO log VALUES (1, 'before'); INSERT INTO other VALUES (1)");
    bench.drain();
    // A row of the data path, in flight, stands before the truncation.
    source.run("INSERT INTO log VALUES (2, 'in flight')");
    source.run("UPDATE crossfade.journal SET sync = true");
    source.run("TRUNCATE log");
    source.run("INSERT INTO log VALUES (3, 'after')");
    source.run("INSERT INTO other VALUES (2)");
    bench.round(Hook::default()).expect("a round");
    assert_eq!(bench.rows(Side::Target, "log"), ["(1,before)"], "all wait for the first");
    bench.equal(&["other"]);
    source.run("UPDATE crossfade.journal SET sync = false");
    bench.drain();
    bench.equal(&["log", "other"]);
    assert_eq!(bench.rows(Side::Target, "log"), ["(3,after)"]);
}

#[test]
fn a_row_that_cannot_go_stops_no_other() {
    let bench = Bench::new("repair_bare_poison", SCHEMA);
    bench.target().run("ALTER TABLE log ADD CHECK (at <> 2)");
    let mut source = bench.source();
    source.run("INSERT INTO log VALUES (1, 'a'), (2, 'b'), (3, 'c')");
    bench.round(Hook::default()).expect("a round");
    assert_eq!(bench.rows(Side::Target, "log"), ["(1,a)", "(3,c)"]);
    assert_eq!(bench.journal_rows(), 1);
    bench.target().run("ALTER TABLE log DROP CONSTRAINT log_at_check");
    bench.drain();
    bench.equal(&["log"]);
}

/// Which partition was truncated is not known: the rows of the others must not go.
#[test]
fn truncation_of_a_partitioned_table_without_a_key_is_for_the_operator() {
    let schema = "CREATE TABLE bare (a int) PARTITION BY RANGE (a);
      CREATE TABLE bare_low PARTITION OF bare FOR VALUES FROM (0) TO (10);
      CREATE TABLE bare_high PARTITION OF bare FOR VALUES FROM (10) TO (20)";
    let bench = Bench::new("repair_bare_parted", schema);
    let mut source = bench.source();
    source.run("INSERT INTO bare VALUES (1), (11)");
    bench.drain();
    source.run("TRUNCATE bare_low");
    bench.round(Hook::default()).expect("a round");
    assert_eq!(bench.rows(Side::Target, "bare"), ["(1)", "(11)"]);
    let held = bench.status.state().journals[0].held.clone();
    assert!(held.len() == 1 && held[0].reason.contains("partition"), "{held:?}");
}
