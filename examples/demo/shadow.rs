//! Third part: does the target answer the same, and as fast? A share of the reads is executed on both. What is planted
//! on the target is found and named, while the clients' answers stay those of the source.

use std::{
    process::{Command, Output},
    time::{Duration, Instant},
};

use serde_json::Value;
use tokio_postgres::{Client, SimpleQueryMessage, SimpleQueryRow};

use crate::{
    Demo,
    catalog::{Catalog, READS},
    mirror::{console, quoted, shell},
    observe::{Metrics, Result, get},
};

/// What happens to the target past crossfade: by a session whose changes the capture leaves alone.
const PLANT: [&str; 3] = [
    "UPDATE documents SET title = 'Dokument 7' WHERE id = 7",
    "DELETE FROM document_versions WHERE document_id = 11 AND version = 2",
    "DROP INDEX document_events_newest",
];
const REPAIR: [&str; 3] = [
    "UPDATE documents SET title = 'Document 7' WHERE id = 7",
    "INSERT INTO document_versions VALUES (11, 2, repeat('text 2 ', 20))",
    "CREATE INDEX document_events_newest ON document_events (document_id, at)",
];
/// What must be found: class, column, key, and the document to ask both sides for.
const FOUND: [(&str, Option<&str>, &str, &str); 2] =
    [("cell", Some("title"), "id=7", "7"), ("missing_row", None, "document_id=11, version=2", "11")];
/// Comparisons of each query before the first verdict, and after the repair.
const ENOUGH: u64 = 60;
/// For anything that is waited for, and so many times `--compare-seconds`.
const PATIENCE: (Duration, u64) = (Duration::from_secs(60), 5);

impl Demo {
    /// All of it, with its verdicts.
    pub(crate) async fn shadow(&mut self) -> Result<()> {
        let console = console(&self.arguments.console).await?;
        let before = self.troubles();
        self.edit(&console, "reads", "{ source = 100, target = 0 }").await?;
        self.edit(&console, "shadow", "0.25").await?;
        self.view.say(
            "a quarter of the reads is executed on the target as well, later, and the answers are compared",
        );
        let catalog = Catalog::enter(&self.arguments.proxy);
        let equal = self.compare_equals(&console).await?;

        self.view.say(
            "\nOn the target, past crossfade, somebody changes a cell, deletes a row and drops an index:",
        );
        self.servers[1].run_unseen(&PLANT).await?;
        for sql in PLANT {
            self.view.say(&format!("    {sql}"));
        }
        self.find(&console).await?;
        self.find_slower(&console, equal[2]).await?;
        self.tell().await?;

        let wrong = catalog.leave().await?;
        self.repair(&console, wrong).await?;
        self.judge_errors("while the target answered wrongly and slowly", before.0);
        let wrong = self.troubles().1 - before.1;
        self.verdict(wrong == 0, format!("wrong rows seen by clients meanwhile: {wrong}"));
        Ok(())
    }

    /// Both sides are equal still. How often each of the catalog's reads was compared.
    async fn compare_equals(&mut self, console: &Client) -> Result<[u64; 3]> {
        let written = self.shared.tally().transactions;
        let least = tokio::time::sleep(Duration::from_secs(self.arguments.compare_seconds));
        self.until("comparisons of all three reads", async || {
            let queries = queries(console).await?;
            Ok(queries.iter().all(|query| query.compared >= ENOUGH).then_some(()))
        })
        .await?;
        least.await;
        let written = self.shared.tally().transactions - written;
        let [compared, divergent] = total(console).await?;
        self.verdict(
            compared > 0 && divergent == 0,
            format!("equal sides: {compared} reads compared during {written} transactions of clients that write, {divergent} divergences"),
        );
        self.show_queries(console).await
    }

    async fn show_queries(&mut self, console: &Client) -> Result<[u64; 3]> {
        self.view.say(QUERIES);
        let queries = queries(console).await?;
        for (query, sql) in queries.iter().zip(READS) {
            self.view.say(&format!(
                "{:>8} {:>10}   {:>10.2}   {:>10.2}   {:>+17.2}   {sql:.64}...",
                query.compared, query.divergent, query.source_ms, query.target_ms, query.delta_ms
            ));
        }
        Ok(queries.map(|query| query.compared))
    }

