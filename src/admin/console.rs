//! The admin console's commands: what they are called, who may give them, what they answer.
//!
//! The console is the database `crossfade`, reached like any other. Besides its own commands it answers what
//! psql and drivers say on their own ([`Command::Select`], [`Command::Ignored`], transaction control), because
//! a console that a driver cannot open is of no use. `console_wire` speaks the protocol.

use std::future::Future;

use super::{
    console_parse::words_of,
    console_rows::{
        Cell, ClientRow, Column, ConfigRow, InDoubtRow, JournalRow, PoolRow, RepositoryRow, ServerRow,
        ShadowRow, StatsRow, ToCells, TransactionRow, columns,
    },
    snapshot::{Divergence, QueryRow},
};
use crate::{Side, error::ClientError};

pub use super::console_parse::{parse, parse_all};

/// What the console reads from the proxy and asks of it. Futures need not be `Send`.
pub trait Operator {
    /// SHOW REPOSITORIES
    fn repositories(&self) -> impl Future<Output = Vec<RepositoryRow>>;
    /// SHOW POOLS
    fn pools(&self) -> impl Future<Output = Vec<PoolRow>>;
    /// SHOW CLIENTS
    fn clients(&self) -> impl Future<Output = Vec<ClientRow>>;
    /// SHOW SERVERS
    fn servers(&self) -> impl Future<Output = Vec<ServerRow>>;
    /// SHOW STATS
    fn stats(&self) -> impl Future<Output = Vec<StatsRow>>;
    /// SHOW CONFIG; secrets are masked here already.
    fn config(&self) -> impl Future<Output = Vec<ConfigRow>>;
    /// SHOW JOURNAL
    fn journal(&self) -> impl Future<Output = Vec<JournalRow>>;
    /// SHOW SHADOW
    fn shadow(&self) -> impl Future<Output = Vec<ShadowRow>>;
    /// SHOW QUERIES
    fn queries(&self) -> impl Future<Output = Vec<QueryRow>>;
    /// SHOW DIVERGENCES
    fn divergences(&self) -> impl Future<Output = Vec<Divergence>>;
    /// `SHOW IN_DOUBT`
    fn in_doubt(&self) -> impl Future<Output = Vec<InDoubtRow>>;
    /// SHOW TRANSACTIONS
    fn transactions(&self) -> impl Future<Output = Vec<TransactionRow>>;
    /// RELOAD: a sentence on what changed, or every mistake of the file.
    fn reload(&self) -> impl Future<Output = Result<String, Vec<String>>>;
    /// PAUSE one backend, or both: no new work is sent there. Done when what ran there has ended; dropped before, it
    /// is undone.
    fn pause(&self, side: Option<Side>) -> impl Future<Output = Result<(), String>>;
    /// RESUME one backend, or both.
    fn resume(&self, side: Option<Side>) -> impl Future<Output = Result<(), String>>;
    /// KILL a client; false when there is none with this id.
    fn kill(&self, client: u64) -> impl Future<Output = bool>;
}

/// What a user of the console may do.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Role {
    /// Look and change.
    Admin,
    /// Look.
    Stats,
}

