//! The `crossfade` command: arguments, exit codes; everything else is in the library.

use std::{
    io::{Read, Write},
    path::PathBuf,
    process::ExitCode,
};

use clap::{Args, Parser, Subcommand, ValueEnum};
use crossfade::{cli, config::reload};

/// Moves an application between two Postgres databases, one repository of tables at a time.
#[derive(Parser)]
#[command(version, about)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Serve clients until SIGTERM.
    Serve {
        /// The configuration.
        #[arg(long, short, default_value = "proxy.toml", env = "CROSSFADE_CONFIG")]
        config: PathBuf,
    },
    /// Report every mistake of the configuration, and what both databases say to it.
    ///
    /// Exit status: 0 fine, 1 mistakes, 2 a backend cannot be reached.
    Check {
        /// The configuration.
        #[arg(long, short, default_value = "proxy.toml", env = "CROSSFADE_CONFIG")]
        config: PathBuf,
        /// Look at the file alone.
        #[arg(long)]
        no_connect: bool,
        /// Print one JSON object.
        #[arg(long)]
        json: bool,
    },
    /// Print for each statement of a file its kind, tables and repositories, where it would go and why.
    Route {
        /// The configuration.
        #[arg(long, short, default_value = "proxy.toml", env = "CROSSFADE_CONFIG")]
        config: PathBuf,
        /// The statements; `-` is standard input.
        #[arg(long, short)]
        file: PathBuf,
        /// Do not ask the databases what names mean.
        #[arg(long)]
        no_connect: bool,
        /// Schemas that unqualified names are searched in, separated by commas.
        #[arg(long, default_value = "public")]
        search_path: String,
        /// Print one JSON array.
        #[arg(long)]
        json: bool,
    },
    /// Install, look at or remove what mirroring needs on both databases: the schema `crossfade` and its triggers.
    ///
    /// Exit status: 0 fine, 1 something cannot be mirrored or is missing, 2 a backend cannot be reached or refused.
    Mirror(Mirror),
    /// Print what shadow reads of a running instance have found: outcomes, rates, latencies, divergences.
    ///
    /// Exit status: 0 no divergence, 1 divergences, 2 the instance cannot be asked, 3 nothing was compared.
    Report(Report),
}

#[derive(Args)]
struct Report {
    /// The configuration; its `admin.http` is asked.
    #[arg(long, short, default_value = "proxy.toml", env = "CROSSFADE_CONFIG")]
    config: PathBuf,
    /// Ask there instead: http://host:port
    #[arg(long)]
    url: Option<String>,
    /// Print one JSON object.
    #[arg(long, conflicts_with = "html")]
    json: bool,
    /// Write one self-contained page to this file.
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
}

#[derive(Args)]
struct Mirror {
    /// What to do.
    action: MirrorAction,
    /// The configuration.
    #[arg(long, short, default_value = "proxy.toml", env = "CROSSFADE_CONFIG")]
    config: PathBuf,
    /// This repository alone.
    #[arg(long, short)]
    repository: Option<String>,
    /// Wait at most this many seconds for the locks of one table.
    #[arg(long, default_value_t = 30)]
    patience: u64,
    /// Remove even when the journal holds rows that are not shipped yet; they are lost.
    #[arg(long)]
    force: bool,
}

#[derive(Clone, Copy, ValueEnum)]
enum MirrorAction {
    /// Install, or bring up to date.
    Install,
    /// Look, change nothing.
    Status,
    /// Take the triggers off, and the schema with the last repository.
    Remove,
}

fn main() -> ExitCode {
    let environment: Vec<(String, String)> = std::env::vars_os()
        .filter_map(|(n, v)| Some((n.into_string().ok()?, v.into_string().ok()?)))
        .collect();
    match Arguments::parse().command {
        Command::Serve { config } => match crossfade::proxy::serve(&config, environment) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => fail(&error.to_string()),
        },
        Command::Check { config, no_connect, json } => {
            let mut out = std::io::stdout().lock();
            match cli::check::run(&config, &environment, !no_connect, json, &mut out) {
                Ok(code) => ExitCode::from(code),
                Err(error) => fail(&error.to_string()),
            }
        }
        Command::Mirror(arguments) => mirror(&arguments, &environment),
        Command::Report(arguments) => report(arguments, &environment),
        Command::Route { config, file, no_connect, search_path, json } => {
            let checked = match reload::check_file(&config, &environment).config {
                Ok(config) => config,
                Err(mistakes) => {
                    let all: Vec<_> = mistakes.iter().map(ToString::to_string).collect();
                    return fail(&all.join("\n"));
                }
            };
            let sql = match read(&file) {
                Ok(sql) => sql,
                Err(error) => return fail(&format!("{}: {error}", file.display())),
            };
            let catalog =
                if no_connect { Ok(crossfade::catalog::Catalog::default()) } else { cli::catalog(&checked) };
            let catalog = match catalog {
                Ok(catalog) => catalog,
                Err(error) => {
                    return fail(&format!("{error}\nWith --no-connect the databases are not asked."));
                }
            };
            let path: Vec<String> = search_path.split(',').map(|s| s.trim().to_owned()).collect();
            let format = if json { cli::route::Format::Json } else { cli::route::Format::Table };
            let text = cli::route::run(&sql, &checked.policy, &catalog, Some(&path), format);
            match std::io::stdout().lock().write_all(text.as_bytes()) {
                Ok(()) => ExitCode::SUCCESS,
                Err(_) => ExitCode::FAILURE,
            }
        }
    }
}

fn mirror(arguments: &Mirror, environment: &[(String, String)]) -> ExitCode {
    let Mirror { action, config, repository, patience, force } = arguments;
    let action = match action {
        MirrorAction::Install => cli::mirror::Action::Install,
        MirrorAction::Status => cli::mirror::Action::Status,
        MirrorAction::Remove => cli::mirror::Action::Remove { force: *force },
    };
    let patience = std::time::Duration::from_secs(*patience);
    let mut out = std::io::stdout().lock();
    match cli::mirror::run(config, environment, action, repository.as_deref(), patience, &mut out) {
        Ok(code) => ExitCode::from(code),
        Err(error) => fail(&error.to_string()),
    }
}

fn report(arguments: Report, environment: &[(String, String)]) -> ExitCode {
    let Report { config, url, json, html } = arguments;
    let format = match html {
        Some(file) => cli::report::Format::Html(file),
        None if json => cli::report::Format::Json,
        None => cli::report::Format::Table,
    };
    let mut out = std::io::stdout().lock();
    match cli::report::run(&config, environment, url.as_deref(), &format, &mut out) {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            eprintln!("crossfade: {error}");
            ExitCode::from(cli::report::FAILED)
        }
    }
}

fn read(file: &PathBuf) -> std::io::Result<String> {
    if file.as_os_str() == "-" {
        let mut text = String::new();
        std::io::stdin().read_to_string(&mut text)?;
        return Ok(text);
    }
    std::fs::read_to_string(file)
}

fn fail(message: &str) -> ExitCode {
    eprintln!("crossfade: {message}");
    ExitCode::FAILURE
}
