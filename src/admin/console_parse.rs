//! Text -> [`Command`]. Pure, linear in the length of the text.

use super::{
    console::{Command, Expression, HELP, Item, Show, setting_name},
    console_rows::{Cell, Column, Type},
};
use crate::{Side, error::ClientError};

/// What `version()` says; `SQLAlchemy` takes it apart.
const SERVER_VERSION: &str = concat!("PostgreSQL 15.0 (crossfade ", env!("CARGO_PKG_VERSION"), ")");
/// Columns of one SELECT.
const MAX_ITEMS: usize = 64;

/// One token; comments and white space are gone.
#[derive(Clone, Debug, PartialEq)]
enum Token {
    /// Unquoted: folded to lower case.
    Word(String),
    /// In double quotes.
    Quoted(String),
    /// Digits.
    Number(String),
    /// In single quotes.
    Text(String),
    /// Anything else.
    Symbol(char),
}

/// Reads one statement, with or without its semicolon.
pub fn parse(text: &str) -> Result<Command, ClientError> {
    let mut commands = parse_all(text)?;
    match (commands.pop(), commands.is_empty()) {
        (Some(command), true) => Ok(command),
        _ => Err(ClientError::error("42601", "cannot insert multiple commands into a prepared statement")),
    }
}

/// Reads every statement of a text; an empty text is one [`Command::Empty`].
pub fn parse_all(text: &str) -> Result<Vec<Command>, ClientError> {
    let tokens = tokens(text)?;
    let statements = tokens.split(|t| *t == Token::Symbol(';')).filter(|s| !s.is_empty());
    let commands: Vec<Command> =
        statements.map(|s| command(s).ok_or_else(|| unknown(text))).collect::<Result<_, _>>()?;
    Ok(if commands.is_empty() { vec![Command::Empty] } else { commands })
}

/// How a command that changes something is logged.
pub(super) fn words_of(command: &Command) -> String {
    let side = |side: &Option<Side>| side.map_or(String::new(), |s| format!(" {s}"));
    match command {
        Command::Pause(at) => format!("PAUSE{}", side(at)),
        Command::Resume(at) => format!("RESUME{}", side(at)),
        Command::Kill(id) => format!("KILL {id}"),
        Command::Empty
        | Command::Show(_)
        | Command::Reload
        | Command::Select(_)
        | Command::Begin(_)
        | Command::Commit
        | Command::Rollback
        | Command::RollbackTo
        | Command::Deallocate(_)
        | Command::Ignored(_) => command.tag(0),
    }
}

fn unknown(text: &str) -> ClientError {
    let mut start: String = text.trim().chars().take(40).collect();
    if start.len() < text.trim().len() {
        start.push_str("...");
    }
    let forms: Vec<&str> = HELP.iter().map(|(form, ..)| *form).collect();
    ClientError::error("42601", format!("the console does not know this command: {start}"))
        .detail("This is crossfade's admin console, not a database.")
        .hint(format!("Commands: {}.", forms.join(" | ")))
}

/// `None`: not a command.
fn command(tokens: &[Token]) -> Option<Command> {
    let (Token::Word(first), rest) = tokens.split_first()? else { return None };
    let words: Option<Vec<&str>> = rest.iter().map(word).collect();
    let words = words.as_deref();
    Some(match (first.as_str(), words) {
        ("show", Some(words)) => Command::Show(show(words)?),
        ("reload", Some([])) => Command::Reload,
        ("pause", Some(words)) => Command::Pause(side(words)?),
        ("resume", Some(words)) => Command::Resume(side(words)?),
        ("kill", None) => match rest {
            [Token::Number(id)] => Command::Kill(id.parse().ok()?),
            _ => return None,
        },
        ("select", _) => Command::Select(select(rest)?),
        ("begin", _) => Command::Begin("BEGIN"),
        ("start", _) if starts(rest, "transaction") => Command::Begin("START TRANSACTION"),
        ("commit" | "end", Some([] | ["work" | "transaction" | "and", ..])) => Command::Commit,
        ("rollback", Some(["to", ..] | ["work" | "transaction", "to", ..])) => Command::RollbackTo,
        ("rollback", None) if starts(rest, "to") => Command::RollbackTo,
        ("rollback" | "abort", Some([] | ["work" | "transaction" | "and", ..])) => Command::Rollback,
        ("deallocate", _) => deallocate(rest)?,
        ("set", _) if rest.len() >= 2 => Command::Ignored("SET"),
        ("reset", _) if !rest.is_empty() => Command::Ignored("RESET"),
        ("discard", Some(["all"])) => Command::Ignored("DISCARD ALL"),
        ("savepoint", _) if rest.len() == 1 => Command::Ignored("SAVEPOINT"),
        ("release", _) if !rest.is_empty() => Command::Ignored("RELEASE"),
        ("unlisten", _) if rest.len() == 1 => Command::Ignored("UNLISTEN"),
        ("close", Some(["all"])) => Command::Ignored("CLOSE CURSOR ALL"),
        _ => return None,
    })
}

