//! The synchronous protocols as a small model, every interleaving of which is looked at.
//!
//! One row, two writers (each behind a proxy of its own; the second one may also go to the lead directly), a repairer,
//! recoverers, and faults at every step: a proxy, the lead or the follower crashes, a connection is lost, an answer
//! does not come in time while what was sent is carried out later. [`protocol`] has the steps as `src/proxy/mirror`
//! and `src/mirror` take them; the tests here say what must hold, and that each [`Rules`] is needed: without it the
//! checker finds how the two sides come apart.

#![expect(
    clippy::wildcard_enum_match_arm,
    clippy::unused_self,
    reason = "a step says what it changes, and nothing of the rest"
)]

mod follower;
mod protocol;
mod repairer;
mod state;

use stateright::{Checker, HasDiscoveries, Model};

use state::{Mode, Op, Protocol, Rules, Start};

/// Looks at every state that can be reached.
fn explore(protocol: Protocol, until: HasDiscoveries) -> impl Checker<Protocol> {
    let began = std::time::Instant::now();
    let checker = protocol.checker().threads(2).finish_when(until).spawn_bfs().join();
    println!("{protocol:?}: {} states in {:?}", checker.unique_state_count(), began.elapsed());
    checker
}

/// Nothing goes wrong, and what is to be seen is seen.
#[track_caller]
fn check(mode: Mode) {
    let faults = std::env::var("CROSSFADE_FAULTS").map_or(1, |n| n.parse().expect("a small number"));
    let checker =
        explore(Protocol { mode, rules: Rules::default(), faults, only: None }, HasDiscoveries::AnyFailures);
    if let Some(path) = ["equal", "honest", "ends"].iter().find_map(|name| checker.discovery(name)) {
        panic!("{mode:?}:\n{}", told(&path));
    }
    checker.assert_properties();
}

/// With a rule broken the two sides come apart; from where they started is said for speed only.
#[track_caller]
fn needs(mode: Mode, broken: Rules, property: &'static str, start: Start) {
    let protocol = Protocol { mode, rules: broken, faults: 1, only: Some(start) };
    let checker = explore(protocol, HasDiscoveries::AnyOf([property].into()));
    let path = checker.discovery(property);
    println!("{}", path.as_ref().map(told).unwrap_or_default());
    assert!(path.is_some(), "{mode:?} holds {property} with {broken:?}");
}

fn told(path: &stateright::Path<state::State, state::Action>) -> String {
    let actions = path.clone().into_actions();
    let first = path.clone().into_states().swap_remove(0);
    let start = format!("row {:?}, writers {:?}", first.lead, first.writers.map(|w| (w.op, w.direct)));
    std::iter::once(start).chain(actions.iter().map(|a| format!("  {a:?}"))).collect::<Vec<_>>().join("\n")
}

#[test]
fn journaled_holds() {
    check(Mode::Journaled);
}

#[test]
fn atomic_holds() {
    check(Mode::Atomic);
}

/// A batch that was queued at a frozen follower prepares after the proxy has gone on without it.
#[test]
fn needs_the_guard() {
    needs(
        Mode::Atomic,
        Rules { guard: false, ..Rules::default() },
        "equal",
        (Some(0), [Op::Put, Op::Delete], true),
    );
}

/// The repairer writes what it read before it held the row.
#[test]
fn needs_the_second_look() {
    for mode in [Mode::Journaled, Mode::Atomic] {
        needs(
            mode,
            Rules { second_look: false, ..Rules::default() },
            "equal",
            (Some(0), [Op::Put, Op::Put], true),
        );
    }
}

/// The repairer's DELETE does not see the row of a transaction that is between its two commits.
#[test]
fn needs_the_wait_for_the_fence() {
    for mode in [Mode::Journaled, Mode::Atomic] {
        needs(
            mode,
            Rules { fence_wait: false, ..Rules::default() },
            "equal",
            (None, [Op::Put, Op::Delete], true),
        );
    }
}

/// Nor does a writer's.
#[test]
fn needs_the_count() {
    for mode in [Mode::Journaled, Mode::Atomic] {
        needs(
            mode,
            Rules { count: false, ..Rules::default() },
            "equal",
            (None, [Op::Put, Op::Delete], false),
        );
    }
}

/// What is prepared was rolled back, and its owner takes what is gone for done: by one who does not wait for what is in
/// progress, or after a checkpoint.
#[test]
fn needs_to_doubt_what_is_gone() {
    for in_progress_waits in [false, true] {
        let broken = Rules { absent_is_unknown: false, in_progress_waits, ..Rules::default() };
        needs(Mode::Atomic, broken, "equal", (None, [Op::Put, Op::Put], true));
    }
}

/// A lead that crashed gives the number of a lost transaction to another one: its status proves nothing.
#[test]
fn needs_doubts_after_a_checkpoint() {
    let start = (None, [Op::Put, Op::Put], true);
    needs(Mode::Atomic, Rules { proof: false, ..Rules::default() }, "equal", start);
    needs(Mode::Journaled, Rules { proof: false, ..Rules::default() }, "honest", start);
}
