//! Puts capture on both sides, says what of it is missing, takes it away again.

mod registry;
mod triggers;

use std::{collections::BTreeSet, fmt::Write as _, time::Duration};

use sha2::{Digest, Sha256};
use tokio_postgres::Client;

use super::{
    capture::{self, Captured, TRIGGERS},
    facts::{self, Facts},
    plan::{self, Plan, Registry},
    preflight::Finding,
    schema,
    shape::{self, Shape},
};
use crate::{Side, backend::control, config::Config, route::policy::Policy, statement::Table};

/// Why it was not done.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No connection.
    #[error("could not open a connection to the {side}: {source}")]
    Connect {
        /// Which one.
        side: Side,
        /// Why.
        source: control::Error,
    },
    /// The server refused.
    #[error("{side}: could not {doing}: {}", control::describe(.source))]
    Query {
        /// On which side.
        side: Side,
        /// What was tried.
        doing: String,
        /// Why.
        source: tokio_postgres::Error,
    },
    /// Somebody else's schema of our name.
    #[error("{side}: the schema crossfade belongs to {owner}: rename it, or make that the control user")]
    Owned {
        /// On which side.
        side: Side,
        /// Who owns it.
        owner: String,
    },
    /// Installed by a later version.
    #[error(
        "{side}: the schema crossfade is of version {found}, this crossfade knows {}: use the newer one",
        schema::VERSION
    )]
    Newer {
        /// On which side.
        side: Side,
        /// Its version.
        found: i32,
    },
    /// The two sides were installed apart from one another.
    #[error("the two sides number {what} differently: run `crossfade mirror remove`, then install again")]
    Numbers {
        /// A table or repository.
        what: String,
    },
    /// A table was locked for the whole time.
    #[error("{side}: {table} was locked for {waited:?} by {blockers}: try again when they are done")]
    Busy {
        /// On which side.
        side: Side,
        /// Which table.
        table: String,
        /// How long it was tried.
        waited: Duration,
        /// Who.
        blockers: String,
    },
    /// Rows are still to be shipped.
    #[error(
        "{side}: {rows} journal rows are not shipped yet: wait for `SHOW JOURNAL` to be empty, or use --force"
    )]
    Pending {
        /// On which side.
        side: Side,
        /// How many.
        rows: i64,
    },
}

impl Error {
    fn query(side: Side, doing: impl Into<String>) -> impl FnOnce(tokio_postgres::Error) -> Self {
        let doing = doing.into();
        move |source| Self::Query { side, doing, source }
    }
}

/// Something that is not as it should be.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct Missing {
    /// Where.
    pub side: Side,
    /// `schema.table`, or empty when it is about the whole side.
    pub table: String,
    /// What is not there or not up to date.
    pub what: String,
}

/// What was found, and what was done.
#[derive(Debug, Default)]
pub struct Report {
    /// Answers of preflight.
    pub findings: Vec<Finding>,
    /// What is not up to date, now.
    pub missing: Vec<Missing>,
    /// What was changed, in words.
    pub done: Vec<String>,
    /// What is installed.
    pub registry: Registry,
}

/// Two control connections, one a side, and what was read over them.
#[derive(Debug)]
pub struct Sides {
    clients: [Client; 2],
    users: [String; 2],
    shapes: [Shape; 2],
    facts: [Facts; 2],
}

impl Sides {
    /// Connects to both and reads their tables.
    pub async fn open(config: &Config) -> Result<Self, Error> {
        let connect = |side: Side| async move {
            let backend = &config.backends[side.index()];
            let open = async { control::Manager::new(backend, config.timeouts.server_connect)?.open().await };
            let mut client = open.await.map_err(|source| Error::Connect { side, source })?;
            let shape = shape::read(&mut client).await.map_err(Error::query(side, "read the tables"))?;
            let facts = facts::read(&client).await.map_err(Error::query(side, "read its settings"))?;
            Ok((client, shape, facts))
        };
        let (source, target) = tokio::join!(connect(Side::Source), connect(Side::Target));
        let ((source, source_shape, source_facts), (target, target_shape, target_facts)) = (source?, target?);
        Ok(Self {
            clients: [source, target],
            users: [0, 1].map(|i| config.backends[i].control_user.clone()),
            shapes: [source_shape, target_shape],
            facts: [source_facts, target_facts],
        })
    }