fn word(token: &Token) -> Option<&str> {
    match token {
        Token::Word(word) => Some(word),
        Token::Quoted(_) | Token::Number(_) | Token::Text(_) | Token::Symbol(_) => None,
    }
}

fn starts(tokens: &[Token], expected: &str) -> bool {
    tokens.first().and_then(word) == Some(expected)
}

fn show(words: &[&str]) -> Option<Show> {
    Some(match words {
        ["repositories"] => Show::Repositories,
        ["pools"] => Show::Pools,
        ["clients"] => Show::Clients,
        ["servers"] => Show::Servers,
        ["stats"] => Show::Stats,
        ["config"] => Show::Config,
        ["journal"] => Show::Journal,
        ["in_doubt"] => Show::InDoubt,
        ["transactions"] => Show::Transactions,
        ["shadow"] => Show::Shadow,
        ["queries"] => Show::Queries,
        ["divergences"] => Show::Divergences,
        ["version"] => Show::Version,
        ["help"] => Show::Help,
        ["transaction", "isolation", "level"] => Show::Setting("transaction_isolation"),
        ["time", "zone"] => Show::Setting("TimeZone"),
        ["session", "authorization"] => Show::Setting("session_authorization"),
        [name] => Show::Setting(setting_name(name)?),
        _ => return None,
    })
}

/// The outer `None`: no such backend; the inner one: none named, so both.
#[expect(clippy::option_option, reason = "parsed or not, named or not")]
fn side(words: &[&str]) -> Option<Option<Side>> {
    match words {
        [] => Some(None),
        [name] => Side::BOTH.into_iter().find(|side| side.name() == *name).map(Some),
        _ => None,
    }
}

fn deallocate(tokens: &[Token]) -> Option<Command> {
    let name = match tokens {
        [name] => name,
        [Token::Word(prepare), name] if prepare == "prepare" => name,
        _ => return None,
    };
    match name {
        Token::Word(all) if all == "all" => Some(Command::Deallocate(None)),
        Token::Word(name) | Token::Quoted(name) => Some(Command::Deallocate(Some(name.clone()))),
        Token::Number(_) | Token::Text(_) | Token::Symbol(_) => None,
    }
}

fn select(tokens: &[Token]) -> Option<Vec<Item>> {
    let mut items = Vec::new();
    let mut rest = tokens;
    loop {
        let (item, after) = item(rest)?;
        items.push(item);
        rest = match after {
            [] => return Some(items),
            [Token::Symbol(','), after @ ..] if items.len() < MAX_ITEMS => after,
            _ => return None,
        };
    }
}

/// One column and what follows it.
fn item(tokens: &[Token]) -> Option<(Item, &[Token])> {
    let (name, kind, value, rest) = expression(tokens)?;
    let (name, rest) = match rest {
        [Token::Word(keyword), Token::Word(alias) | Token::Quoted(alias), rest @ ..] if keyword == "as" => {
            (alias.as_str(), rest)
        }
        _ => (name, rest),
    };
    Some((Item { column: Column { name: name.to_owned(), kind }, value }, rest))
}

fn expression(tokens: &[Token]) -> Option<(&'static str, Type, Expression, &[Token])> {
    let text = |name, text: &str, rest| Some((name, Type::Text, Expression::Constant(text.into()), rest));
    let constant = |name, kind, cell, rest| Some((name, kind, Expression::Constant(cell), rest));
    let user = |name, rest| Some((name, Type::Text, Expression::User, rest));
    match tokens {
        [Token::Number(digits), rest @ ..] => {
            constant("?column?", Type::Int4, digits.parse::<i32>().ok()?.into(), rest)
        }
        [Token::Text(value), rest @ ..] => text("?column?", value, rest),
        [Token::Word(schema), Token::Symbol('.'), rest @ ..] if schema == "pg_catalog" => function(rest),
        [Token::Word(name), rest @ ..] => match name.as_str() {
            "true" => constant("bool", Type::Bool, true.into(), rest),
            "false" => constant("bool", Type::Bool, false.into(), rest),
            "null" => constant("?column?", Type::Text, Cell::Null, rest),
            "current_user" => user("current_user", rest),
            "session_user" => user("session_user", rest),
            "user" => user("user", rest),
            "current_catalog" => text("current_catalog", "crossfade", rest),
            "current_schema" if !matches!(rest, [Token::Symbol('('), ..]) => {
                text("current_schema", "public", rest)
            }
            _ => function(tokens),
        },
        _ => None,
    }
}

