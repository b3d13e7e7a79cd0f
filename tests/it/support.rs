//! The harness: clusters, proxies, a raw protocol client, a fake backend.

pub(crate) mod cluster;
pub(crate) mod fake;
pub(crate) mod frames;
pub(crate) mod http;
pub(crate) mod proxy;
pub(crate) mod reply;
pub(crate) mod tls;
pub(crate) mod wire;

use std::{
    net::TcpListener,
    sync::atomic::{AtomicU16, Ordering},
    time::{Duration, Instant},
};

/// How long a test waits for what must happen.
pub(crate) const PATIENCE: Duration = Duration::from_secs(15);

/// True when the suites talk to Postgres itself (`CROSSFADE_IT=direct`).
pub(crate) fn direct() -> bool {
    std::env::var("CROSSFADE_IT").is_ok_and(|v| v == "direct")
}

/// Ends a test that makes sense with the proxy only.
macro_rules! needs_proxy {
    () => {
        if crate::support::direct() {
            eprintln!("skipped: needs the proxy");
            return;
        }
    };
}
pub(crate) use needs_proxy;

/// Waits until `condition` holds; panics with `what` when it does not within [`PATIENCE`].
#[track_caller]
pub(crate) fn wait_for(what: &str, condition: impl FnMut() -> bool) {
    assert!(holds_within(PATIENCE, condition), "waited in vain for: {what}");
}

/// Polls until `condition` holds or `limit` has passed.
pub(crate) fn holds_within(limit: Duration, mut condition: impl FnMut() -> bool) -> bool {
    let end = Instant::now() + limit;
    loop {
        if condition() {
            return true;
        }
        if Instant::now() > end {
            return false;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// A port nobody listens on at this moment. Below those that the system gives to outgoing connections, each once: what
/// is free now is still free when the proxy binds it.
pub(crate) fn free_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    loop {
        let offset = u32::from(NEXT.fetch_add(1, Ordering::Relaxed)) + std::process::id() * 211;
        let port = 12_000 + u16::try_from(offset % 20_000).expect("below 20 000");
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}

/// Tells whether `condition` held all the time.
pub(crate) fn holds_throughout(limit: Duration, mut condition: impl FnMut() -> bool) -> bool {
    !holds_within(limit, || !condition())
}

/// A number from the environment, such as `CROSSFADE_SEED`.
pub(crate) fn env_number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{name}={text} is no number")))
}

/// The seed of a random test: `CROSSFADE_SEED`, else the clock. Printed, so that a failure can be played again.
pub(crate) fn seed(test: &str) -> u64 {
    // The same every time unless told otherwise, so that a red run says something about the change. `CROSSFADE_SEED=0`
    // takes the clock: for exploring, with more CROSSFADE_ROUNDS.
    let clock = || {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        now.map_or(1, |d| u64::from(d.subsec_nanos()) ^ d.as_secs())
    };
    let own = test.bytes().fold(1_000, |n: u64, b| n.wrapping_mul(31).wrapping_add(u64::from(b)));
    let seed = match env_number("CROSSFADE_SEED") {
        Some(0) => clock(),
        Some(seed) => seed,
        None => own,
    };
    println!("{test}: CROSSFADE_SEED={seed}");
    seed
}

/// `SplitMix64`: small, seedable and the same everywhere.
#[derive(Clone, Debug)]
pub(crate) struct Rng(pub(crate) u64);

impl Rng {
    /// The next 64 bits.
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `n`.
    pub(crate) fn below(&mut self, n: usize) -> usize {
        usize::try_from(self.next() % n as u64).expect("below a usize")
    }

    /// One of `items`.
    pub(crate) fn pick<T: Copy>(&mut self, items: &[T]) -> T {
        items[self.below(items.len())]
    }

    /// True in `percent` of a hundred cases.
    pub(crate) fn chance(&mut self, percent: usize) -> bool {
        self.below(100) < percent
    }
}
