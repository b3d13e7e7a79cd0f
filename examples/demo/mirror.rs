//! Second part: writes of all three repositories reach both servers; the target dies and comes back.

use std::{
    process::Command,
    time::{Duration, Instant},
};

use crossfade::Side;
use tokio_postgres::{Client, NoTls};

use crate::{
    Demo, edit,
    observe::{Metrics, Result, Server},
};

/// Percent of `--seconds` that each part takes; the rest is for the reads.
const MIRRORED: u32 = 7;
const DOWN: u32 = 11;
const BACK: u32 = 6;
const MOVED: u32 = 7;

impl Demo {
    /// All of it, with its verdicts.
    pub(crate) async fn mirror(&mut self) -> Result<()> {
        let ((errors, dropped), wrong) = self.troubles();
        let console = console(&self.arguments.console).await?;
        self.switch_on(&console).await?;
        self.show("mirrored", MIRRORED, Side::Source).await?;

        self.edit(&console, "reads", "{ source = 50, target = 50 }").await?;
        let before = self.shared.tally().reads[1];
        self.show("reads 50/50", MIRRORED, Side::Source).await?;
        let answered = self.shared.tally().reads[1] - before;
        self.verdict(
            answered > 0,
            format!("the target answered {answered} reads of documents while writes were mirrored"),
        );
        self.compare("while mirrored").await?;
        self.judge_errors("while mirroring was switched on, and since", (errors, dropped));

        self.lose_the_target().await?;
        self.bring_it_back().await?;
        let (before, _) = self.troubles();
        self.move_the_lead(&console, Side::Target).await?;
        self.move_the_lead(&console, Side::Source).await?;
        self.judge_errors("while the lead of writes moved there and back", before);
        let wrong = self.troubles().1 - wrong;
        self.verdict(
            wrong == 0,
            format!("wrong rows, and own writes not seen again, while mirrored: {wrong}"),
        );
        Ok(())
    }

    /// Errors and dropped connections; wrong rows.
    pub(crate) fn troubles(&self) -> ((u64, u64), u64) {
        let tally = self.shared.tally();
        ((tally.errors, tally.dropped), tally.wrong)
    }

    /// Nobody was given an error since then.
    pub(crate) fn judge_errors(&mut self, when: &str, (errors, dropped): (u64, u64)) {
        let now = self.troubles().0;
        let (errors, dropped) = (now.0 - errors, now.1 - dropped);
        self.verdict(
            errors == 0 && dropped == 0,
            format!("errors seen by clients {when}: {errors}, connections dropped: {dropped}"),
        );
    }

    /// Makes the tables equal while nobody writes, installs capture, and sets `mirror`.
    async fn switch_on(&mut self, console: &Client) -> Result<()> {
        self.view.say("\nThe target lacks what was written so far. On the console: PAUSE");
        let began = Instant::now();
        console.simple_query("PAUSE").await?;
        let script = format!(
            "set -e\nexport SOURCE={} TARGET={}\n{COPY}",
            quoted(&self.arguments.source),
            quoted(&self.arguments.target)
        );
        shell(script).await?;
        self.view.say(&format!("tables copied to the target after {} ms", began.elapsed().as_millis()));

        // The file that will be: what it needs is there before it is in force.
        let next = self.arguments.config.with_extension("next.toml");
        std::fs::copy(&self.arguments.config, &next)?;
        let line = edit::set(&next, None, "mirror", "\"journaled\"")?;
        let install = format!(
            "{} mirror install --config {}",
            quoted(&self.arguments.crossfade.display().to_string()),
            quoted(&next.display().to_string())
        );
        let said = shell(install).await?;
        for line in said.lines().filter(|line| !line.starts_with("note:")) {
            self.view.say(&format!("    {line}"));
        }
        std::fs::rename(&next, &self.arguments.config)?;
        console.simple_query("RELOAD").await?;
        console.simple_query("RESUME").await?;
        self.view.say(&format!(
            "proxy.toml: {line}, then RESUME; clients waited {} ms",
            began.elapsed().as_millis()
        ));
        Ok(())
    }

