//! What reading a statement costs: only the first time, later ones find the plan in the cache.

use crossfade::{
    catalog::Catalog,
    statement::{Context, Plan, analyze},
};

fn main() {
    divan::main();
}

#[divan::bench(args = [
    "select 1",
    "select * from documents where id = $1",
    "update documents set title = $1, changed = now() where id = $2 returning *",
    "select d.*, u.name from documents d join users u on u.id = d.owner where d.id in ($1, $2) order by d.id limit 10",
])]
fn short(sql: &str) -> Plan {
    read(sql)
}

#[divan::bench(args = [10, 50])]
fn insert_rows(rows: usize) -> Plan {
    let values = vec!["($1, 'title', now())"; rows].join(", ");
    read(&format!("insert into documents (id, title, changed) values {values}"))
}

fn read(sql: &str) -> Plan {
    let catalog = Catalog::default();
    let context = Context {
        catalog: &catalog,
        search_path: None,
        standard_conforming_strings: true,
        max_bytes: 1 << 20,
    };
    analyze(divan::black_box(sql).as_bytes(), &context)
}
