//! Reads executed a second time on the other side, off the client's path, and what comes of it.
//!
//! [`tap`] takes a digest of a sampled answer while it is relayed and hands it over; [`runner`] executes the read
//! again on a thread of its own; [`evidence`] is where the outcome goes.

mod evidence;
mod execute;
mod runner;
mod tap;

pub(in crate::proxy) use self::{
    evidence::{State, collect, divergence_rows, query_rows, shadow_rows},
    runner::start,
    tap::{Made, Tap},
};

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use crate::{
    Side, catalog::Catalog, compare::digest::Summary, config::Config, frontend::startup::Credentials,
};

/// A read that was answered, and all that it takes to execute it again.
pub(in crate::proxy) struct Job {
    config: Arc<Config>,
    catalog: Arc<Catalog>,
    /// Index of the repository that it counts for, and all that it reads.
    repository: usize,
    reads: u64,
    fingerprint: u64,
    sql: Vec<u8>,
    bound: Bound,
    answering: Side,
    who: Arc<Who>,
    /// The client's, and those that shape output as the answering session reported them.
    settings: Arc<Vec<(String, String)>>,
    application: String,
    total_order: bool,
    determinate: bool,
    key: Vec<String>,
    /// Set when the answer is over.
    summary: Summary,
    took: Duration,
    queued: Instant,
}

/// Of the extended protocol: raw parameter types, and the Bind behind its names.
type Bound = Option<(Vec<u8>, Vec<u8>)>;

/// As whom it is executed. Shared by all reads of a client: made anew for each they would cost more than the comparison.
pub(in crate::proxy) struct Who {
    /// For as long as this is in force.
    config: Arc<Config>,
    user: String,
    parameters: Vec<(String, String)>,
    minor: u16,
    /// By [`Side::index`].
    credentials: [Credentials; 2],
}

impl Job {
    fn name(&self) -> &str {
        &self.config.policy.repositories[self.repository].name
    }

    fn bytes(&self) -> usize {
        self.sql.len()
            + self.bound.as_ref().map_or(0, |(types, bind)| types.len() + bind.len())
            + size_of::<Self>()
    }
}
