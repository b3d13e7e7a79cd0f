//! The application: clients that do what ordinary applications do, and check every answer.

use std::{
    sync::{Arc, atomic::Ordering::Relaxed},
    time::{Duration, Instant},
};

use crossfade::Side;
use tokio_postgres::{
    Client, Error, NoTls, Row, SimpleQueryMessage, Statement,
    types::{FromSql, Type},
};

use crate::tally::{Shared, Unit};

/// Rows of each table in schema.sql.
const DOCUMENTS: u64 = 2000;
const OWNERS: u64 = 100;
const VERSIONS: usize = 3;
const USERS: u64 = 500;
const ORGANIZATIONS: u64 = 50;
const STATUS: [&str; 4] = ["draft", "review", "published", "archived"];

const DOCUMENT: &str =
    "SELECT id, title, status, price::text, meta, created_at, served_by FROM document_served WHERE id = $1";
const LIST: &str = "SELECT id, title, status, price::text, meta, created_at, served_by FROM document_served \
                    WHERE owner_id = $1 ORDER BY id";
const JOIN: &str = "SELECT d.id, v.version, v.body, d.served_by FROM document_served d \
                    JOIN document_versions v ON v.document_id = d.id WHERE d.id = $1 ORDER BY v.version";
const MEMBERS: &str = "SELECT o.name, m.seen FROM organizations o JOIN organization_members m \
                       ON m.organization_id = o.id WHERE o.id = $1 AND m.user_id = $2";
const JOIN_ORGANIZATION: &str = "INSERT INTO organization_members (organization_id, user_id, seen) VALUES ($1, $2, 1) \
                                 ON CONFLICT (organization_id, user_id) DO UPDATE SET seen = organization_members.seen + 1 \
                                 RETURNING seen";

