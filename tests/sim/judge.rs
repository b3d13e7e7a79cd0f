//! The verdict: both sides equal, every acknowledged write there, nothing that was rolled back.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
};

use super::{
    ledger::{Effect, Entry, Fate, Ledger},
    schema::{OPENING, SLOTS},
    support::wire::Wire,
};

/// Tables whose rows carry tokens, and whether a row may go again.
const TOKENS: [(&str, bool); 7] = [
    ("t_event", false),
    ("t_ident", false),
    ("t_log", false),
    ("t_part", false),
    ("t_transfer", false),
    ("t_queue", true),
    ("t_child", true),
];

/// Says all that is wrong.
pub(crate) fn judge(ledger: &Ledger, sides: &mut [Wire; 2]) -> Result<(), String> {
    let mut wrong = Vec::new();
    compare(sides, &mut wrong);
    let inner = ledger.lock();
    wrong.extend(inner.broken.iter().cloned());
    for (name, side) in ["source", "target"].iter().zip(sides) {
        let mut of_side = Vec::new();
        tokens(&inner.entries, side, &mut of_side);
        versions(&inner.entries, side, &mut of_side);
        invariants(side, &mut of_side);
        wrong.extend(of_side.into_iter().map(|w| format!("{name}: {w}")));
    }
    if wrong.is_empty() {
        return Ok(());
    }
    let count = wrong.len();
    wrong.truncate(40);
    Err(format!("{count} things are wrong\n{}", wrong.join("\n")))
}

fn column(side: &mut Wire, sql: &str) -> Vec<String> {
    let rows = side.query(sql).unwrap_or_else(|e| panic!("{sql}: {e:?}"));
    rows.into_iter().filter_map(|row| row.into_iter().next().flatten()).collect()
}

/// Every table, row by row.
fn compare(sides: &mut [Wire; 2], wrong: &mut Vec<String>) {
    let tables = "SELECT c.relname FROM pg_class c WHERE c.relnamespace = 'public'::regnamespace AND c.relkind = 'r' ORDER BY 1";
    for table in column(&mut sides[0], tables) {
        let mut xids = BTreeMap::new();
        let rows = sides.each_mut().map(|side| {
            let mut counts = BTreeMap::<String, i64>::new();
            let sql = format!("SELECT t::text, t.xmin::text FROM public.{table} t");
            for row in side.query(&sql).unwrap_or_else(|e| panic!("{sql}: {e:?}")) {
                let [Some(text), xid] = &row[..] else { continue };
                *counts.entry(text.clone()).or_default() += 1;
                xids.insert(text.clone(), xid.clone());
            }
            counts
        });
        let all: BTreeSet<_> = rows.iter().flat_map(BTreeMap::keys).collect();
        for row in all {
            let [source, target] = rows.each_ref().map(|r| r.get(row).copied().unwrap_or(0));
            if source != target {
                let xid = xids.get(row);
                wrong.push(format!(
                    "{table} {row} of {xid:?}: {source} on the source, {target} on the target"
                ));
            }
        }
    }
}

