//! What the two servers and the control user's rights say.

use super::{Finding, Findings, Severity};
use crate::{
    Side,
    mirror::{facts::Facts, plan::Wanted, shape::TableShape},
    route::policy::{Mode, Policy},
};

/// What concerns whole servers. A refusal without a repository refuses them all.
pub(super) fn servers(policy: &Policy, facts: &[Facts; 2], wanted: &[Wanted]) -> Vec<Finding> {
    let mut list = Vec::new();
    let mut add = |severity, side: Option<Side>, reason: String, way_out: &str| {
        let way_out = way_out.to_owned();
        list.push(Finding { severity, side, repository: None, table: None, reason, way_out });
    };
    if facts[0].system_identifier == facts[1].system_identifier && !facts[0].system_identifier.is_empty() {
        if facts[0].incarnation == facts[1].incarnation {
            add(
                Severity::Refused,
                None,
                "source and target are the same database".to_owned(),
                "Correct host, port or database",
            );
        } else {
            let reason = "both servers have the same system identifier: one is a copy of the other, or they are one server".to_owned();
            let way_out =
                "Transactions in doubt are then told apart by timeline alone; initdb the target if you can";
            add(Severity::Warning, None, reason, way_out);
        }
    }
    let mode =
        |w: &Wanted| policy.repositories.iter().find(|r| r.name == w.repository).map(|r| r.mirror.mode);
    let synchronous = wanted.iter().any(|w| mode(w).is_some_and(Mode::is_synchronous));
    let atomic = wanted.iter().any(|w| mode(w) == Some(Mode::Atomic));
    for side in Side::BOTH {
        let facts = &facts[side.index()];
        let user = &facts.user;
        if facts.in_recovery {
            add(Severity::Refused, Some(side), "is a standby".to_owned(), "Name its primary");
        }
        if !facts.creates && !facts.roles.is_empty() {
            let reason = format!("{user} may not create the schema crossfade");
            add(Severity::Refused, Some(side), reason, "GRANT CREATE ON DATABASE ... TO it");
        }
        if !facts.forbidden.is_empty() {
            let list = facts.forbidden.join(", ");
            let reason = format!(
                "{user} may not run {list}: what became of a transaction cannot be known after a crash"
            );
            let way_out = format!("GRANT EXECUTE ON FUNCTION {list} TO {user}");
            let severity = if synchronous { Severity::Refused } else { Severity::Warning };
            add(severity, Some(side), reason, &way_out);
        }
        if atomic && facts.max_prepared == 0 {
            let reason = "max_prepared_transactions is 0, and mirror = \"atomic\" prepares transactions on the follower".to_owned();
            let way_out =
                "Set it to at least mirror.connections and restart the server, or use \"journaled\"";
            add(Severity::Refused, Some(side), reason, way_out);
        }
        if ["off", "local"].contains(&facts.synchronous_commit.as_str()) {
            let reason = format!(
                "synchronous_commit is {}: a crash may lose commits that were acknowledged",
                facts.synchronous_commit
            );
            add(
                Severity::Warning,
                Some(side),
                reason,
                "Set it to on, or know that verify must be run after a crash",
            );
        }
        if !facts.replica_role {
            let reason = format!(
                "{user} may not set session_replication_role: rows that are applied fire triggers and are checked by foreign keys"
            );
            let way_out = if facts.version >= 150_000 {
                "GRANT SET ON PARAMETER session_replication_role TO it"
            } else {
                "Before Postgres 15 only a superuser may"
            };
            add(Severity::Warning, Some(side), reason, way_out);
        }
        if !facts.sees_activity {
            let reason = format!("{user} does not see what others run: who blocks whom stays unknown");
            add(Severity::Warning, Some(side), reason, "GRANT pg_read_all_stats TO it");
        }
    }
    list
}

/// What the control user's rights say to one table.
pub(super) fn rights(facts: &[Facts; 2], both: [&TableShape; 2], found: &mut Findings<'_>) {
    for (side, table) in Side::BOTH.into_iter().zip(both) {
        let facts = &facts[side.index()];
        let user = &facts.user;
        let owner = facts.superuser || facts.roles.contains(&table.owner);
        if !owner {
            let reason = format!("belongs to {}: {user} may not create triggers on it", table.owner);
            found.add(Severity::Refused, side, reason, &format!("GRANT {} TO {user}", table.owner));
        }
        let hidden =
            table.row_security && !facts.bypasses_row_security && (table.force_row_security || !owner);
        if hidden {
            let reason = format!("its row security applies to {user}, which must see every row");
            found.add(Severity::Refused, side, reason, &format!("ALTER ROLE {user} BYPASSRLS"));
        }
        for trigger in table.triggers.iter().filter(|t| t.function.schema != "crossfade") {
            let name = &trigger.name;
            match (trigger.enabled, facts.replica_role) {
                ('D', _) | ('O', true) | ('R', false) => {}
                ('R' | 'A', true) => {
                    let reason = format!(
                        "its trigger {name} fires also for rows that are applied: what it writes comes twice"
                    );
                    found.add(
                        Severity::Warning,
                        side,
                        reason,
                        "ALTER TABLE ... ENABLE TRIGGER without ALWAYS or REPLICA",
                    );
                }
                (_, _) => {
                    let reason = format!(
                        "its trigger {name} would fire for rows that are applied, since {user} may not set session_replication_role"
                    );
                    let way_out = "Grant that, or DISABLE the trigger where the repository follows";
                    found.add(Severity::Refused, side, reason, way_out);
                }
            }
        }
        let cascades = table.foreign_keys.iter().filter(|key| key.cascades);
        for key in cascades.filter(|_| !facts.replica_role) {
            let reason = format!(
                "{} cascades on rows that are applied, since {user} may not set session_replication_role",
                key.definition
            );
            found.add(
                Severity::Warning,
                side,
                reason,
                "The rows are the same in the end; the copy takes longer",
            );
        }
    }
    sequences(facts, found);
}

fn sequences(facts: &[Facts; 2], found: &mut Findings<'_>) {
    let of = |side: usize| facts[side].sequences.get(&found.wanted.table);
    let Some(source) = of(0) else { return };
    let target = of(1).cloned().unwrap_or_default();
    for (name, value) in source.clone() {
        let other = target.iter().find(|(n, _)| *n == name).and_then(|(_, value)| *value);
        let text = |value: Option<i64>| value.map_or("its start".to_owned(), |v| v.to_string());
        let reason = format!(
            "sequences are not mirrored: {name} is at {} on the source, at {} on the target",
            text(value),
            text(other)
        );
        found.add(Severity::Note, None, reason, "It is moved before the other side leads");
    }
}
