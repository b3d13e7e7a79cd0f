//! What one side's tables look like: columns, keys, types, triggers. Read in one snapshot over a control connection
//! whose `search_path` is `pg_catalog`, so that every name the server writes is qualified. Postgres 12 to 18.

use std::collections::{BTreeMap, HashMap};

use tokio_postgres::{Client, IsolationLevel, Row};

use crate::statement::Table;

/// All tables of one side, temporary ones and the system's left out.
#[derive(Clone, Debug, Default)]
pub struct Shape {
    /// By schema and name.
    pub tables: BTreeMap<Table, TableShape>,
}

/// One table or partition.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct TableShape {
    /// `pg_class.relkind`: `r`, `p` or `f`.
    pub kind: char,
    /// `pg_class.relpersistence`: `p` or `u`.
    pub persistence: char,
    /// Role that owns it.
    pub owner: String,
    /// Policies apply to all but its owner; with `force_row_security` to the owner too.
    pub row_security: bool,
    /// See `row_security`.
    pub force_row_security: bool,
    /// The partitioned table on top of it, when it is a partition.
    pub root: Option<Table>,
    /// Parent or child of old-style inheritance.
    pub inherits: bool,
    /// In the order of the table.
    pub columns: Vec<Column>,
    /// Best key first: the primary key, then the narrowest.
    pub uniques: Vec<Unique>,
    /// Foreign keys of this table.
    pub foreign_keys: Vec<ForeignKey>,
    /// Triggers, those of crossfade included, those of foreign keys not.
    pub triggers: Vec<Trigger>,
}

/// A column.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Column {
    /// Name, not quoted.
    pub name: String,
    /// `format_type`: qualified and quoted unless the type is built in, with its modifier.
    pub type_name: String,
    /// NOT NULL.
    pub not_null: bool,
    /// `GENERATED ... STORED` or `VIRTUAL`.
    pub generated: bool,
    /// `GENERATED ... AS IDENTITY`.
    pub identity: bool,
    /// Has a default or is an identity.
    pub default: bool,
    /// What is known of its type.
    pub kind: Kind,
}

/// What capture must know of a type, domains resolved.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Kind {
    /// `format_type` of what a domain is made of; else as [`Column::type_name`].
    pub base: String,
    /// `pg_type.typname` of the base type when it is built in, else empty.
    pub built_in: String,
    /// An enum.
    pub is_enum: bool,
    /// Reading its text runs nothing but the server's own code (or that of a superuser's extension).
    pub safe_input: bool,
    /// Settings that its text depends on.
    pub pins: Pins,
    /// `oid`, or `lo` of the extension of that name: may be the number of a large object.
    pub may_be_large_object: bool,
}

/// Settings that shape the text of values.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Pins(u8);

impl Pins {
    /// `DateStyle`.
    pub const DATE: Pins = Pins(1);
    /// `TimeZone`.
    pub const ZONE: Pins = Pins(2);
    /// `IntervalStyle`.
    pub const INTERVAL: Pins = Pins(4);
    /// `extra_float_digits`.
    pub const FLOAT: Pins = Pins(8);
    /// `bytea_output`.
    pub const BYTES: Pins = Pins(16);
    /// `lc_monetary`.
    pub const MONEY: Pins = Pins(32);
    /// `search_path` and `quote_all_identifiers`: names of tables, functions, types.
    pub const NAMES: Pins = Pins(64);
    /// All of them.
    pub const ALL: Pins = Pins(127);

    /// Those of both.
    #[must_use]
    pub fn with(self, other: Pins) -> Pins {
        Pins(self.0 | other.0)
    }

    /// Is all of `other` in it?
    pub fn has(self, other: Pins) -> bool {
        self.0 & other.0 == other.0
    }
}

/// A unique index.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Unique {
    /// Name of the index.
    pub name: String,
    /// The primary key.
    pub primary: bool,
    /// DEFERRABLE: it cannot decide a conflict, and a session in replica role does not check it.
    pub deferrable: bool,
    /// Has a WHERE or an expression.
    pub partial: bool,
    /// Valid, and none of its columns can be NULL.
    pub whole: bool,
    /// Columns and the operator that says when two values are equal, `OPERATOR(schema.=)`.
    pub columns: Vec<(String, String)>,
    /// What stands behind USING in its definition.
    pub definition: String,
}

impl Unique {
    /// Does it name every row, always?
    pub fn is_key(&self) -> bool {
        self.whole && !self.partial && !self.deferrable
    }
}

