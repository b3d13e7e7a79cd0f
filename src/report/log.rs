//! Log lines on standard error: text or JSON, one event a line, both switchable while running.
//!
//! An own formatter, because `tracing_subscriber`'s text format writes control characters of values as they
//! come (a user name with a line break forges a line), and because its format cannot be changed later.

use std::{
    fmt::{self, Write as _},
    io::Write as _,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use serde_json::{Map, Value};
use tracing::{Event, Subscriber, field::Field};
use tracing_subscriber::{
    EnvFilter, Layer, Registry,
    fmt::{
        format::Writer,
        time::{FormatTime, SystemTime},
    },
    layer::{Context, SubscriberExt},
    reload,
    util::SubscriberInitExt,
};

use crate::config::Log;

/// Characters of one value; the rest is cut off.
const MAX_VALUE_CHARS: usize = 4096;

/// Changes logging while the process runs.
#[derive(Clone, Debug)]
pub struct Handle {
    filter: reload::Handle<EnvFilter, Registry>,
    json: Arc<AtomicBool>,
}

/// Starts logging for the whole process. Fails when the filter is malformed or logging was started before.
pub fn init(log: &Log) -> Result<Handle, String> {
    let (filter, handle) = reload::Layer::new(parse_filter(&log.filter)?);
    let json = Arc::new(AtomicBool::new(log.json));
    // A line is written with one call, so lines of several threads do not mix. Nothing can be done, nor said,
    // about a standard error that is gone.
    let write = |line: &str| drop(std::io::stderr().lock().write_all(line.as_bytes()));
    let lines = Lines { json: Arc::clone(&json), write };
    tracing_subscriber::registry().with(filter).with(lines).try_init().map_err(|e| e.to_string())?;
    Ok(Handle { filter: handle, json })
}

impl Handle {
    /// Takes over another filter and format; a malformed filter changes nothing.
    pub fn apply(&self, log: &Log) -> Result<(), String> {
        self.filter.reload(parse_filter(&log.filter)?).map_err(|e| e.to_string())?;
        self.json.store(log.json, Ordering::Relaxed);
        Ok(())
    }
}

/// Is this a filter? For the check of the configuration.
pub fn parse_filter(filter: &str) -> Result<EnvFilter, String> {
    EnvFilter::builder().parse(filter).map_err(|e| format!("malformed log filter {filter:?}: {e}"))
}

/// Formats events and hands each line to `write`.
struct Lines<W> {
    json: Arc<AtomicBool>,
    write: W,
}

impl<S: Subscriber, W: Fn(&str) + 'static> Layer<S> for Lines<W> {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let mut time = String::new();
        // Fails only when the clock is before 1970; the line matters more than its time.
        let _ = SystemTime.format_time(&mut Writer::new(&mut time));
        let mut fields = Fields::default();
        event.record(&mut fields);
        let metadata = event.metadata();
        let head = Head {
            time,
            level: metadata.level().as_str(),
            target: fields.log_target.take().unwrap_or_else(|| metadata.target().to_owned()),
        };
        let json = self.json.load(Ordering::Relaxed);
        (self.write)(&if json { json_line(head, fields) } else { text_line(&head, &fields) });
    }
}

struct Head {
    time: String,
    level: &'static str,
    target: String,
}

/// The values of an event, in the order they were written.
#[derive(Default)]
struct Fields {
    message: String,
    rest: Vec<(&'static str, Value)>,
    /// Where a line of the `log` crate came from; `tracing` hands it over as a field.
    log_target: Option<String>,
}

impl Fields {
    fn put(&mut self, field: &Field, value: Value) {
        match (field.name(), value) {
            ("message", Value::String(text)) => self.message = text,
            ("log.target", Value::String(text)) => self.log_target = Some(text),
            (name, _) if name.starts_with("log.") => {}
            (name, value) => self.rest.push((name, value)),
        }
    }
}

impl tracing::field::Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.record_str(field, &format!("{value:?}"));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        let text = match value.char_indices().nth(MAX_VALUE_CHARS) {
            Some((end, _)) => format!("{}...", &value[..end]),
            None => value.to_owned(),
        };
        self.put(field, Value::String(text));
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.put(field, value.into());
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.put(field, value.into());
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        self.put(field, value.into());
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.put(field, value.into());
    }
}

fn json_line(head: Head, fields: Fields) -> String {
    let mut map = Map::new();
    for (name, value) in fields.rest {
        map.insert(name.to_owned(), value);
    }
    // Last, so that no field of an event can stand in for them.
    for (name, value) in [
        ("timestamp", head.time),
        ("level", head.level.into()),
        ("target", head.target),
        ("message", fields.message),
    ] {
        map.insert(name.to_owned(), Value::String(value));
    }
    format!("{}\n", Value::Object(map))
}

