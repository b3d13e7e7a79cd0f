//! `crossfade report`: the evidence of a running instance, as a table, JSON or one HTML file.

use std::{
    fmt::{self, Write as _},
    fs,
    io::{self, Read, Write},
    net::{TcpStream, ToSocketAddrs},
    path::{Path, PathBuf},
    time::Duration,
};

use crate::{
    admin::{
        page,
        snapshot::{Figures, Quantiles, Snapshot},
    },
    config::reload,
    report::divergence::Writes,
};

/// Comparisons were made, and none diverged.
pub const EQUAL: u8 = 0;
/// There are divergences.
pub const DIVERGES: u8 = 1;
/// The instance cannot be asked, or the answer not be written.
pub const FAILED: u8 = 2;
/// Nothing was compared that says whether the sides are equal.
pub const NOTHING: u8 = 3;

/// What to print.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Format {
    /// For people at a terminal.
    Table,
    /// One object, as `/state` answers it.
    Json,
    /// One file that loads nothing from elsewhere.
    Html(PathBuf),
}

/// Why there is no report.
#[derive(Debug, thiserror::Error)]
pub enum ReportError {
    /// The configuration says no address.
    #[error("{0}\nWith --url the configuration is not read.")]
    Address(String),
    /// Not of the form that is understood.
    #[error("{0:?} is not of the form http://host:port")]
    Url(String),
    /// Nobody answers, or the connection broke.
    #[error("could not ask {0}: {1}")]
    Ask(String, io::Error),
    /// Somebody else answers, or another version.
    #[error("{0} does not answer as crossfade does: {1}")]
    Answer(String, String),
    /// The report cannot be written.
    #[error("could not write the report: {0}")]
    Write(#[from] io::Error),
}

/// Asks the instance at `url`, or at `admin.http` of the configuration, and writes the report to `out` (a report in
/// HTML to its file). Returns the exit code.
///
/// # Errors
/// When the instance cannot be asked or the report not be written.
pub fn run(
    config: &Path,
    environment: &[(String, String)],
    url: Option<&str>,
    format: &Format,
    out: &mut dyn Write,
) -> Result<u8, ReportError> {
    let host = match url {
        Some(url) => host_of(url)?,
        None => configured(config, environment)?,
    };
    let snapshot = ask(&host)?;
    let told = |e: serde_json::Error| ReportError::Write(io::Error::other(e));
    match format {
        Format::Table => out.write_all(table(&snapshot).as_bytes())?,
        Format::Json => writeln!(out, "{}", serde_json::to_string_pretty(&snapshot).map_err(told)?)?,
        Format::Html(file) => {
            fs::write(file, page::report(&snapshot).map_err(told)?)?;
            writeln!(out, "{}", file.display())?;
        }
    }
    Ok(code(&snapshot))
}

fn code(snapshot: &Snapshot) -> u8 {
    let all = || snapshot.repositories.iter().map(|r| &r.stats);
    match (all().any(|f| f.count("divergence") > 0), all().any(|f| f.decided > 0)) {
        (true, _) => DIVERGES,
        (false, true) => EQUAL,
        (false, false) => NOTHING,
    }
}

/// `host:port` of `http://host:port/`.
fn host_of(url: &str) -> Result<String, ReportError> {
    let host = url.strip_prefix("http://").map(|rest| rest.trim_end_matches('/'));
    let right = |host: &&str| host.contains(':') && !host.contains(['/', '@', '\r', '\n', ' ']);
    host.filter(right).map(str::to_owned).ok_or_else(|| ReportError::Url(url.to_owned()))
}

/// An address that stands for all of the machine's is asked on the loopback.
fn configured(path: &Path, environment: &[(String, String)]) -> Result<String, ReportError> {
    let config = reload::check_file(path, environment).config.map_err(|mistakes| {
        ReportError::Address(mistakes.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))
    })?;
    let http = config.admin.http;
    let mut address =
        http.ok_or_else(|| ReportError::Address(format!("{}: admin.http is off", path.display())))?;
    if address.ip().is_unspecified() {
        address.set_ip(if address.is_ipv4() {
            std::net::Ipv4Addr::LOCALHOST.into()
        } else {
            std::net::Ipv6Addr::LOCALHOST.into()
        });
    }
    Ok(address.to_string())
}

