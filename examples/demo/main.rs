//! The demo's application and its conductor; `tools/demo` sets the stage and calls this.
//!
//! Sixteen clients work through crossfade while `proxy.toml` is edited: reads are shifted ([`reads`]), then writes are
//! mirrored and the target dies ([`mirror`]), at last the target answers wrongly and slowly and is found out ([`shadow`]). The claims are proven by witnesses that crossfade does not control: the
//! clients' own count of who answered and what was acknowledged, both servers' `pg_stat_statements`, and their rows.

mod catalog;
mod edit;
mod mirror;
mod observe;
mod reads;
mod shadow;
mod tally;
mod view;
mod workload;

use std::{
    path::PathBuf,
    process::ExitCode,
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use clap::Parser;
use observe::{Metrics, Result, Server};
use reads::STEPS;
use tally::Shared;
use view::View;

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
    /// Connection string of the console.
    #[arg(long)]
    console: String,
    /// Command that ends the target at once, for `sh -c`.
    #[arg(long)]
    stop_target: String,
    /// Command that starts it again.
    #[arg(long)]
    start_target: String,
    /// Duration of the first two parts.
    #[arg(long, default_value_t = 60)]
    seconds: u64,
    /// How long equal sides are compared, at least; the third part takes about four times that.
    #[arg(long, default_value_t = 4)]
    compare_seconds: u64,
    /// File for `crossfade report --html`.
    #[arg(long)]
    report: PathBuf,
    /// Command that takes a picture of the page when it has something to show.
    #[arg(long)]
    picture: Option<String>,
    /// Connections of the application.
    #[arg(long, default_value_t = 16)]
    clients: usize,
}

impl Arguments {
    /// So many percent of the whole time.
    fn share(&self, percent: u32) -> Duration {
        Duration::from_secs(self.seconds) * percent / 100
    }
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
        demo.shift_reads().await?;
        demo.mirror().await?;
        demo.shadow().await?;
        demo.shared.stop.store(true, Relaxed);
        for client in clients {
            client.await?;
        }
        Ok(demo.report())
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

    /// Waits until every client has ended its unit of work and begins no other.
    async fn rest(&mut self) -> Result<()> {
        self.shared.hold.store(true, Relaxed);
        for _ in 0..2000 {
            if self.shared.resting.load(Relaxed) == self.arguments.clients {
                return Ok(());
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        Err("a client has been stuck for 10 s".into())
    }

    fn work(&self) {
        self.shared.hold.store(false, Relaxed);
    }

    fn report(&mut self) -> bool {
        let samples: Vec<_> =
            self.shared.tally().samples.iter().map(|s| format!("seen by a client: {s}")).collect();
        let word = |held: bool| if held { "ok    " } else { "FAILED" };
        let verdicts = self.verdicts.iter().map(|(held, claim)| format!("{}  {claim}", word(*held)));
        let lines: Vec<_> = [String::new()].into_iter().chain(samples).chain(verdicts).collect();
        self.view.say(&lines.join("\n"));
        self.verdicts.iter().all(|(held, _)| *held)
    }
}