/// One client: logs in, works until told to stop, logs in again should its connection end.
pub(crate) async fn client(number: usize, address: String, shared: Arc<Shared>) {
    let mut dice = Dice(0x9e37_79b9_7f4a_7c15_u64.wrapping_mul(number as u64 + 1));
    let mut logins = 0_u64;
    while !shared.stop.load(Relaxed) {
        shared.seen[number].store(shared.generation.load(Relaxed), Relaxed);
        if logins > 0 {
            shared.tally().reconnects += 1;
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        logins += 1;
        if let Err(error) = session(number, &address, &shared, &mut dice).await {
            shared.tally().error(describe(&error));
        }
    }
    // A client that has left holds nobody up.
    shared.seen[number].store(u64::MAX, Relaxed);
}

/// One connection's life. An error that leaves the connection usable is counted and the work goes on.
async fn session(number: usize, address: &str, shared: &Arc<Shared>, dice: &mut Dice) -> Result<(), Error> {
    let (client, connection) = tokio_postgres::connect(address, NoTls).await?;
    let watcher = Arc::clone(shared);
    tokio::spawn(async move {
        // Ends without an error when the client hangs up.
        if let Err(error) = connection.await {
            let mut tally = watcher.tally();
            tally.dropped += 1;
            tally.error(describe(&error));
        }
    });
    let app = Application {
        document: client.prepare(DOCUMENT).await?,
        list: client.prepare(LIST).await?,
        client,
        number,
    };
    while !shared.stop.load(Relaxed) {
        shared.rest_if_told().await;
        shared.seen[number].store(shared.generation.load(Relaxed), Relaxed);
        let step = shared.step.load(Relaxed);
        let mut unit = Unit::default();
        match app.work(dice, &mut unit).await {
            Ok(()) => shared.tally().merge(step, unit),
            Err(error) if app.client.is_closed() => {
                shared.tally().acknowledged(&unit);
                return Err(error);
            }
            Err(error) => {
                shared.tally().acknowledged(&unit);
                shared.tally().error(describe(&error));
                // Leaves a transaction that the error left open.
                app.client.batch_execute("ROLLBACK").await?;
            }
        }
        tokio::time::sleep(Duration::from_millis(2 + dice.below(10))).await;
    }
    Ok(())
}

struct Application {
    client: Client,
    /// Prepared once, at login: a shift of weights must not hurt them.
    document: Statement,
    list: Statement,
    number: usize,
}

impl Application {
    /// One unit of work: a transaction, or a statement that is its own.
    async fn work(&self, dice: &mut Dice, unit: &mut Unit) -> Result<(), Error> {
        let id = i64::try_from(1 + dice.below(DOCUMENTS)).expect("small");
        match dice.below(100) {
            0..30 => self.read_document(id, unit).await,
            30..45 => self.list_documents(id, unit).await,
            45..55 => self.join_versions(id, unit).await,
            55..65 => self.simple_query(id, unit).await,
            65..80 => self.read_only_transaction(id, unit).await,
            80..88 => self.log_in(dice, unit).await,
            88..92 => self.take_note(dice, unit).await,
            _ => self.join_organization(dice, unit).await,
        }
    }

    async fn read_document(&self, id: i64, unit: &mut Unit) -> Result<(), Error> {
        let began = Instant::now();
        let rows = self.client.query(&self.document, &[&id]).await?;
        unit.answered(began, rows.first().map(|row| row.get("served_by")));
        unit.expect(rows.len() == 1, || format!("document {id}: {} rows", rows.len()));
        for row in &rows {
            check_document(row, id, unit);
        }
        Ok(())
    }

    async fn list_documents(&self, id: i64, unit: &mut Unit) -> Result<(), Error> {
        let owners = i64::try_from(OWNERS).expect("small");
        let owner = id % owners;
        let began = Instant::now();
        let rows = self.client.query(&self.list, &[&owner]).await?;
        unit.answered(began, rows.first().map(|row| row.get("served_by")));
        unit.expect(rows.len() as u64 == DOCUMENTS / OWNERS, || {
            format!("owner {owner}: {} rows", rows.len())
        });
        let first = if owner == 0 { owners } else { owner };
        for (row, id) in rows.iter().zip((first..).step_by(owners.unsigned_abs().try_into().expect("small")))
        {
            check_document(row, id, unit);
        }
        Ok(())
    }

    /// Prepares anew each time, as drivers without a cache do.
    async fn join_versions(&self, id: i64, unit: &mut Unit) -> Result<(), Error> {
        let began = Instant::now();
        let rows = self.client.query(JOIN, &[&id]).await?;
        unit.answered(began, rows.first().map(|row| row.get("served_by")));
        unit.expect(rows.len() == VERSIONS, || format!("versions of {id}: {} rows", rows.len()));
        for (row, version) in rows.iter().zip(1_i32..) {
            let right = row.get::<_, i64>(0) == id
                && row.get::<_, i32>(1) == version
                && row.get::<_, &str>(2) == format!("text {version} ").repeat(20);
            unit.expect(right, || format!("version {version} of document {id}"));
        }
        Ok(())
    }

    async fn simple_query(&self, id: i64, unit: &mut Unit) -> Result<(), Error> {
        let began = Instant::now();
        let sql = format!("SELECT title, status, served_by FROM document_served WHERE id = {id}");
        let answer = self.client.simple_query(&sql).await?;
        let row = answer
            .iter()
            .find_map(|message| if let SimpleQueryMessage::Row(row) = message { Some(row) } else { None });
        unit.answered(began, row.and_then(|row| row.get(2)));
        let right = row.is_some_and(|row| row.get(0) == Some(&title(id)) && row.get(1) == Some(status(id)));
        unit.expect(right, || format!("document {id} by simple query"));
        Ok(())
    }

    /// BEGIN; SELECT; SELECT; COMMIT as ORMs send it. One transaction, one server.
    async fn read_only_transaction(&self, id: i64, unit: &mut Unit) -> Result<(), Error> {
        self.client.batch_execute("BEGIN").await?;
        self.read_document(id, unit).await?;
        self.list_documents(id, unit).await?;
        self.client.batch_execute("COMMIT").await?;
        let one_side = unit.reads.windows(2).all(|pair| pair[0].0 == pair[1].0);
        unit.expect(one_side, || "one transaction was answered by two servers".to_owned());
        Ok(())
    }

    /// Reads, then writes, and reads its own write.
    async fn log_in(&self, dice: &mut Dice, unit: &mut Unit) -> Result<(), Error> {
        let id = i64::try_from(1 + dice.below(USERS)).expect("small");
        self.client.batch_execute("BEGIN").await?;
        let row = self.client.query_one("SELECT email FROM users WHERE id = $1", &[&id]).await?;
        unit.expect(row.get::<_, &str>(0) == format!("user{id}@example.org"), || format!("user {id}"));
        let update = "UPDATE users SET logins = logins + 1 WHERE id = $1 RETURNING logins";
        let logins: i64 = self.client.query_one(update, &[&id]).await?.get(0);
        let insert = "INSERT INTO user_sessions (user_id, agent) VALUES ($1, 'demo')";
        self.client.execute(insert, &[&id]).await?;
        let seen: i64 = self.client.query_one("SELECT logins FROM users WHERE id = $1", &[&id]).await?.get(0);
        unit.expect(seen == logins, || format!("user {id} does not see its own write"));
        self.client.batch_execute("COMMIT").await?;
        unit.logins = 1;
        Ok(())
    }

    /// Values that no second server would come up with by itself, and a savepoint's row that must not stay.
    async fn take_note(&self, dice: &mut Dice, unit: &mut Unit) -> Result<(), Error> {
        let id = i64::try_from(1 + dice.below(USERS)).expect("small");
        self.client.batch_execute("BEGIN").await?;
        let insert = "INSERT INTO user_notes (user_id) VALUES ($1) RETURNING id, note";
        let row = self.client.query_one(insert, &[&id]).await?;
        let (note, text): (i64, String) = (row.get(0), row.get(1));
        self.client.batch_execute("SAVEPOINT s").await?;
        self.client.query_one(insert, &[&id]).await?;
        self.client.batch_execute("ROLLBACK TO s").await?;
        let update = "UPDATE user_notes SET at = clock_timestamp() WHERE id = $1";
        self.client.execute(update, &[&note]).await?;
        self.client.batch_execute("COMMIT").await?;
        unit.notes = 1;
        let read = self.client.query("SELECT note FROM user_notes WHERE id = $1", &[&note]).await?;
        let right = read.len() == 1 && read[0].get::<_, &str>(0) == text;
        unit.expect(right, || format!("note {note} is not there after its COMMIT"));
        Ok(())
    }

    /// An autocommit write; then a join must show it, on whichever server.
    async fn join_organization(&self, dice: &mut Dice, unit: &mut Unit) -> Result<(), Error> {
        let id = i64::try_from(1 + dice.below(ORGANIZATIONS)).expect("small");
        // A user of its own, so that nobody else changes the row between the write and the read.
        let user = i64::try_from(self.number).expect("small");
        let seen: i64 = self.client.query_one(JOIN_ORGANIZATION, &[&id, &user]).await?.get(0);
        unit.seen = 1;
        let rows = self.client.query(MEMBERS, &[&id, &user]).await?;
        let right = rows.len() == 1
            && rows[0].get::<_, &str>(0) == format!("Organization {id}")
            && rows[0].get::<_, i64>(1) == seen;
        unit.expect(right, || format!("organization {id} does not show what was just written"));
        Ok(())
    }
}

impl Unit {
    fn answered(&mut self, began: Instant, served_by: Option<&str>) {
        let us = u32::try_from(began.elapsed().as_micros()).unwrap_or(u32::MAX);
        match Side::BOTH.into_iter().find(|side| Some(side.name()) == served_by) {
            Some(side) => self.reads.push((side, us)),
            None => self.wrong.push(format!("answered by {served_by:?}")),
        }
    }

    fn expect(&mut self, right: bool, what: impl FnOnce() -> String) {
        if !right {
            self.wrong.push(format!("wrong answer: {}", what()));
        }
    }
}

fn title(id: i64) -> String {
    format!("Document {id}")
}

fn status(id: i64) -> &'static str {
    STATUS[usize::try_from(id % 4).expect("not negative")]
}

