//! What the `crossfade` command does besides serving.

pub mod check;
pub mod mirror;
pub mod report;
pub mod route;

use crate::{
    Side,
    backend::control,
    catalog::{Catalog, load},
    config::Config,
};

/// Reads the catalogs of both databases, or the reason why it cannot. Makes a runtime of its own.
pub fn catalog(config: &Config) -> Result<Catalog, String> {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(|e| e.to_string())?;
    runtime.block_on(async {
        let pool = |side: Side| {
            control::pool(&config.backends[side.index()], config.timeouts.server_connect)
                .map_err(|e| e.to_string())
        };
        let (source, target) = (pool(Side::Source)?, pool(Side::Target)?);
        let loaded = Box::pin(load::load([&source, &target], 1)).await.map_err(|e| e.to_string())?;
        for side in Side::BOTH {
            if let Some(error) = &loaded.failed[side.index()] {
                eprintln!("crossfade: {side}: {error}");
            }
        }
        Ok(loaded.catalog)
    })
}
