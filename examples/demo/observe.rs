//! Witnesses other than the clients: both servers' own counters, and crossfade's metrics.

use crossfade::Side;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};
use tokio_postgres::{Client, NoTls};

pub(crate) type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

/// A superuser's connection straight to one server, past crossfade.
pub(crate) struct Server(Client);

/// `pg_stat_database` of one server.
pub(crate) struct Activity {
    pub(crate) version: String,
    pub(crate) commits: i64,
    pub(crate) rollbacks: i64,
    /// Sessions that did not end by the client's wish.
    pub(crate) broken_sessions: i64,
}

impl Server {
    pub(crate) async fn connect(address: &str) -> Result<Self> {
        let (client, connection) = tokio_postgres::connect(address, NoTls).await?;
        tokio::spawn(connection);
        Ok(Self(client))
    }

    /// Executions of statements that read documents, by the application's role.
    pub(crate) async fn document_reads(&self) -> Result<u64> {
        let sql = "SELECT coalesce(sum(s.calls), 0)::bigint FROM pg_stat_statements s JOIN pg_roles r ON r.oid = s.userid \
                   WHERE r.rolname = 'app' AND s.query LIKE '%document_served%'";
        Ok(u64::try_from(self.0.query_one(sql, &[]).await?.get::<_, i64>(0))?)
    }

    /// The writes of the application that are there: `users.logins`, rows of `user_sessions`, `organization_members.seen`,
    /// rows of `user_notes`.
    pub(crate) async fn writes(&self) -> Result<[u64; 4]> {
        let sql = "SELECT (SELECT sum(logins) FROM users)::bigint, (SELECT count(*) FROM user_sessions), \
                   (SELECT coalesce(sum(seen), 0) FROM organization_members)::bigint, (SELECT count(*) FROM user_notes)";
        let row = self.0.query_one(sql, &[]).await?;
        Ok([0, 1, 2, 3].map(|column| row.get::<_, i64>(column).unsigned_abs()))
    }

    /// Runs these as crossfade applies rows: no trigger fires, nothing is captured, and a follower takes them.
    pub(crate) async fn run_unseen(&self, statements: &[&str]) -> Result<()> {
        let script = statements.join("; ");
        let applying = "SET crossfade.role = 'apply'; SET session_replication_role = replica";
        let script = format!("{applying}; {script}; RESET session_replication_role; RESET crossfade.role");
        Ok(self.0.batch_execute(&script).await?)
    }

    /// Do all repositories say here that `side` leads their writes?
    pub(crate) async fn is_led_by(&self, side: Side) -> Result<bool> {
        let sql = "SELECT bool_and(lead = $1) FROM crossfade.repositories";
        Ok(self.0.query_one(sql, &[&side.name()]).await?.get(0))
    }

    /// Every row of every table of the application, by table; sorted.
    pub(crate) async fn rows(&self) -> Result<Vec<(String, Vec<String>)>> {
        let tables = "SELECT tablename::text FROM pg_tables WHERE schemaname = 'public' ORDER BY 1";
        let mut all = Vec::new();
        for table in self.0.query(tables, &[]).await? {
            let name: String = table.get(0);
            let sql = format!("SELECT t::text FROM public.\"{name}\" t ORDER BY t::text COLLATE \"C\"");
            let rows = self.0.query(&sql, &[]).await?.iter().map(|row| row.get(0)).collect();
            all.push((name, rows));
        }
        Ok(all)
    }

    pub(crate) async fn activity(&self) -> Result<Activity> {
        let sql = "SELECT current_setting('server_version'), xact_commit, xact_rollback, \
                   sessions_abandoned + sessions_fatal + sessions_killed \
                   FROM pg_stat_database WHERE datname = current_database()";
        let row = self.0.query_one(sql, &[]).await?;
        Ok(Activity {
            version: row.get(0),
            commits: row.get(1),
            rollbacks: row.get(2),
            broken_sessions: row.get(3),
        })
    }
}

