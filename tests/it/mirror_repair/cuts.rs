//! A repairer dies between any two of its steps; another one finishes.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use crossfade::{
    Side,
    mirror::{
        repair::{Hook, Step},
        session::Error,
    },
};

use super::Bench;

const SCHEMA: &str = "CREATE TABLE log (at int, what text); ";

const STEPS: [Step; 8] = [
    Step::Read,
    Step::Looked,
    Step::Began,
    Step::Wrote,
    Step::LookedAgain,
    Step::WroteAgain,
    Step::Committed,
    Step::Deleted,
];

#[test]
fn another_one_finishes() {
    let bench = Bench::new("repair_cuts", SCHEMA);
    let mut written = 0;
    for step in STEPS {
        // The second time: inside the second transaction, where there is one.
        for nth in 1..=2 {
            written += 1;
            write(&bench, written);
            let cut = cut_at(&bench, step, nth, written);
            let outcome = bench.round(cut);
            // A step that is not reached twice cuts nothing.
            assert!(nth == 2 || matches!(outcome, Err(Error::Cut)), "{step:?}: {outcome:?}");
            bench.drain();
            bench.equal(&["documents", "users", "log"]);
        }
    }
    assert_eq!(bench.rows(Side::Target, "log").len(), 2 * written);
}

fn write(bench: &Bench, n: usize) {
    let mut source = bench.source();
    source
        .run(&format!("INSERT INTO documents SELECT {n} * 1000 + i, 'a', i FROM generate_series(1, 700) i"));
    source.run(&format!("UPDATE documents SET n = n + 1 WHERE id % 10 = {}", n % 10));
    source.run(&format!("DELETE FROM documents WHERE id % 7 = {}", n % 7));
    source.run(&format!(
        "INSERT INTO users VALUES ({n}, 'u{n}'); UPDATE users SET id = id + 100 WHERE id = {n}"
    ));
    source
        .run(&format!("BEGIN; INSERT INTO log VALUES ({n}, 'a'); INSERT INTO log VALUES ({n}, 'a'); COMMIT"));
}

/// Dies at the n-th time that it reaches `step`; changes rows under its hands so that it has to write again.
fn cut_at(bench: &Bench, step: Step, nth: usize, n: usize) -> Hook {
    let (reached, changed) = (AtomicUsize::new(0), Arc::new(AtomicUsize::new(0)));
    let source = std::sync::Mutex::new(bench.source());
    Hook::new(move |at| {
        if at == Step::Wrote && changed.fetch_add(1, Ordering::Relaxed) < 2 {
            let mut source = source.lock().expect("one thread");
            source.run(&format!(
                "UPDATE documents SET title = title || '!' WHERE id % 1000 IN (1, 600) AND id / 1000 = {n}"
            ));
            source.run(&format!("DELETE FROM documents WHERE id = {n} * 1000 + 2"));
        }
        at != step || reached.fetch_add(1, Ordering::Relaxed) + 1 != nth
    })
}
