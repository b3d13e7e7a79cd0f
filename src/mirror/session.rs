//! Connections that look at rows and apply them: settings pinned, statements kept, all parameters text.

use std::{
    collections::{HashMap, VecDeque},
    time::Duration,
};

use futures_util::{StreamExt, stream::FuturesOrdered};
use tokio_postgres::{
    Client, Statement,
    types::{Format, FromSql, IsNull, ToSql, Type, to_sql_checked},
};

use crate::{
    Side,
    backend::control::{self, Manager, describe},
};

/// Why something could not be done on one side.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No connection.
    #[error("no connection to the {0}: {1}")]
    Connect(Side, control::Error),
    /// Refused, or the connection was lost on the way.
    #[error("{0}: {text}", text = describe(.1))]
    Query(Side, tokio_postgres::Error),
    /// No answer in time.
    #[error("the {0} does not answer")]
    Silent(Side),
    /// Not what such a row looks like.
    #[error("{0}: a row that does not fit its table's columns")]
    Shape(Side),
    /// A test ended the task here.
    #[error("cut")]
    Cut,
}

impl Error {
    /// The server's SQLSTATE, if it was the server that refused.
    pub fn sqlstate(&self) -> Option<&str> {
        match self {
            Error::Query(_, error) => error.code().map(tokio_postgres::error::SqlState::code),
            Error::Connect(..) | Error::Silent(_) | Error::Shape(_) | Error::Cut => None,
        }
    }

    /// Which side it was.
    pub fn side(&self) -> Option<Side> {
        match self {
            Error::Connect(side, _) | Error::Query(side, _) | Error::Silent(side) | Error::Shape(side) => {
                Some(*side)
            }
            Error::Cut => None,
        }
    }

    /// Is the connection of no more use?
    pub fn is_fatal(&self) -> bool {
        match self.sqlstate() {
            Some(code) => code.starts_with("08") || code.starts_with("57P") || code == "25P03",
            None => !matches!(self, Error::Shape(_)),
        }
    }

    /// Somebody else is in the way; it may pass.
    pub fn is_busy(&self) -> bool {
        matches!(self.sqlstate(), Some("55P03" | "40P01" | "40001" | "55006" | "57014"))
    }

    /// The word for metrics.
    pub fn reason(&self) -> &'static str {
        match self.sqlstate() {
            None if matches!(self, Error::Cut) => "cut",
            _ if self.is_fatal() => "connection",
            Some(_) if self.is_busy() => "busy",
            Some("23505" | "23P01") => "unique",
            Some("23503") => "foreign_key",
            Some(code) if code.starts_with("42") || code.starts_with("3F") => "schema",
            Some(_) | None => "refused",
        }
    }
}

/// A parameter in text; the server's input function reads it.
#[derive(Clone, Copy, Debug)]
pub struct Text<'a>(pub Option<&'a [u8]>);

impl ToSql for Text<'_> {
    fn to_sql(
        &self,
        _: &Type,
        out: &mut bytes::BytesMut,
    ) -> Result<IsNull, Box<dyn std::error::Error + Sync + Send>> {
        match self.0 {
            Some(text) => {
                out.extend_from_slice(text);
                Ok(IsNull::No)
            }
            None => Ok(IsNull::Yes),
        }
    }

    fn accepts(_: &Type) -> bool {
        true
    }

    fn encode_format(&self, _: &Type) -> Format {
        Format::Text
    }

    to_sql_checked!();
}

/// A value of type text as it came, in whatever encoding.
#[derive(Debug)]
pub struct Raw(pub Vec<u8>);

impl FromSql<'_> for Raw {
    fn from_sql(_: &Type, raw: &[u8]) -> Result<Self, Box<dyn std::error::Error + Sync + Send>> {
        Ok(Self(raw.to_vec()))
    }

    fn accepts(_: &Type) -> bool {
        true
    }
}

/// A connection of its own, to one side.
pub struct Session {
    /// Which side.
    pub side: Side,
    /// For what has no parameters, or few.
    pub client: Client,
    statements: HashMap<String, Statement>,
    patience: Duration,
}

impl std::fmt::Debug for Session {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Session").field("side", &self.side).finish_non_exhaustive()
    }
}

/// Statement and parameters of one round of [`Session::all`].
pub type Call<'a> = (&'a str, Vec<Text<'a>>);

impl Session {
    /// A connection that reads images. Nothing it runs waits longer than `patience`.
    pub async fn look(manager: &Manager, side: Side, patience: Duration) -> Result<Self, Error> {
        let client = manager.open().await.map_err(|e| Error::Connect(side, e))?;
        let session = Self { side, client, statements: HashMap::new(), patience };
        session.run(PIN).await?;
        Ok(session)
    }

    /// A connection that writes them: capture is silent in it, and where the role may, so are triggers and
    /// foreign keys.
    pub async fn apply(
        manager: &Manager,
        side: Side,
        lock_timeout: Duration,
        patience: Duration,
    ) -> Result<Self, Error> {
        let session = Self::look(manager, side, patience).await?;
        let lock_timeout = lock_timeout.as_millis();
        session
            .run(&format!(
                "SET crossfade.role TO 'apply'; SET lock_timeout TO {lock_timeout}; SET row_security TO off"
            ))
            .await?;
        match session.run("SET session_replication_role TO replica").await {
            Err(error) if error.sqlstate() != Some("42501") => Err(error),
            _ => Ok(session),
        }
    }