/// One look at `/metrics`: name with labels, value.
pub(crate) struct Metrics(Vec<(String, f64)>);

impl Metrics {
    pub(crate) async fn scrape(address: &str) -> Result<Self> {
        let body = get(address, "/metrics").await?;
        let sample = |line: &str| {
            let (name, value) = line.rsplit_once(' ')?;
            Some((name.to_owned(), value.parse().ok()?))
        };
        Ok(Self(body.lines().filter(|line| !line.starts_with('#')).filter_map(sample).collect()))
    }

    /// Is every read that was to be executed twice compared, or dropped?
    pub(crate) fn all_compared(&self) -> bool {
        let compared = self.sum("crossfade_shadow_comparisons_total", &[]);
        let dropped = self.sum("crossfade_shadow_dropped_total", &[]);
        let sampled = self.sum("crossfade_shadow_reads_total", &[r#"state="sampled""#]);
        (sampled - compared - dropped).abs() < 0.5
    }

    /// Reads of documents, by the side that answered.
    pub(crate) fn document_reads(&self) -> [u64; 2] {
        Side::BOTH.map(|side| {
            let labels = [r#"repository="document""#, r#"op="read""#, &format!("backend=\"{side}\"")];
            #[expect(
                clippy::cast_possible_truncation,
                clippy::cast_sign_loss,
                reason = "a counter of one minute"
            )]
            let count = self.sum("crossfade_queries_total", &labels) as u64;
            count
        })
    }

    /// Percent of the reads of documents that go to the target under the policy in force.
    pub(crate) fn target_weight(&self) -> Option<f64> {
        let labels = [r#"repository="document""#, r#"op="read""#, r#"backend="target""#];
        self.find("crossfade_route_weight", &labels).next().map(|share| share * 100.0)
    }

    /// The journal of a lead: rows, rows of them that the follower lacks, age of the oldest in seconds.
    pub(crate) fn journal(&self, lead: Side) -> [f64; 3] {
        let names =
            ["crossfade_journal_rows", "crossfade_journal_dirty_rows", "crossfade_journal_oldest_seconds"];
        let backend = format!("backend=\"{lead}\"");
        names.map(|name| self.find(name, &[&backend]).next().unwrap_or(0.0))
    }

    /// Transactions of this lead that both sides have, and that were left to the journal.
    pub(crate) fn mirrored(&self, lead: Side) -> [f64; 2] {
        let lead = format!("lead=\"{lead}\"");
        ["both", "journal"].map(|outcome| {
            let outcome = format!("outcome=\"{outcome}\"");
            self.sum("crossfade_mirror_transactions_total", &[&lead, &outcome])
        })
    }

    /// Edits of the configuration that were refused.
    pub(crate) fn refused_reloads(&self) -> f64 {
        self.sum("crossfade_config_reload_total", &[r#"result="refused""#])
    }

    fn sum(&self, name: &str, labels: &[&str]) -> f64 {
        self.find(name, labels).sum()
    }

    fn find(&self, name: &str, labels: &[&str]) -> impl Iterator<Item = f64> {
        self.0
            .iter()
            .filter(move |(key, _)| {
                key.split('{').next() == Some(name) && labels.iter().all(|label| key.contains(label))
            })
            .map(|&(_, value)| value)
    }
}

/// What crossfade answers over HTTP, without its head.
pub(crate) async fn get(address: &str, path: &str) -> Result<String> {
    let mut socket = TcpStream::connect(address).await?;
    socket.write_all(format!("GET {path} HTTP/1.0\r\nHost: {address}\r\n\r\n").as_bytes()).await?;
    let mut answer = String::new();
    socket.read_to_string(&mut answer).await?;
    let (head, body) = answer.split_once("\r\n\r\n").ok_or_else(|| format!("no answer to GET {path}"))?;
    if !head.lines().next().is_some_and(|status| status.contains(" 200 ")) {
        return Err(format!("GET {path}: {head}").into());
    }
    Ok(body.to_owned())
}
