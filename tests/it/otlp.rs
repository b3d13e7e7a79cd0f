//! A small collector hears of every transaction, and of the metrics.

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::{TcpListener, TcpStream},
    sync::{Arc, Mutex, PoisonError},
};

use opentelemetry_proto::tonic::{
    collector::{metrics::v1::ExportMetricsServiceRequest, trace::v1::ExportTraceServiceRequest},
    common::v1::{KeyValue, any_value::Value},
    metrics::v1::{Metric, metric::Data, number_data_point},
    trace::v1::Span,
};
use prost14::Message;

use crate::support::{
    cluster::{newest, oldest},
    needs_proxy,
    proxy::{Proxy, Settings},
    wait_for,
};

/// What it was sent.
#[derive(Default)]
struct Heard {
    spans: Vec<Span>,
    metrics: Vec<Metric>,
    resources: Vec<KeyValue>,
}

/// An OTLP receiver over HTTP; its thread ends with the process.
struct Collector {
    port: u16,
    heard: Arc<Mutex<Heard>>,
}

impl Collector {
    fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let port = listener.local_addr().expect("an address").port();
        let heard = Arc::new(Mutex::new(Heard::default()));
        let shared = Arc::clone(&heard);
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                hear(stream, &shared);
            }
        });
        Self { port, heard }
    }

    fn with<T>(&self, f: impl FnOnce(&Heard) -> T) -> T {
        f(&self.heard.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// One request; what is not OTLP is refused.
fn hear(mut stream: TcpStream, heard: &Mutex<Heard>) {
    let mut reader = BufReader::new(stream.try_clone().expect("a second handle"));
    let mut lines = Vec::new();
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line).unwrap_or(0) <= 2 {
            break;
        }
        lines.push(line.trim_end().to_ascii_lowercase());
    }
    let length = lines.iter().find_map(|line| line.strip_prefix("content-length: "));
    let mut body = vec![0; length.and_then(|n| n.parse().ok()).unwrap_or(0)];
    reader.read_exact(&mut body).expect("the whole body");
    let mut heard = heard.lock().unwrap_or_else(PoisonError::into_inner);
    assert!(lines.contains(&"content-type: application/x-protobuf".to_owned()), "{lines:?}");
    match lines[0].as_str() {
        "post /base/v1/traces http/1.1" => {
            let request = ExportTraceServiceRequest::decode(&body[..]).expect("traces");
            for resource in request.resource_spans {
                heard.resources.extend(resource.resource.expect("a resource").attributes);
                heard.spans.extend(resource.scope_spans.into_iter().flat_map(|scope| scope.spans));
            }
        }
        "post /base/v1/metrics http/1.1" => {
            let request = ExportMetricsServiceRequest::decode(&body[..]).expect("metrics");
            let scopes = request.resource_metrics.into_iter().flat_map(|resource| resource.scope_metrics);
            heard.metrics = scopes.flat_map(|scope| scope.metrics).collect();
        }
        other => panic!("{other}"),
    }
    stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n").expect("sent");
}

fn attribute(list: &[KeyValue], key: &str) -> String {
    let found = list.iter().find(|attribute| attribute.key == key);
    match found.and_then(|attribute| attribute.value.clone()?.value) {
        Some(Value::StringValue(text)) => text,
        Some(Value::BoolValue(value)) => value.to_string(),
        Some(Value::IntValue(value)) => value.to_string(),
        other => panic!("{key}: {other:?} in {list:?}"),
    }
}

fn start(name: &str, telemetry: &str) -> Proxy {
    for cluster in [oldest(), newest()] {
        cluster.database(name);
    }
    let mut settings = Settings::new(name).backends(oldest(), newest());
    settings.document_reads_target = 100;
    telemetry.clone_into(&mut settings.telemetry);
    settings.start()
}

/// What a span says: backend, outcome, wrote, units, repositories.
fn said(span: &Span) -> String {
    let keys = ["backend", "outcome", "wrote", "units", "repositories"];
    keys.map(|key| attribute(&span.attributes, &format!("crossfade.{key}"))).join(" ")
}

