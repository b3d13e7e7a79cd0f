//! What both databases know: relations, functions, types. Loaded by control connections, immutable.

mod build;
pub mod load;

use std::collections::HashMap;

use crate::statement::Table;

/// One snapshot of both databases' catalogs.
#[derive(Clone, Debug, Default)]
pub struct Catalog {
    /// Was this side read? By `Side::index`.
    pub read: [bool; 2],
    /// Rises with every change; plans made from an older one are forgotten.
    pub generation: u64,
    /// By schema and name. Names of both sides; the source's properties win.
    pub relations: HashMap<Table, Relation>,
    /// Schemas that have a relation of this name.
    pub schemas_by_name: HashMap<String, Vec<String>>,
    /// Functions that are not built in (not in `pg_catalog`), by schema and name; overloads merged to the riskiest.
    pub functions: HashMap<Table, Function>,
    /// Schemas that have a function of this name.
    pub function_schemas_by_name: HashMap<String, Vec<String>>,
    /// OID on the target -> OID on the source, for types of the same qualified name whose OIDs differ.
    pub type_target_to_source: HashMap<u32, u32>,
    /// The inverse.
    pub type_source_to_target: HashMap<u32, u32>,
    /// Types on the target whose binary values hold such OIDs.
    pub nested: crate::wire::oids::Nested,
    /// The same for relations (`RowDescription` names the table of a column).
    pub class_target_to_source: HashMap<u32, u32>,
    /// Schemas that exist.
    pub schemas: std::collections::HashSet<String>,
}

/// A table, view, sequence or other relation.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Relation {
    /// `pg_class.relkind`.
    pub kind: RelationKind,
    /// Partitioned table or inheritance parent it belongs to; of a sequence, the table that owns it.
    pub parent: Option<Table>,
    /// Base relations a view or its rules read; empty for tables.
    pub reads: Vec<Table>,
    /// Functions that a view calls and that do more than compute: volatile ones of the user's, and built-in ones
    /// (in `pg_catalog`) of which [`crate::statement::means_more`] says so, `now` and `current_user` for key words.
    pub functions: Vec<Table>,
    /// Reading it calls volatile functions of the user's that the text does not name: row security policies.
    pub read_code: bool,
    /// Writing it does: triggers, defaults, constraints, also of partitions and of what a foreign key cascades to.
    pub write_code: bool,
    /// A binary value of some column carries OIDs that differ between the sides (array or composite of a user's type).
    pub nested_oids: bool,
    /// Columns of its primary key or of a unique not-null index, if any.
    pub key: Vec<String>,
    /// On which sides it exists, by `Side::index`.
    pub on: [bool; 2],
}

/// `pg_class.relkind`, as far as routing cares.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum RelationKind {
    /// Ordinary or partitioned table.
    #[default]
    Table,
    /// View.
    View,
    /// Materialized view: read like a table, written by REFRESH.
    MaterializedView,
    /// Sequence.
    Sequence,
    /// Foreign table.
    Foreign,
}

/// A function of the user's.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Function {
    /// `pg_proc.provolatile = 'v'`: may write. Postgres itself refuses writes in the others.
    pub volatile: bool,
    /// May read tables (anything but IMMUTABLE).
    pub reads_tables: bool,
}

impl Catalog {
    /// Is this side's catalog known? The source may be served without: nothing is mapped for it.
    pub fn covers(&self, side: crate::Side) -> bool {
        side == crate::Side::Source || self.read[side.index()]
    }
}