fn ask(host: &str) -> Result<Snapshot, ReportError> {
    let answer = exchange(host).map_err(|e| ReportError::Ask(host.to_owned(), e))?;
    let strange = |what: &dyn fmt::Display| ReportError::Answer(host.to_owned(), what.to_string());
    let (head, body) = answer.split_once("\r\n\r\n").ok_or_else(|| strange(&"no HTTP"))?;
    let status = head.lines().next().unwrap_or_default();
    if status.split(' ').nth(1) != Some("200") {
        return Err(strange(&status));
    }
    serde_json::from_str(body).map_err(|e| strange(&e))
}

/// The server ends the connection after one answer and sends it whole.
fn exchange(host: &str) -> io::Result<String> {
    let nobody = || io::Error::new(io::ErrorKind::NotFound, "no such host");
    let address = host.to_socket_addrs()?.next().ok_or_else(nobody)?;
    let mut socket = TcpStream::connect_timeout(&address, PATIENCE)?;
    socket.set_read_timeout(Some(PATIENCE))?;
    write!(socket, "GET /state HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n")?;
    let mut answer = String::new();
    socket.take(MOST_BYTES).read_to_string(&mut answer)?;
    Ok(answer)
}

/// The table, in text.
fn table(snapshot: &Snapshot) -> String {
    let mut rows = vec![HEAD.map(str::to_owned).to_vec()];
    let mut asked = Vec::new();
    for repository in snapshot.repositories.iter().filter(|r| r.name != "default") {
        if repository.stats.compared == 0 {
            let missing = if repository.shadow > 0.0 {
                "nothing compared yet"
            } else {
                "no shadow reads yet: set shadow = 0.05 for the repository"
            };
            asked.push(format!("{}: {missing}", repository.name));
            continue;
        }
        rows.push(row(&repository.name, "", &repository.stats));
        rows.extend(
            repository
                .applications
                .iter()
                .map(|(name, f)| row("", if name.is_empty() { "(none)" } else { name }, f)),
        );
    }
    let mut text = format!("{}, configuration {}\n", snapshot.version, snapshot.config);
    if rows.len() > 1 {
        text += "\nLatencies in milliseconds; delta: target minus source, of the same read.\n";
        text += &aligned(&rows);
    }
    for line in asked {
        let _ = writeln!(text, "{line}");
    }
    if !snapshot.dropped.is_empty() {
        let reasons: Vec<_> = snapshot.dropped.iter().map(|(reason, n)| format!("{reason} {n}")).collect();
        let _ = writeln!(text, "\nDropped shadow reads: {}", reasons.join(", "));
    }
    written(snapshot, &mut text);
    differences(snapshot, &mut text);
    slower(snapshot, &mut text);
    text
}

fn row(repository: &str, application: &str, f: &Figures) -> Vec<String> {
    let percent = |x: Option<f64>| x.map_or("-".to_owned(), |x| format!("{:.4} %", x * 100.0));
    let pair = |q: &Quantiles| format!("{} / {}", ms(q.p50), ms(q.p99));
    vec![
        repository.to_owned(),
        plain(application),
        f.compared.to_string(),
        f.count("divergence").to_string(),
        percent(f.rate),
        percent(f.rate_upper),
        f.count("transient").to_string(),
        f.count("indeterminate").to_string(),
        pair(&f.latency_ms.source),
        pair(&f.latency_ms.target),
        pair(&f.delta_ms),
    ]
}

fn written(snapshot: &Snapshot, text: &mut String) {
    let all = || snapshot.repositories.iter().filter(|r| r.writes.compared > 0);
    if all().next().is_some() {
        text.push_str("\nMirrored transactions, by whether the follower had the rows that it should:\n");
    }
    for repository in all() {
        let Writes { compared, differed } = repository.writes;
        let _ = writeln!(text, "  {}: {compared} compared, {differed} different", repository.name);
    }
}

fn differences(snapshot: &Snapshot, text: &mut String) {
    if snapshot.divergences.is_empty() {
        return;
    }
    let _ = writeln!(text, "\nDivergences, the newest first ($SOURCE, $TARGET: connection strings):");
    for d in snapshot.divergences.iter().take(MOST_SHOWN) {
        let place = [("column", &d.column), ("key", &d.key)];
        let place = place.iter().filter_map(|(word, at)| Some(format!(", {word} {}", plain(at.as_ref()?))));
        let _ = writeln!(
            text,
            "  {} {}{}, {} times, {} answered",
            d.repository,
            d.class,
            place.collect::<String>(),
            d.count,
            d.answering
        );
        if let (Some(answered), Some(other)) = (&d.answered, &d.other) {
            let _ = writeln!(text, "    answered {}; the other side: {}", plain(answered), plain(other));
        }
        let _ = writeln!(text, "    {}", plain(&d.reproduce));
    }
}

