//! Metrics and spans as OpenTelemetry's messages.

use std::{
    borrow::Cow,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use opentelemetry_proto::tonic::{
    collector::{metrics::v1::ExportMetricsServiceRequest, trace::v1::ExportTraceServiceRequest},
    common::v1::{AnyValue, InstrumentationScope, KeyValue, any_value},
    metrics::v1::{
        AggregationTemporality, Gauge, Histogram, HistogramDataPoint, Metric, NumberDataPoint,
        ResourceMetrics, ScopeMetrics, Sum, metric, number_data_point,
    },
    resource::v1::Resource,
    trace::v1::{ResourceSpans, ScopeSpans, Span, Status, span::SpanKind, status::StatusCode},
};
use prost14::Message;

use super::{
    metrics::{Family, Kind, Labels, Sample},
    tally::Distribution,
};
use crate::Side;

/// Who exports.
#[derive(Clone, Debug)]
pub struct Origin {
    /// Another one for each process, hexadecimal.
    pub instance: String,
    /// When it began: counters begin with 0 then.
    pub began: SystemTime,
}

/// One transaction that has ended.
#[derive(Clone, Debug)]
pub struct Transaction {
    /// Of the client, as in SHOW CLIENTS and the log.
    pub client: u64,
    /// Of the client.
    pub user: String,
    /// Where it ran.
    pub side: Side,
    /// What it touched, by name.
    pub repositories: Vec<String>,
    /// Units of the protocol: texts, and batches up to their Sync.
    pub units: u64,
    /// May it have written?
    pub wrote: bool,
    /// Rolled back otherwise.
    pub committed: bool,
    /// Of its last unit.
    pub sqlstate: Option<[u8; 5]>,
    /// From its first statement to the end of its last answer.
    pub began: SystemTime,
    /// How long that was.
    pub took: Duration,
    /// Random.
    pub id: [u8; 24],
}

/// The body of a POST to `/v1/metrics`.
pub fn metrics(families: &[Family], origin: &Origin, now: SystemTime) -> Vec<u8> {
    let times = [nanos(origin.began), nanos(now)];
    let metrics = families.iter().map(|family| of_family(family, times)).collect();
    let scope_metrics = vec![ScopeMetrics { scope: Some(scope()), metrics, ..ScopeMetrics::default() }];
    let resource =
        ResourceMetrics { resource: Some(resource(origin)), scope_metrics, ..ResourceMetrics::default() };
    ExportMetricsServiceRequest { resource_metrics: vec![resource] }.encode_to_vec()
}

/// The body of a POST to `/v1/traces`.
pub fn spans(transactions: &[Transaction], origin: &Origin) -> Vec<u8> {
    let spans = transactions.iter().map(of_transaction).collect();
    let scope_spans = vec![ScopeSpans { scope: Some(scope()), spans, ..ScopeSpans::default() }];
    let resource =
        ResourceSpans { resource: Some(resource(origin)), scope_spans, ..ResourceSpans::default() };
    ExportTraceServiceRequest { resource_spans: vec![resource] }.encode_to_vec()
}

fn of_transaction(t: &Transaction) -> Span {
    let (trace, span) = t.id.split_at(16);
    let began = nanos(t.began);
    let code = t.sqlstate.as_ref().and_then(|code| std::str::from_utf8(code).ok());
    let mut attributes = vec![
        text("db.system.name", "postgresql"),
        text("crossfade.backend", t.side.name()),
        text("crossfade.repositories", &t.repositories.join(",")),
        text("crossfade.outcome", if t.committed { "commit" } else { "rollback" }),
        text("crossfade.user", &t.user),
        value("crossfade.wrote", any_value::Value::BoolValue(t.wrote)),
        value("crossfade.units", any_value::Value::IntValue(i64::try_from(t.units).unwrap_or(i64::MAX))),
        value("crossfade.client", any_value::Value::IntValue(i64::try_from(t.client).unwrap_or(i64::MAX))),
    ];
    attributes.extend(code.map(|code| text("db.response.status_code", code)));
    let status = code.map(|code| Status { message: code.to_owned(), code: StatusCode::Error.into() });
    Span {
        trace_id: trace.to_vec(),
        span_id: span.to_vec(),
        name: "transaction".to_owned(),
        kind: SpanKind::Server.into(),
        start_time_unix_nano: began,
        end_time_unix_nano: began.saturating_add(u64::try_from(t.took.as_nanos()).unwrap_or(u64::MAX)),
        attributes,
        status,
        ..Span::default()
    }
}

fn of_family(family: &Family, times: [u64; 2]) -> Metric {
    let Family { metric, rows } = family;
    let cumulative = AggregationTemporality::Cumulative.into();
    let numbers = || rows.iter().filter_map(|(labels, sample)| number(metric.labels, labels, sample, times));
    let data = match metric.kind {
        Kind::Gauge => metric::Data::Gauge(Gauge { data_points: numbers().collect() }),
        Kind::Counter => metric::Data::Sum(Sum {
            data_points: numbers().collect(),
            aggregation_temporality: cumulative,
            is_monotonic: true,
        }),
        Kind::Histogram => {
            let point = |(labels, sample): &(Labels, Sample)| match sample {
                Sample::Distribution(found) => Some(histogram(metric.labels, labels, found, times)),
                Sample::Count(_) | Sample::Number(_) => None,
            };
            metric::Data::Histogram(Histogram {
                data_points: rows.iter().filter_map(point).collect(),
                aggregation_temporality: cumulative,
            })
        }
    };
    let bases = [("_seconds", "s"), ("_bytes", "By")];
    let base = metric.name.strip_suffix("_total").unwrap_or(metric.name);
    let unit = bases.iter().find(|(suffix, _)| base.ends_with(suffix)).map_or("", |(_, unit)| unit);
    Metric {
        name: metric.name.to_owned(),
        description: metric.help.to_owned(),
        unit: unit.to_owned(),
        data: Some(data),
        ..Metric::default()
    }
}

fn number(names: &[&str], labels: &Labels, sample: &Sample, times: [u64; 2]) -> Option<NumberDataPoint> {
    let value = match sample {
        Sample::Count(n) => number_data_point::Value::AsInt(i64::try_from(*n).unwrap_or(i64::MAX)),
        Sample::Number(value) => number_data_point::Value::AsDouble(*value),
        Sample::Distribution(_) => return None,
    };
    Some(NumberDataPoint {
        attributes: attributes(names, labels),
        start_time_unix_nano: times[0],
        time_unix_nano: times[1],
        value: Some(value),
        ..NumberDataPoint::default()
    })
}

fn histogram(names: &[&str], labels: &Labels, found: &Distribution, times: [u64; 2]) -> HistogramDataPoint {
    let mut before = 0;
    let cumulative = found.below.iter().map(|(_, n)| *n).chain([found.count]);
    let bucket_counts = cumulative.map(|n| n - std::mem::replace(&mut before, n)).collect();
    // What may be below 0 has no sum: it would not only rise.
    let negative = found.below.first().is_some_and(|(bound, _)| *bound < 0.0);
    HistogramDataPoint {
        attributes: attributes(names, labels),
        start_time_unix_nano: times[0],
        time_unix_nano: times[1],
        count: found.count,
        sum: (!negative).then_some(found.sum),
        bucket_counts,
        explicit_bounds: found.below.iter().map(|(bound, _)| *bound).collect(),
        ..HistogramDataPoint::default()
    }
}

fn attributes(names: &[&str], labels: &[Cow<'static, str>]) -> Vec<KeyValue> {
    names.iter().zip(labels).map(|(name, label)| text(name, label)).collect()
}

fn resource(origin: &Origin) -> Resource {
    let attributes = vec![
        text("service.name", "crossfade"),
        text("service.version", env!("CARGO_PKG_VERSION")),
        text("service.instance.id", &origin.instance),
    ];
    Resource { attributes, ..Resource::default() }
}

fn scope() -> InstrumentationScope {
    InstrumentationScope { name: "crossfade".to_owned(), ..InstrumentationScope::default() }
}

fn text(key: &str, of: &str) -> KeyValue {
    value(key, any_value::Value::StringValue(of.to_owned()))
}

fn value(key: &str, of: any_value::Value) -> KeyValue {
    KeyValue { key: key.to_owned(), value: Some(AnyValue { value: Some(of) }), ..KeyValue::default() }
}

fn nanos(at: SystemTime) -> u64 {
    let since = at.duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}
