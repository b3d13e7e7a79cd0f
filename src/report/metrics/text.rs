//! Prometheus' text format.

use std::fmt::{Display, Write as _};

use super::{Family, Labels, Metric, Sample};

pub(super) fn render(families: &[Family]) -> String {
    let mut out = String::new();
    for Family { metric, rows } in families {
        let _ = writeln!(out, "# HELP {} {}", metric.name, metric.help);
        let _ = writeln!(out, "# TYPE {} {}", metric.name, metric.kind.name());
        for (labels, sample) in rows {
            write_sample(&mut out, metric, labels, sample);
        }
        out.push('\n');
    }
    out
}

fn write_sample(out: &mut String, metric: &Metric, labels: &Labels, sample: &Sample) {
    match sample {
        Sample::Count(n) => write_row(out, metric, "", labels, None, n),
        Sample::Number(value) => write_row(out, metric, "", labels, None, value),
        Sample::Distribution(found) => {
            for (bound, n) in &found.below {
                write_row(out, metric, "_bucket", labels, Some(&bound.to_string()), n);
            }
            write_row(out, metric, "_bucket", labels, Some("+Inf"), &found.count);
            write_row(out, metric, "_sum", labels, None, &found.sum);
            write_row(out, metric, "_count", labels, None, &found.count);
        }
    }
}

fn write_row(
    out: &mut String,
    metric: &Metric,
    suffix: &str,
    labels: &Labels,
    bound: Option<&str>,
    value: &dyn Display,
) {
    let _ = write!(out, "{}{suffix}", metric.name);
    let mut separator = '{';
    let labels = metric.labels.iter().copied().zip(labels.iter().map(|v| &**v));
    for (name, value) in labels.chain(bound.map(|bound| ("le", bound))) {
        let value = value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
        let _ = write!(out, "{separator}{name}=\"{value}\"");
        separator = ',';
    }
    let _ = writeln!(out, "{} {value}", if separator == '{' { "" } else { "}" });
}
