//! What happens between the repairer's steps: its hook runs it there.

use std::{
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
};

use crossfade::{
    Side,
    mirror::repair::{Hook, Round, Step},
};

use super::{Bench, block_on};
use crate::support::wire::Wire;

/// Runs `act` when `step` is reached, each time with its number, from 0.
fn at(step: Step, act: impl Fn(usize) + Send + Sync + 'static) -> Hook {
    let times = AtomicUsize::new(0);
    Hook::new(move |reached| {
        if reached == step {
            act(times.fetch_add(1, Ordering::Relaxed));
        }
        true
    })
}

/// Runs `sql` on the lead the first time that `step` is reached.
fn lead_at(bench: &Bench, step: Step, sql: &'static str) -> Hook {
    let source = Mutex::new(bench.source());
    at(step, move |n| {
        if n == 0 {
            source.lock().expect("one thread").run(sql);
        }
    })
}

/// A transaction of the data path on the follower: fenced, not committed.
fn applying(bench: &Bench, sql: &str) -> Wire {
    let mut target = bench.target();
    target.run("SET crossfade.role TO 'apply'; BEGIN");
    target.run("SELECT pg_advisory_xact_lock_shared(407137, number) FROM crossfade.repositories");
    target.run(sql);
    target
}

/// The journal asks for key 1, which is (`before`); `meanwhile` runs on the lead at `step`. What the round commits must
/// be the newest already: the journal rows of `meanwhile` may be those of a transaction that ships itself.
#[track_caller]
fn check(bench: &Bench, before: &str, step: Step, meanwhile: &'static str) {
    let mut source = bench.source();
    source.run("DELETE FROM documents; DELETE FROM crossfade.journal");
    bench.target().run(
        "SET crossfade.role TO 'apply'; DELETE FROM documents; INSERT INTO documents VALUES (1, 'stale', 1)",
    );
    source.run("INSERT INTO crossfade.journal (xid, sync, entries) SELECT pg_current_xact_id(), false, ARRAY['U' || number || ':1'] FROM crossfade.tables WHERE table_name = 'documents'");
    if !before.is_empty() {
        source.run(&format!("SET crossfade.role TO 'apply'; {before}; RESET crossfade.role"));
    }
    bench.round(lead_at(bench, step, meanwhile)).expect("a round");
    bench.equal(&["documents"]);
    bench.drain();
    bench.equal(&["documents"]);
}

#[test]
fn the_lead_changes_between_the_looks() {
    let bench = Bench::new("repair_races", "");
    let (insert, update, delete) = (
        "INSERT INTO documents VALUES (1, 'new', 2)",
        "UPDATE documents SET title = title || '+'",
        "DELETE FROM documents",
    );
    for step in [Step::Read, Step::Looked, Step::Began, Step::Wrote] {
        check(&bench, "", step, insert);
        check(&bench, insert, step, update);
        check(&bench, insert, step, delete);
        check(&bench, insert, step, "DELETE FROM documents; INSERT INTO documents VALUES (1, 'other', 3)");
    }
}

#[test]
fn a_row_that_never_rests_is_left_for_later() {
    let bench = Bench::new("repair_restless", "");
    bench.source().run("INSERT INTO documents VALUES (1, 'a', 1), (2, 'b', 2)");
    let source = Mutex::new(bench.source());
    let busy = Hook::new(move |step| {
        if matches!(step, Step::Wrote | Step::WroteAgain) {
            source.lock().expect("one thread").run("UPDATE documents SET n = n + 1 WHERE id = 1");
        }
        true
    });
    bench.round(busy).expect("a round");
    assert_eq!(bench.rows(Side::Target, "documents"), ["(2,b,2)"]);
    bench.drain();
    bench.equal(&["documents"]);
}

/// T1 inserts, commits on the lead, not yet on the follower; T2 deletes: the repairer's DELETE does not see T1's row.
#[test]
fn a_row_in_flight_is_not_taken_for_absent() {
    let bench = Bench::new("repair_gap", "");
    let mut source = bench.source();
    let mut flight = applying(&bench, "INSERT INTO documents VALUES (1, 'a', 1)");
    source.run(
        "INSERT INTO documents VALUES (1, 'a', 1); DELETE FROM crossfade.journal; DELETE FROM documents",
    );
    source.run("INSERT INTO documents VALUES (2, 'b', 2)");
    bench.round(Hook::default()).expect("a round");
    assert_eq!(bench.journal_rows(), 1, "the key stays in the journal");
    assert_eq!(bench.rows(Side::Target, "documents"), ["(2,b,2)"]);
    flight.run("COMMIT");
    bench.drain();
    bench.equal(&["documents"]);
}

