//! Is what mirroring needs installed, and up to date? Looked at when the configuration or a catalog changes; installed
//! where `mirror.install` allows it, else said.

use std::{sync::Arc, time::Duration};

use crate::{
    config::Config,
    mirror::{
        install::{self, Error, Missing},
        preflight::Severity,
    },
    proxy::global::Global,
};

/// Looks until it is aborted.
pub(in crate::proxy) async fn keep(global: Arc<Global>) {
    let mut seen = None;
    loop {
        let now = (global.live.get().hash.clone(), global.catalog.load().generation);
        if seen.as_ref() != Some(&now) && once(&global).await {
            seen = Some(now);
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// One look, and what it asks for. `false`: a side could not be asked.
pub(in crate::proxy) async fn once(global: &Global) -> bool {
    let config = global.live.get();
    if !config.policy.mirrors() {
        return true;
    }
    match look(&config).await {
        Ok(missing) => {
            for missing in missing.iter().take(MOST) {
                let Missing { side, table, what } = missing;
                tracing::warn!(%side, table, what, "not installed: run crossfade mirror install");
            }
            true
        }
        Err(error) => {
            tracing::debug!(%error, "what is installed could not be looked at");
            false
        }
    }
}

/// What is missing in the end.
async fn look(config: &Config) -> Result<Vec<Missing>, Error> {
    let missing = install::look(config).await?;
    if missing.is_empty() || !config.mirror.install {
        return Ok(missing);
    }
    let report = Box::pin(install::install(config, None, PATIENCE)).await?;
    for finding in report.findings.iter().filter(|f| f.severity == Severity::Refused) {
        tracing::error!(%finding, "cannot be mirrored");
    }
    for done in &report.done {
        tracing::info!(done, "installed for mirroring");
    }
    Ok(report.missing)
}

const LOOK: Duration = Duration::from_secs(1);
/// For the locks of one table.
const PATIENCE: Duration = Duration::from_secs(10);
const MOST: usize = 5;