    /// What the tables of each side look like.
    pub fn shapes(&self) -> &[Shape; 2] {
        &self.shapes
    }

    async fn read_again(&mut self) -> Result<(), Error> {
        for side in Side::BOTH {
            let shape = shape::read(&mut self.clients[side.index()]).await;
            self.shapes[side.index()] = shape.map_err(Error::query(side, "read the tables"))?;
        }
        Ok(())
    }
}

/// Installs or brings up to date what the mirrored repositories need (of `only` that one). `patience` bounds the wait
/// for locks of one table.
pub async fn install(config: &Config, only: Option<&str>, patience: Duration) -> Result<Report, Error> {
    let mut sides = Sides::open(config).await?;
    let mut report = Report::default();
    let plan = plan::plan(&config.policy, &sides.shapes, &sides.facts, &Registry::default(), only);
    if plan.install.is_empty() {
        // Where nothing may be installed, nothing is touched.
        report.missing = missing(&sides, &config.policy).await?;
        report.findings = plan.findings;
        return Ok(report);
    }
    for side in Side::BOTH {
        registry::prepare(side, &sides.clients[side.index()]).await?;
    }
    let known = registry::read(&sides.clients).await?;
    let plan = plan::plan(&config.policy, &sides.shapes, &sides.facts, &known, only);
    let token = registry::token(&sides.clients).await?;
    // Numbers and functions are on both sides before the first trigger fires.
    for side in Side::BOTH {
        let sql = functions(
            (side, &sides.users[side.index()]),
            &plan.registry,
            &sides.shapes[side.index()],
            &token,
        );
        let client = &mut sides.clients[side.index()];
        if registry::write(side, client, &plan.registry, &token, &sql).await? {
            report
                .done
                .push(format!("{side}: functions and numbers of {} tables", plan.registry.tables.len()));
        }
    }
    for side in Side::BOTH {
        let captured = plan::captured(&plan.registry, &sides.shapes[side.index()]);
        for wanted in &plan.install {
            let Some(table) = captured.iter().find(|c| c.table() == wanted.table) else { continue };
            let shape = &sides.shapes[side.index()];
            let client = &mut sides.clients[side.index()];
            let done = triggers::install(side, client, table, shape, patience).await?;
            report.done.extend(done);
        }
    }
    sides.read_again().await?;
    let Plan { registry, findings, .. } = plan;
    report.missing = missing(&sides, &config.policy).await?;
    (report.registry, report.findings) = (registry, findings);
    unlock(&sides).await;
    Ok(report)
}

/// What is installed, what is missing and what preflight says. Changes nothing.
pub async fn status(config: &Config, only: Option<&str>) -> Result<Report, Error> {
    let sides = Sides::open(config).await?;
    let registry = if registry::exists(&sides.clients).await? == [true, true] {
        registry::read(&sides.clients).await?
    } else {
        Registry::default()
    };
    let plan = plan::plan(&config.policy, &sides.shapes, &sides.facts, &registry, only);
    let missing = missing(&sides, &config.policy).await?;
    Ok(Report { findings: plan.findings, missing, done: Vec::new(), registry })
}

/// Takes the triggers off the tables (of `only` that repository); the schema goes with the last one.
pub async fn remove(
    config: &Config,
    only: Option<&str>,
    force: bool,
    patience: Duration,
) -> Result<Report, Error> {
    let mut sides = Sides::open(config).await?;
    let mut report = Report::default();
    let there = registry::exists(&sides.clients).await?;
    for side in Side::BOTH {
        let client = &sides.clients[side.index()];
        if !there[side.index()] {
            continue;
        }
        registry::prepare(side, client).await?;
        let rows = registry::pending(side, client).await?;
        if rows > 0 && !force {
            return Err(Error::Pending { side, rows });
        }
    }
    for side in Side::BOTH {
        if !there[side.index()] {
            continue;
        }
        let client = &mut sides.clients[side.index()];
        let known = registry::read_one(side, client).await?;
        let goes = |repository: &str| only.is_none_or(|only| only == repository);
        let numbers: BTreeSet<i32> =
            known.tables.values().filter(|row| goes(&row.repository)).map(|row| row.number).collect();
        let shape = &sides.shapes[side.index()];
        report.done.extend(triggers::remove(side, client, shape, &numbers, only.is_none(), patience).await?);
        let left = known.repositories.keys().any(|name| !goes(name));
        if only.is_none() || !left {
            let dropped = client.batch_execute(schema::DROP).await;
            dropped.map_err(Error::query(side, "drop the schema crossfade"))?;
            report.done.push(format!("{side}: schema crossfade dropped"));
        } else if let Some(repository) = only {
            registry::forget(side, client, repository, &numbers).await?;
            report.done.push(format!("{side}: repository {repository} forgotten"));
        }
    }
    unlock(&sides).await;
    Ok(report)
}

