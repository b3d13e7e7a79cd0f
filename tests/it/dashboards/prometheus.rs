//! A Prometheus that scrapes one proxy.

use std::{
    collections::BTreeSet,
    fs::File,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use serde_json::Value;

use crate::support::{free_port, http, wait_for};

/// Killed when dropped.
pub(super) struct Prometheus {
    child: Child,
    port: u16,
}

impl Prometheus {
    /// With the alert rules that are deployed; `None` where there is no Prometheus (`tools/setup rules`).
    pub(super) fn start(directory: &Path, scraped: u16) -> Option<Self> {
        let program = program()?;
        std::fs::create_dir_all(directory).expect("the temp dir is writable");
        let rules = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/alerts.yml");
        let config = format!(
            "global: {{ scrape_interval: 500ms, scrape_timeout: 500ms, evaluation_interval: 1s }}\n\
             rule_files: ['{}']\n\
             scrape_configs:\n- job_name: crossfade\n  static_configs: [{{ targets: ['127.0.0.1:{scraped}'] }}]\n",
            rules.display()
        );
        let file = directory.join("prometheus.yml");
        std::fs::write(&file, config).expect("writable");
        let log = File::create(directory.join("log")).expect("writable");
        let port = free_port();
        let child = Command::new(program)
            .arg(format!("--config.file={}", file.display()))
            .arg(format!("--storage.tsdb.path={}", directory.join("data").display()))
            .arg(format!("--web.listen-address=127.0.0.1:{port}"))
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a second handle"))
            .stderr(log)
            .spawn()
            .expect("it runs");
        let started = Self { child, port };
        wait_for("Prometheus", || http::get(port, "/-/ready").is_some_and(|(status, _)| status == 200));
        Some(started)
    }

    /// The series that a query answers with now.
    #[track_caller]
    pub(super) fn query(&self, query: &str) -> Vec<Value> {
        let answer = self.ask(&format!("/api/v1/query?query={}", escaped(query)));
        answer["result"].as_array().expect("a vector").clone()
    }

    /// Names of the labels of the series that a selector finds.
    #[track_caller]
    pub(super) fn labels(&self, selector: &str) -> BTreeSet<String> {
        let found = self.query(selector);
        let names = |series: &Value| {
            let labels = series["metric"].as_object().expect("labels");
            labels.keys().cloned().collect::<Vec<_>>()
        };
        found.iter().flat_map(names).collect()
    }

    /// The alert rules.
    #[track_caller]
    pub(super) fn rules(&self) -> Vec<Value> {
        let answer = self.ask("/api/v1/rules?type=alert");
        let groups = answer["groups"].as_array().expect("groups");
        groups.iter().flat_map(|group| group["rules"].as_array().expect("rules").clone()).collect()
    }

    #[track_caller]
    fn ask(&self, path: &str) -> Value {
        let (status, body) = http::get(self.port, path).expect("an answer");
        let mut answer: Value = serde_json::from_str(&body).unwrap_or_else(|e| panic!("{path}: {body}: {e}"));
        assert_eq!((status, answer["status"].as_str()), (200, Some("success")), "{path}: {answer}");
        answer["data"].take()
    }
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// In the path, or where `tools/setup` puts it.
fn program() -> Option<PathBuf> {
    let cache = std::env::var_os("CROSSFADE_CACHE").map(PathBuf::from).or_else(|| {
        let uid = Command::new("id").arg("-u").output().ok()?.stdout;
        Some(format!("/var/tmp/crossfade-cache-{}", String::from_utf8(uid).ok()?.trim()).into())
    });
    let runs = |program: &PathBuf| {
        let mut version = Command::new(program);
        version.arg("--version").stdout(Stdio::null()).stderr(Stdio::null());
        version.status().is_ok_and(|status| status.success())
    };
    [Some("prometheus".into()), cache.map(|dir| dir.join("prometheus"))].into_iter().flatten().find(runs)
}

/// For the query of a URL.
fn escaped(text: &str) -> String {
    let byte =
        |b: u8| if b.is_ascii_alphanumeric() { char::from(b).to_string() } else { format!("%{b:02X}") };
    text.bytes().map(byte).collect()
}
