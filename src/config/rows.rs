//! The configuration in force, key by key, for SHOW CONFIG. No secret is in it.

use std::time::Duration;

use super::{AuthMethod, Config, PoolMode};
use crate::{
    Side,
    compare::rules::{Json, Numeric, Rules},
    route::policy::{Ack, Ddl, OnFailure, OnUnknown, Share, TransactionReads},
};

/// Key, value, and whether a reload is enough to change it.
pub(crate) type Row = (String, String, bool);

impl Config {
    /// Every key with its value in force.
    pub(crate) fn rows(&self) -> Vec<Row> {
        let mut rows = Rows(Vec::new());
        let l = &self.listen;
        let addresses: Vec<_> = l.addresses.iter().map(ToString::to_string).collect();
        rows.cold("listen.addresses", addresses.join(", "));
        rows.cold(
            "listen.unix_socket_dir",
            l.unix_socket_dir.as_ref().map_or_else(String::new, |d| d.display().to_string()),
        );
        rows.cold("listen.threads", l.threads);
        rows.cold("listen.backlog", l.backlog);
        if let Some(tls) = &self.client_tls {
            rows.hot("client_tls.mode", if tls.require { "require" } else { "prefer" });
            rows.hot("client_tls.certificate", tls.certificate.display());
            rows.hot("client_tls.key", tls.key.display());
            rows.hot(
                "client_tls.client_ca",
                tls.client_ca.as_ref().map_or_else(String::new, |d| d.display().to_string()),
            );
        }
        let method = match self.auth.method {
            AuthMethod::Scram => "scram-sha-256",
            AuthMethod::Md5 => "md5",
            AuthMethod::Certificate => "cert",
            AuthMethod::Trust => "trust",
        };
        rows.hot("auth.method", method);
        rows.hot("auth.query", self.auth.query.as_deref().unwrap_or_default());
        let mut users: Vec<_> = self.auth.users.keys().map(String::as_str).collect();
        users.sort_unstable();
        rows.hot("user", users.join(", "));
        for side in Side::BOTH {
            let b = &self.backends[side.index()];
            rows.hot(&format!("{side}.host"), &b.host);
            rows.hot(&format!("{side}.port"), b.port);
            rows.hot(&format!("{side}.database"), &b.database);
            rows.hot(&format!("{side}.user"), &b.control_user);
            rows.hot(&format!("{side}.tls"), format!("{:?}", b.tls.mode).to_ascii_lowercase());
        }
        self.limits_and_timeouts(&mut rows);
        self.routing(&mut rows);
        rows.cold("admin.http", self.admin.http.map_or_else(String::new, |a| a.to_string()));
        rows.hot("admin.admin_users", self.admin.admin_users.join(", "));
        rows.hot("admin.stats_users", self.admin.stats_users.join(", "));
        rows.hot("admin.token", self.admin.token.map_or("", |_| "***"));
        let endpoint = self.telemetry.endpoint.as_ref();
        let endpoint = endpoint.map_or_else(String::new, |e| format!("http://{}{}", e.authority, e.base));
        rows.hot("telemetry.otlp_endpoint", endpoint);
        rows.hot("telemetry.otlp_interval", duration(Some(self.telemetry.interval)));
        rows.hot("telemetry.otlp_spans", self.telemetry.spans.fraction());
        rows.hot("log.filter", &self.log.filter);
        rows.hot("log.format", if self.log.json { "json" } else { "text" });
        rows.hot("log.literals", self.log.literals);
        rows.0
    }

    fn limits_and_timeouts(&self, rows: &mut Rows) {
        let mode = match self.pool.mode {
            PoolMode::Session => "session",
            PoolMode::Transaction => "transaction",
        };
        rows.hot("pool.mode", mode);
        rows.hot("pool.size", self.pool.size);
        rows.hot("pool.min_size", self.pool.min_size);
        rows.hot("pool.max_server_connections", self.pool.max_server_connections);
        rows.hot("pool.max_prepared_statements", self.pool.max_prepared_statements);
        rows.hot("limits.max_clients", self.limits.max_clients);
        rows.hot("limits.max_logins", self.limits.max_logins);
        rows.hot("limits.max_message_bytes", self.limits.max_message_bytes);
        rows.hot("limits.max_statement_bytes", self.limits.max_statement_bytes);
        rows.hot("limits.max_client_statements", self.limits.max_client_statements);
        rows.hot("limits.max_batch_statements", self.limits.max_batch_statements);
        rows.hot("limits.plan_cache_bytes", self.limits.plan_cache_bytes);
        let t = &self.timeouts;
        for (key, value) in [
            ("client_login", Some(t.client_login)),
            ("client_idle", t.client_idle),
            ("idle_transaction", t.idle_transaction),
            ("transaction", t.transaction),
            ("query", t.query),
            ("query_wait", t.query_wait),
            ("server_connect", Some(t.server_connect)),
            ("server_login_retry", Some(t.server_login_retry)),
            ("server_idle", t.server_idle),
            ("server_lifetime", t.server_lifetime),
            ("cancel_wait", Some(t.cancel_wait)),
            ("drain", Some(t.drain)),
            ("tcp_keepalive", t.tcp_keepalive),
            ("tcp_user", t.tcp_user),
        ] {
            rows.hot(&format!("timeouts.{key}"), duration(value));
        }
    }