/// A statement that the console understands.
#[derive(Clone, Debug, PartialEq)]
pub enum Command {
    /// Nothing but white space and comments.
    Empty,
    /// SHOW ...
    Show(Show),
    /// RELOAD
    Reload,
    /// PAUSE \[source | target\]
    Pause(Option<Side>),
    /// RESUME \[source | target\]
    Resume(Option<Side>),
    /// KILL id
    Kill(u64),
    /// SELECT of constants and of a few functions that drivers call.
    Select(Vec<Item>),
    /// BEGIN, START TRANSACTION: the tag it answers with.
    Begin(&'static str),
    /// COMMIT, END
    Commit,
    /// ROLLBACK, ABORT
    Rollback,
    /// ROLLBACK TO
    RollbackTo,
    /// DEALLOCATE name; `None` is ALL.
    Deallocate(Option<String>),
    /// SET, RESET, DISCARD, SAVEPOINT, ...: accepted without effect; the tag it answers with.
    Ignored(&'static str),
}

/// What to show.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Show {
    /// Weights and what each side answered.
    Repositories,
    /// Server connections by user and backend.
    Pools,
    /// Everyone connected.
    Clients,
    /// Every server connection.
    Servers,
    /// Totals by user and backend.
    Stats,
    /// The configuration in force.
    Config,
    /// Journals: their depth, and what could not be shipped.
    Journal,
    /// Prepared transactions of ours.
    InDoubt,
    /// Mirrored transactions in flight.
    Transactions,
    /// Reads executed twice: how many, what came of them, latencies.
    Shadow,
    /// The same by query.
    Queries,
    /// What differs.
    Divergences,
    /// Version of crossfade.
    Version,
    /// The commands.
    Help,
    /// A setting that drivers ask for, by its canonical name.
    Setting(&'static str),
}

/// A column of [`Command::Select`].
#[derive(Clone, Debug, PartialEq)]
pub struct Item {
    /// Its name and type.
    pub column: Column,
    /// Its value.
    pub value: Expression,
}

/// What a column of a SELECT is made of.
#[derive(Clone, Debug, PartialEq)]
pub enum Expression {
    /// Known from the text.
    Constant(Cell),
    /// `current_user` and its relatives.
    User,
    /// `pg_backend_pid()`
    ProcessId,
    /// `current_setting('...')`
    Setting(&'static str),
}

/// Every command of the console's own: its form, whether it changes something, what it does.
pub const HELP: &[(&str, bool, &str)] = &[
    ("SHOW REPOSITORIES", false, "weights, lead, and what each backend answered"),
    ("SHOW POOLS", false, "server connections by user and backend"),
    ("SHOW CLIENTS", false, "everyone connected"),
    ("SHOW SERVERS", false, "every server connection"),
    ("SHOW STATS", false, "totals by user and backend"),
    ("SHOW CONFIG", false, "the configuration in force, secrets masked"),
    ("SHOW JOURNAL", false, "rows on their way to the follower, and why some are not"),
    ("SHOW IN_DOUBT", false, "prepared transactions, and what becomes of them"),
    ("SHOW TRANSACTIONS", false, "mirrored transactions in flight, the oldest first"),
    (
        "SHOW SHADOW",
        false,
        "reads executed on both sides: outcomes, rates, latencies, by repository and application",
    ),
    ("SHOW QUERIES", false, "the same by query, the divergent ones first"),
    ("SHOW DIVERGENCES", false, "what differs between the sides, the newest first"),
    ("SHOW VERSION", false, "version of crossfade"),
    ("SHOW HELP", false, "this list"),
    ("RELOAD", true, "load the configuration again; a mistake changes nothing"),
    (
        "PAUSE [source|target]",
        true,
        "send no new work to one backend, or to both, and wait until running transactions have ended",
    ),
    ("RESUME [source|target]", true, "undo PAUSE"),
    ("KILL id", true, "disconnect the client with this id (SHOW CLIENTS)"),
];

/// Settings that drivers ask for: canonical name, value, and whether it is sent as `ParameterStatus` too.
const SETTINGS: &[(&str, &str, bool)] = &[
    ("application_name", "", true),
    ("client_encoding", "UTF8", true),
    ("DateStyle", "ISO, MDY", true),
    ("default_transaction_isolation", "read committed", false),
    ("default_transaction_read_only", "off", true),
    ("extra_float_digits", "1", false),
    ("in_hot_standby", "off", true),
    ("integer_datetimes", "on", true),
    ("IntervalStyle", "postgres", true),
    ("is_superuser", "off", true),
    ("max_identifier_length", "63", false),
    ("scram_iterations", "4096", false),
    ("search_path", "\"$user\", public", false),
    ("server_encoding", "UTF8", true),
    ("server_version", concat!("15.0 (crossfade ", env!("CARGO_PKG_VERSION"), ")"), true),
    ("server_version_num", "150000", false),
    ("session_authorization", "", true),
    ("standard_conforming_strings", "on", true),
    ("statement_timeout", "0", false),
    ("TimeZone", "UTC", true),
    ("transaction_isolation", "read committed", false),
    ("transaction_read_only", "off", false),
];

/// What SHOW VERSION says.
pub const VERSION: &str = concat!("crossfade ", env!("CARGO_PKG_VERSION"));

/// Canonical spelling of a setting the console knows.
pub(super) fn setting_name(name: &str) -> Option<&'static str> {
    SETTINGS.iter().map(|(known, ..)| *known).find(|known| known.eq_ignore_ascii_case(name))
}

/// Names of the settings that drivers are told unasked.
pub(super) fn reported_settings() -> impl Iterator<Item = &'static str> {
    SETTINGS.iter().filter(|(.., reported)| *reported).map(|(name, ..)| *name)
}

/// Value of a setting; `user` for `session_authorization`.
pub(super) fn setting(name: &str, user: &str) -> String {
    match name {
        "session_authorization" => user.to_owned(),
        _ => SETTINGS.iter().find(|(known, ..)| *known == name).map_or("", |(_, value, _)| value).to_owned(),
    }
}

/// Who asks.
#[derive(Clone, Copy, Debug)]
pub struct Caller<'a> {
    /// Login name.
    pub user: &'a str,
    /// What they may do.
    pub role: Role,
    /// Id in SHOW CLIENTS and in the log.
    pub client: u64,
    /// Process id told in `BackendKeyData`.
    pub process_id: i32,
}

