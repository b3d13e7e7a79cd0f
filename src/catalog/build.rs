//! Two servers' catalogs -> one [`Catalog`]. Pure.

use std::collections::{BTreeSet, HashMap, HashSet};

use super::{
    Catalog, Function, Relation, RelationKind,
    load::{Raw, RawRelation, RawType},
};
use crate::{
    Side,
    statement::{self, Table},
    wire::oids::{Nested, Shape},
};

/// Merges what was read; a side that is `None` did not answer.
pub(super) fn build(raw: &[Option<Raw>; 2], generation: u64) -> Catalog {
    let read = [raw[0].is_some(), raw[1].is_some()];
    let mut catalog = Catalog { read, generation, ..Catalog::default() };
    if let [Some(source), Some(target)] = raw {
        let pairs = pair(&type_names(source), &type_names(target));
        catalog.type_target_to_source = pairs.iter().map(|(&s, &t)| (t, s)).collect();
        catalog.type_source_to_target = pairs;
        if !catalog.type_target_to_source.is_empty() {
            catalog.nested = Nested { shapes: shapes(target), types: catalog.type_target_to_source.clone() };
        }
        let pairs = pair(&class_names(source), &class_names(target));
        catalog.class_target_to_source = pairs.into_iter().map(|(s, t)| (t, s)).collect();
    }
    let types = Types::new(raw);
    for side in Side::BOTH {
        let Some(raw) = &raw[side.index()] else { continue };
        catalog.schemas.extend(raw.schemas.values().cloned());
        add_relations(&mut catalog, raw, side, &types);
        add_functions(&mut catalog, raw);
    }
    catalog.schemas_by_name = by_name(catalog.relations.keys());
    catalog.function_schemas_by_name = by_name(catalog.functions.keys());
    catalog
}

/// Types whose binary values hold OIDs. Those of built-in arrays never differ, and cost a look at each row.
fn shapes(raw: &Raw) -> HashMap<u32, Shape> {
    const FIRST_OF_INITDB: u32 = 10_000;
    let by_oid: HashMap<u32, &RawType> = raw.types.iter().map(|t| (t.oid, t)).collect();
    let shape = |t: &RawType| {
        let mut t = t;
        // A column of a composite type may be a domain, and the OID is then the domain's.
        for _ in 0..32 {
            if t.array {
                return Some(Shape::Array);
            }
            if t.relation != 0 {
                return Some(Shape::Composite);
            }
            t = by_oid.get(&t.inner)?;
        }
        None
    };
    let own = raw.types.iter().filter(|t| t.oid >= FIRST_OF_INITDB);
    let anonymous = [(RECORD, Shape::Composite), (RECORD_ARRAY, Shape::Array)];
    own.filter_map(|t| Some((t.oid, shape(t)?))).chain(anonymous).collect()
}

const RECORD: u32 = 2249;
const RECORD_ARRAY: u32 = 2287;

type TypeName<'a> = (&'a str, &'a str, bool);

/// OIDs by name; names whose schema is not there (temporary) are left out.
fn type_names(raw: &Raw) -> HashMap<TypeName<'_>, u32> {
    let name = |t: &RawType| raw.schemas.get(&t.schema).map(String::as_str);
    raw.types.iter().filter_map(|t| Some(((name(t)?, t.name.as_str(), t.array), t.oid))).collect()
}

fn class_names(raw: &Raw) -> HashMap<(&str, &str), u32> {
    let schema = |r: &RawRelation| raw.schemas.get(&r.schema).map(String::as_str);
    raw.relations.iter().filter_map(|r| Some(((schema(r)?, r.name.as_str()), r.oid))).collect()
}

/// Source OID -> target OID where they differ.
fn pair<K: Eq + std::hash::Hash>(source: &HashMap<K, u32>, target: &HashMap<K, u32>) -> HashMap<u32, u32> {
    let both = source.iter().filter_map(|(name, &s)| Some((s, *target.get(name)?)));
    both.filter(|(s, t)| s != t).collect()
}

