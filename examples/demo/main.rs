//! The demo's application and its conductor; `tools/demo` sets the stage and calls this.
//!
//! Sixteen clients work through crossfade while `proxy.toml` is edited. The claim is then proven by
//! witnesses that crossfade does not control: the clients' own count of who answered, and both
//! servers' `pg_stat_statements`.

mod observe;
mod tally;
mod view;
mod workload;

use std::{
    path::{Path, PathBuf},
    process::{Command, ExitCode},
    sync::{Arc, atomic::Ordering::Relaxed},
    time::{Duration, Instant},
};

use clap::Parser;
use observe::{Activity, Metrics, Result, Server};
use tally::{NO_STEP, Shared, percent};
use view::View;

/// Percent of the document reads on the target, step by step.
const STEPS: [u8; 5] = [0, 10, 50, 100, 0];
/// The step during which somebody makes a typing mistake.
const MISTAKE_AT: usize = 2;

#[derive(Parser)]
struct Arguments {
    /// Connection string of the application, to crossfade.
    #[arg(long)]
    proxy: String,
    /// Superuser's connection string to the source.
    #[arg(long)]
    source: String,
    /// Superuser's connection string to the target.
    #[arg(long)]
    target: String,
    /// crossfade's configuration file, which is edited.
    #[arg(long)]
    config: PathBuf,
    /// Address of crossfade's HTTP endpoint.
    #[arg(long)]
    http: String,
    /// The crossfade binary, for `crossfade check`.
    #[arg(long)]
    crossfade: PathBuf,
    /// Duration of all steps together.
    #[arg(long, default_value_t = 50)]
    seconds: u64,
    /// Connections of the application.
    #[arg(long, default_value_t = 16)]
    clients: usize,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime can be made");
    match runtime.block_on(Demo::run(arguments)) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("demo: {error}");
            ExitCode::FAILURE
        }
    }
}

struct Demo {
    arguments: Arguments,
    shared: Arc<Shared>,
    servers: [Server; 2],
    view: View,
    /// By step, from `pg_stat_statements` and from crossfade's metrics: document reads by side.
    counted: Vec<[[u64; 2]; 2]>,
    verdicts: Vec<(bool, String)>,
}

impl Demo {
    async fn run(arguments: Arguments) -> Result<bool> {
        let servers = [Server::connect(&arguments.source).await?, Server::connect(&arguments.target).await?];
        let shared = Arc::new(Shared::new(arguments.clients, STEPS.len()));
        let mut demo =
            Self { arguments, shared, servers, view: View::new(), counted: Vec::new(), verdicts: Vec::new() };
        let broken = demo.broken_sessions().await?;

        let clients: Vec<_> = (0..demo.arguments.clients)
            .map(|n| {
                tokio::spawn(workload::client(n, demo.arguments.proxy.clone(), Arc::clone(&demo.shared)))
            })
            .collect();
        demo.view.say(&format!(
            "{} clients are at work. Editing {}:",
            clients.len(),
            demo.arguments.config.display()
        ));
        for step in 0..STEPS.len() {
            demo.step(step).await?;
        }
        demo.shared.stop.store(true, Relaxed);
        for client in clients {
            client.await?;
        }

        demo.judge_steps();
        demo.judge_totals(broken).await?;
        demo.report().await
    }

    /// Edits the file, waits for the edit to hold, then watches for a fifth of the time.
    async fn step(&mut self, step: usize) -> Result<()> {
        let percent = STEPS[step];
        let line = set_weight(&self.arguments.config, percent)?;
        self.view.say(&format!("\nproxy.toml: {line}"));
        let edited = Instant::now();
        let wanted = |metrics: &Metrics| {
            metrics.target_weight().is_some_and(|now| (now - f64::from(percent)).abs() < 0.001)
        };
        self.wait_for_metrics("the edit to take effect", wanted).await?;
        self.view.say(&format!("in force after {} ms", edited.elapsed().as_millis()));
        // A transaction keeps the policy it began with: count from the next one of every client.
        self.all_move_on().await?;

        let before = self.witnesses().await?;
        self.shared.step.store(step, Relaxed);
        let duration =
            Duration::from_secs(self.arguments.seconds) / u32::try_from(STEPS.len()).expect("a few");
        if step == MISTAKE_AT {
            self.watch(step, duration / 2).await;
            self.mistake().await?;
            self.watch(step, duration / 2).await;
        } else {
            self.watch(step, duration).await;
        }
        self.shared.step.store(NO_STEP, Relaxed);
        self.all_move_on().await?;
        let after = self.witnesses().await?;
        self.counted
            .push([0, 1].map(|witness| [0, 1].map(|side| after[witness][side] - before[witness][side])));
        Ok(())
    }