/// `name(...)`, for the functions that drivers call on their own.
fn function(tokens: &[Token]) -> Option<(&'static str, Type, Expression, &[Token])> {
    let [Token::Word(name), Token::Symbol('('), rest @ ..] = tokens else { return None };
    if let ("current_setting", [Token::Text(setting), Token::Symbol(')'), rest @ ..]) = (name.as_str(), rest)
    {
        return Some(("current_setting", Type::Text, Expression::Setting(setting_name(setting)?), rest));
    }
    let [Token::Symbol(')'), rest @ ..] = rest else { return None };
    let (name, kind, value) = match name.as_str() {
        "version" => ("version", Type::Text, Expression::Constant(SERVER_VERSION.into())),
        "current_database" => ("current_database", Type::Text, Expression::Constant("crossfade".into())),
        "current_schema" => ("current_schema", Type::Text, Expression::Constant("public".into())),
        "pg_backend_pid" => ("pg_backend_pid", Type::Int4, Expression::ProcessId),
        "pg_is_in_recovery" => ("pg_is_in_recovery", Type::Bool, Expression::Constant(false.into())),
        "pg_advisory_unlock_all" => ("pg_advisory_unlock_all", Type::Void, Expression::Constant(Cell::Void)),
        _ => return None,
    };
    Some((name, kind, value, rest))
}

fn tokens(text: &str) -> Result<Vec<Token>, ClientError> {
    let mut tokens = Vec::new();
    let mut rest = text;
    while let Some(c) = rest.chars().next() {
        let after = &rest[c.len_utf8()..];
        rest = if c.is_whitespace() {
            after
        } else if rest.starts_with("--") {
            rest.find('\n').map_or("", |end| &rest[end..])
        } else if rest.starts_with("/*") {
            skip_comment(rest).ok_or_else(|| unterminated("comment"))?
        } else if c == '\'' || c == '"' {
            let (value, after) = quoted(after, c).ok_or_else(|| unterminated("quoted text"))?;
            tokens.push(if c == '"' { Token::Quoted(value) } else { Token::Text(value) });
            after
        } else if c.is_ascii_digit() {
            let (digits, after) = split_while(rest, |c| c.is_ascii_digit());
            tokens.push(Token::Number(digits.to_owned()));
            after
        } else if c.is_alphabetic() || c == '_' {
            let (word, after) = split_while(rest, |c| c.is_alphanumeric() || c == '_' || c == '$');
            tokens.push(Token::Word(word.to_lowercase()));
            after
        } else {
            tokens.push(Token::Symbol(c));
            after
        };
    }
    Ok(tokens)
}

fn unterminated(what: &str) -> ClientError {
    ClientError::error("42601", format!("unterminated {what}"))
}

fn split_while(text: &str, wanted: impl Fn(char) -> bool) -> (&str, &str) {
    text.split_at(text.find(|c| !wanted(c)).unwrap_or(text.len()))
}

/// Up to the closing quote; a doubled quote stands for one.
fn quoted(text: &str, quote: char) -> Option<(String, &str)> {
    let mut value = String::new();
    let mut rest = text;
    loop {
        let (part, after) = rest.split_once(quote)?;
        value.push_str(part);
        rest = after.strip_prefix(quote).inspect(|_| value.push(quote)).unwrap_or(after);
        if rest.len() == after.len() {
            return Some((value, rest));
        }
    }
}

