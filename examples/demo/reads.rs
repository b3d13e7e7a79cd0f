//! First part: reads of one repository are shifted to the target and back. Nothing is mirrored yet.

use std::{
    process::Command,
    sync::{Arc, atomic::Ordering::Relaxed},
    time::{Duration, Instant},
};

use crate::{
    Demo, edit,
    observe::{Activity, Metrics, Result},
    tally::{NO_STEP, percent},
    view,
};

/// Percent of the document reads on the target, step by step.
pub(crate) const STEPS: [u8; 5] = [0, 10, 50, 100, 0];
/// The step during which somebody makes a typing mistake.
const MISTAKE_AT: usize = 2;
/// Parts of `--seconds` that this takes, in percent.
const READS: u32 = 55;

impl Demo {
    /// The steps, and what they prove.
    pub(crate) async fn shift_reads(&mut self) -> Result<()> {
        let broken = self.broken_sessions().await?;
        for step in 0..STEPS.len() {
            self.step(step).await?;
        }
        self.rest().await?;
        self.judge_steps();
        self.judge_totals(broken).await?;
        self.report_reads().await?;
        self.work();
        Ok(())
    }

    /// Edits the file, waits for the edit to hold, then watches for a fifth of the time.
    async fn step(&mut self, step: usize) -> Result<()> {
        let percent = STEPS[step];
        let value = format!("{{ source = {}, target = {percent} }}", 100 - percent);
        let line = edit::set(&self.arguments.config, Some("document"), "reads", &value)?;
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
        let duration = self.arguments.share(READS) / u32::try_from(STEPS.len()).expect("a few");
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
        edit::write(&self.arguments.config, &good.replacen("\nreads = ", "\nraeds = ", 1))?;
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
        edit::write(&self.arguments.config, &good)?;
        Ok(())
    }

    /// Document reads by side as the servers and as crossfade count them.
    async fn witnesses(&self) -> Result<[[u64; 2]; 2]> {
        let [source, target] = &self.servers;
        let servers = [source.document_reads().await?, target.document_reads().await?];
        Ok([servers, Metrics::scrape(&self.arguments.http).await?.document_reads()])
    }

    pub(crate) async fn broken_sessions(&self) -> Result<i64> {
        Ok(self.servers[0].activity().await?.broken_sessions
            + self.servers[1].activity().await?.broken_sessions)
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
        let acknowledged = [tally.logins, tally.logins, tally.seen, tally.notes];
        self.verdict(
            written == acknowledged && strayed == [0; 4],
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

    async fn report_reads(&mut self) -> Result<()> {
        let mut lines = vec![String::new(), view::SUMMARY.to_owned()];
        {
            let tally = self.shared.tally();
            let steps = tally.steps.iter().zip(STEPS).zip(&self.counted).enumerate();
            for (number, ((step, configured), counted)) in steps {
                lines.push(view::summary(number + 1, configured, step, counted));
            }
        }
        for (server, side) in self.servers.iter().zip(crossfade::Side::BOTH) {
            let Activity { version, commits, rollbacks, .. } = server.activity().await?;
            lines.push(format!("{side}: Postgres {version}, {commits} commits, {rollbacks} rollbacks"));
        }
        self.view.say(&lines.join("\n"));
        Ok(())
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