fn slower(snapshot: &Snapshot, text: &mut String) {
    if snapshot.slower.is_empty() {
        return;
    }
    let _ = writeln!(text, "\nQueries at which the target is slower (median of target minus source):");
    for query in snapshot.slower.iter().take(MOST_SHOWN) {
        let (n, delta) = (query.stats.compared, ms(query.stats.delta_ms.p50));
        let _ = writeln!(text, "  +{delta} ms, {n} reads, {}: {}", query.repository, plain(&query.sql));
    }
}

fn ms(x: Option<f64>) -> String {
    x.map_or("-".to_owned(), |x| format!("{x:.2}"))
}

/// What clients sent moves no cursor of a terminal.
fn plain(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

/// Columns as wide as their widest cell; numbers to the right.
fn aligned(rows: &[Vec<String>]) -> String {
    let mut text = String::new();
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..HEAD.len()).map(width).collect();
    for row in rows {
        for (column, (cell, &width)) in row.iter().zip(&widths).enumerate() {
            let _ = match column {
                0 => write!(text, "{cell:<width$}"),
                1 => write!(text, "  {cell:<width$}"),
                _ => write!(text, "  {cell:>width$}"),
            };
        }
        text.push('\n');
    }
    text
}

const HEAD: [&str; 11] = [
    "repository",
    "application",
    "compared",
    "divergent",
    "rate",
    "at most (95 %)",
    "transient",
    "unknown",
    "source p50/p99",
    "target p50/p99",
    "delta p50/p99",
];
/// To connect, and for each piece of the answer.
const PATIENCE: Duration = Duration::from_secs(10);
/// Of an answer; more is not crossfade's.
const MOST_BYTES: u64 = 64 << 20;
/// Divergences and queries of the table; all are in the JSON.
const MOST_SHOWN: usize = 10;

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::admin::snapshot::{Divergence, Repository};

    fn snapshot(outcomes: &[(&str, u64)]) -> Snapshot {
        let outcomes: BTreeMap<String, u64> = outcomes.iter().map(|(o, n)| ((*o).to_owned(), *n)).collect();
        let compared = outcomes.values().sum();
        let decided = outcomes.iter().filter(|(o, _)| *o != "noise").map(|(_, n)| n).sum();
        let stats = Figures { compared, decided, outcomes, ..Figures::default() };
        let repository = Repository { name: "document".to_owned(), stats, ..Repository::default() };
        Snapshot { repositories: vec![repository], ..Snapshot::default() }
    }

    #[test]
    fn the_exit_code_says_what_was_found() {
        for (outcomes, expected) in [
            (&[][..], NOTHING),
            (&[("noise", 5)], NOTHING),
            (&[("match", 5)], EQUAL),
            (&[("match", 5), ("divergence", 1)], DIVERGES),
        ] {
            assert_eq!(code(&snapshot(outcomes)), expected, "{outcomes:?}");
        }
    }

    #[test]
    fn urls() {
        for (url, host) in [
            ("http://127.0.0.1:9432", Some("127.0.0.1:9432")),
            ("http://[::1]:9432/", Some("[::1]:9432")),
            ("https://127.0.0.1:9432", None),
            ("http://name", None),
            ("http://a:1/x", None),
            ("http://a:1\r\nX: y", None),
        ] {
            assert_eq!(host_of(url).ok().as_deref(), host, "{url}");
        }
    }

    #[test]
    fn tables() {
        let mut found = snapshot(&[("match", 999), ("divergence", 1)]);
        found.divergences.push(Divergence {
            repository: "document".to_owned(),
            class: "cell".to_owned(),
            key: Some("id=\u{1b}[2J1".to_owned()),
            count: 3,
            ..Divergence::default()
        });
        let text = table(&found);
        assert!(text.contains("document ") && text.contains("cell, key id= [2J1, 3 times"), "{text}");
        assert!(!text.contains('\u{1b}'), "{text}");
        assert!(table(&snapshot(&[])).contains("document: no shadow reads yet: set shadow = 0.05"));
    }
}