/// What a command answers.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Answer {
    /// Rows in the order of [`columns`].
    pub rows: Vec<Vec<Cell>>,
    /// Something worth telling: sent as a notice.
    pub notice: Option<String>,
}

impl Command {
    /// Does it change anything in the proxy?
    pub fn changes(&self) -> bool {
        match self {
            Command::Reload | Command::Pause(_) | Command::Resume(_) | Command::Kill(_) => true,
            Command::Empty
            | Command::Show(_)
            | Command::Select(_)
            | Command::Begin(_)
            | Command::Commit
            | Command::Rollback
            | Command::RollbackTo
            | Command::Deallocate(_)
            | Command::Ignored(_) => false,
        }
    }

    /// The command tag after `rows` rows.
    pub fn tag(&self, rows: usize) -> String {
        match self {
            Command::Empty => String::new(),
            Command::Show(_) => "SHOW".into(),
            Command::Reload => "RELOAD".into(),
            Command::Pause(_) => "PAUSE".into(),
            Command::Resume(_) => "RESUME".into(),
            Command::Kill(_) => "KILL".into(),
            Command::Select(_) => format!("SELECT {rows}"),
            Command::Begin(tag) | Command::Ignored(tag) => (*tag).into(),
            Command::Commit => "COMMIT".into(),
            Command::Rollback | Command::RollbackTo => "ROLLBACK".into(),
            Command::Deallocate(Some(_)) => "DEALLOCATE".into(),
            Command::Deallocate(None) => "DEALLOCATE ALL".into(),
        }
    }
}

/// Does what `command` says, if `caller` may. Changes are logged with their author, refused ones too.
pub async fn run(
    command: &Command,
    caller: &Caller<'_>,
    operator: &impl Operator,
) -> Result<Answer, ClientError> {
    if command.changes() {
        let allowed = caller.role == Role::Admin;
        let &Caller { client, user, .. } = caller;
        tracing::info!(client, user, command = words_of(command), allowed, "console command");
        if !allowed {
            return Err(ClientError::error("42501", format!("user \"{user}\" may only look"))
                .detail("The user is in admin.stats_users; this command needs admin.admin_users.")
                .hint("SHOW HELP lists what every role may do."));
        }
    }
    let refused = |why: String| ClientError::error("55000", why);
    let rows = match command {
        Command::Show(show) => rows_of(show, caller, operator).await,
        Command::Select(items) => vec![items.iter().map(|item| evaluate(&item.value, caller)).collect()],
        Command::Reload => {
            let notice = operator.reload().await.map_err(|mistakes| config_refused(&mistakes))?;
            return Ok(Answer { rows: Vec::new(), notice: Some(notice) });
        }
        Command::Pause(side) => operator.pause(*side).await.map(|()| Vec::new()).map_err(refused)?,
        Command::Resume(side) => operator.resume(*side).await.map(|()| Vec::new()).map_err(refused)?,
        Command::Kill(id) => {
            if !operator.kill(*id).await {
                return Err(ClientError::error("42704", format!("there is no client with the id {id}"))
                    .hint("SHOW CLIENTS lists them."));
            }
            Vec::new()
        }
        Command::Empty
        | Command::Begin(_)
        | Command::Commit
        | Command::Rollback
        | Command::RollbackTo
        | Command::Deallocate(_)
        | Command::Ignored(_) => Vec::new(),
    };
    debug_assert!(rows.iter().all(|row| row.len() == columns(command).len()), "{command:?}");
    Ok(Answer { rows, notice: None })
}

fn config_refused(mistakes: &[String]) -> ClientError {
    let count = mistakes.len();
    let plural = if count == 1 { "" } else { "s" };
    ClientError::error("F0000", format!("the configuration was refused: {count} mistake{plural}"))
        .detail(mistakes.join("\n"))
        .hint("The configuration that was in force stays in force.")
}