    fn routing(&self, rows: &mut Rows) {
        let p = &self.policy;
        let on_unknown = match p.on_unknown {
            OnUnknown::Refuse => "refuse",
            OnUnknown::Source => "source",
            OnUnknown::Target => "target",
        };
        let transactions = match p.transactions {
            TransactionReads::Weighted => "weighted",
            TransactionReads::Lead => "lead",
        };
        rows.hot("routing.on_unknown", on_unknown);
        rows.hot("routing.transactions", transactions);
        rows.hot("routing.sticky", duration(Some(p.sticky).filter(|d| !d.is_zero())));
        let m = &self.mirror;
        rows.hot("mirror.install", m.install);
        rows.hot("mirror.connections", m.connections);
        for (key, value) in [
            ("lock_timeout", m.lock_timeout),
            ("deadlock_after", m.deadlock_after),
            ("apply_timeout", m.apply_timeout),
            ("retry_after", m.retry_after),
            ("journal_grace", m.journal_grace),
            ("slice", m.slice),
        ] {
            rows.hot(&format!("mirror.{key}"), duration(Some(value)));
        }
        let s = &self.shadow;
        rows.hot("shadow.connections", s.connections);
        rows.hot("shadow.queue", s.queue);
        rows.hot("shadow.max_per_second", s.max_per_second);
        rows.hot("shadow.max_result_bytes", s.max_result_bytes);
        rows.hot("shadow.expire", duration(Some(s.expire)));
        rows.hot("shadow.statement_timeout", duration(Some(s.statement_timeout)));
        rows.hot("shadow.values", s.values);
        let evidence = s.evidence.as_ref().map_or_else(String::new, |path| path.display().to_string());
        rows.cold("shadow.evidence", evidence);
        for (r, shadowed) in p.repositories.iter().zip(&s.repositories).skip(1) {
            rows.hot(&format!("repository.{}.shadow", r.name), shadowed.share.fraction());
            let Rules { ignore, float_tolerance, timestamp_tolerance_us, numeric, json } = &shadowed.rules;
            let tolerance = duration(Some(Duration::from_micros(*timestamp_tolerance_us)));
            let numeric = if *numeric == Numeric::Value { "value" } else { "scale" };
            let json = if *json == Json::Semantic { "semantic" } else { "text" };
            let ignore = ignore.join(", ");
            for (key, value) in [
                ("ignore", ignore.as_str()),
                ("float_tolerance", &float_tolerance.to_string()),
                ("timestamp_tolerance", &tolerance),
                ("numeric", numeric),
                ("json", json),
            ] {
                rows.hot(&format!("repository.{}.compare.{key}", r.name), value);
            }
        }
        for r in p.repositories.iter().skip(1) {
            let tables: Vec<_> = r.tables.iter().map(|t| format!("{}.{}", t.schema, t.name)).collect();
            rows.hot(&format!("repository.{}.tables", r.name), tables.join(", "));
            rows.hot(&format!("repository.{}.reads", r.name), share(r.reads));
            rows.hot(&format!("repository.{}.writes", r.name), share(r.writes));
            rows.hot(&format!("repository.{}.mirror", r.name), r.mirror.mode.name());
            let ack = match r.mirror.ack {
                Ack::Auto => "auto",
                Ack::Both => "both",
                Ack::Lead => "lead",
            };
            rows.hot(&format!("repository.{}.ack", r.name), ack);
            let fails = r.mirror.on_failure == OnFailure::Fail;
            let on_failure = if fails { "fail" } else { "journal" };
            rows.hot(&format!("repository.{}.on_follower_failure", r.name), on_failure);
            let ddl = if r.mirror.ddl == Ddl::Lead { "lead" } else { "refuse" };
            rows.hot(&format!("repository.{}.ddl", r.name), ddl);
        }
    }
}

struct Rows(Vec<Row>);

impl Rows {
    fn hot(&mut self, key: &str, value: impl std::fmt::Display) {
        self.0.push((key.to_owned(), value.to_string(), true));
    }

    fn cold(&mut self, key: &str, value: impl std::fmt::Display) {
        self.0.push((key.to_owned(), value.to_string(), false));
    }
}

fn duration(value: Option<Duration>) -> String {
    value.map_or_else(|| "0".to_owned(), |d| format!("{d:?}"))
}

fn share(share: Share) -> String {
    let target = f64::from(share.basis_points()) / 100.0;
    format!("source {} target {target}", 100.0 - target)
}