/// What is not as the policy wants it: for `status`, `check` and a server that looks now and then.
pub async fn missing(sides: &Sides, policy: &Policy) -> Result<Vec<Missing>, Error> {
    let wanted = plan::wanted(policy, &sides.shapes, None);
    let mut missing = Vec::new();
    if wanted.is_empty() {
        return Ok(missing);
    }
    let there = registry::exists(&sides.clients).await?;
    for side in Side::BOTH.into_iter().filter(|side| !there[side.index()]) {
        let what = "nothing is installed".to_owned();
        missing.push(Missing { side, table: String::new(), what });
    }
    if !missing.is_empty() {
        return Ok(missing);
    }
    let known = registry::read(&sides.clients).await?;
    let plan = plan::plan(policy, &sides.shapes, &sides.facts, &known, None);
    let token = registry::token(&sides.clients).await?;
    for side in Side::BOTH {
        let (client, shape) = (&sides.clients[side.index()], &sides.shapes[side.index()]);
        let sql = functions((side, &sides.users[side.index()]), &plan.registry, shape, &token);
        if !registry::is_current(side, client, &plan.registry, &sql).await? {
            let what = "functions or columns are not up to date".to_owned();
            missing.push(Missing { side, table: String::new(), what });
        }
        let captured = plan::captured(&plan.registry, shape);
        for one in &wanted {
            let table = format!("{}.{}", one.table.schema, one.table.name);
            let Some(found) = captured.iter().find(|c| c.table() == one.table) else {
                missing.push(Missing { side, table, what: "is not captured".to_owned() });
                continue;
            };
            for what in triggers::missing(found, shape) {
                missing.push(Missing { side, table: table.clone(), what });
            }
        }
    }
    Ok(missing)
}

/// Opens connections of its own for [`missing`].
pub async fn look(config: &Config) -> Result<Vec<Missing>, Error> {
    missing(&Sides::open(config).await?, &config.policy).await
}

/// All functions of a side, in one text; `user` is its control user.
fn functions((side, user): (Side, &str), registry: &Registry, shape: &Shape, token: &str) -> String {
    let captured = plan::captured(registry, shape);
    let mut sql = schema::functions(side);
    for table in &captured {
        for (suffix, _) in TRIGGERS {
            let _ = writeln!(sql, "{};", table.function(suffix, user));
            let _ =
                writeln!(sql, "REVOKE ALL ON FUNCTION crossfade.c{}_{suffix}() FROM PUBLIC;", table.number);
        }
    }
    let digest = Sha256::digest(token.as_bytes());
    let hex = digest.iter().fold(String::new(), |text, byte| format!("{text}{byte:02x}"));
    sql + &capture::collect(&captured, &hex)
}

async fn unlock(sides: &Sides) {
    for client in &sides.clients {
        // Lost with the connection otherwise.
        let _ = client.execute("SELECT pg_catalog.pg_advisory_unlock_all()", &[]).await;
    }
}

/// The table that a trigger is on, for messages.
fn label(table: &Table) -> String {
    format!("{}.{}", table.schema, table.name)
}

/// Tables on which `captured` needs a TRUNCATE trigger: itself and its partitions. Foreign ones cannot have any.
fn with_partitions<'a>(captured: &Captured, shape: &'a Shape) -> Vec<&'a Table> {
    let table = captured.table();
    let own = shape.tables.get_key_value(&table).map(|(name, _)| name);
    let partitions = shape.tables.iter().filter(|(_, s)| s.root.as_ref() == Some(&table) && s.kind != 'f');
    own.into_iter().chain(partitions.map(|(name, _)| name)).collect()
}
