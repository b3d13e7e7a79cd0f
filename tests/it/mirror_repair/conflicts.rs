//! Unique values that change hands between rows.

use crossfade::{Side, mirror::repair::Hook};

use super::Bench;

const SCHEMA: &str = "
CREATE TABLE seats (id int PRIMARY KEY, seat int UNIQUE, mail text, during int4range, alone int);
CREATE UNIQUE INDEX ON seats (lower(mail));
ALTER TABLE seats ADD EXCLUDE USING gist (during WITH &&);
CREATE UNIQUE INDEX ON seats (alone) NULLS NOT DISTINCT WHERE id < 3;
";

fn bench(name: &str) -> Bench {
    let bench = Bench::new(name, SCHEMA);
    bench.source().run(
        "INSERT INTO seats SELECT n, n, 'M' || n || '@x', int4range(n * 10, n * 10 + 5), n FROM generate_series(1, 1200) n",
    );
    bench.drain();
    bench.equal(&["seats"]);
    bench
}

#[test]
fn two_rows_exchange_every_unique_value() {
    let bench = bench("repair_swap");
    let mut source = bench.source();
    source.run(
        "BEGIN; UPDATE seats SET seat = -1, mail = '-', during = 'empty', alone = -1 WHERE id = 1; \
         UPDATE seats SET seat = 1, mail = 'm1@X', during = '[10,15)', alone = 1 WHERE id = 2; \
         UPDATE seats SET seat = 2, mail = 'M2@x', during = '[20,25)', alone = 2 WHERE id = 1; COMMIT",
    );
    bench.drain();
    bench.equal(&["seats"]);
}

/// More rows than one transaction takes, each in the way of the one before it.
#[test]
fn all_rows_move_up_by_one() {
    let bench = bench("repair_rotate");
    let mut source = bench.source();
    source.run("UPDATE seats SET seat = -seat");
    source.run("UPDATE seats SET seat = 1 - seat");
    bench.drain();
    bench.equal(&["seats"]);
    source.run("UPDATE seats SET seat = -seat; UPDATE seats SET seat = (-seat % 1201) + 1, during = int4range(lower(during) + 30000, upper(during) + 30000)");
    bench.drain();
    bench.equal(&["seats"]);
}

/// The row in the way is in no journal row: the follower's copy of it was wrong.
#[test]
fn a_row_in_the_way_joins() {
    let bench = bench("repair_join");
    let mut target = bench.target();
    target.run(
        "SET crossfade.role TO 'apply'; UPDATE seats SET seat = 5000, during = '[90000,90001)' WHERE id = 7",
    );
    target.run("INSERT INTO seats VALUES (9999, 5001, 'nobody@x', NULL, 9999)");
    let mut source = bench.source();
    source.run("UPDATE seats SET seat = 5000 WHERE id = 1");
    source.run("UPDATE seats SET mail = 'NOBODY@x' WHERE id = 2");
    source.run("UPDATE seats SET during = '[90000,90005)' WHERE id = 3");
    bench.drain();
    bench.equal(&["seats"]);
}

/// An index that the lead does not have: the row cannot go, all others do, and it goes when the index is gone.
#[test]
fn a_value_that_only_the_follower_forbids_is_held() {
    let bench = bench("repair_stricter");
    bench.target().run(
        "CREATE UNIQUE INDEX stricter ON seats ((id % 2000 / 1999), (CASE WHEN seat > 6000 THEN 1 END))",
    );
    let mut source = bench.source();
    source.run("UPDATE seats SET seat = seat + 6000 WHERE id IN (1, 2, 3)");
    source.run("UPDATE seats SET mail = 'fine' WHERE id = 4");
    bench.round(Hook::default()).expect("a round");
    assert_eq!(bench.rows(Side::Target, "(SELECT mail FROM seats WHERE id = 4)"), ["(fine)"]);
    let held = bench.status.state().journals[0].held.clone();
    assert!(held.iter().any(|h| h.reason.contains("stricter")), "{held:?}");
    bench.target().run("DROP INDEX stricter");
    bench.drain();
    bench.equal(&["seats"]);
}

/// Keys of different text may be one key: among rows that go out and come in together its row goes in once.
#[test]
fn one_key_of_several_texts() {
    let bench = Bench::new("repair_texts", "CREATE TABLE numbers (k numeric PRIMARY KEY, seat int UNIQUE);");
    let mut source = bench.source();
    source.run("INSERT INTO numbers VALUES (1, 1), (2, 2)");
    bench.drain();
    source.run(
        "BEGIN; UPDATE numbers SET seat = -1 WHERE k = 1; UPDATE numbers SET seat = 1, k = 2.0 WHERE k = 2; \
         UPDATE numbers SET k = 2.00 WHERE k = 2; UPDATE numbers SET seat = 2, k = 1.00 WHERE k = 1; COMMIT",
    );
    bench.round(Hook::default()).expect("a round");
    assert_eq!(bench.journal_rows(), 0, "{:?}", bench.status.state().journals);
    bench.equal(&["numbers"]);
}
