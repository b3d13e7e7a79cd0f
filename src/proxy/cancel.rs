//! Cancel requests on their way to a backend.

use std::sync::Arc;

use tokio::sync::oneshot;

use super::{
    shard::Shard,
    shared::{Activity, Running, Signal},
};
use crate::backend;

impl Shard {
    /// Asks the server to cancel what it runs.
    pub(super) fn send_cancel(&self, running: Running) {
        self.cancel_then(running, None);
    }

    fn cancel_then(&self, running: Running, done: Option<oneshot::Sender<()>>) {
        let config = Arc::clone(&self.current.borrow().config);
        let tls = self.global.backend_tls(running.side);
        running.gate.enter();
        tokio::task::spawn_local(async move {
            let backend = &config.backends[running.side.index()];
            let timeouts = &config.timeouts;
            let sent = backend::connection::cancel(
                backend,
                &tls,
                (running.process_id, &running.key),
                timeouts,
                timeouts.cancel_wait,
            )
            .await;
            if let Err(error) = sent {
                tracing::debug!(side = %running.side, %error, "a cancel request did not get through");
            }
            running.gate.leave();
            drop(done);
        });
    }

    /// A cancel request for a client of this thread. `done` is dropped when it is over.
    pub(super) fn cancel(&self, client: u64, done: oneshot::Sender<()>) {
        let Some(client) = self.clients.borrow().get(&client).cloned() else { return };
        let running = client.running.borrow().clone();
        match running {
            Some(running) => self.cancel_then(running, Some(done)),
            None if client.activity.get() == Activity::Waiting || client.applies() => {
                client.tell(Signal::Cancel);
            }
            None => {}
        }
    }
}