/// What follows a comment; comments nest.
fn skip_comment(text: &str) -> Option<&str> {
    let mut depth = 0_usize;
    let mut rest = text;
    loop {
        if let Some(after) = rest.strip_prefix("/*") {
            depth += 1;
            rest = after;
        } else if let Some(after) = rest.strip_prefix("*/") {
            depth -= 1;
            rest = after;
            if depth == 0 {
                return Some(rest);
            }
        } else {
            let mut chars = rest.chars();
            chars.next()?;
            rest = chars.as_str();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, expected: Command) {
        assert_eq!(parse(text), Ok(expected), "{text}");
    }

    #[test]
    fn own_commands() {
        check("SHOW POOLS;", Command::Show(Show::Pools));
        check("  show /* a /* nested */ one */ Clients -- and a line\n ; ;", Command::Show(Show::Clients));
        check("pause", Command::Pause(None));
        check("PAUSE Target", Command::Pause(Some(Side::Target)));
        check("resume source;", Command::Resume(Some(Side::Source)));
        check("KILL 18446744073709551615", Command::Kill(u64::MAX));
        check("", Command::Empty);
        check(" ;; -- nothing", Command::Empty);
    }

    #[test]
    fn what_drivers_say() {
        check("SET application_name = 'it''s; me'", Command::Ignored("SET"));
        check("SET extra_float_digits = 3", Command::Ignored("SET"));
        check("SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY", Command::Ignored("SET"));
        check("show TRANSACTION ISOLATION LEVEL", Command::Show(Show::Setting("transaction_isolation")));
        check("show timezone", Command::Show(Show::Setting("TimeZone")));
        check("BEGIN ISOLATION LEVEL READ COMMITTED", Command::Begin("BEGIN"));
        check("begin transaction read only, deferrable", Command::Begin("BEGIN"));
        check("START TRANSACTION", Command::Begin("START TRANSACTION"));
        check("start transaction read only, deferrable", Command::Begin("START TRANSACTION"));
        check("ROLLBACK TO \"_pg3_1\"", Command::RollbackTo);
        check("rollback to savepoint a", Command::RollbackTo);
        check("DEALLOCATE PREPARE \"X y\"", Command::Deallocate(Some("X y".into())));
        check("RELEASE \"_pg3_1\"", Command::Ignored("RELEASE"));
        let reset = "SELECT pg_advisory_unlock_all();\nCLOSE ALL;\nUNLISTEN *;\nRESET ALL;";
        let tags: Vec<String> = parse_all(reset).unwrap().iter().map(|c| c.tag(1)).collect();
        assert_eq!(tags, ["SELECT 1", "CLOSE CURSOR ALL", "UNLISTEN", "RESET"]);
    }

    #[test]
    fn selects() {
        for (text, columns) in [
            ("select 1", "?column? Int4"),
            ("SELECT 1 AS \"One\", 'x;', null, true", "One Int4, ?column? Text, ?column? Text, bool Bool"),
            ("select pg_catalog.version()", "version Text"),
            ("select current_schema, current_schema()", "current_schema Text, current_schema Text"),
            ("select current_setting('server_version_num')", "current_setting Text"),
        ] {
            let Command::Select(items) = parse(text).unwrap() else { panic!("{text}") };
            let shown = items.iter().map(|i| format!("{} {:?}", i.column.name, i.column.kind));
            assert_eq!(shown.collect::<Vec<_>>().join(", "), columns, "{text}");
        }
    }

    #[test]
    fn everything_else_is_refused_with_the_list() {
        for text in [
            "SHOW",
            "SHOW POOL",
            "show pools please",
            "RELOAD now",
            "PAUSE elsewhere",
            "KILL",
            "KILL x",
            "KILL -1",
            "KILL 18446744073709551616",
            "KILL 1 2",
            "select",
            "select 1,",
            "select 1 from pools",
            "select $1",
            "select 99999999999",
            "select pg_sleep(1)",
            "drop table a",
            "\"show\" pools",
            "set x",
            "commit prepared 'x'",
            "select version",
            "1",
            "show \u{1F980}",
            "SHOW POOLS; DROP TABLE a",
            "listen x",
        ] {
            let error = parse_all(text).unwrap_err();
            assert_eq!(error.sqlstate, "42601", "{text}");
            assert!(error.hint.is_some_and(|h| h.contains("SHOW REPOSITORIES | SHOW POOLS")), "{text}");
        }
        for text in ["/* open", "select 'open", "\"open", "/*/* half */"] {
            assert!(parse(text).unwrap_err().message.starts_with("unterminated"), "{text}");
        }
        assert!(parse("show pools; show pools").is_err());
    }

    proptest::proptest! {
        #[test]
        fn never_panics(text in ".{0,200}") {
            let _ = parse_all(&text);
        }

        #[test]
        fn never_panics_on_what_looks_like_sql(parts in proptest::collection::vec("(show|select|kill|'|\"|/\\*|\\*/|--|;|,|\\(|\\)|pg_catalog|\\.|version|as|1|é| |\n)", 0..40)) {
            let _ = parse_all(&parts.concat());
        }
    }
}