    /// Sets `key` of all repositories, and waits until it is in force.
    pub(crate) async fn edit(&mut self, console: &Client, key: &str, value: &str) -> Result<()> {
        let line = edit::set(&self.arguments.config, None, key, value)?;
        console.simple_query("RELOAD").await?;
        self.view.say(&format!("\nproxy.toml, all three repositories: {line}"));
        self.all_move_on().await
    }

    /// Whoever is inside a transaction on the target at that moment loses it with its connection. Nobody else notices.
    async fn lose_the_target(&mut self) -> Result<()> {
        self.view.say("\nThe target dies (immediate shutdown, as a crash would)");
        let (before, _) = self.troubles();
        shell(self.arguments.stop_target.clone()).await?;
        self.all_move_on().await?;
        let (now, _) = self.troubles();
        let cut = now.1 - before.1;
        let clients = self.arguments.clients;
        self.verdict(
            cut <= clients as u64,
            format!("transactions that were on the target when it died, and ended with it: {cut}, of {clients} clients"),
        );

        let transactions = self.shared.tally().transactions;
        let journaled = Metrics::scrape(&self.arguments.http).await?.mirrored(Side::Source)[1];
        self.show("target down", DOWN, Side::Source).await?;
        let metrics = Metrics::scrape(&self.arguments.http).await?;
        let [_, behind, _] = metrics.journal(Side::Source);
        let transactions = self.shared.tally().transactions - transactions;
        let journaled = metrics.mirrored(Side::Source)[1] - journaled;
        self.verdict(
            transactions > 0 && behind > 0.0 && journaled > 0.0,
            format!("without the target clients went on: {transactions} transactions, {journaled} of them left to the journal"),
        );
        self.judge_errors("while the target was down", now);
        Ok(())
    }

    async fn bring_it_back(&mut self) -> Result<()> {
        let began = Instant::now();
        let (before, _) = self.troubles();
        shell(self.arguments.start_target.clone()).await?;
        self.view.say(&format!("\nThe target is back after {} ms", began.elapsed().as_millis()));
        self.servers[1] = Server::connect(&self.arguments.target).await?;
        let up = Instant::now();
        let mut look = self.look(Side::Source).await?;
        while look.journal[1] > 0.0 && up.elapsed() < Duration::from_secs(30) {
            tokio::time::sleep(Duration::from_millis(500)).await;
            let now = self.look(Side::Source).await?;
            self.line("draining", &look, &now);
            look = now;
        }
        let took = up.elapsed().as_millis();
        self.verdict(
            look.journal[1] == 0.0,
            format!(
                "the journal drained within {took} ms of the target's return, while clients went on writing"
            ),
        );
        self.show("caught up", BACK, Side::Source).await?;
        self.compare("after the target was lost and came back").await?;
        self.judge_errors("while the target came back, and since", before);
        Ok(())
    }