    async fn watch(&mut self, step: usize, duration: Duration) {
        let end = tokio::time::Instant::now() + duration;
        let mut tick = tokio::time::interval(Duration::from_secs(1));
        tick.tick().await;
        // The last look is at the end itself.
        while tokio::time::timeout_at(end - Duration::from_millis(300), tick.tick()).await.is_ok() {
            self.view.refresh(&self.shared.tally(), &STEPS, step);
        }
        tokio::time::sleep_until(end).await;
        self.view.refresh(&self.shared.tally(), &STEPS, step);
    }

    /// A typing mistake in the file: refused with its line and a suggestion, while all goes on as before.
    async fn mistake(&mut self) -> Result<()> {
        let good = std::fs::read_to_string(&self.arguments.config)?;
        let refused = Metrics::scrape(&self.arguments.http).await?.refused_reloads();
        let at = good.lines().position(|line| line.starts_with("reads = ")).ok_or("no line with reads")? + 1;
        write(&self.arguments.config, &good.replacen("\nreads = ", "\nraeds = ", 1))?;
        self.view.say(&format!(
            "\nproxy.toml: a typing mistake in line {at}: \"raeds = ...\". crossfade check says:"
        ));
        let check = Command::new(&self.arguments.crossfade)
            .arg("check")
            .arg("--config")
            .arg(&self.arguments.config)
            .output()?;
        let text = String::from_utf8_lossy(&check.stdout) + String::from_utf8_lossy(&check.stderr);
        for line in text.lines().filter(|line| !line.trim().is_empty()) {
            self.view.say(&format!("    {line}"));
        }
        let named = text.contains(&format!("line {at}")) || text.contains(&format!(":{at}:"));
        let told = !check.status.success() && named && text.contains("reads");
        self.verdict(told, "crossfade check names the line of the mistake and what was meant");
        let counted =
            self.wait_for_metrics("the mistake to be refused", |m| m.refused_reloads() > refused).await;
        self.verdict(counted.is_ok(), "the running crossfade refused the file and went on with the old one");
        write(&self.arguments.config, &good)?;
        Ok(())
    }

    /// Document reads by side as the servers and as crossfade count them.
    async fn witnesses(&self) -> Result<[[u64; 2]; 2]> {
        let [source, target] = &self.servers;
        let servers = [source.document_reads().await?, target.document_reads().await?];
        Ok([servers, Metrics::scrape(&self.arguments.http).await?.document_reads()])
    }

    async fn broken_sessions(&self) -> Result<i64> {
        Ok(self.servers[0].activity().await?.broken_sessions
            + self.servers[1].activity().await?.broken_sessions)
    }

