//! A browser that does what a test says.

use std::{
    io::{BufRead, BufReader, Write},
    path::Path,
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
};

use serde_json::{Value, json};

/// Headless Chromium, driven by Node.
pub(super) struct Browser {
    driver: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Browser {
    /// `None` where there is no Chromium or no Node (`tools/setup browser`).
    pub(super) fn start(directory: &Path) -> Option<Self> {
        let there = |program: &str| {
            let mut version = Command::new(program);
            version.arg("--version").stdout(Stdio::null()).stderr(Stdio::null());
            version.status().is_ok_and(|status| status.success())
        };
        if !there("chromium") || !there("node") {
            return None;
        }
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/page/browser.js");
        let mut command = Command::new("node");
        command.arg(script).arg(directory).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut driver = command.spawn().expect("node runs");
        let input = driver.stdin.take().expect("a pipe");
        let output = BufReader::new(driver.stdout.take().expect("a pipe"));
        Some(Self { driver, input, output })
    }

    /// One command; see `browser.js`.
    #[track_caller]
    pub(super) fn call(&mut self, command: &Value) -> Value {
        writeln!(self.input, "{command}").expect("the browser lives");
        let mut line = String::new();
        self.output.read_line(&mut line).expect("the browser lives");
        let mut answer: Value =
            serde_json::from_str(&line).unwrap_or_else(|e| panic!("{command}: {line} {e}"));
        assert!(answer["error"].is_null(), "{command}: {answer}");
        answer["ok"].take()
    }

    /// The value of an expression, as text; of what is not there the empty one.
    #[track_caller]
    pub(super) fn eval(&mut self, expression: &str) -> String {
        match self.call(&json!(["eval", expression])) {
            Value::String(text) => text,
            Value::Null => String::new(),
            other @ (Value::Bool(_) | Value::Number(_) | Value::Array(_) | Value::Object(_)) => {
                other.to_string()
            }
        }
    }

    /// Text of a place of the page.
    #[track_caller]
    pub(super) fn text(&mut self, selector: &str) -> String {
        self.eval(&format!("document.querySelector({})?.innerText", json!(selector)))
    }

    /// A number of the page.
    #[track_caller]
    pub(super) fn figure(&mut self, name: &str) -> String {
        self.text(&format!("[data-figure=\"{name}\"]"))
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        // Node ends the browser when it is told to go.
        let _ = self.call(&json!(["eval", "1"]));
        let _ = Command::new("kill").arg(self.driver.id().to_string()).status();
        let _ = self.driver.wait();
    }
}