    /// Writes are led by the other side from now on, under load.
    async fn move_the_lead(&mut self, console: &Client, to: Side) -> Result<()> {
        let value = match to {
            Side::Source => "{ source = 100, target = 0 }",
            Side::Target => "{ source = 0, target = 100 }",
        };
        let began = Instant::now();
        self.edit(console, "writes", value).await?;
        while !(self.servers[0].is_led_by(to).await? && self.servers[1].is_led_by(to).await?) {
            if began.elapsed() > Duration::from_secs(15) {
                return Err(format!("the {to} does not lead 15 s after the edit").into());
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        self.view.say(&format!(
            "both servers say that the {to} leads, {} ms after the edit",
            began.elapsed().as_millis()
        ));
        let before = Metrics::scrape(&self.arguments.http).await?.mirrored(to)[0];
        self.show(&format!("{to} leads"), MOVED, to).await?;
        let led = Metrics::scrape(&self.arguments.http).await?.mirrored(to)[0] - before;
        self.verdict(led > 0.0, format!("the {to} led {led} transactions, and the other side has them"));
        self.compare(&format!("led by the {to}")).await
    }

    /// Lets the application rest, waits for an empty journal, and compares every row of every table.
    pub(crate) async fn compare(&mut self, when: &str) -> Result<()> {
        self.rest().await?;
        self.wait_for_metrics("empty journals", |m| Side::BOTH.iter().all(|&s| m.journal(s)[0] == 0.0))
            .await?;
        let [source, target] = [self.servers[0].rows().await?, self.servers[1].rows().await?];
        let counts: Vec<_> = source.iter().map(|(name, rows)| format!("{name} {}", rows.len())).collect();
        let differ: Vec<_> =
            source.iter().zip(&target).filter(|(a, b)| a != b).map(|(a, _)| a.0.as_str()).collect();
        let equal = source == target;
        let differ = if equal { String::new() } else { format!("; tables that differ: {differ:?}") };
        let counts = counts.join(", ");
        self.verdict(equal, format!("{when}, both servers hold the same rows: {counts}{differ}"));
        let acknowledged = {
            let tally = self.shared.tally();
            [tally.logins, tally.logins, tally.seen, tally.notes]
        };
        let there = [self.servers[0].writes().await?, self.servers[1].writes().await?];
        self.verdict(
            there == [acknowledged; 2],
            format!("{when}, every acknowledged write is on both, once: {there:?} = {acknowledged:?}"),
        );
        self.work();
        Ok(())
    }

    /// A line a second for so many percent of the time.
    async fn show(&mut self, what: &str, percent: u32, lead: Side) -> Result<()> {
        let end = Instant::now() + self.arguments.share(percent);
        self.view.say(HEADER);
        let mut look = self.look(lead).await?;
        while Instant::now() < end {
            tokio::time::sleep(Duration::from_secs(1).min(end - Instant::now())).await;
            let now = self.look(lead).await?;
            self.line(what, &look, &now);
            look = now;
        }
        Ok(())
    }

    async fn look(&self, lead: Side) -> Result<Look> {
        let metrics = Metrics::scrape(&self.arguments.http).await?;
        let tally = self.shared.tally();
        Ok(Look {
            at: Instant::now(),
            transactions: tally.transactions,
            reads: tally.reads,
            errors: tally.errors + tally.dropped,
            mirrored: metrics.mirrored(lead),
            journal: metrics.journal(lead),
        })
    }

    fn line(&mut self, what: &str, before: &Look, now: &Look) {
        #[expect(clippy::cast_precision_loss, reason = "counts of a second")]
        let rate = (now.transactions - before.transactions) as f64 / (now.at - before.at).as_secs_f64();
        let reads = [0, 1].map(|side| now.reads[side] - before.reads[side]);
        let mirrored = [0, 1].map(|n| now.mirrored[n] - before.mirrored[n]);
        let [rows, behind, oldest] = now.journal;
        self.view.say(&format!(
            "{what:<13}  {rate:>9.0}   {:>6} / {:<6}   {:>11} / {:<9}   {rows:>7}   {behind:>6}   {oldest:>8.1}   {:>6}",
            reads[0], reads[1], mirrored[0], mirrored[1], now.errors
        ));
    }
}

const HEADER: &str = "                transact./s   reads src / tgt   writes to both / journal   journal   behind   oldest s   errors";

/// What can be seen at one moment.
struct Look {
    at: Instant,
    transactions: u64,
    reads: [u64; 2],
    errors: u64,
    mirrored: [f64; 2],
    journal: [f64; 3],
}

/// Parents first.
const COPY: &str = r#"tables="documents document_versions document_events users user_notes user_sessions organizations organization_members"
psql -Xq "$TARGET" -c "TRUNCATE $(echo $tables | tr ' ' ',')"
for t in $tables; do psql -Xq "$SOURCE" -c "COPY $t TO STDOUT" | psql -Xq "$TARGET" -c "COPY $t FROM STDIN"; done"#;

pub(crate) async fn console(address: &str) -> Result<Client> {
    let (client, connection) = tokio_postgres::connect(address, NoTls).await?;
    tokio::spawn(connection);
    Ok(client)
}

pub(crate) fn quoted(word: &str) -> String {
    format!("'{}'", word.replace('\'', r"'\''"))
}

/// Runs a script while the application goes on; its output.
pub(crate) async fn shell(script: String) -> Result<String> {
    let mut command = Command::new("sh");
    command.arg("-c").arg(&script).current_dir("/");
    let done = tokio::task::spawn_blocking(move || command.output()).await??;
    let said = String::from_utf8_lossy(&done.stdout).into_owned();
    if !done.status.success() {
        return Err(format!("{script}\n{said}{}", String::from_utf8_lossy(&done.stderr)).into());
    }
    Ok(said)
}