    /// SHOW DIVERGENCES names the cell and the row.
    async fn find(&mut self, console: &Client) -> Result<()> {
        let began = Instant::now();
        let found = self
            .until("both differences in SHOW DIVERGENCES", async || {
                let rows = rows(console, "SHOW DIVERGENCES").await?;
                let named = |(class, column, key, _): &(&str, Option<&str>, &str, &str)| {
                    rows.iter().any(|row| {
                        row.get("sql").is_some_and(|sql| READS.contains(&sql))
                            && (row.get("class"), row.get("column"), row.get("key"))
                                == (Some(*class), *column, Some(*key))
                    })
                };
                Ok(FOUND.iter().all(named).then_some(rows))
            })
            .await?;
        let took = began.elapsed().as_secs_f64();
        // Reads without the key see them as well.
        let planted = |row: &&SimpleQueryRow| match row.get("class") {
            Some("cell") => row.get("column") == Some("title"),
            Some("missing_row") => row.get("sql").is_some_and(|sql| sql.contains("document_versions")),
            _ => false,
        };
        let others = found.iter().filter(|row| !planted(row)).count();
        self.view.say("\nSHOW DIVERGENCES:");
        for row in &found {
            let cell = |name| row.get(name).unwrap_or("-");
            self.view.say(&format!(
                "    {}  {:<11}  column {:<5}  key {:<25}  {} times  {}",
                cell("repository"),
                cell("class"),
                cell("column"),
                cell("key"),
                cell("count"),
                cell("sql")
            ));
        }
        self.verdict(
            others == 0,
            format!("the changed cell and the missing row were found and named within {took:.1} s; other divergences: {others}"),
        );
        Ok(())
    }

    /// The median needs more slow reads than there were fast ones.
    async fn find_slower(&mut self, console: &Client, fast: u64) -> Result<()> {
        self.until("reads without the index", async || {
            Ok((queries(console).await?[2].compared > fast * 9 / 4).then_some(()))
        })
        .await?;
        self.view.say("\nSHOW QUERIES, the latencies of both sides for the same reads:");
        self.show_queries(console).await?;
        let [.., slow] = queries(console).await?;
        self.verdict(
            slow.delta_ms > 0.0 && slow.target_ms > 2.0 * slow.source_ms,
            format!(
                "the query without its index was found: target {:.2} ms, source {:.2} ms, of the same read {:+.2} ms (medians)",
                slow.target_ms, slow.source_ms, slow.delta_ms
            ),
        );
        Ok(())
    }

    /// The report, as text and as a file, the page, and the command that shows the difference.
    async fn tell(&mut self) -> Result<()> {
        let table = self.report_as(&[]).await?;
        self.view.say("\ncrossfade report:");
        for line in String::from_utf8_lossy(&table.stdout).lines().filter(|line| !line.is_empty()) {
            self.view.say(&format!("    {line}"));
        }
        let file = self.arguments.report.display().to_string();
        let html = self.report_as(&["--html", &file]).await?;
        let json = self.report_as(&["--json"]).await?;
        let state: Value = serde_json::from_slice(&json.stdout)?;
        let page = get(&self.arguments.http, "/").await?;
        let shown: Value = serde_json::from_str(&get(&self.arguments.http, "/state").await?)?;
        let kept = std::fs::read_to_string(&self.arguments.report)?;
        let statuses = [&table, &html, &json].map(|output| output.status.code());
        self.verdict(
            statuses == [Some(1); 3]
                && [&state, &shown].iter().all(|state| tells(state))
                && kept.contains("id=7"),
            format!(
                "crossfade report (exit status 1: divergences), its HTML file and http://{}/ tell all three",
                self.arguments.http
            ),
        );
        if !page.contains("<html") {
            return Err("GET / answers no page".into());
        }
        if let Some(picture) = self.arguments.picture.clone() {
            shell(picture).await?;
        }

        for (class, _, _, document) in FOUND {
            let of_class =
                |d: &&Value| d["class"] == class && d["sql"].as_str().is_some_and(|sql| READS.contains(&sql));
            let found = state["divergences"].as_array().and_then(|all| all.iter().find(of_class));
            let command =
                found.and_then(|d| d["reproduce"].as_str()).ok_or("no command that reproduces it")?;
            let command = command.replace("$1", document);
            self.view.say(&format!("\n{command}"));
            let [source, target] = [&self.arguments.source, &self.arguments.target].map(|side| quoted(side));
            let said =
                shell(format!("export PSQLRC=/dev/null PAGER= SOURCE={source} TARGET={target}; {command}"))
                    .await?;
            for line in said.lines().filter(|line| !line.is_empty()) {
                self.view.say(&format!("    {line:.110}"));
            }
        }
        Ok(())
    }

    async fn report_as(&self, format: &[&str]) -> Result<Output> {
        let mut command = Command::new(&self.arguments.crossfade);
        command.arg("report").arg("--url").arg(format!("http://{}", self.arguments.http)).args(format);
        Ok(tokio::task::spawn_blocking(move || command.output()).await??)
    }