fn by_name<'a>(tables: impl Iterator<Item = &'a Table>) -> HashMap<String, Vec<String>> {
    let mut map: HashMap<String, Vec<String>> = HashMap::new();
    for table in tables {
        map.entry(table.name.clone()).or_default().push(table.schema.clone());
    }
    for schemas in map.values_mut() {
        schemas.sort();
    }
    map
}

/// Types of one side whose binary values hold OIDs that mean something else on the other side.
struct Types {
    nested: [HashSet<u32>; 2],
}

impl Types {
    fn new(raw: &[Option<Raw>; 2]) -> Self {
        let names = [0, 1].map(|i| raw[i].as_ref().map(type_names).unwrap_or_default());
        let nested = [0, 1].map(|i| {
            let Some(side) = &raw[i] else { return HashSet::new() };
            // Unknown on the other side counts as different: nothing can be promised then.
            let same = |(name, oid): (&TypeName<'_>, &u32)| names[1 - i].get(name) == Some(oid);
            let equal = names[i].iter().filter(|&(n, o)| same((n, o))).map(|(_, &oid)| oid).collect();
            let by_oid = side.types.iter().map(|t| (t.oid, t)).collect();
            let mut columns: HashMap<u32, Vec<u32>> = HashMap::new();
            for &(relation, column) in &side.columns {
                columns.entry(relation).or_default().push(column);
            }
            let reading = Reading { by_oid, equal, columns };
            let nested = |t: &&RawType| reading.nested(t.oid, &mut HashSet::new());
            side.types.iter().filter(nested).map(|t| t.oid).collect()
        });
        Self { nested }
    }
}

struct Reading<'a> {
    by_oid: HashMap<u32, &'a RawType>,
    equal: HashSet<u32>,
    columns: HashMap<u32, Vec<u32>>,
}

impl Reading<'_> {
    /// `seen` ends recursion: a table may have an array of its own row type.
    fn nested(&self, oid: u32, seen: &mut HashSet<u32>) -> bool {
        let Some(t) = self.by_oid.get(&oid) else { return false };
        if !seen.insert(oid) {
            return false;
        }
        let differs = |oid: u32| self.by_oid.contains_key(&oid) && !self.equal.contains(&oid);
        // array_send writes the OID of the element, record_send those of the columns; domains and ranges write none.
        (t.array && differs(t.inner))
            || self.nested(t.inner, seen)
            || self.columns.get(&t.relation).is_some_and(|columns| {
                t.relation != 0 && columns.iter().any(|&c| differs(c) || self.nested(c, seen))
            })
    }
}

fn add_relations(catalog: &mut Catalog, raw: &Raw, side: Side, types: &Types) {
    let name =
        |r: &RawRelation| Some(Table { schema: raw.schemas.get(&r.schema)?.clone(), name: r.name.clone() });
    let names: HashMap<u32, Table> = raw.relations.iter().filter_map(|r| Some((r.oid, name(r)?))).collect();
    let uses = Uses::new(raw);
    let nested: HashSet<u32> = raw
        .columns
        .iter()
        .filter(|(_, column)| types.nested[side.index()].contains(column))
        .map(|&(relation, _)| relation)
        .collect();
    let [read_code, write_code] = runs_code(raw);
    for r in &raw.relations {
        let Some(table) = names.get(&r.oid) else { continue };
        let nested_oids = nested.contains(&r.oid);
        if let Some(known) = catalog.relations.get_mut(table) {
            known.on[side.index()] = true;
            // Either side may answer.
            let functions: BTreeSet<Table> = known.functions.drain(..).chain(uses.of(r.oid).1).collect();
            known.functions = functions.into_iter().collect();
            known.nested_oids |= nested_oids;
            known.read_code |= read_code.contains(&r.oid);
            known.write_code |= write_code.contains(&r.oid);
            continue;
        }
        let (reads, functions) = uses.of(r.oid);
        let mut on = [false; 2];
        on[side.index()] = true;
        let relation = Relation {
            kind: kind(r.kind),
            parent: names.get(&r.parent).cloned(),
            reads: reads.iter().filter_map(|oid| names.get(oid).cloned()).collect(),
            functions: functions.into_iter().collect(),
            read_code: read_code.contains(&r.oid),
            write_code: write_code.contains(&r.oid),
            nested_oids,
            key: raw.keys.get(&r.oid).cloned().unwrap_or_default(),
            on,
        };
        catalog.relations.insert(table.clone(), relation);
    }
}

