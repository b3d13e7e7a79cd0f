//! Which reads are executed a second time.
//!
//! The second execution is `BEGIN READ ONLY`, which refuses writes, row locks and sequences, but allows advisory
//! locks, NOTIFY, settings, signals to other sessions and more. The plan says what a text calls
//! ([`Hazards::SIDE_EFFECT`]); what has effects, or may have them, is never executed twice.

use crate::statement::{Hazards, Isolation, Kind, Plan, Statement};

/// Why a read is not executed on the other side as well. Counted by this reason.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Skip {
    /// The transaction has written: the other side does not see it yet.
    Wrote,
    /// REPEATABLE READ or SERIALIZABLE: snapshots of two databases cannot be aligned.
    Snapshot,
    /// Several statements in a text, or several executions in a batch.
    Several,
    /// SELECT ... FOR UPDATE.
    Locking,
    /// A cursor, or a portal that is read in parts.
    Cursor,
    /// COPY.
    Copy,
    /// It calls what has, or may have, effects.
    SideEffect,
    /// The answer is another one each time, or in each session.
    ByNature,
    /// What it does is not known.
    Unknown,
    /// Temporary tables, or other state of this very session.
    Session,
    /// No repository, or `default`, which lives on the source alone.
    Home,
    /// The other side cannot have all it reads.
    OneSided,
    /// Its parameters are too large to be kept.
    Large,
}

impl Skip {
    /// All of them, in the order of reports.
    pub const ALL: [Skip; 13] = [
        Skip::Wrote,
        Skip::Snapshot,
        Skip::Several,
        Skip::Locking,
        Skip::Cursor,
        Skip::Copy,
        Skip::SideEffect,
        Skip::ByNature,
        Skip::Unknown,
        Skip::Session,
        Skip::Home,
        Skip::OneSided,
        Skip::Large,
    ];

    /// The word used in metrics.
    pub fn name(self) -> &'static str {
        match self {
            Skip::Wrote => "wrote",
            Skip::Snapshot => "snapshot",
            Skip::Several => "several",
            Skip::Locking => "locking",
            Skip::Cursor => "cursor",
            Skip::Copy => "copy",
            Skip::SideEffect => "side_effect",
            Skip::ByNature => "by_nature",
            Skip::Unknown => "unknown",
            Skip::Session => "session",
            Skip::Home => "home",
            Skip::OneSided => "one_sided",
            Skip::Large => "large",
        }
    }
}

/// The one statement of this plan, if it may be executed twice; [`None`] inside when it is no read at all, which is
/// not counted.
///
/// # Errors
/// Why not.
pub fn statement(plan: &Plan) -> Result<&Statement, Option<Skip>> {
    let reads = |s: &Statement| matches!(s.kind, Kind::Read | Kind::LockingRead);
    match plan.statements.as_slice() {
        [only] => alone(only).map(|()| only),
        several if several.iter().any(reads) => Err(Some(Skip::Several)),
        _ => Err(None),
    }
}

fn alone(statement: &Statement) -> Result<(), Option<Skip>> {
    let hazards = statement.hazards;
    let any = |of: &[Hazards]| of.iter().any(|&h| hazards.contains(h));
    let skip = match &statement.kind {
        Kind::Read
            if any(&[Hazards::SIDE_EFFECT, Hazards::VOLATILE, Hazards::SEQUENCE]) || statement.runs_code =>
        {
            Skip::SideEffect
        }
        Kind::Read if !statement.effects.is_empty() => Skip::Session,
        Kind::Read
            if statement.introspects || any(&[Hazards::RANDOM, Hazards::SESSION, Hazards::PHYSICAL]) =>
        {
            Skip::ByNature
        }
        Kind::Read if statement.reads.is_empty() => return Err(None),
        Kind::Read => return Ok(()),
        Kind::LockingRead => Skip::Locking,
        Kind::Declare { .. } | Kind::Fetch => Skip::Cursor,
        Kind::CopyOut => Skip::Copy,
        Kind::Code | Kind::Session | Kind::Local if !statement.reads.is_empty() => Skip::SideEffect,
        Kind::Unknown(_) => Skip::Unknown,
        Kind::Empty
        | Kind::Write
        | Kind::Code
        | Kind::Transaction(_)
        | Kind::Session
        | Kind::Local
        | Kind::Prepare { .. }
        | Kind::Execute { .. }
        | Kind::Deallocate { .. }
        | Kind::CopyIn
        | Kind::Close { .. }
        | Kind::Ddl
        | Kind::Lock
        | Kind::Utility => return Err(None),
    };
    Err(Some(skip))
}