/// A foreign key.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct ForeignKey {
    /// Its definition in SQL.
    pub definition: String,
    /// The table that it refers to.
    pub to: Table,
    /// Changes rows of this table when the other is changed.
    pub cascades: bool,
}

/// A trigger.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Trigger {
    /// Its name.
    pub name: String,
    /// `pg_trigger.tgenabled`: `O`, `D`, `R`, `A`.
    pub enabled: char,
    /// Its function's schema and name.
    pub function: Table,
    /// Its whole definition in SQL.
    pub definition: String,
}

impl TableShape {
    /// The key that names its rows, if any.
    pub fn key(&self) -> Option<&Unique> {
        self.uniques.iter().find(|unique| unique.is_key())
    }

    /// The column of this name.
    pub fn column(&self, name: &str) -> Option<&Column> {
        self.columns.iter().find(|column| column.name == name)
    }

    /// Its trigger of this name.
    pub fn trigger(&self, name: &str) -> Option<&Trigger> {
        self.triggers.iter().find(|trigger| trigger.name == name)
    }
}

impl Shape {
    /// Partitions below `root`, at every level.
    pub fn partitions<'a>(&'a self, root: &'a Table) -> impl Iterator<Item = (&'a Table, &'a TableShape)> {
        self.tables.iter().filter(move |(_, shape)| shape.root.as_ref() == Some(root))
    }
}

/// Reads all tables of a side.
pub async fn read(client: &mut Client) -> Result<Shape, tokio_postgres::Error> {
    let transaction = client
        .build_transaction()
        .isolation_level(IsolationLevel::RepeatableRead)
        .read_only(true)
        .start()
        .await?;
    let t = &transaction;
    let (relations, types, columns, uniques, foreign_keys, triggers) = tokio::try_join!(
        t.query(RELATIONS, &[]),
        t.query(TYPES, &[]),
        t.query(COLUMNS, &[]),
        t.query(UNIQUES, &[]),
        t.query(FOREIGN_KEYS, &[]),
        t.query(TRIGGERS, &[]),
    )?;
    transaction.commit().await?;
    let mut tables: HashMap<u32, (Table, TableShape)> = HashMap::new();
    let mut roots = Vec::new();
    for row in &relations {
        let (oid, root): (u32, Option<u32>) = (row.get(0), row.get(8));
        tables.insert(oid, relation(row));
        roots.extend(root.filter(|&root| root != oid).map(|root| (oid, root)));
    }
    for (oid, root) in roots {
        let name = tables.get(&root).map(|(name, _)| name.clone());
        tables.entry(oid).and_modify(|(_, shape)| shape.root = name);
    }
    let types: HashMap<u32, Type> = types.iter().map(|row| (row.get(0), Type::new(row))).collect();
    for row in &columns {
        if let Some((_, shape)) = tables.get_mut(&row.get(0)) {
            shape.columns.push(column(row, &types));
        }
    }
    for row in &uniques {
        if let Some((_, shape)) = tables.get_mut(&row.get(0)) {
            shape.uniques.push(unique(row));
        }
    }
    for row in &foreign_keys {
        if let Some((_, shape)) = tables.get_mut(&row.get(0)) {
            let to = Table { schema: row.get(2), name: row.get(3) };
            shape.foreign_keys.push(ForeignKey { definition: row.get(1), to, cascades: row.get(4) });
        }
    }
    for row in &triggers {
        if let Some((_, shape)) = tables.get_mut(&row.get(0)) {
            let function = Table { schema: row.get(3), name: row.get(4) };
            let (name, enabled) = (row.get(1), letter(row, 2));
            shape.triggers.push(Trigger { name, enabled, function, definition: row.get(5) });
        }
    }
    Ok(Shape { tables: tables.into_values().collect() })
}

fn letter(row: &Row, column: usize) -> char {
    row.get::<_, i8>(column).to_ne_bytes()[0] as char
}

fn relation(row: &Row) -> (Table, TableShape) {
    let shape = TableShape {
        kind: letter(row, 3),
        persistence: letter(row, 4),
        owner: row.get(5),
        row_security: row.get(6),
        force_row_security: row.get(7),
        inherits: row.get(9),
        ..TableShape::default()
    };
    (Table { schema: row.get(1), name: row.get(2) }, shape)
}

fn column(row: &Row, types: &HashMap<u32, Type>) -> Column {
    let (type_name, oid): (String, u32) = (row.get(2), row.get(7));
    let kind = types.get(&oid).map_or_else(Kind::default, |t| t.kind(&type_name, types));
    Column {
        name: row.get(1),
        type_name,
        not_null: row.get(3),
        generated: row.get(4),
        identity: row.get(5),
        default: row.get(6),
        kind,
    }
}

