//! Mirrored transactions that wait: in circles over both databases, for locks of others, and what reaches them meanwhile.

mod deadlocks;
mod given_up;

use std::time::Duration;

use crate::{
    mirror::start,
    support::{
        proxy::{Proxy, Settings},
        wait_for,
        wire::{DbError, Rows, Wire},
    },
};

/// The target leads `document` (`t_*`), the source `user`; foreign keys go both ways between the two.
const SCHEMA: &str = "
CREATE TABLE t_x (id int PRIMARY KEY, v text);
CREATE TABLE t_y (id int PRIMARY KEY, owner int REFERENCES users);
ALTER TABLE users ADD COLUMN x int REFERENCES t_x, ADD COLUMN code text,
  ADD COLUMN late int REFERENCES users DEFERRABLE INITIALLY DEFERRED;
INSERT INTO t_x SELECT g, 'x' FROM generate_series(1, 5) g;
INSERT INTO users SELECT g, 'u' || g FROM generate_series(1, 5) g;
GRANT ALL ON ALL TABLES IN SCHEMA public TO PUBLIC;
";

/// Locks of the follower are waited for so long that nothing ends by that.
fn proxy(name: &str, mode: &str, change: impl FnOnce(&mut Settings)) -> Proxy {
    start(&format!("w_{name}_{mode}"), SCHEMA, |s| {
        s.mirror = format!("mirror = {mode:?}\non_follower_failure = \"fail\"");
        "lock_timeout = \"30s\"\napply_timeout = \"30s\"\ndeadlock_after = \"300ms\""
            .clone_into(&mut s.mirroring);
        s.document_writes_target = true;
        change(s);
    })
}

/// SHOW TRANSACTIONS.
fn transactions(proxy: &Proxy) -> Rows {
    proxy.console("bob").expect("may look").query("SHOW TRANSACTIONS").expect("rows")
}

/// Waits for a transaction in this state that is that old.
#[track_caller]
fn wait_for_state(proxy: &Proxy, state: &str, age: Duration) -> Vec<Option<String>> {
    let mut found = None;
    wait_for(state, || {
        found = transactions(proxy).into_iter().find(|row| {
            let seconds = row[5].as_deref().and_then(|s| s.parse::<f64>().ok());
            row[4].as_deref() == Some(state) && seconds.is_some_and(|s| s >= age.as_secs_f64())
        });
        found.is_some()
    });
    found.expect("just found")
}

/// The outcome of what was sent.
fn outcome(client: &mut Wire) -> Result<(), DbError> {
    Wire::rows(&client.until_ready(1)?).map(drop)
}

/// Runs them one after another.
fn run_all(client: &mut Wire, texts: &[&str]) {
    for text in texts {
        client.run(text);
    }
}

/// Does anybody wait for a lock there?
fn waiting(admin: &mut Wire) -> bool {
    let waiting = "SELECT count(*) > 0 FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()";
    admin.run(waiting).as_deref() == Some("t")
}