/// Relations that call volatile functions when they are read, and when they are written.
fn runs_code(raw: &Raw) -> [HashSet<u32>; 2] {
    let volatile: HashSet<u32> = raw.functions.iter().filter(|f| f.volatile).map(|f| f.oid).collect();
    let calls = |on_writes| {
        let code = raw.code.iter().filter(move |(_, writes, _)| *writes == on_writes);
        code.filter(|(_, _, function)| volatile.contains(function)).map(|&(relation, ..)| relation)
    };
    let (reads, mut writes) = (calls(false).collect(), calls(true).collect::<HashSet<u32>>());
    // A write to a parent reaches its partitions, and a foreign key what refers to the row.
    let mut causes: HashMap<u32, Vec<u32>> = HashMap::new();
    let parents = raw.relations.iter().filter(|r| r.kind != b'S').map(|r| (r.parent, r.oid));
    for (from, to) in parents.chain(raw.cascades.iter().copied()) {
        causes.entry(to).or_default().push(from);
    }
    let mut open: Vec<u32> = writes.iter().copied().collect();
    while let Some(oid) = open.pop() {
        open.extend(causes.get(&oid).into_iter().flatten().copied().filter(|&cause| writes.insert(cause)));
    }
    [reads, writes]
}

fn kind(relkind: u8) -> RelationKind {
    match relkind {
        b'v' => RelationKind::View,
        b'm' => RelationKind::MaterializedView,
        b'S' => RelationKind::Sequence,
        b'f' => RelationKind::Foreign,
        _ => RelationKind::Table,
    }
}

/// What rules use, views resolved down to what stores rows.
struct Uses {
    relations: HashMap<u32, Vec<u32>>,
    /// Those alone that do more than compute.
    functions: HashMap<u32, Vec<Table>>,
    views: HashSet<u32>,
}

impl Uses {
    fn new(raw: &Raw) -> Self {
        let name = |schema: &u32, name: &str| {
            Some(Table { schema: raw.schemas.get(schema)?.clone(), name: name.to_owned() })
        };
        let volatile = raw.functions.iter().filter(|f| f.volatile);
        let volatile: HashMap<u32, Table> =
            volatile.filter_map(|f| Some((f.oid, name(&f.schema, &f.name)?))).collect();
        let mut uses = Self {
            relations: HashMap::new(),
            functions: HashMap::new(),
            views: raw.relations.iter().filter(|r| r.kind == b'v').map(|r| r.oid).collect(),
        };
        for &(relation, is_function, used) in &raw.rules {
            if !is_function {
                uses.relations.entry(relation).or_default().push(used);
            } else if let Some(table) = volatile.get(&used) {
                uses.functions.entry(relation).or_default().push(table.clone());
            }
        }
        for (relation, schema, function) in &raw.calls {
            let table = name(schema, function).filter(statement::means_more);
            uses.functions.entry(*relation).or_default().extend(table);
        }
        uses
    }

    fn of(&self, relation: u32) -> (BTreeSet<u32>, BTreeSet<Table>) {
        let (mut reads, mut functions) = (BTreeSet::new(), BTreeSet::new());
        let (mut open, mut seen) = (vec![relation], HashSet::from([relation]));
        while let Some(oid) = open.pop() {
            functions.extend(self.functions.get(&oid).into_iter().flatten().cloned());
            for &used in self.relations.get(&oid).into_iter().flatten() {
                if !self.views.contains(&used) {
                    reads.insert(used);
                } else if seen.insert(used) {
                    open.push(used);
                }
            }
        }
        (reads, functions)
    }
}

