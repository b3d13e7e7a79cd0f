//! Prepared transactions whose owner is gone.

use std::{sync::Arc, time::Duration};

use crossfade::{
    Side,
    mirror::{
        recovery::{Gid, Identity, Recoverer},
        session::Session,
    },
};

use super::{Bench, block_on};
use crate::support::{
    PATIENCE,
    cluster::{Cluster, majors},
    wire::Wire,
};

fn identity(bench: &Bench, side: Side) -> Identity {
    block_on(async {
        let session =
            Session::look(&bench.manager(side), side, Duration::from_secs(5)).await.expect("a session");
        Identity::load(&session).await.expect("an answer").expect("a primary")
    })
}

fn epoch(source: &mut Wire) -> u64 {
    let sql = "SELECT checkpoint_lsn - '0/0' FROM pg_control_checkpoint()";
    source.run(sql).expect("a position").parse().expect("a number")
}

/// A transaction on the lead, open, and its follower's half, prepared.
pub(super) fn half(bench: &Bench, id: usize, change: impl Fn(&mut Gid)) -> (Wire, Gid) {
    let mut source = bench.source();
    source.run("SET crossfade.role TO 'apply'; BEGIN");
    source.run(&format!("INSERT INTO documents VALUES ({id}, 'a', 1)"));
    let xid = source.run("SELECT pg_current_xact_id()").expect("a number").parse().expect("a number");
    let mut gid = Gid {
        identity: identity(bench, Side::Source),
        xid,
        instance: "gone".to_owned(),
        epoch: epoch(&mut source),
    };
    change(&mut gid);
    let mut target = bench.target();
    target.run("SET crossfade.role TO 'apply'; BEGIN");
    target.run(&format!("INSERT INTO documents VALUES ({id}, 'a', 1)"));
    target.run(&format!("PREPARE TRANSACTION '{gid}'"));
    (source, gid)
}

fn recoverer(bench: &Bench) -> Recoverer {
    Recoverer::new(Side::Target, bench.managers(), Duration::from_secs(5), Arc::clone(&bench.status))
}

/// Rounds until `enough` holds.
#[track_caller]
fn rounds(bench: &Bench, what: &str, enough: impl Fn() -> bool) {
    let mut recoverer = recoverer(bench);
    let end = std::time::Instant::now() + PATIENCE;
    block_on(async {
        while !enough() {
            recoverer.round().await.expect("a round");
            assert!(std::time::Instant::now() < end, "{what}: {:?}", bench.status.state().in_doubt);
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    });
}

fn prepared(bench: &Bench) -> u64 {
    let sql = "SELECT count(*) FROM pg_prepared_xacts WHERE database = current_database()";
    bench.target().run(sql).expect("a count").parse().expect("a number")
}

/// What is said of a transaction in doubt.
fn verdict(bench: &Bench, gid: &Gid) -> Option<(String, bool)> {
    let doubts = bench.status.state().in_doubt[1].clone();
    doubts.into_iter().find(|d| d.gid == gid.to_string()).map(|d| (d.verdict, d.stuck))
}

#[test]
fn the_lead_decides() {
    let bench = Bench::new("recover", "");
    let (mut commits, _) = half(&bench, 1, |_| ());
    let (mut aborts, _) = half(&bench, 2, |_| ());
    let (mut waits, open) = half(&bench, 3, |_| ());
    commits.run("COMMIT");
    aborts.run("ROLLBACK");
    rounds(&bench, "two are resolved", || prepared(&bench) == 1);
    assert_eq!(bench.rows(Side::Target, "documents"), ["(1,a,1)"]);
    // The open one is old enough by now, and left alone for as long as it is open.
    rounds(&bench, "it is looked at", || {
        verdict(&bench, &open).is_some_and(|(v, _)| v.contains("in progress"))
    });
    assert_eq!(prepared(&bench), 1);
    waits.run("COMMIT");
    rounds(&bench, "the last is resolved", || prepared(&bench) == 0);
    bench.equal(&["documents"]);
    let recovered = bench.status.state().recovered;
    assert_eq!((recovered["committed"], recovered["rolled_back"]), (2, 1));
}

#[test]
fn several_recoverers_do_no_harm() {
    let bench = Bench::new("recover_many", "");
    for id in 0..40 {
        half(&bench, id, |_| ()).0.run(if id % 2 == 0 { "COMMIT" } else { "ROLLBACK" });
    }
    thread_each(&bench, 4);
    assert_eq!(prepared(&bench), 0);
    bench.equal(&["documents"]);
    assert_eq!(bench.rows(Side::Target, "documents").len(), 20);
}

fn thread_each(bench: &Bench, count: usize) {
    std::thread::scope(|scope| {
        for _ in 0..count {
            scope.spawn(|| rounds(bench, "all are resolved", || prepared(bench) == 0));
        }
    });
}

/// Another server, another life of it, a number that it never gave: nobody may guess, nothing is touched.
#[test]
fn in_doubt_about_the_lead_nothing_is_done() {
    let bench = Bench::new("recover_stuck", "");
    let strange: [fn(&mut Gid); 3] =
        [|g| g.identity.system += 1, |g| g.identity.timeline += 1, |g| g.xid += 1 << 40];
    let mut gids = Vec::new();
    for (id, change) in strange.into_iter().enumerate() {
        let (mut source, gid) = half(&bench, id, change);
        source.run("COMMIT");
        gids.push(gid);
    }
    let stuck = |gid| verdict(&bench, gid).is_some_and(|(_, stuck)| stuck);
    rounds(&bench, "all are looked at", || gids.iter().all(stuck));
    let mut once_more = recoverer(&bench);
    block_on(async {
        for _ in 0..3 {
            assert_eq!(once_more.round().await.expect("a round"), 3);
        }
    });
    assert_eq!(prepared(&bench), 3);
    assert_eq!(bench.status.state().recovered.get("stuck"), Some(&6), "told once by each recoverer");
    for gid in gids {
        bench.target().run(&format!("ROLLBACK PREPARED '{gid}'"));
    }
}

/// A lead that crashed gives the numbers again whose log had not reached its disk: "committed" may be said of another
/// transaction. The half is rolled back; where it was the right one, the journal has its keys.
#[test]
fn a_number_that_was_given_twice() {
    let (oldest, newest) = (majors()[0], *majors().last().expect("one"));
    let mut source = Cluster::start("recover-twice-source", oldest);
    let target = Cluster::start("recover-twice-target", newest);
    let bench = Bench::between(&source, &target, "recover_twice", "");
    let (open, gid) = half(&bench, 1, |_| ());
    source.kill();
    drop(open);
    source.restart();
    let mut other = bench.source();
    other.run("SET crossfade.role TO 'apply'; BEGIN; INSERT INTO documents VALUES (2, 'a', 1)");
    // That its number is the same is what usually happens; the half must go in any case.
    println!("{:?} {gid}", other.run("SELECT pg_current_xact_id()"));
    other.run("COMMIT");
    rounds(&bench, "it is resolved", || prepared(&bench) == 0);
    assert_eq!(bench.rows(Side::Target, "documents"), [""; 0]);
}