/// Rows that must be there, and rows that must not.
fn tokens(entries: &[Entry], side: &mut Wire, wrong: &mut Vec<String>) {
    let mut there: BTreeMap<&str, BTreeSet<String>> = BTreeMap::new();
    for (table, _) in TOKENS {
        let found = column(side, &format!("SELECT token FROM {table}"));
        let count = found.len();
        let set: BTreeSet<_> = found.into_iter().collect();
        if set.len() != count {
            wrong.push(format!("{table}: {} rows are there more than once", count - set.len()));
        }
        there.insert(table, set);
    }
    let (mut gone, mut maybe_gone, mut blind) = (BTreeSet::new(), BTreeSet::new(), 0_usize);
    for (fate, effect) in entries.iter().flat_map(|e| e.effects.iter().map(|effect| (e.fate, effect))) {
        match (fate, effect) {
            (Fate::Committed, Effect::Popped(token)) => {
                wrong.extend((!gone.insert(token)).then(|| format!("{token} was popped twice")));
            }
            (Fate::Unknown, Effect::Popped(token)) => drop(maybe_gone.insert(token)),
            (Fate::Unknown | Fate::Committed, Effect::PoppedBlindly) => blind += 1,
            _ => {}
        }
    }
    let may_go = |table: &str| TOKENS.iter().any(|(t, may)| *t == table && *may);
    for entry in entries {
        let rows = |effects: &[Effect]| -> Vec<(&'static str, String)> {
            let row =
                |e: &Effect| if let Effect::Row(t, token) = e { Some((*t, token.clone())) } else { None };
            effects.iter().filter_map(row).filter(|(t, _)| there.contains_key(t)).collect()
        };
        let is_there = |(table, token): &(&str, String)| there[table].contains(token);
        let undone = rows(&entry.undone);
        let not_committed = if entry.fate == Fate::RolledBack { rows(&entry.effects) } else { Vec::new() };
        for row in undone.iter().chain(&not_committed).filter(|r| is_there(r)) {
            wrong.push(format!("extra: {row:?} was rolled back and is there"));
        }
        let lasting: Vec<_> = rows(&entry.effects).into_iter().filter(|(t, _)| !may_go(t)).collect();
        let found = lasting.iter().filter(|r| is_there(r)).count();
        if entry.fate == Fate::Committed && found != lasting.len() {
            wrong.push(format!("lost: {found} of {lasting:?} are there"));
        }
        if entry.fate == Fate::Unknown && found != 0 && found != lasting.len() {
            wrong.push(format!("half: {found} of {lasting:?} are there"));
        }
    }
    let pushed = entries.iter().filter(|e| e.fate == Fate::Committed).flat_map(|e| &e.effects);
    let pushed =
        pushed.filter_map(|e| if let Effect::Row("t_queue", token) = e { Some(token) } else { None });
    let missing: Vec<_> = pushed
        .filter(|t| !there["t_queue"].contains(*t) && !gone.contains(t) && !maybe_gone.contains(t))
        .collect();
    if missing.len() > blind {
        wrong.push(format!("lost: {missing:?} left the queue, with {blind} pops of unknown outcome"));
    }
    for token in gone.iter().filter(|t| there["t_queue"].contains(**t)) {
        wrong.push(format!("extra: {token} was popped and is still there"));
    }
}

/// Rows that one client counts up: the last acknowledged version, or a later one whose outcome is unknown.
fn versions(entries: &[Entry], side: &mut Wire, wrong: &mut Vec<String>) {
    let mut may: BTreeMap<usize, (u32, BTreeSet<u32>)> = BTreeMap::new();
    for entry in entries {
        for effect in &entry.effects {
            let Effect::Version(row, version) = effect else { continue };
            let (last, later) = may.entry(*row).or_default();
            match entry.fate {
                Fate::Committed => *last = *version,
                Fate::Unknown => drop(later.insert(*version)),
                Fate::RolledBack => {}
            }
        }
    }
    let found = side.query("SELECT id, version FROM t_own").expect("rows");
    let number =
        |text: &Option<String>| text.as_deref().and_then(|t| t.parse::<u32>().ok()).expect("a number");
    for row in found {
        let (id, version) = (number(&row[0]) as usize, number(&row[1]));
        let (last, later) = may.get(&id).cloned().unwrap_or_default();
        if version != last && !(version > last && later.contains(&version)) {
            wrong.push(format!("t_own {id}: version {version}, acknowledged {last}, unknown {later:?}"));
        }
    }
}

/// What holds whatever was committed.
fn invariants(side: &mut Wire, wrong: &mut Vec<String>) {
    let mut none = |what: &str, sql: &str| {
        let found = column(side, sql);
        if !found.is_empty() {
            let mut text = String::new();
            let _ = write!(text, "{what}: {found:?}");
            wrong.push(text);
        }
    };
    none(
        "balances that the transfers do not explain",
        &format!(
            "SELECT a.id::text FROM t_account a WHERE balance <> {OPENING} \
             + coalesce((SELECT sum(amount) FROM t_transfer WHERE taker = a.id), 0) \
             - coalesce((SELECT sum(amount) FROM t_transfer WHERE giver = a.id), 0)"
        ),
    );
    none("slots are missing", &format!("SELECT 'some' WHERE (SELECT count(*) FROM t_slot) <> {SLOTS}"));
    none(
        "children without a parent",
        "SELECT c.id::text FROM t_child c WHERE c.parent NOT IN (SELECT id FROM t_parent)",
    );
}