    /// Runs a text without parameters.
    pub async fn run(&self, sql: &str) -> Result<(), Error> {
        self.within(self.client.batch_execute(sql)).await
    }

    /// Runs one statement and gives its rows.
    pub async fn rows(
        &self,
        sql: &str,
        parameters: &[&(dyn ToSql + Sync)],
    ) -> Result<Vec<tokio_postgres::Row>, Error> {
        self.within(self.client.query(sql, parameters)).await
    }

    async fn within<T>(
        &self,
        answer: impl Future<Output = Result<T, tokio_postgres::Error>>,
    ) -> Result<T, Error> {
        let answer =
            tokio::time::timeout(self.patience, answer).await.map_err(|_| Error::Silent(self.side))?;
        answer.map_err(|e| Error::Query(self.side, e))
    }

    async fn statement(&mut self, sql: &str) -> Result<Statement, Error> {
        if let Some(known) = self.statements.get(sql) {
            return Ok(known.clone());
        }
        let made = self.within(self.client.prepare(sql)).await?;
        if self.statements.len() >= MOST_STATEMENTS {
            self.statements.clear();
        }
        self.statements.insert(sql.to_owned(), made.clone());
        Ok(made)
    }

    /// Forgets prepared statements: what they were made for may be another by now.
    pub fn forget(&mut self) {
        self.statements.clear();
    }

    /// Runs all calls, pipelined, and gives the number of rows each of them hit. On an error: at which call.
    pub async fn all(&mut self, calls: &[Call<'_>]) -> Result<Vec<u64>, (usize, Error)> {
        let statements = self.prepared(calls).await?;
        let (client, side, patience) = (&self.client, self.side, self.patience);
        let mut running = FuturesOrdered::new();
        let mut next = 0;
        let mut counts = Vec::with_capacity(calls.len());
        while counts.len() < calls.len() {
            while next < calls.len() && running.len() < DEPTH {
                running.push_back(client.execute_raw(&statements[next], calls[next].1.iter().copied()));
                next += 1;
            }
            let answer = tokio::time::timeout(patience, running.next()).await;
            let answer = answer.map_err(|_| (counts.len(), Error::Silent(side)))?;
            let count = answer.expect("one is running").map_err(|e| (counts.len(), Error::Query(side, e)))?;
            counts.push(count);
        }
        Ok(counts)
    }

    async fn prepared(&mut self, calls: &[Call<'_>]) -> Result<Vec<Statement>, (usize, Error)> {
        let mut statements = Vec::with_capacity(calls.len());
        for (at, (sql, _)) in calls.iter().enumerate() {
            statements.push(self.statement(sql).await.map_err(|e| (at, e))?);
        }
        Ok(statements)
    }

    /// The first value of the first row of each call, pipelined at most `depth` deep. Ends early, but never with
    /// nothing, once they hold more than `most_bytes`: the answers are then fewer than the calls.
    pub async fn images(
        &mut self,
        calls: &[Call<'_>],
        depth: usize,
        most_bytes: usize,
    ) -> Result<Vec<Option<Vec<u8>>>, (usize, Error)> {
        let statements = self.prepared(calls).await?;
        let (client, side, patience) = (&self.client, self.side, self.patience);
        let one = async |at: usize| {
            let stream = client.query_raw(&statements[at], calls[at].1.iter().copied()).await?;
            let mut stream = std::pin::pin!(stream);
            let mut image = None;
            while let Some(row) = stream.next().await {
                let row = row?;
                if image.is_none() {
                    image = row.try_get::<_, Option<Raw>>(0)?.map(|raw| raw.0);
                }
            }
            Ok::<_, tokio_postgres::Error>(image)
        };
        let mut running = FuturesOrdered::new();
        let (mut next, mut bytes) = (0, 0);
        let mut images = VecDeque::with_capacity(calls.len());
        while images.len() < calls.len() && (images.is_empty() || bytes <= most_bytes) {
            while next < calls.len() && running.len() < depth.max(1) {
                running.push_back(one(next));
                next += 1;
            }
            let answer = tokio::time::timeout(patience, running.next()).await;
            let answer = answer.map_err(|_| (images.len(), Error::Silent(side)))?;
            let image = answer.expect("one is running").map_err(|e| (images.len(), Error::Query(side, e)))?;
            bytes += image.as_ref().map_or(0, Vec::len);
            images.push_back(image);
        }
        Ok(images.into())
    }
}

/// Text must mean the same on both sides, whatever their defaults, and the newest state is to be seen.
const PIN: &str = "SET search_path TO pg_catalog; SET jit TO off; SET DateStyle TO 'ISO, MDY'; SET IntervalStyle TO postgres; \
                   SET TimeZone TO 'UTC'; SET extra_float_digits TO 1; SET bytea_output TO hex; \
                   SET lc_monetary TO 'C'; SET xmloption TO content; SET array_nulls TO on; \
                   SET client_encoding TO 'UTF8'; SET default_transaction_isolation TO 'read committed'; \
                   SET default_transaction_read_only TO off; SET client_min_messages TO warning";
/// Statements of one pipeline that are on their way.
const DEPTH: usize = 128;
/// Statements kept by one connection.
const MOST_STATEMENTS: usize = 2_000;