fn add_functions(catalog: &mut Catalog, raw: &Raw) {
    for f in &raw.functions {
        let Some(schema) = raw.schemas.get(&f.schema) else { continue };
        let table = Table { schema: schema.clone(), name: f.name.clone() };
        let merged =
            catalog.functions.entry(table).or_insert(Function { volatile: false, reads_tables: false });
        merged.volatile |= f.volatile;
        merged.reads_tables |= f.reads_tables;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn relation(oid: u32, name: &str, kind: u8) -> super::super::load::RawRelation {
        RawRelation { oid, schema: 1, name: name.to_owned(), kind, parent: 0 }
    }

    /// A table of an enum, one of an array of it, one of a composite with it; `base` moves the OIDs.
    fn side(base: u32) -> Raw {
        let named = |oid, name: &str, array, inner, relation| RawType {
            oid: base + oid,
            schema: 1,
            name: name.to_owned(),
            array,
            inner,
            relation,
        };
        Raw {
            schemas: HashMap::from([(1, "public".to_owned())]),
            relations: vec![
                relation(base + 10, "enums", b'r'),
                relation(base + 11, "arrays", b'p'),
                relation(base + 12, "composites", b'r'),
                relation(base + 13, "domains", b'r'),
            ],
            types: vec![
                named(1, "mood", false, 0, 0),
                named(2, "mood", true, base + 1, 0),
                named(3, "pair", false, 0, base + 20),
                named(4, "moods", false, base + 2, 0),
                named(5, "own", false, 0, base + 14),
                named(6, "own", true, base + 5, 0),
            ],
            columns: vec![
                (base + 10, base + 1),
                (base + 11, base + 2),
                (base + 12, base + 3),
                (base + 13, base + 4),
                (base + 14, base + 6),
                (base + 20, base + 1),
            ],
            ..Raw::default()
        }
    }

    fn function(oid: u32, volatile: bool) -> crate::catalog::load::RawFunction {
        crate::catalog::load::RawFunction {
            oid,
            schema: 1,
            name: format!("f{oid}"),
            volatile,
            reads_tables: true,
        }
    }

    #[test]
    fn code_that_is_not_named() {
        let mut raw = side(20_000);
        raw.relations.extend([relation(1, "parent", b'p'), relation(2, "referred", b'r')]);
        raw.relations.push(RawRelation { parent: 1, ..relation(3, "partition", b'r') });
        raw.functions = vec![function(90, true), function(91, false)];
        raw.code = vec![(3, true, 90), (20_010, false, 90), (20_011, true, 91)];
        raw.cascades = vec![(2, 1)];
        let catalog = build(&[Some(raw), None], 1);
        let of = |name: &str| {
            let relation = &catalog.relations[&table(name)];
            (relation.read_code, relation.write_code)
        };
        for (name, expected) in [
            ("partition", (false, true)),
            ("parent", (false, true)),
            ("referred", (false, true)),
            ("enums", (true, false)),
            ("arrays", (false, false)),
        ] {
            assert_eq!(of(name), expected, "{name}");
        }
    }

    fn table(name: &str) -> Table {
        Table { schema: "public".to_owned(), name: name.to_owned() }
    }

    #[test]
    fn oids_are_paired_by_name() {
        let nested = |catalog: &Catalog| {
            let mut list: Vec<String> = catalog
                .relations
                .iter()
                .filter(|(_, r)| r.nested_oids)
                .map(|(t, _)| t.name.clone())
                .collect();
            list.sort();
            list
        };
        let catalog = build(&[Some(side(20_000)), Some(side(30_000))], 3);
        assert_eq!(catalog.generation, 3);
        assert_eq!(catalog.type_target_to_source[&30_001], 20_001);
        assert_eq!(catalog.type_source_to_target[&20_002], 30_002);
        assert_eq!(catalog.class_target_to_source[&30_010], 20_010);
        assert_eq!(nested(&catalog), ["arrays", "composites", "domains"]);
        assert_eq!(catalog.relations[&table("enums")].on, [true, true]);

        let catalog = build(&[Some(side(20_000)), Some(side(20_000))], 1);
        assert!(catalog.type_target_to_source.is_empty() && catalog.class_target_to_source.is_empty());
        assert!(nested(&catalog).is_empty());

        let catalog = build(&[Some(side(20_000)), None], 1);
        assert!(catalog.type_target_to_source.is_empty());
        assert_eq!(nested(&catalog), ["arrays", "composites", "domains"]);
        assert_eq!(catalog.relations[&table("enums")].on, [true, false]);
    }

    #[test]
    fn built_in_functions_of_views() {
        let calls = |list: &[(u32, u32, &str)]| {
            let side = |base: u32| {
                let mut raw = side(base);
                raw.schemas.insert(11, "pg_catalog".to_owned());
                raw.relations.extend([relation(1, "inner", b'v'), relation(2, "outer", b'v')]);
                raw.rules = vec![(2, false, 1), (1, false, base + 10)];
                raw
            };
            let own = |&(view, schema, name): &(u32, u32, &str)| (view, schema, name.to_owned());
            let source = Raw { calls: list.iter().map(own).collect(), ..side(20_000) };
            let target = Raw { calls: vec![(1, 11, "random".to_owned())], ..side(30_000) };
            let catalog = build(&[Some(source), Some(target)], 1);
            let functions = &catalog.relations[&table("outer")].functions;
            functions.iter().map(|f| format!("{}.{}", f.schema, f.name)).collect::<Vec<_>>().join(" ")
        };
        // Either side may answer.
        assert_eq!(calls(&[]), "pg_catalog.random");
        assert_eq!(
            calls(&[(1, 11, "pg_notify"), (2, 11, "now")]),
            "pg_catalog.now pg_catalog.pg_notify pg_catalog.random"
        );
        // To_char only computes; a function of the user's may be called like anything, but one that runs SQL is feared.
        assert_eq!(
            calls(&[(1, 11, "to_char"), (1, 1, "now"), (1, 1, "crosstab")]),
            "pg_catalog.random public.crosstab"
        );
    }

    #[test]
    fn views_are_resolved() {
        let mut raw = side(20_000);
        raw.relations.extend([
            relation(1, "inner", b'v'),
            relation(2, "outer", b'v'),
            relation(3, "stored", b'm'),
            relation(4, "over_stored", b'v'),
        ]);
        raw.functions = vec![function(90, true), function(91, false)];
        raw.rules = vec![
            (1, false, 20_010),
            (1, true, 90),
            (1, true, 91),
            (2, false, 1),
            (2, false, 20_011),
            // Two views may name each other through CREATE OR REPLACE.
            (1, false, 2),
            (3, false, 20_012),
            (4, false, 3),
        ];
        let catalog = build(&[Some(raw), None], 1);
        let of = |name: &str| {
            let relation = &catalog.relations[&table(name)];
            let names = |list: &[Table]| list.iter().map(|t| t.name.clone()).collect::<Vec<_>>().join(" ");
            (names(&relation.reads), names(&relation.functions))
        };
        assert_eq!(of("outer"), ("enums arrays".to_owned(), "f90".to_owned()));
        assert_eq!(of("inner"), ("enums arrays".to_owned(), "f90".to_owned()));
        assert_eq!(of("stored"), ("composites".to_owned(), String::new()));
        assert_eq!(of("over_stored"), ("stored".to_owned(), String::new()));
        assert_eq!(of("enums"), (String::new(), String::new()));
        assert!(!catalog.functions[&table("f91")].volatile);
    }
}
