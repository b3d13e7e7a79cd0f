//! A small catalog for tests and the fuzzer.

use crate::{
    catalog::{Catalog, Function, Relation, RelationKind},
    statement::{Table, name::table},
};

/// Tables, views, partitions, sequences and functions in two schemas.
pub(crate) fn catalog() -> Catalog {
    let mut catalog = Catalog { generation: 1, ..Catalog::default() };
    let key =
        |column: &str| Relation { key: vec![column.to_owned()], on: [true, true], ..Relation::default() };
    let public = |name: &str| table("public", name);
    for name in ["documents", "users", "organizations", "things", "pg_notes"] {
        add(&mut catalog, public(name), key("id"));
    }
    let two = Relation { key: vec!["a".into(), "b".into()], ..Relation::default() };
    add(&mut catalog, public("document_tags"), two);
    add(&mut catalog, public("Mixed Case"), key("id"));
    add(&mut catalog, table("other", "things"), key("id"));
    add(&mut catalog, table("other", "only_here"), key("id"));
    let child = |parent: &str| Relation { parent: Some(table("public", parent)), ..Relation::default() };
    add(&mut catalog, public("events"), key("id"));
    add(&mut catalog, public("events_2024"), child("events"));
    add(&mut catalog, public("events_2024_01"), child("events_2024"));
    let view =
        |reads: &[Table]| Relation { kind: RelationKind::View, reads: reads.to_vec(), ..Relation::default() };
    add(&mut catalog, public("recent"), view(&[public("documents"), public("users")]));
    add(&mut catalog, public("nested"), view(&[public("recent"), table("pg_catalog", "pg_class")]));
    add(&mut catalog, public("loop_a"), view(&[public("loop_b")]));
    add(&mut catalog, public("loop_b"), view(&[public("loop_a"), public("things")]));
    let calls = Relation { functions: vec![public("touch")], ..view(&[public("documents")]) };
    add(&mut catalog, public("calling"), calls);
    for (name, call) in [
        ("locked", "pg_advisory_lock"),
        ("notifying", "pg_notify"),
        ("set", "set_config"),
        ("drawn", "nextval"),
        ("drawing", "currval"),
        ("last", "lastval"),
        ("timed", "now"),
        ("chance", "random"),
        ("own_setting", "current_setting"),
        ("described", "obj_description"),
        ("sql", "query_to_xml"),
    ] {
        let sequence = matches!(call, "nextval" | "currval").then(|| public("documents_id_seq"));
        let reads: Vec<Table> = [public("documents")].into_iter().chain(sequence).collect();
        let calls = Relation { functions: vec![table("pg_catalog", call)], ..view(&reads) };
        add(&mut catalog, public(&format!("v_{name}")), calls);
    }
    let computed = [table("pg_catalog", "nextval"), table("pg_catalog", "regclass")];
    let calls = Relation { functions: computed.to_vec(), ..view(&[public("documents_id_seq")]) };
    add(&mut catalog, public("v_computed"), calls);
    add(&mut catalog, public("v_over_locked"), view(&[public("v_locked")]));
    let stored = Relation { kind: RelationKind::MaterializedView, ..view(&[public("documents")]) };
    add(&mut catalog, public("stored"), stored);
    let sequence = Relation { kind: RelationKind::Sequence, ..Relation::default() };
    add(&mut catalog, public("documents_id_seq"), sequence);
    for (name, volatile, reads_tables) in
        [("touch", true, true), ("lookup", false, true), ("add_tax", false, false), ("work", true, true)]
    {
        catalog.functions.insert(public(name), Function { volatile, reads_tables });
        catalog.function_schemas_by_name.entry(name.into()).or_default().push("public".into());
    }
    catalog
}

fn add(catalog: &mut Catalog, table: Table, relation: Relation) {
    catalog.schemas.insert(table.schema.clone());
    catalog.schemas_by_name.entry(table.name.clone()).or_default().push(table.schema.clone());
    catalog.relations.insert(table, relation);
}