#[test]
fn a_row_in_flight_that_arrives_while_we_wait_is_deleted() {
    let bench = Bench::new("repair_gap_closes", "");
    let mut source = bench.source();
    let flight = Mutex::new(applying(&bench, "INSERT INTO documents VALUES (1, 'a', 1)"));
    source.run(
        "INSERT INTO documents VALUES (1, 'a', 1); DELETE FROM crossfade.journal; DELETE FROM documents",
    );
    let commit = at(Step::Wrote, move |_| drop(flight.lock().expect("one thread").run("COMMIT")));
    bench.round(commit).expect("a round");
    assert_eq!(bench.journal_rows(), 0);
    bench.equal(&["documents"]);
}

#[test]
fn a_row_in_doubt_is_waited_for() {
    let bench = Bench::new("repair_doubt", "");
    let mut source = bench.source();
    let mut flight = applying(&bench, "INSERT INTO documents VALUES (1, 'a', 1)");
    flight.run("PREPARE TRANSACTION 'repair_doubt'");
    source.run(
        "INSERT INTO documents VALUES (1, 'a', 1); DELETE FROM crossfade.journal; DELETE FROM documents",
    );
    bench.round(Hook::default()).expect("a round");
    assert_eq!(bench.journal_rows(), 1);
    flight.run("COMMIT PREPARED 'repair_doubt'");
    bench.drain();
    bench.equal(&["documents"]);
}

#[test]
fn a_locked_row_stops_no_other() {
    let bench = Bench::new("repair_locked", "");
    let mut source = bench.source();
    source.run("INSERT INTO documents SELECT n, 'a', n FROM generate_series(1, 9) n");
    bench.drain();
    let mut holder = bench.target();
    holder.run("BEGIN; SELECT FROM documents WHERE id = 5 FOR UPDATE");
    source.run("UPDATE documents SET n = n + 1");
    bench.round(Hook::default()).expect("a round");
    assert_eq!(bench.journal_rows(), 1);
    assert!(bench.status.state().errors["busy"] > 0);
    holder.run("ROLLBACK");
    bench.drain();
    bench.equal(&["documents"]);
}

/// The lead's connection of a repairer is lost, another takes over, and the first one still commits.
#[test]
fn two_repairers_at_once_lose_nothing() {
    let bench = std::sync::Arc::new(Bench::new("repair_two", ""));
    for (before, meanwhile) in [
        ("INSERT INTO documents VALUES (1, 'a', 1)", "UPDATE documents SET n = 2"),
        ("INSERT INTO documents VALUES (2, 'a', 1)", "DELETE FROM documents WHERE id = 2"),
        ("UPDATE documents SET n = 7", "DELETE FROM documents"),
        (
            "INSERT INTO documents VALUES (3, 'a', 1)",
            "DELETE FROM documents; INSERT INTO documents VALUES (3, 'b', 2)",
        ),
    ] {
        bench.source().run(before);
        let other = std::sync::Arc::clone(&bench);
        // After its last look, before its COMMIT: the lead changes and a second one does a whole round.
        let overtaken = at(Step::LookedAgain, move |n| {
            if n == 0 {
                other.source().run(meanwhile);
                let other = std::sync::Arc::clone(&other);
                let round = move || block_on(other.repairer(Side::Source).unlocked().round());
                let round = thread::spawn(round).join().expect("no panic").expect("a round");
                assert!(matches!(round, Round::Worked(_, 0)), "it must wait for the first: {round:?}");
            }
        });
        bench.round(overtaken).expect("a round");
        bench.drain();
        bench.equal(&["documents"]);
    }
}

/// While rows go over the lead cannot move; when it has moved, they go the other way.
#[test]
fn the_lead_moves_between_the_looks() {
    let bench = Bench::new("repair_moves", "");
    bench.source().run("INSERT INTO documents VALUES (1, 'a', 1)");
    let (source, target) = (Mutex::new(bench.source()), Mutex::new(bench.target()));
    let fenced = at(Step::Wrote, move |_| {
        let sql = "SELECT bool_or(pg_try_advisory_xact_lock(407137, number)) FROM crossfade.repositories";
        let free = target.lock().expect("one thread").run(sql);
        assert_eq!(free.as_deref(), Some("f"), "the fence on the follower is held");
    });
    bench.round(fenced).expect("a round");
    bench.equal(&["documents"]);
    source.lock().expect("one thread").run("UPDATE documents SET n = 5");
    let wires = Mutex::new([bench.source(), bench.target()]);
    let moved = at(Step::Looked, move |n| {
        if n == 0 {
            for wire in wires.lock().expect("one thread").iter_mut() {
                wire.run("UPDATE crossfade.repositories SET lead = 'target', epoch = epoch + 1");
            }
        }
    });
    bench.round(moved).expect("a round");
    assert_eq!(bench.rows(Side::Target, "documents"), ["(1,a,1)"], "the new lead is not written to");
    bench.drain();
    bench.equal(&["documents"]);
    assert_eq!(bench.rows(Side::Source, "documents"), ["(1,a,1)"]);
}