async fn rows_of(show: &Show, caller: &Caller<'_>, operator: &impl Operator) -> Vec<Vec<Cell>> {
    fn cells<T: ToCells>(rows: Vec<T>) -> Vec<Vec<Cell>> {
        rows.into_iter().map(ToCells::cells).collect()
    }
    match show {
        Show::Repositories => cells(operator.repositories().await),
        Show::Pools => cells(operator.pools().await),
        Show::Clients => cells(operator.clients().await),
        Show::Servers => cells(operator.servers().await),
        Show::Stats => cells(operator.stats().await),
        Show::Config => cells(operator.config().await),
        Show::Journal => cells(operator.journal().await),
        Show::InDoubt => cells(operator.in_doubt().await),
        Show::Transactions => cells(operator.transactions().await),
        Show::Shadow => cells(operator.shadow().await),
        Show::Queries => cells(operator.queries().await),
        Show::Divergences => cells(operator.divergences().await),
        Show::Version => vec![vec![VERSION.into()]],
        Show::Setting(name) => vec![vec![setting(name, caller.user).into()]],
        Show::Help => HELP
            .iter()
            .map(|&(form, changes, what)| {
                vec![form.into(), if changes { "admin" } else { "stats, admin" }.into(), what.into()]
            })
            .collect(),
    }
}

