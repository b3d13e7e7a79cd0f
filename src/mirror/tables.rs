//! What is mirrored: `crossfade.tables` and `crossfade.repositories` as both sides have them, published.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use arc_swap::ArcSwap;

use super::{
    apply::{Statements, TableMeta},
    session::{Error, Session},
};
use crate::Side;

/// A mirrored table and its SQL.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Table {
    /// What it is.
    pub meta: TableMeta,
    /// How rows get in and out.
    pub statements: Statements,
}

/// A mirrored repository.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Repository {
    /// Name.
    pub name: String,
    /// Number, of the fence lock.
    pub number: i32,
    /// Who leads its writes.
    pub lead: Side,
    /// Rises with every move of the lead.
    pub epoch: i64,
}

/// What is mirrored, at one moment. Empty: nothing, or not known yet.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Tables {
    /// By number.
    pub tables: HashMap<i32, Arc<Table>>,
    /// By name.
    pub repositories: BTreeMap<String, Repository>,
}

impl Tables {
    /// A table by its number.
    pub fn table(&self, number: i32) -> Option<&Arc<Table>> {
        self.tables.get(&number)
    }

    /// The repository of a table.
    pub fn repository_of(&self, number: i32) -> Option<&Repository> {
        self.repositories.get(&self.tables.get(&number)?.meta.repository)
    }

    /// Reads them on one side.
    pub async fn load(session: &Session) -> Result<Self, Error> {
        let bad = |e| Error::Query(session.side, e);
        let mut loaded = Self::default();
        for row in session.rows(REPOSITORIES, &[]).await? {
            let lead: String = row.try_get(2).map_err(bad)?;
            let repository = Repository {
                name: row.try_get(0).map_err(bad)?,
                number: row.try_get(1).map_err(bad)?,
                lead: if lead == "target" { Side::Target } else { Side::Source },
                epoch: row.try_get(3).map_err(bad)?,
            };
            loaded.repositories.insert(repository.name.clone(), repository);
        }
        for row in session.rows(TABLES, &[]).await? {
            let meta = TableMeta {
                number: row.try_get(0).map_err(bad)?,
                schema: row.try_get(1).map_err(bad)?,
                name: row.try_get(2).map_err(bad)?,
                repository: row.try_get(3).map_err(bad)?,
                key_columns: row.try_get(4).map_err(bad)?,
                columns: row.try_get(5).map_err(bad)?,
                column_types: row.try_get(6).map_err(bad)?,
                partitioned: row.try_get(7).map_err(bad)?,
                identity_always: row.try_get(8).map_err(bad)?,
                key_operators: row.try_get(9).map_err(bad)?,
            };
            loaded.insert(meta);
        }
        Ok(loaded)
    }

    fn insert(&mut self, meta: TableMeta) {
        let statements = Statements::of(&meta);
        self.tables.insert(meta.number, Arc::new(Table { meta, statements }));
    }

    /// What both sides say. What the catalogs say of a table (identity, partitions) may differ: statements are made
    /// so that they run on both.
    #[must_use]
    pub fn joined(mut self, other: Self) -> Self {
        for (number, theirs) in other.tables {
            let Some(ours) = self.tables.get(&number) else {
                self.tables.insert(number, theirs);
                continue;
            };
            let mut meta = ours.meta.clone();
            for column in &theirs.meta.identity_always {
                if !meta.identity_always.contains(column) {
                    meta.identity_always.push(column.clone());
                }
            }
            meta.partitioned |= theirs.meta.partitioned;
            self.insert(meta);
        }
        for (name, repository) in other.repositories {
            match self.repositories.get(&name) {
                Some(ours) if ours.epoch >= repository.epoch => {}
                _ => drop(self.repositories.insert(name, repository)),
            }
        }
        self
    }
}

impl Tables {
    /// The same, with what only the other side's catalog told about the tables that are still here.
    #[must_use]
    pub fn knowing(self, known: &Self) -> Self {
        let mut known = known.clone();
        known.tables.retain(|number, table| {
            self.tables.get(number).is_some_and(|now| now.meta.columns == table.meta.columns)
        });
        known.repositories.retain(|name, _| self.repositories.contains_key(name));
        self.joined(known)
    }
}

/// The published [`Tables`]. Cheap to read, on any thread.
#[derive(Debug, Default)]
pub struct Published(ArcSwap<Tables>);

impl Published {
    /// As they are now.
    pub fn get(&self) -> Arc<Tables> {
        self.0.load_full()
    }

    /// Publishes them if they differ. True when they did.
    pub fn set(&self, tables: Tables) -> bool {
        if **self.0.load() == tables {
            return false;
        }
        self.0.store(Arc::new(tables));
        true
    }
}

const REPOSITORIES: &str = "SELECT name, number, lead, epoch FROM crossfade.repositories";

const TABLES: &str =
    "SELECT t.number, t.schema_name, t.table_name, t.repository, t.key_columns, t.columns, t.column_types,
  coalesce(c.relkind = 'p', false),
  ARRAY(SELECT a.attname::text FROM pg_catalog.pg_attribute a
    WHERE a.attrelid = c.oid AND a.attnum > 0 AND a.attidentity = 'a' AND NOT a.attisdropped ORDER BY 1),
  ARRAY(SELECT coalesce((
      SELECT pg_catalog.format('%I.%s', n.nspname, o.oprname)
      FROM pg_catalog.pg_index i
      CROSS JOIN LATERAL pg_catalog.unnest(i.indkey::int2[]) WITH ORDINALITY AS p(attnum, place)
      JOIN pg_catalog.pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = p.attnum
      JOIN pg_catalog.pg_opclass f ON f.oid = i.indclass[p.place - 1]
      JOIN pg_catalog.pg_amop m ON m.amopfamily = f.opcfamily AND m.amoplefttype = f.opcintype
        AND m.amoprighttype = f.opcintype AND m.amopstrategy = 3
      JOIN pg_catalog.pg_am am ON am.oid = m.amopmethod AND am.amname = 'btree'
      JOIN pg_catalog.pg_operator o ON o.oid = m.amopopr
      JOIN pg_catalog.pg_namespace n ON n.oid = o.oprnamespace
      WHERE i.indrelid = c.oid AND i.indisunique AND p.place <= i.indnkeyatts AND a.attname = k.name
        AND i.indnkeyatts = pg_catalog.cardinality(t.key_columns)
      ORDER BY i.indisprimary DESC LIMIT 1), 'pg_catalog.=')
    FROM pg_catalog.unnest(t.key_columns) WITH ORDINALITY AS k(name, place) ORDER BY k.place)
FROM crossfade.tables t
LEFT JOIN pg_catalog.pg_class c
  ON c.oid = pg_catalog.to_regclass(pg_catalog.format('%I.%I', t.schema_name, t.table_name))";