/// What the transaction is like in which a read is executed.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Around {
    /// It has written, or may have.
    pub wrote: bool,
    /// Its level; `None` is READ COMMITTED.
    pub isolation: Option<Isolation>,
    /// The session has what no other one has: temporary tables, a role, state that is not known.
    pub own_state: bool,
    /// The portal is read in parts.
    pub in_parts: bool,
    /// Executions in the batch.
    pub executions: usize,
}

/// May a read be shadowed in such a transaction?
///
/// # Errors
/// Why not.
pub fn around(around: &Around) -> Result<(), Skip> {
    match around {
        Around { wrote: true, .. } => Err(Skip::Wrote),
        Around { isolation: Some(Isolation::RepeatableRead | Isolation::Serializable), .. } => {
            Err(Skip::Snapshot)
        }
        Around { own_state: true, .. } => Err(Skip::Session),
        Around { in_parts: true, .. } => Err(Skip::Cursor),
        Around { executions: 2.., .. } => Err(Skip::Several),
        Around { .. } => Ok(()),
    }
}

/// Is a read with this draw (below 10 000) in a sample of this share?
pub fn sampled(share: crate::route::policy::Share, ticket: u16) -> bool {
    ticket < share.basis_points()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        route::policy::Share,
        statement::{Context, analyze, sample},
    };

    fn verdict(sql: &str) -> &'static str {
        let (catalog, path) = (sample::catalog(), vec!["public".to_owned()]);
        let context = Context {
            catalog: &catalog,
            search_path: Some(&path),
            standard_conforming_strings: true,
            max_bytes: 1 << 20,
        };
        let plan = analyze(sql.as_bytes(), &context);
        match statement(&plan) {
            Ok(_) => "yes",
            Err(skip) => skip.map_or("no read", Skip::name),
        }
    }

    #[test]
    fn statements() {
        for (sql, expected) in [
            ("select * from documents where id = $1", "yes"),
            ("select * from documents limit 3", "yes"),
            ("select * from documents where at > now() - interval '1 day'", "yes"),
            ("select lookup(id) from documents", "yes"),
            ("with d as (select * from documents) select count(*) from d", "yes"),
            ("select 1", "no read"),
            ("insert into documents values (1)", "no read"),
            ("begin", "no read"),
            ("create table x ()", "no read"),
            ("select 1; select * from documents", "several"),
            ("begin; select * from documents", "several"),
            ("insert into documents values (1); commit", "no read"),
            ("select * from documents for update", "locking"),
            ("select * from documents for key share", "locking"),
            ("declare c cursor for select * from documents", "cursor"),
            ("copy documents to stdout", "copy"),
            ("select touch(id) from documents", "side_effect"),
            ("select * from calling", "side_effect"),
            ("select * from v_locked", "side_effect"),
            ("select * from documents join v_over_locked using (id)", "side_effect"),
            ("select * from v_notifying", "side_effect"),
            ("select * from v_set", "side_effect"),
            ("select * from v_sql", "side_effect"),
            ("select * from v_drawn", "no read"),
            ("select * from v_drawing", "locking"),
            ("select * from v_chance", "by_nature"),
            ("select * from v_own_setting", "by_nature"),
            ("select * from v_described", "by_nature"),
            ("select * from v_timed", "yes"),
            ("select id, random() from documents", "by_nature"),
            ("select ctid from documents", "by_nature"),
            ("select current_setting('timezone'), id from documents", "by_nature"),
            ("select * from documents tablesample bernoulli (1)", "by_nature"),
            ("select * from documents, pg_class", "by_nature"),
            ("selec", "unknown"),
        ] {
            assert_eq!(verdict(sql), expected, "{sql}");
        }
    }

    /// What `BEGIN READ ONLY` allows (HAZARDS, run on real servers), and what it would refuse anyway.
    #[test]
    fn functions_with_effects_never_run_twice() {
        for call in [
            "pg_advisory_lock(id)",
            "pg_advisory_xact_lock(id)",
            "pg_advisory_lock_shared(id)",
            "pg_try_advisory_lock(id)",
            "pg_try_advisory_xact_lock(id)",
            "pg_advisory_unlock(id)",
            "pg_advisory_unlock_all()",
            "pg_catalog.pg_advisory_lock(id)",
            "pg_notify('c', 'x')",
            "set_config('a.b', 'c', false)",
            "set_config('a.b', 'c', true)",
            "set_config(name, 'c', false)",
            "setseed(0.5)",
            "lo_create(0)",
            "lo_unlink(1)",
            "lo_put(1, 0, 'x')",
            "loread(1, 2)",
            "pg_terminate_backend(id)",
            "pg_cancel_backend(id)",
            "pg_reload_conf()",
            "pg_rotate_logfile()",
            "pg_switch_wal()",
            "pg_create_restore_point('x')",
            "pg_logical_emit_message(false, 'a', 'b')",
            "pg_create_physical_replication_slot('x')",
            "pg_stat_reset()",
            "pg_log_backend_memory_contexts(1)",
            "pg_export_snapshot()",
            "dblink_exec('x', 'y')",
            "query_to_xml('select touch(1)', true, true, '')",
            "nextval('documents_id_seq')",
            "setval('documents_id_seq', 1)",
            "currval('documents_id_seq')",
            "lastval()",
            "nextval(title::regclass)",
            "txid_current()",
            "pg_current_xact_id()",
            "gen_random_uuid()",
            "unknown_function(id) + touch(id)",
        ] {
            for sql in [
                format!("select {call} from documents"),
                format!("select id from documents where {call} is not null"),
                format!("select id from documents order by (select {call})"),
                format!("with x as (select {call} as y from documents) select y from x"),
                format!("select documents.id from documents, lateral (select {call}) x"),
            ] {
                assert_ne!(verdict(&sql), "yes", "{sql}");
            }
        }
    }

    #[test]
    fn transactions() {
        let free = Around { executions: 1, ..Around::default() };
        for (at, expected) in [
            (free, None),
            (Around { isolation: Some(Isolation::ReadCommitted), ..free }, None),
            (Around { wrote: true, ..free }, Some(Skip::Wrote)),
            (Around { isolation: Some(Isolation::RepeatableRead), ..free }, Some(Skip::Snapshot)),
            (Around { isolation: Some(Isolation::Serializable), ..free }, Some(Skip::Snapshot)),
            (Around { own_state: true, ..free }, Some(Skip::Session)),
            (Around { in_parts: true, ..free }, Some(Skip::Cursor)),
            (Around { executions: 2, ..free }, Some(Skip::Several)),
        ] {
            assert_eq!(around(&at).err(), expected, "{at:?}");
        }
    }

    #[test]
    fn samples_are_exact() {
        for share in [0, 1, 2_500, 10_000] {
            let of = Share::new(share).unwrap();
            assert_eq!((0..10_000).filter(|&ticket| sampled(of, ticket)).count(), usize::from(share));
        }
    }

    #[test]
    fn every_reason_has_its_word() {
        let words: std::collections::BTreeSet<_> = Skip::ALL.iter().map(|skip| skip.name()).collect();
        assert_eq!(words.len(), Skip::ALL.len());
    }
}
