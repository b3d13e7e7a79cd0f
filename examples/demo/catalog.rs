//! A second application, in its old and its new version at once: it only reads documents.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use tokio::task::JoinHandle;
use tokio_postgres::{Client, Error, NoTls, SimpleQueryMessage};

use crate::observe::Result;

/// What is read: a document, its versions, and when each document of an owner was last touched.
pub(crate) const READS: [&str; 3] = [
    "SELECT id, title, price, status FROM documents WHERE id = $1",
    "SELECT document_id, version, md5(body) AS sum FROM document_versions WHERE document_id = $1",
    "SELECT id, (SELECT max(at) FROM document_events e WHERE e.document_id = d.id) FROM documents d WHERE owner_id = $1",
];
/// Documents and owners that are asked for, from 1.
const NUMBERS: u64 = 20;
/// Rows of each of [`READS`].
const ROWS: [usize; 3] = [1, 3, 20];
/// Names of the versions; the old one sends prepared statements, the new one texts.
const VERSIONS: [&str; 2] = ["catalog", "catalog-rewrite"];
/// Connections of each.
const CONNECTIONS: usize = 2;

/// Its clients, at work until [`Catalog::leave`].
pub(crate) struct Catalog {
    stop: Arc<AtomicBool>,
    wrong: Arc<AtomicU64>,
    clients: Vec<JoinHandle<std::result::Result<(), Error>>>,
}

impl Catalog {
    /// `proxy`: connection string without a name of the application.
    pub(crate) fn enter(proxy: &str) -> Self {
        let (stop, wrong) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let client = |number: usize| {
            let address = format!("{proxy} application_name={}", VERSIONS[number % VERSIONS.len()]);
            let (stop, wrong) = (Arc::clone(&stop), Arc::clone(&wrong));
            tokio::spawn(async move { work(number, &address, &stop, &wrong).await })
        };
        let clients = (0..VERSIONS.len() * CONNECTIONS).map(client).collect();
        Self { stop, wrong, clients }
    }

    /// Waits for the last answers. How many answers were wrong; an error is one.
    pub(crate) async fn leave(self) -> Result<u64> {
        self.stop.store(true, Relaxed);
        for client in self.clients {
            client.await??;
        }
        Ok(self.wrong.load(Relaxed))
    }
}

async fn work(
    number: usize,
    address: &str,
    stop: &AtomicBool,
    wrong: &AtomicU64,
) -> std::result::Result<(), Error> {
    let (client, connection) = tokio_postgres::connect(address, NoTls).await?;
    tokio::spawn(connection);
    let mut prepared = Vec::new();
    for sql in READS {
        prepared.push(client.prepare(sql).await?);
    }
    // Begins elsewhere than the others do, and asks everything for every number.
    for turn in number * 7.. {
        if stop.load(Relaxed) {
            break;
        }
        let (read, id) = (turn % READS.len(), 1 + (turn / READS.len()) as u64 % NUMBERS);
        let rows = if number.is_multiple_of(VERSIONS.len()) {
            client.query(&prepared[read], &[&id.cast_signed()]).await?.len()
        } else {
            texts(&client, &READS[read].replace("$1", &id.to_string())).await?
        };
        wrong.fetch_add(u64::from(rows != ROWS[read]), Relaxed);
        tokio::time::sleep(Duration::from_millis(6)).await;
    }
    Ok(())
}

/// Rows of a simple query.
async fn texts(client: &Client, sql: &str) -> std::result::Result<usize, Error> {
    let answer = client.simple_query(sql).await?;
    Ok(answer.iter().filter(|message| matches!(message, SimpleQueryMessage::Row(_))).count())
}