    async fn wait_for_metrics(&self, what: &str, reached: impl Fn(&Metrics) -> bool) -> Result<()> {
        for _ in 0..500 {
            if reached(&Metrics::scrape(&self.arguments.http).await?) {
                return Ok(());
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Err(format!("waited 10 s in vain for {what}").into())
    }

    async fn all_move_on(&self) -> Result<()> {
        self.shared.generation.fetch_add(1, Relaxed);
        for _ in 0..2000 {
            if self.shared.all_moved_on() {
                return Ok(());
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let samples = self.shared.tally().samples.join("\n  ");
        Err(format!("a client has been stuck for 10 s; errors so far:\n  {samples}").into())
    }

    fn verdict(&mut self, held: bool, claim: impl Into<String>) {
        self.verdicts.push((held, claim.into()));
    }

    fn judge_steps(&mut self) {
        let shared = Arc::clone(&self.shared);
        let tally = shared.tally();
        let mut worst: [Option<String>; 3] = Default::default();
        for ((step, &configured), counted) in tally.steps.iter().zip(&STEPS).zip(&self.counted) {
            let allowed = tolerance(configured, step.draws);
            for (witness, reads) in [step.reads, counted[0], counted[1]].into_iter().enumerate() {
                let measured = percent(reads);
                if measured.is_none_or(|measured| (measured - f64::from(configured)).abs() > allowed) {
                    worst[witness] = Some(format!(
                        ": {configured} % configured, {} measured, +-{allowed:.2} allowed",
                        measured.map_or_else(|| "nothing".to_owned(), |measured| format!("{measured:.2} %"))
                    ));
                }
            }
        }
        for (witness, outlier) in
            ["clients", "servers' pg_stat_statements", "metrics of crossfade"].iter().zip(worst)
        {
            let claim =
                format!("every share is as configured, by the {witness}{}", outlier.as_deref().unwrap_or(""));
            self.verdict(outlier.is_none(), claim);
        }
    }

    async fn judge_totals(&mut self, broken_before: i64) -> Result<()> {
        let [source, target] = &self.servers;
        let servers = [source.document_reads().await?, target.document_reads().await?];
        let (written, strayed) = (source.writes().await?, target.writes().await?);
        let broken = self.broken_sessions().await? - broken_before;
        let shared = Arc::clone(&self.shared);
        let tally = shared.tally();
        let clients = tally.reads;
        self.verdict(
            servers == clients && clients[1] > 0,
            format!("the servers executed exactly the reads that clients saw answered: {servers:?} = {clients:?} (source, target)"),
        );
        let acknowledged = [tally.logins, tally.logins, tally.seen];
        self.verdict(
            written == acknowledged && strayed == [0, 0, 0],
            format!("every acknowledged write is on the source, once: {written:?} = {acknowledged:?}; on the target {strayed:?}"),
        );
        self.verdict(tally.wrong == 0, format!("wrong rows seen by clients: {}", tally.wrong));
        self.verdict(
            tally.errors == 0,
            format!("errors seen by clients: {} in {} transactions", tally.errors, tally.transactions),
        );
        self.verdict(
            tally.dropped == 0 && tally.reconnects == 0 && broken == 0,
            format!(
                "connections dropped: {}, reconnects: {}, sessions broken at the servers: {broken}",
                tally.dropped, tally.reconnects
            ),
        );
        Ok(())
    }

    async fn report(&mut self) -> Result<bool> {
        let mut lines = vec![String::new(), view::SUMMARY.to_owned()];
        {
            let tally = self.shared.tally();
            for (number, ((step, configured), counted)) in
                tally.steps.iter().zip(STEPS).zip(&self.counted).enumerate()
            {
                lines.push(view::summary(number + 1, configured, step, counted));
            }
            lines.extend(tally.samples.iter().map(|sample| format!("seen by a client: {sample}")));
        }
        for (server, side) in self.servers.iter().zip(crossfade::Side::BOTH) {
            let Activity { version, commits, rollbacks, .. } = server.activity().await?;
            lines.push(format!("{side}: Postgres {version}, {commits} commits, {rollbacks} rollbacks"));
        }
        lines.push(String::new());
        let verdicts = self
            .verdicts
            .iter()
            .map(|(held, claim)| format!("{}  {claim}", if *held { "ok    " } else { "FAILED" }));
        lines.extend(verdicts);
        self.view.say(&lines.join("\n"));
        Ok(self.verdicts.iter().all(|(held, _)| *held))
    }
}

/// Percentage points that chance may do at `draws` throws of the dice: four standard deviations (1 in 16,000), of at
/// most two reads a throw. None at 0 and 100 %.
fn tolerance(percent: u8, draws: u64) -> f64 {
    let share = f64::from(percent) / 100.0;
    #[expect(clippy::cast_precision_loss, reason = "counts of one minute")]
    let draws = draws.max(1) as f64;
    400.0 * (2.0 * share * (1.0 - share) / draws).sqrt()
}

/// Replaces the read weights of the repository "document"; returns the new line.
fn set_weight(config: &Path, target: u8) -> Result<String> {
    let text = std::fs::read_to_string(config)?;
    let old = text
        .lines()
        .skip_while(|line| *line != "name = \"document\"")
        .find(|line| line.starts_with("reads = "));
    let old = old.ok_or("the configuration has no [[repository]] \"document\"")?;
    let new = format!("reads = {{ source = {}, target = {target} }}", 100 - target);
    if old != new {
        let at = text.find("name = \"document\"").expect("found above");
        write(config, &(text[..at].to_owned() + &text[at..].replacen(old, &new, 1)))?;
    }
    Ok(new)
}

/// As editors do: a new file under the old name, with the old one's mode.
fn write(config: &Path, text: &str) -> Result<()> {
    let new = config.with_extension("new");
    std::fs::write(&new, text)?;
    std::fs::set_permissions(&new, std::fs::metadata(config)?.permissions())?;
    std::fs::rename(&new, config)?;
    Ok(())
}