#[test]
fn a_span_per_transaction_and_the_metrics() {
    needs_proxy!();
    let collector = Collector::start();
    let mut proxy = start(
        "otlp",
        &format!("otlp_endpoint = 'http://127.0.0.1:{}/base/'\notlp_interval = '500ms'", collector.port),
    );
    let mut client = proxy.client("alice");
    wait_for("the first metrics", || collector.with(|heard| !heard.metrics.is_empty()));
    let before = std::time::SystemTime::now();
    client.run("SELECT id FROM documents WHERE id = 1");
    client.run("BEGIN");
    client.run("INSERT INTO users VALUES (1, 'one')");
    client.run("SELECT id FROM organizations");
    client.run("COMMIT");
    client.run("BEGIN");
    assert!(client.query("SELECT 1 / 0").is_err());
    client.run("ROLLBACK");
    assert!(client.query("SELECT n / 0 FROM (VALUES (1)) v (n)").is_err());
    wait_for("four spans", || collector.with(|heard| heard.spans.len() >= 4));
    let elapsed = before.elapsed().expect("a clock").as_nanos();
    collector.with(|heard| {
        let spans: Vec<String> = heard.spans.iter().map(said).collect();
        assert_eq!(
            spans,
            [
                "target commit false 1 document",
                "source commit true 4 user,organization",
                "source rollback false 3 ",
                "source rollback false 1 "
            ]
        );
        let began = before.duration_since(std::time::UNIX_EPOCH).expect("after 1970").as_nanos();
        for span in &heard.spans {
            let [start, end] = [span.start_time_unix_nano, span.end_time_unix_nano].map(u128::from);
            // The calendar's clock and the monotonic one are read one after the other.
            let about = began - 50_000_000..began + elapsed + 50_000_000;
            assert!(start < end && about.contains(&start) && about.contains(&end), "{span:?}");
            assert_eq!((span.trace_id.len(), span.span_id.len()), (16, 8));
        }
        assert_eq!(attribute(&heard.spans[3].attributes, "db.response.status_code"), "22012");
        assert_eq!(heard.spans[3].status.as_ref().map(|status| status.code), Some(2));
        assert_eq!(attribute(&heard.resources, "service.name"), "crossfade");
    });
    wait_for("the metrics of it", || {
        collector.with(|heard| {
            let commits = heard.metrics.iter().find(|m| m.name == "crossfade_transactions_total");
            let Some(Data::Sum(sum)) = commits.and_then(|m| m.data.as_ref()) else { return false };
            let commits = sum.data_points.iter().filter(|p| attribute(&p.attributes, "outcome") == "commit");
            let values = commits.map(|p| match p.value {
                Some(number_data_point::Value::AsInt(n)) => n,
                other => panic!("{other:?}"),
            });
            sum.is_monotonic && values.sum::<i64>() == 2
        })
    });
    collector.with(|heard| {
        let durations = heard.metrics.iter().find(|m| m.name == "crossfade_query_duration_seconds");
        let durations = durations.expect("the histogram");
        let Some(Data::Histogram(histogram)) = &durations.data else { panic!("{durations:?}") };
        for point in &histogram.data_points {
            assert_eq!(point.bucket_counts.len(), point.explicit_bounds.len() + 1);
            assert_eq!(point.bucket_counts.iter().sum::<u64>(), point.count, "{point:?}");
        }
        assert_eq!(durations.unit, "s");
    });

    // The last ones go out at the end.
    client.run("SELECT id FROM documents WHERE id = 2");
    proxy.signal("TERM");
    wait_for("the end", || proxy.ended().is_some());
    assert_eq!(collector.with(|heard| heard.spans.len()), 5);
}

/// Nobody listens: clients do not notice, it is said once, and what is lost is counted.
#[test]
fn a_dead_collector_is_nobodys_business() {
    needs_proxy!();
    let port = crate::support::free_port();
    let telemetry = format!("otlp_endpoint = 'http://127.0.0.1:{port}'\notlp_interval = '100ms'");
    let proxy = start("otlp_dead", &telemetry);
    let mut client = proxy.client("alice");
    wait_for("lost spans", || {
        client.run("SELECT id FROM documents WHERE id = 1");
        proxy.metric("otlp_dropped_spans_total", &["reason=\"export\""]) > 10.0
    });
    assert_eq!(proxy.log().matches("takes nothing").count(), 1, "{}", proxy.log());
}