fn unique(row: &Row) -> Unique {
    let (names, operators): (Vec<Option<String>>, Vec<Option<String>>) = (row.get(6), row.get(7));
    let pairs = names.into_iter().zip(operators);
    let definition: String = row.get(8);
    Unique {
        name: row.get(1),
        primary: row.get(2),
        deferrable: row.get(3),
        partial: row.get(4),
        whole: row.get(5),
        columns: pairs.filter_map(|(name, operator)| Some((name?, operator?))).collect(),
        definition: definition.split_once(" USING ").map_or(definition.clone(), |(_, d)| d.to_owned()),
    }
}

/// A row of `pg_type`.
#[derive(Debug)]
struct Type {
    name: String,
    kind: char,
    built_in: bool,
    element: u32,
    base: u32,
    base_name: String,
    subtype: u32,
}

impl Type {
    fn new(row: &Row) -> Self {
        Self {
            name: row.get(1),
            kind: letter(row, 2),
            built_in: row.get(3),
            element: row.get(4),
            base: row.get(5),
            base_name: row.get(6),
            subtype: row.get(7),
        }
    }

    fn kind(&self, written: &str, types: &HashMap<u32, Type>) -> Kind {
        // A domain over a domain: the innermost type's text is the value's.
        let (mut base, mut base_name) = (self, written.to_owned());
        while base.kind == 'd'
            && let Some(inner) = types.get(&base.base)
        {
            (base_name, base) = (base.base_name.clone(), inner);
        }
        let may_be_large_object =
            base.name == "lo" || (base.built_in && base.name == "oid") || self.name == "lo";
        Kind {
            base: base_name,
            built_in: if base.built_in { base.name.clone() } else { String::new() },
            is_enum: base.kind == 'e',
            safe_input: base.is_safe(types),
            pins: base.pins(types, 0),
            may_be_large_object,
        }
    }

    /// Anybody may make domains (whose checks run at input), composites of them, and ranges.
    fn is_safe(&self, types: &HashMap<u32, Type>) -> bool {
        match self.kind {
            'b' if self.element != 0 => types.get(&self.element).is_some_and(|e| e.is_safe(types)),
            'b' | 'e' => true,
            'r' | 'm' => self.built_in,
            _ => false,
        }
    }

    fn pins(&self, types: &HashMap<u32, Type>, depth: usize) -> Pins {
        let inner = [self.element, self.base, self.subtype].into_iter().find(|&oid| oid != 0);
        match inner.and_then(|oid| types.get(&oid)) {
            Some(inner) if depth < 16 => return inner.pins(types, depth + 1),
            Some(_) => return Pins::ALL,
            None => {}
        }
        match (self.kind, self.built_in) {
            ('e', _) => Pins::default(),
            ('b', true) => pins_of(&self.name),
            ('b', false) if ["citext", "hstore", "ltree"].contains(&self.name.as_str()) => Pins::default(),
            // Of an extension's type nothing is known, and a composite has columns of any type.
            _ => Pins::ALL,
        }
    }
}

fn pins_of(built_in: &str) -> Pins {
    match built_in {
        "date" | "timestamp" => Pins::DATE,
        "timestamptz" => Pins::DATE.with(Pins::ZONE),
        "interval" => Pins::INTERVAL,
        "float4" | "float8" | "point" | "lseg" | "path" | "box" | "polygon" | "line" | "circle" => {
            Pins::FLOAT
        }
        "bytea" => Pins::BYTES,
        "money" => Pins::MONEY,
        name if name.starts_with("reg") => Pins::NAMES,
        _ => Pins::default(),
    }
}

/// A partitioned table's own root is itself.
const RELATIONS: &str = "
SELECT c.oid, n.nspname::text, c.relname::text, c.relkind, c.relpersistence, pg_catalog.pg_get_userbyid(c.relowner)::text,
       c.relrowsecurity, c.relforcerowsecurity, pg_catalog.pg_partition_root(c.oid)::oid,
       EXISTS (SELECT FROM pg_catalog.pg_inherits i
               WHERE (i.inhparent = c.oid AND c.relkind <> 'p') OR (i.inhrelid = c.oid AND NOT c.relispartition))
FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
WHERE c.relkind IN ('r', 'p', 'f') AND c.relpersistence <> 't'
  AND n.nspname NOT IN ('pg_catalog', 'information_schema', 'crossfade') AND n.nspname !~ '^pg_(toast|temp_)'";