fn text_line(head: &Head, fields: &Fields) -> String {
    let mut line = format!("{} {:5} {}: ", head.time, head.level, head.target);
    escape(&mut line, &fields.message);
    for (name, value) in &fields.rest {
        let _ = write!(line, " {name}=");
        match value {
            Value::String(text) if is_plain(text) => line.push_str(text),
            Value::String(text) => {
                line.push('"');
                escape(&mut line, &text.replace('\\', "\\\\").replace('"', "\\\""));
                line.push('"');
            }
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::Array(_) | Value::Object(_) => {
                let _ = write!(line, "{value}");
            }
        }
    }
    line.push('\n');
    line
}

/// Needs no quotes.
fn is_plain(text: &str) -> bool {
    !text.is_empty()
        && !text.chars().any(|c| is_unsafe(c) || c.is_whitespace() || matches!(c, '"' | '=' | '\\'))
}

/// Would move the cursor, end the line, or turn the direction of writing.
fn is_unsafe(c: char) -> bool {
    c.is_control() || matches!(c, '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

fn escape(line: &mut String, text: &str) {
    for c in text.chars() {
        if is_unsafe(c) {
            line.extend(c.escape_default());
        } else {
            line.push(c);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Mutex, PoisonError};

    use super::*;

    /// What `events` would have written.
    fn captured(json: bool, events: impl FnOnce()) -> Vec<String> {
        let lines = Arc::new(Mutex::new(Vec::new()));
        let sink = Arc::clone(&lines);
        let write =
            move |line: &str| sink.lock().unwrap_or_else(PoisonError::into_inner).push(line.to_owned());
        let layer = Lines { json: Arc::new(AtomicBool::new(json)), write };
        tracing::subscriber::with_default(tracing_subscriber::registry().with(layer), events);
        Arc::into_inner(lines).unwrap().into_inner().unwrap()
    }

    #[test]
    fn a_value_cannot_forge_a_line() {
        let user = "eve\n2026-01-01 INFO all is well\u{1b}[2J \"x\" \u{202e}";
        let lines =
            captured(false, || tracing::warn!(client = 7, user, ok = true, plain = "a", "login\rrefused"));
        let [line] = &lines[..] else { panic!("one line: {lines:?}") };
        assert!(line.contains(" WARN  crossfade::report::log::tests: login\\rrefused client=7 "), "{line}");
        let written = r#" user="eve\n2026-01-01 INFO all is well\u{1b}[2J \"x\" \u{202e}" ok=true plain=a"#;
        assert!(line.contains(written), "{line}");
        assert_eq!(line.matches('\n').count(), 1, "{line}");
    }

    #[test]
    fn json_keeps_types_and_its_own_names() {
        let lines =
            captured(true, || tracing::info!(level = "fake", n = 3, side = %crate::Side::Source, "a\nb"));
        let value: Value = serde_json::from_str(&lines[0]).unwrap();
        assert_eq!(value["level"], "INFO");
        assert_eq!(value["n"], 3);
        assert_eq!(value["side"], "source");
        assert_eq!(value["message"], "a\nb");
        assert!(value["timestamp"].as_str().is_some_and(|t| t.ends_with('Z')), "{value}");
        assert_eq!(lines[0].matches('\n').count(), 1);
    }

    #[test]
    fn long_values_are_cut() {
        let long = "é".repeat(MAX_VALUE_CHARS * 2);
        let lines = captured(false, || tracing::info!(long, "x"));
        assert!(lines[0].len() < MAX_VALUE_CHARS * 2 + 200, "{}", lines[0].len());
    }

    #[test]
    fn filters() {
        for (filter, good) in
            [("info", true), ("warn,crossfade=debug", true), ("crossfade=loud", false), ("=", false)]
        {
            assert_eq!(parse_filter(filter).is_ok(), good, "{filter}");
        }
    }

    #[test]
    fn filter_and_format_change_while_running() {
        let log = |filter: &str, json| Log { filter: filter.into(), json, literals: false };
        let handle = init(&log("warn", false)).unwrap();
        assert!(init(&log("warn", false)).is_err(), "once a process");
        assert!(!tracing::enabled!(tracing::Level::DEBUG));
        handle.apply(&log("crossfade=debug", true)).unwrap();
        assert!(tracing::enabled!(tracing::Level::DEBUG));
        assert!(handle.json.load(Ordering::Relaxed));
        assert!(handle.apply(&log("crossfade=loud", false)).is_err());
        assert!(
            tracing::enabled!(tracing::Level::DEBUG) && handle.json.load(Ordering::Relaxed),
            "nothing changed"
        );
    }
}
