//! Statements of crossfade's own around a mirrored transaction. Each is prepared once a connection.

use crate::backend::script::Own;

/// Opens the block around an autocommit statement, or the follower's.
pub(super) const BEGIN: Own<'static> = Own { name: "crossfade_begin", sql: "BEGIN" };
/// On the lead, and on a follower without two-phase commit.
pub(super) const COMMIT: Own<'static> = Own { name: "crossfade_commit", sql: "COMMIT" };
/// On both.
pub(super) const ROLLBACK: Own<'static> = Own { name: "crossfade_rollback", sql: "ROLLBACK" };
/// No rows, in the middle of a client's batch too. Fence lock, look at who leads, capture into the transaction: `$1` numbers of repositories, `$2` this side.
pub(super) const ARM: Own<'static> =
    Own { name: "crossfade_arm", sql: "SELECT WHERE crossfade.arm($1::pg_catalog.int4[], $2) IS NULL" };
/// Keys, which go to the journal, and final rows, in binary: `$1` is the token.
pub(super) const WRITE_SET: Own<'static> =
    Own { name: "crossfade_write_set", sql: "SELECT crossfade.write_set($1)" };
/// What was captured goes to the journal.
pub(super) const SPILL: Own<'static> =
    Own { name: "crossfade_spill", sql: "SELECT WHERE crossfade.spill_armed() IS NULL" };
/// The row of the journal `$1` is the repairer's: it looks older by `$2` seconds.
pub(super) const LEAVE: Own<'static> = Own {
    name: "crossfade_leave",
    sql: "SELECT crossfade.leave($1::pg_catalog.int8, $2::pg_catalog.float8)",
};
/// On the follower, `$1` the number of a repository: a fence on it waits for us. `$2` the process id of the lead's transaction,
/// for whoever looks for deadlocks.
pub(super) const FENCE: Own<'static> = Own {
    name: "crossfade_fence",
    sql: "SELECT pg_catalog.pg_advisory_xact_lock_shared(407140, $2), pg_catalog.pg_advisory_xact_lock_shared(407137, $1)",
};
/// On the follower: rows without a key are put in once. `$1` the lead, `$2` the transaction.
pub(super) const APPLIED: Own<'static> =
    Own { name: "crossfade_applied", sql: "INSERT INTO crossfade.applied (lead, xid) VALUES ($1, $2)" };
/// Fails once the proxy has given up waiting, by the follower's clock: `$1` seconds since 1970. A follower that was frozen must not
/// prepare a transaction that nobody waits for: its keys may have been repaired meanwhile.
pub(super) const GUARD: Own<'static> = Own {
    name: "crossfade_guard",
    sql: "SELECT 1 / CASE WHEN EXTRACT(epoch FROM pg_catalog.clock_timestamp()) < $1::pg_catalog.float8 THEN 1 ELSE 0 END",
};