fn evaluate(expression: &Expression, caller: &Caller<'_>) -> Cell {
    match expression {
        Expression::Constant(cell) => cell.clone(),
        Expression::User => caller.user.into(),
        Expression::ProcessId => caller.process_id.into(),
        Expression::Setting(name) => setting(name, caller.user).into(),
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::cell::RefCell;

    use super::*;
    use crate::{admin::snapshot::Figures, config::PoolMode};

    /// Remembers what it was asked to do.
    #[derive(Default)]
    pub(in crate::admin) struct Fake {
        pub(in crate::admin) done: RefCell<Vec<String>>,
        pub(in crate::admin) clients: usize,
    }

    impl Operator for Fake {
        async fn repositories(&self) -> Vec<RepositoryRow> {
            vec![RepositoryRow {
                name: "document".into(),
                tables: vec!["public.documents".into(), "public.document_*".into()],
                reads_target_percent: 12.34,
                mirror: "off".into(),
                lead: "source".into(),
                queries: [7, 3],
                ..RepositoryRow::default()
            }]
        }
        async fn pools(&self) -> Vec<PoolRow> {
            let row = |backend| PoolRow {
                user: "app".into(),
                mode: PoolMode::Transaction,
                backend,
                active: 2,
                idle: 1,
                waiting: 0,
                max_wait_ms: 1.5,
                size: 20,
                paused: false,
            };
            Side::BOTH.map(row).into()
        }
        async fn clients(&self) -> Vec<ClientRow> {
            let row = |id| ClientRow { id, user: "app".into(), state: "idle".into(), ..ClientRow::default() };
            (1..=self.clients as u64).map(row).collect()
        }
        async fn servers(&self) -> Vec<ServerRow> {
            vec![ServerRow {
                backend: Side::Source,
                process_id: 42,
                user: "app".into(),
                state: "idle".into(),
                client: None,
                age_seconds: 3.5,
                idle_seconds: 0.0,
                transactions: 9,
                tls: true,
            }]
        }
        async fn stats(&self) -> Vec<StatsRow> {
            vec![StatsRow {
                user: "app".into(),
                backend: Side::Target,
                transactions: 1,
                queries: 2,
                errors: 0,
                received_bytes: 10,
                sent_bytes: 20,
                transaction_ms_avg: 0.5,
                query_ms_avg: 0.25,
                wait_ms_avg: 0.0,
            }]
        }
        async fn config(&self) -> Vec<ConfigRow> {
            vec![ConfigRow { key: "source.password".into(), value: "***".into(), hot: true }]
        }
        async fn journal(&self) -> Vec<JournalRow> {
            let row = JournalRow { backend: Some(Side::Source), rows: Some(3), ..JournalRow::default() };
            vec![row.clone(), JournalRow { id: Some(7), reason: Some("why".into()), ..row }]
        }
        async fn shadow(&self) -> Vec<ShadowRow> {
            vec![ShadowRow {
                repository: "document".into(),
                stats: Figures { compared: 7, ..Figures::default() },
                ..ShadowRow::default()
            }]
        }
        async fn queries(&self) -> Vec<QueryRow> {
            vec![QueryRow { repository: "document".into(), sql: "select $1".into(), ..QueryRow::default() }]
        }
        async fn divergences(&self) -> Vec<Divergence> {
            vec![Divergence {
                repository: "document".into(),
                class: "cell".into(),
                count: 2,
                ..Divergence::default()
            }]
        }
        async fn in_doubt(&self) -> Vec<InDoubtRow> {
            vec![InDoubtRow {
                backend: Side::Target,
                gid: "cf1.1.1.1.a.1".into(),
                age_seconds: 1.5,
                stuck: false,
                verdict: "it is in progress on the lead".into(),
            }]
        }
        async fn transactions(&self) -> Vec<TransactionRow> {
            vec![TransactionRow {
                client: 3,
                user: "app".into(),
                repositories: vec!["document".into(), "user".into()],
                lead: Side::Source,
                state: "applying".into(),
                age_seconds: 0.25,
                lead_pid: 17,
                follower_pid: Some(18),
            }]
        }
        async fn reload(&self) -> Result<String, Vec<String>> {
            self.done.borrow_mut().push("reload".into());
            Ok("nothing changed".into())
        }
        async fn pause(&self, side: Option<Side>) -> Result<(), String> {
            self.done.borrow_mut().push(format!("pause {side:?}"));
            Ok(())
        }
        async fn resume(&self, side: Option<Side>) -> Result<(), String> {
            self.done.borrow_mut().push(format!("resume {side:?}"));
            Ok(())
        }
        async fn kill(&self, client: u64) -> bool {
            self.done.borrow_mut().push(format!("kill {client}"));
            client == 7
        }
    }

    fn caller(role: Role) -> Caller<'static> {
        Caller { user: "eve", role, client: 5, process_id: 99 }
    }

    /// Every command there is, as text.
    pub(in crate::admin) const EVERY: &[&str] = &[
        "",
        "show repositories",
        "show pools",
        "show clients",
        "show servers",
        "show stats",
        "show config",
        "show journal",
        "show in_doubt",
        "show transactions",
        "show shadow",
        "show queries",
        "show divergences",
        "show version",
        "show help",
        "show timezone",
        "reload",
        "pause",
        "pause source",
        "pause target",
        "resume",
        "resume target",
        "kill 7",
        "select 1, current_user",
        "begin",
        "start transaction",
        "commit",
        "rollback",
        "rollback to a",
        "deallocate all",
        "deallocate x",
        "set a = 1",
        "reset all",
        "discard all",
        "savepoint a",
        "release a",
        "unlisten *",
        "close all",
    ];

    async fn check_role(command: &Command, role: Role, needs_admin: bool) {
        let fake = Fake::default();
        let result = run(command, &caller(role), &fake).await;
        let done = !fake.done.borrow().is_empty();
        if needs_admin && role == Role::Stats {
            let error = result.unwrap_err();
            assert_eq!(error.sqlstate, "42501", "{command:?}");
            assert!(error.detail.unwrap().contains("stats_users"), "{command:?}");
            assert!(!done, "{command:?} was done all the same");
        } else {
            let answer = result.unwrap();
            assert_eq!(needs_admin, done, "{command:?}");
            assert!(answer.rows.iter().all(|r| r.len() == columns(command).len()), "{command:?}");
        }
    }

    #[tokio::test]
    async fn every_command_against_every_role() {
        let mut changing = 0;
        for text in EVERY {
            let command = parse(text).unwrap();
            // Written out once more: what must not be open to readers is not asked of the code under test.
            let needs_admin = ["reload", "pause", "resume", "kill"].iter().any(|verb| text.starts_with(verb));
            for role in [Role::Admin, Role::Stats] {
                check_role(&command, role, needs_admin).await;
            }
            changing += usize::from(needs_admin);
        }
        assert_eq!(changing, 7);
        // Each line of the help is in the list above.
        for (form, changes, _) in HELP {
            let form = form.to_lowercase().replace(" [source|target]", "").replace(" id", " 7");
            assert!(EVERY.contains(&&*form), "{form}");
            assert_eq!(parse(&form).unwrap().changes(), *changes, "{form}");
        }
    }

    #[tokio::test]
    async fn answers() {
        let fake = Fake::default();
        let admin = caller(Role::Admin);
        let run = async |text: &str| run(&parse(text).unwrap(), &admin, &fake).await;
        assert_eq!(run("show repositories").await.unwrap().rows[0][2..4], [87.66.into(), 12.34.into()]);
        assert_eq!(
            run("select current_user, pg_backend_pid()").await.unwrap().rows,
            [["eve".into(), 99.into()]]
        );
        assert_eq!(run("reload").await.unwrap().notice.as_deref(), Some("nothing changed"));
        assert_eq!(run("kill 8").await.unwrap_err().sqlstate, "42704");
        assert_eq!(*fake.done.borrow(), ["reload", "kill 8"]);
        let error = config_refused(&["3:1: unknown key".into(), "9:2: twice".into()]);
        assert_eq!(error.message, "the configuration was refused: 2 mistakes");
        assert_eq!(error.detail.as_deref(), Some("3:1: unknown key\n9:2: twice"));
    }
}