/// The subtype of a multirange is found by its range, whose column is not there before Postgres 14.
const TYPES: &str = "
SELECT t.oid, t.typname::text, t.typtype, n.nspname = 'pg_catalog',
       CASE WHEN t.typcategory = 'A' THEN t.typelem ELSE 0::oid END, t.typbasetype,
       CASE WHEN t.typtype = 'd' THEN pg_catalog.format_type(t.typbasetype, t.typtypmod) ELSE '' END,
       COALESCE((SELECT r.rngsubtype FROM pg_catalog.pg_range r
                 WHERE t.typtype IN ('r', 'm') AND (r.rngtypid = t.oid
                    OR (pg_catalog.to_jsonb(r) ->> 'rngmultitypid')::oid = t.oid) LIMIT 1), 0::oid)
FROM pg_catalog.pg_type t JOIN pg_catalog.pg_namespace n ON n.oid = t.typnamespace";

const COLUMNS: &str = "
SELECT a.attrelid, a.attname::text, pg_catalog.format_type(a.atttypid, a.atttypmod), a.attnotnull, a.attgenerated <> '',
       a.attidentity <> '', a.atthasdef OR a.attidentity <> '', a.atttypid
FROM pg_catalog.pg_attribute a
WHERE a.attrelid >= 16384 AND a.attnum > 0 AND NOT a.attisdropped ORDER BY a.attrelid, a.attnum";

/// Unique constraints over time (WITHOUT OVERLAPS) are exclusion constraints and name no row by equality.
const UNIQUES: &str = "
SELECT i.indrelid, x.relname::text, i.indisprimary, NOT i.indimmediate, i.indpred IS NOT NULL OR i.indexprs IS NOT NULL,
       i.indisvalid AND pg_catalog.bool_and(COALESCE(a.attnotnull, false)),
       pg_catalog.array_agg(a.attname::text ORDER BY u.place),
       pg_catalog.array_agg((SELECT 'OPERATOR(' || pg_catalog.quote_ident(n.nspname::text) || '.' || o.oprname::text || ')'
         FROM pg_catalog.pg_opclass c
         JOIN pg_catalog.pg_amop m ON m.amopfamily = c.opcfamily AND m.amoplefttype = c.opcintype
           AND m.amoprighttype = c.opcintype AND m.amopstrategy = 3
         JOIN pg_catalog.pg_operator o ON o.oid = m.amopopr JOIN pg_catalog.pg_namespace n ON n.oid = o.oprnamespace
         WHERE c.oid = u.class) ORDER BY u.place),
       pg_catalog.pg_get_indexdef(i.indexrelid)
FROM pg_catalog.pg_index i JOIN pg_catalog.pg_class x ON x.oid = i.indexrelid
CROSS JOIN LATERAL ROWS FROM (pg_catalog.unnest(i.indkey::int2[]), pg_catalog.unnest(i.indclass::oid[]))
  WITH ORDINALITY u(number, class, place)
LEFT JOIN pg_catalog.pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = u.number
WHERE i.indrelid >= 16384 AND i.indisunique AND NOT i.indisexclusion AND u.place <= i.indnkeyatts
GROUP BY i.indrelid, i.indexrelid, x.relname, i.indisprimary, i.indimmediate, i.indpred IS NOT NULL OR i.indexprs IS NOT NULL,
         i.indisvalid, i.indnkeyatts
ORDER BY i.indrelid, i.indisprimary DESC, i.indnkeyatts, x.relname";

const FOREIGN_KEYS: &str = "
SELECT c.conrelid, pg_catalog.pg_get_constraintdef(c.oid), n.nspname::text, r.relname::text,
       c.confdeltype IN ('c', 'n', 'd') OR c.confupdtype IN ('c', 'n', 'd')
FROM pg_catalog.pg_constraint c JOIN pg_catalog.pg_class r ON r.oid = c.confrelid
JOIN pg_catalog.pg_namespace n ON n.oid = r.relnamespace
WHERE c.contype = 'f' AND c.conparentid = 0 ORDER BY 1, 2";

const TRIGGERS: &str = "
SELECT t.tgrelid, t.tgname::text, t.tgenabled, n.nspname::text, p.proname::text, pg_catalog.pg_get_triggerdef(t.oid)
FROM pg_catalog.pg_trigger t JOIN pg_catalog.pg_proc p ON p.oid = t.tgfoid
JOIN pg_catalog.pg_namespace n ON n.oid = p.pronamespace
WHERE NOT t.tgisinternal OR n.nspname = 'crossfade' ORDER BY 1, 2";
