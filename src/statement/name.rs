//! What a name in a text stands for: search path, temporary schema, views, partitions, functions.

use std::collections::BTreeSet;

use super::{Context, Table};
use crate::catalog::{Catalog, RelationKind};

/// What the name of a relation stands for.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(super) struct Meaning {
    /// Tables behind the name, with the ancestors of partitions.
    pub(super) tables: BTreeSet<Table>,
    /// Functions that its views call and that do more than compute.
    pub(super) functions: BTreeSet<Table>,
    /// Reading it runs code that is not named.
    pub(super) read_code: bool,
    /// Writing it does.
    pub(super) write_code: bool,
    /// It is, or a view of it reads, a relation of the system.
    pub(super) system: bool,
    /// It is a temporary relation.
    pub(super) temporary: bool,
}

/// The relation that a name stands for, without looking through views.
pub(super) fn relation(context: &Context<'_>, schema: &str, name: &str) -> Table {
    let known = |schema: &str| {
        let table = table(schema, name);
        context.catalog.relations.contains_key(&table).then_some(table)
    };
    if !schema.is_empty() {
        return table(schema, name);
    }
    let found = match context.search_path {
        Some(path) => path.iter().find_map(|schema| known(schema)),
        None => only(context.catalog.schemas_by_name.get(name)).and_then(known),
    };
    found.unwrap_or_else(|| table("", name))
}

/// The relation that CREATE makes: in the first schema of the search path that exists.
pub(super) fn created(context: &Context<'_>, schema: &str, name: &str) -> Table {
    let first = || context.search_path?.iter().find(|schema| context.catalog.schemas.contains(*schema));
    if schema.is_empty() { table(first().map_or("", |s| s), name) } else { table(schema, name) }
}

/// Everything that reading (or writing through) a relation concerns.
pub(super) fn meaning(context: &Context<'_>, schema: &str, name: &str) -> Meaning {
    let mut meaning = Meaning::default();
    let table = relation(context, schema, name);
    if is_temporary_schema(&table.schema) {
        meaning.temporary = true;
        meaning.tables.insert(Table { schema: "pg_temp".into(), ..table });
        return meaning;
    }
    // pg_catalog is searched before every schema of the path, and all its relations begin so.
    meaning.system = schema.is_empty() && name.starts_with("pg_");
    if meaning.system && table.schema.is_empty() {
        return meaning;
    }
    expand(context.catalog, table, &mut meaning, &mut BTreeSet::new());
    meaning
}

/// Adds a relation and all that is behind it. `seen` ends cycles (rules can make one).
fn expand(catalog: &Catalog, table: Table, meaning: &mut Meaning, seen: &mut BTreeSet<Table>) {
    if is_system_schema(&table.schema) {
        meaning.system = true;
        return;
    }
    if !seen.insert(table.clone()) {
        return;
    }
    let Some(relation) = catalog.relations.get(&table) else {
        meaning.tables.insert(table);
        return;
    };
    meaning.functions.extend(relation.functions.iter().cloned());
    meaning.read_code |= relation.read_code;
    meaning.write_code |= relation.write_code;
    if relation.kind == RelationKind::View {
        for read in &relation.reads {
            expand(catalog, read.clone(), meaning, seen);
        }
        return;
    }
    if let Some(parent) = &relation.parent {
        expand(catalog, parent.clone(), meaning, seen);
    }
    meaning.tables.insert(table);
}

/// The user's functions that a call may mean; several when the search path is not known.
pub(super) fn functions(context: &Context<'_>, schema: &str, name: &str) -> Vec<Table> {
    let known = |schema: &str| {
        let table = table(schema, name);
        context.catalog.functions.contains_key(&table).then_some(table)
    };
    if !schema.is_empty() {
        return known(schema).into_iter().collect();
    }
    if let Some(path) = context.search_path {
        // Overloads of several schemas compete by their arguments, so each of them may be meant.
        return path.iter().filter_map(|schema| known(schema)).collect();
    }
    let schemas = context.catalog.function_schemas_by_name.get(name);
    schemas.into_iter().flatten().filter_map(|schema| known(schema)).collect()
}

/// Splits what a literal in `nextval('...')` or `'...'::regclass` names, as Postgres folds it.
pub(super) fn split_literal(text: &str) -> Option<(String, String)> {
    let mut parts = Vec::new();
    let mut rest = text.trim();
    loop {
        let (part, behind) = identifier(rest)?;
        parts.push(part);
        rest = behind.trim_start();
        if rest.is_empty() {
            break;
        }
        rest = rest.strip_prefix('.')?.trim_start();
    }
    let name = parts.pop()?;
    Some((parts.pop().unwrap_or_default(), name))
}

fn identifier(text: &str) -> Option<(String, &str)> {
    let Some(mut rest) = text.strip_prefix('"') else {
        let end = text.find(|c: char| c == '.' || c.is_whitespace()).unwrap_or(text.len());
        let plain = !text[..end].is_empty() && !text[..end].contains('"');
        return plain.then(|| (text[..end].to_ascii_lowercase(), &text[end..]));
    };
    let mut name = String::new();
    loop {
        let quote = rest.find('"')?;
        name.push_str(&rest[..quote]);
        rest = &rest[quote + 1..];
        match rest.strip_prefix('"') {
            Some(behind) => {
                name.push('"');
                rest = behind;
            }
            None => return Some((name, rest)),
        }
    }
}

/// Is this a schema of Postgres' own?
pub(super) fn is_system_schema(schema: &str) -> bool {
    matches!(schema, "pg_catalog" | "information_schema" | "pg_toast")
}

/// Is this the schema of a session's temporary relations?
pub(super) fn is_temporary_schema(schema: &str) -> bool {
    schema == "pg_temp" || schema.starts_with("pg_temp_") || schema.starts_with("pg_toast_temp_")
}

/// A qualified name.
pub(super) fn table(schema: &str, name: &str) -> Table {
    Table { schema: schema.to_owned(), name: name.to_owned() }
}

fn only(schemas: Option<&Vec<String>>) -> Option<&str> {
    match schemas?.as_slice() {
        [schema] => Some(schema),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn literals_are_folded() {
        for (text, expected) in [
            ("seq", Some(("", "seq"))),
            ("Seq", Some(("", "seq"))),
            ("a.B", Some(("a", "b"))),
            (" \"A b\" . \"c\"\"d\" ", Some(("A b", "c\"d"))),
            ("db.a.b", Some(("a", "b"))),
            ("", None),
            ("a.", None),
            ("a b", None),
            ("\"a", None),
        ] {
            let found = split_literal(text);
            assert_eq!(found.as_ref().map(|(s, n)| (s.as_str(), n.as_str())), expected, "{text}");
        }
    }
}
