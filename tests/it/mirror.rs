//! Dual writes: what clients write through the proxy is on both sides, and clients see what one Postgres would say.

mod commit;
mod last_words;
mod lost_words;
mod statements;

use crate::support::{
    cluster::{Cluster, newest, oldest},
    frames,
    proxy::{Proxy, Settings},
    reply::short,
    wait_for,
    wire::Wire,
};

/// Modes in which the proxy itself ships rows.
const SYNCHRONOUS: [&str; 2] = ["journaled", "atomic"];
/// And the one in which only the repairer does.
pub(crate) const MODES: [&str; 3] = ["journaled", "atomic", "async"];

/// Two fresh databases with `schema` in both, mirrored, and a proxy before them.
pub(crate) fn start(name: &str, schema: &str, change: impl FnOnce(&mut Settings)) -> Proxy {
    start_between(oldest(), newest(), name, schema, change)
}

pub(crate) fn start_between(
    source: &Cluster,
    target: &Cluster,
    name: &str,
    schema: &str,
    change: impl FnOnce(&mut Settings),
) -> Proxy {
    for cluster in [source, target] {
        cluster.database(name);
        cluster.admin(name).run(schema);
    }
    let mut settings = Settings::new(name).backends(source, target);
    settings.tables += ", \"public.t*\"";
    change(&mut settings);
    settings.start()
}

/// All rows of all tables of `public`, by table; columns in the order of their names.
fn rows(admin: &mut Wire) -> Vec<(String, Vec<String>)> {
    let tables = "SELECT c.oid::regclass::text, (SELECT string_agg(quote_ident(a.attname), ', ' ORDER BY a.attname) \
                  FROM pg_attribute a WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped) \
                  FROM pg_class c WHERE c.relnamespace = 'public'::regnamespace AND c.relkind = 'r' ORDER BY 1";
    let tables = admin.query(tables).expect("tables");
    let all = tables.into_iter().filter_map(|row| match &row[..] {
        [Some(table), Some(columns)] => Some((table.clone(), columns.clone())),
        _ => None,
    });
    let mut found = Vec::new();
    for (table, columns) in all {
        let rows =
            admin.query(&format!("SELECT ROW({columns})::text FROM {table} ORDER BY 1")).expect("rows");
        found.push((table, rows.into_iter().filter_map(|r| r.into_iter().next().flatten()).collect()));
    }
    found
}

/// Waits until the journal is empty, and compares every table.
#[track_caller]
pub(crate) fn check_equal(proxy: &Proxy) {
    let settings = &proxy.settings;
    let login = |port| {
        Wire::connect(port, &crate::support::wire::Login::new("postgres", "secret", &settings.database))
            .expect("the cluster answers")
    };
    let (mut source, mut target) = (login(settings.source), login(settings.target));
    wait_for("an empty journal", || {
        [&mut source, &mut target]
            .iter_mut()
            .all(|side| side.run("SELECT count(*) FROM crossfade.journal").as_deref() == Some("0"))
    });
    wait_for("no prepared transaction", || {
        let count = "SELECT count(*) FROM pg_prepared_xacts WHERE database = current_database()";
        [&mut source, &mut target].iter_mut().all(|side| side.run(count).as_deref() == Some("0"))
    });
    let (left, right) = (rows(&mut source), rows(&mut target));
    assert_eq!(left, right, "source and target differ");
}

/// The journal and the follower, right now.
fn journal(proxy: &Proxy) -> Option<String> {
    let mut source = Wire::connect(
        proxy.settings.source,
        &crate::support::wire::Login::new("postgres", "secret", &proxy.settings.database),
    )
    .expect("the cluster answers");
    source.run("SELECT count(*) FROM crossfade.journal WHERE NOT sync")
}

/// What is answered to these frames, up to `n` ReadyForQuery.
fn answer(client: &mut Wire, bytes: &[u8], n: usize) -> String {
    client.send(bytes);
    short(&client.until_ready(n).expect("answers"))
}

/// What is answered to a simple query.
fn said(client: &mut Wire, sql: &str) -> String {
    answer(client, &frames::query(sql), 1)
}
