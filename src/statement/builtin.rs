//! Functions of `pg_catalog` whose calls mean more than their result. By name: overloads share a fate.

/// What a call of a built-in function does besides computing.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Builtin {
    /// The time.
    Clock,
    /// Chance.
    Random,
    /// `nextval`, `setval`: writes the sequence that its first argument names.
    Sequence,
    /// `currval`, `lastval`: what this session did to a sequence.
    SequenceState,
    /// Depends on the session or the transaction.
    Session,
    /// Describes this database.
    Introspection,
    /// Takes a lock that outlives the transaction.
    SessionLock,
    /// Has effects that no table shows, and must have them where everybody looks: on the home side.
    SideEffect,
    /// `set_config`.
    SetConfig,
    /// `setseed`.
    SetSeed,
    /// Runs SQL text, or SQL elsewhere.
    Code,
    /// An aggregate; without GROUP BY there is one row.
    Aggregate,
    /// An aggregate whose value follows the order of its input.
    OrderedAggregate,
    /// A window function whose value follows the order of the rows.
    Window,
}

/// Classifies `name`; `None` is a function without anything to it, or not a built-in one.
#[expect(clippy::match_same_arms, reason = "a family of functions a line")]
pub(super) fn classify(name: &str) -> Option<Builtin> {
    use Builtin as B;
    Some(match name {
        "now" | "clock_timestamp" | "statement_timestamp" | "transaction_timestamp" | "timeofday" => B::Clock,
        "age" => B::Clock,
        "random" | "random_normal" | "gen_random_uuid" | "uuidv4" | "uuidv7" | "gen_random_bytes" => {
            B::Random
        }
        "uuid_generate_v1" | "uuid_generate_v1mc" | "uuid_generate_v4" => B::Random,
        "nextval" | "setval" => B::Sequence,
        "currval" | "lastval" => B::SequenceState,
        "current_setting" | "pg_backend_pid" | "inet_client_addr" | "inet_client_port" => B::Session,
        "txid_current" | "txid_current_if_assigned" | "txid_current_snapshot" | "pg_current_xact_id" => {
            B::Session
        }
        "pg_current_xact_id_if_assigned" | "pg_current_snapshot" | "pg_my_temp_schema" => B::Session,
        "current_query" | "pg_trigger_depth" | "getdatabaseencoding" | "pg_client_encoding" => B::Session,
        "current_user" | "session_user" => B::Session,
        "current_schema" | "current_schemas" | "getpgusername" | "pg_jit_available" => B::Session,
        "inet_server_addr" | "inet_server_port" | "version" | "pg_postmaster_start_time" => B::Introspection,
        "pg_conf_load_time" | "txid_status" | "pg_xact_status" | "obj_description" | "col_description" => {
            B::Introspection
        }
        "shobj_description" | "format_type" | "row_security_active" | "current_database" => B::Introspection,
        "pg_advisory_lock" | "pg_advisory_lock_shared" | "pg_try_advisory_lock" => B::SessionLock,
        "pg_try_advisory_lock_shared" => B::SessionLock,
        "set_config" => B::SetConfig,
        "setseed" => B::SetSeed,
        "query_to_xml" | "query_to_xmlschema" | "query_to_xml_and_xmlschema" | "cursor_to_xml" => B::Code,
        "cursor_to_xmlschema" | "table_to_xml" | "table_to_xmlschema" | "table_to_xml_and_xmlschema" => {
            B::Code
        }
        "schema_to_xml" | "schema_to_xmlschema" | "schema_to_xml_and_xmlschema" | "database_to_xml" => {
            B::Code
        }
        "database_to_xmlschema" | "database_to_xml_and_xmlschema" | "ts_stat" | "ts_rewrite" => B::Code,
        "crosstab" | "crosstab2" | "crosstab3" | "crosstab4" | "connectby" | "xpath_table" => B::Code,
        "pg_get_serial_sequence" => B::Introspection,
        "count" | "sum" | "avg" | "min" | "max" | "bool_and" | "bool_or" | "every" | "bit_and" | "bit_or" => {
            B::Aggregate
        }
        "bit_xor" | "stddev" | "stddev_pop" | "stddev_samp" | "variance" | "var_pop" | "var_samp" => {
            B::Aggregate
        }
        "corr" | "covar_pop" | "covar_samp" | "regr_count" | "regr_slope" | "regr_r2" => B::Aggregate,
        "percentile_cont" | "percentile_disc" | "range_agg" | "range_intersect_agg" => B::Aggregate,
        "array_agg" | "string_agg" | "json_agg" | "jsonb_agg" | "json_object_agg" | "jsonb_object_agg" => {
            B::OrderedAggregate
        }
        "json_agg_strict" | "jsonb_agg_strict" | "xmlagg" | "mode" | "any_value" => B::OrderedAggregate,
        "row_number" | "lag" | "lead" | "first_value" | "last_value" | "nth_value" | "ntile" => B::Window,
        _ => return by_prefix(name),
    })
}

fn by_prefix(name: &str) -> Option<Builtin> {
    let any = |prefixes: &[&str]| prefixes.iter().any(|prefix| name.starts_with(prefix));
    if any(&["dblink"]) {
        return Some(Builtin::Code);
    }
    if any(&["lo_", "pg_advisory", "pg_try_advisory", "pg_logical_", "pg_replication_", "pg_create_"])
        || any(&["pg_drop_replication", "pg_copy_", "pg_backup", "pg_start_backup", "pg_stop_backup"])
        || any(&["pg_terminate", "pg_cancel", "pg_reload", "pg_rotate", "pg_switch", "pg_wal_replay_"])
        || any(&[
            "pg_stat_reset",
            "pg_stat_statements_reset",
            "pg_stat_clear",
            "pg_stat_force",
            "pg_restore_",
        ])
        || any(&["pg_clear_", "pg_export_", "pg_promote", "pg_notify", "pg_log_", "pg_sync_", "pg_file_"])
        || any(&["pg_import_", "pg_set_", "pg_prewarm", "brin_summarize", "brin_desummarize", "gin_clean"])
        || any(&["binary_upgrade_", "pg_nextoid", "pg_extension_config_dump"])
        || matches!(name, "loread" | "lowrite" | "autoprewarm_start_worker" | "pg_stop_making_pinned_objects")
    {
        return Some(Builtin::SideEffect);
    }
    // pg_sleep waits and does nothing else, so it runs wherever its query does.
    if name.starts_with("pg_sleep") || name.starts_with("pg_typeof") || name.starts_with("pg_column_") {
        return None;
    }
    let introspects = any(&["pg_", "has_", "to_reg", "current_catalog", "regclass", "txid_snapshot"]);
    introspects.then_some(Builtin::Introspection)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        for (name, expected) in [
            ("now", Some(Builtin::Clock)),
            ("upper", None),
            ("pg_advisory_lock", Some(Builtin::SessionLock)),
            ("pg_advisory_xact_lock", Some(Builtin::SideEffect)),
            ("pg_advisory_unlock_all", Some(Builtin::SideEffect)),
            ("pg_notify", Some(Builtin::SideEffect)),
            ("pg_get_viewdef", Some(Builtin::Introspection)),
            ("pg_sleep", None),
            ("lo_import", Some(Builtin::SideEffect)),
            ("dblink_exec", Some(Builtin::Code)),
            ("pg_create_logical_replication_slot", Some(Builtin::SideEffect)),
        ] {
            assert_eq!(classify(name), expected, "{name}");
        }
    }
}
