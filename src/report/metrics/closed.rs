//! Counters whose labels have few values, all known: they are there from the start with 0. One that appears with its first
//! event is 1 when it is first seen, and `increase()` finds nothing.

use super::{self as names, Metric, Value};

/// Each with the values of all its labels.
pub(super) const CLOSED: &[(&Metric, &[&[&str]])] = &[
    (&names::CONFIG_RELOAD, &[&["ok", "refused"]]),
    (&names::UNKNOWN_STATEMENTS, &[&["syntax", "too_long", "too_deep", "encoding", "node"]]),
    (&names::MIRROR_TRANSACTIONS, &[SIDES, &["both", "journal", "rolled_back"]]),
    (&names::MIRROR_FOLLOWER_FAILURES, &[SIDES, &["avoided", "unreachable", "refused", "unfit"]]),
    (
        &names::REPAIR_ERRORS,
        &[&[
            "connection",
            "busy",
            "in_flight",
            "unique",
            "foreign_key",
            "schema",
            "restless",
            "moved",
            "refused",
        ]],
    ),
    (&names::RECOVERED, &[&["committed", "rolled_back", "elsewhere", "busy", "failed", "stuck"]]),
    (&names::DEADLOCKS, &[&["broken", "elsewhere"]]),
    (&names::LEAD_MOVES, &[&["moved", "waited", "failed"]]),
    (
        &names::SHADOW_DROPPED,
        &[&[
            "queue",
            "rate",
            "expired",
            "down",
            "unreachable",
            "timeout",
            "refused",
            "failed",
            "large",
            "batch",
        ]],
    ),
];

const SIDES: &[&str] = &["source", "target"];

/// All combinations of them.
pub(super) fn series() -> impl Iterator<Item = (&'static Metric, Vec<Value<'static>>)> {
    CLOSED.iter().flat_map(|&(metric, labels)| {
        let mut rows = vec![Vec::new()];
        for values in labels {
            let with = |row: &Vec<Value<'static>>| {
                values.iter().map(|&word| [row.as_slice(), &[Value::Word(word)]].concat()).collect::<Vec<_>>()
            };
            rows = rows.iter().flat_map(with).collect();
        }
        rows.into_iter().map(move |row| (metric, row))
    })
}

/// Is a series among them, or of another metric?
pub(super) fn knows(metric: &Metric, labels: &[Value<'_>]) -> bool {
    let mut closed = CLOSED.iter().filter(|(known, _)| known.name == metric.name);
    closed
        .all(|(_, values)| values.iter().zip(labels).all(|(values, label)| values.contains(&&*label.text())))
}