    /// What was planted is undone; nothing that is compared from then on differs.
    async fn repair(&mut self, console: &Client, wrong: u64) -> Result<()> {
        self.rest().await?;
        self.wait_for_metrics("the end of all comparisons", Metrics::all_compared).await?;
        let [_, before] = total(console).await?;
        let compared = queries(console).await?.map(|query| query.compared);
        self.servers[1].run_unseen(&REPAIR).await?;
        self.view.say("\nThe cell, the row and the index are repaired.");
        self.work();
        let catalog = Catalog::enter(&self.arguments.proxy);
        self.until("comparisons after the repair", async || {
            let now = queries(console).await?;
            Ok(now.iter().zip(compared).all(|(now, before)| now.compared >= before + ENOUGH).then_some(()))
        })
        .await?;
        let wrong = wrong + catalog.leave().await?;
        self.rest().await?;
        self.wait_for_metrics("the end of all comparisons", Metrics::all_compared).await?;
        let [_, after] = total(console).await?;
        let now = queries(console).await?.map(|query| query.compared);
        let new: u64 = now.iter().zip(compared).map(|(now, before)| now - before).sum();
        self.verdict(
            after == before,
            format!("repaired: {new} more comparisons of these reads, {} divergences", after - before),
        );
        self.verdict(wrong == 0, format!("wrong answers that the readers of the catalog got: {wrong}"));
        self.compare("after the repair").await
    }

    /// Asks again until there is an answer.
    async fn until<T>(&self, what: &str, mut ask: impl AsyncFnMut() -> Result<Option<T>>) -> Result<T> {
        let (began, (patience, times)) = (Instant::now(), PATIENCE);
        let patience = patience + Duration::from_secs(times * self.arguments.compare_seconds);
        while began.elapsed() < patience {
            if let Some(answer) = ask().await? {
                return Ok(answer);
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        Err(format!("waited {} s in vain for {what}", patience.as_secs()).into())
    }
}

const QUERIES: &str = "compared  divergent   source ms    target ms   target − source ms   (medians)";

/// A line of SHOW QUERIES.
#[derive(Clone, Copy, Default)]
struct Query {
    compared: u64,
    divergent: u64,
    source_ms: f64,
    target_ms: f64,
    delta_ms: f64,
}

/// Of each of [`READS`]; zeros of those that were not compared yet.
async fn queries(console: &Client) -> Result<[Query; 3]> {
    let rows = rows(console, "SHOW QUERIES").await?;
    Ok(READS.map(|sql| {
        let row = rows.iter().find(|row| row.get("sql") == Some(sql));
        let cell = |name| row.and_then(|row| row.get(name));
        let count = |name| cell(name).and_then(|text| text.parse().ok()).unwrap_or_default();
        let ms = |name| cell(name).and_then(|text| text.parse().ok()).unwrap_or_default();
        Query {
            compared: count("compared"),
            divergent: count("divergence"),
            source_ms: ms("source_ms_p50"),
            target_ms: ms("target_ms_p50"),
            delta_ms: ms("delta_ms_p50"),
        }
    }))
}

/// Comparisons and divergences of all repositories.
async fn total(console: &Client) -> Result<[u64; 2]> {
    let rows = rows(console, "SHOW SHADOW").await?;
    let whole = rows.iter().filter(|row| row.get("application").is_none());
    let of = |row: &SimpleQueryRow, name| row.get(name).and_then(|text| text.parse().ok()).unwrap_or(0_u64);
    Ok(whole.fold([0, 0], |[all, bad], row| [all + of(row, "compared"), bad + of(row, "divergence")]))
}

async fn rows(console: &Client, sql: &str) -> Result<Vec<SimpleQueryRow>> {
    let answer = console.simple_query(sql).await?;
    Ok(answer
        .into_iter()
        .filter_map(|message| if let SimpleQueryMessage::Row(row) = message { Some(row) } else { None })
        .collect())
}

/// Does `/state` have the cell, the row and the slower query?
fn tells(state: &Value) -> bool {
    let list = |name: &str| state[name].as_array().cloned().unwrap_or_default();
    let divergences = list("divergences");
    let slower = list("slower").iter().any(|query| query["sql"] == READS[2]);
    let named = |(class, column, key, _): &(&str, Option<&str>, &str, &str)| {
        divergences
            .iter()
            .any(|d| d["class"] == *class && d["column"].as_str() == *column && d["key"] == *key)
    };
    slower && FOUND.iter().all(named)
}