/// Every column, binary as the server sent it; and the enum's type, whose OID differs between the servers.
fn check_document(row: &Row, id: i64, unit: &mut Unit) {
    let created_us = (8766 * 1440 + id) * 60_000_000; // 2024-01-01 is day 8766 of Postgres' clock
    let right = row.get::<_, i64>("id") == id
        && row.get::<_, &str>("title") == title(id)
        && row.get::<_, Raw>("status").0 == status(id).as_bytes()
        && row.get::<_, &str>("price") == format!("{}.{:02}", id % 1000, id % 100)
        && row.get::<_, Raw>("meta").0 == format!("\u{1}{{\"n\": {id}, \"lang\": \"en\"}}").as_bytes()
        && row.get::<_, Raw>("created_at").0 == created_us.to_be_bytes();
    unit.expect(right, || format!("document {id}: {row:?}"));
    let name = row.columns()[2].type_().name();
    unit.expect(name == "document_status", || format!("type {name} instead of document_status"));
}

/// A value of any type, as it came.
struct Raw<'a>(&'a [u8]);

impl<'a> FromSql<'a> for Raw<'a> {
    fn from_sql(_: &Type, raw: &'a [u8]) -> Result<Self, Box<dyn std::error::Error + Sync + Send>> {
        Ok(Self(raw))
    }

    fn accepts(_: &Type) -> bool {
        true
    }
}

/// SQLSTATE and message, with the cause.
fn describe(error: &Error) -> String {
    match error.as_db_error() {
        Some(error) => format!("{} {}", error.code().code(), error.message()),
        None => match std::error::Error::source(error) {
            Some(cause) => format!("{error}: {cause}"),
            None => error.to_string(),
        },
    }
}

/// Chance that repeats itself (xorshift64*): a demo that fails should fail again.
struct Dice(u64);

impl Dice {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) % bound
    }
}
