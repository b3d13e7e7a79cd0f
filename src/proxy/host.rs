//! What server connections and those who wait for them need of their data thread.

use std::{
    future::poll_fn,
    rc::{Rc, Weak},
    task::Poll,
    time::Instant,
};

use super::{
    global::Message,
    shard::Shard,
    shared::{ClientShared, Signal},
};
use crate::backend::{
    budget::Permit,
    pool::{Host, Pool, Refused},
    server::{Server, ServerInfo},
};

/// Counts a connection that is being closed.
pub(super) struct Closing(pub(super) Rc<Shard>);

impl Closing {
    pub(super) fn new(shard: &Rc<Shard>) -> Self {
        shard.closing.set(shard.closing.get() + 1);
        Self(Rc::clone(shard))
    }
}

impl Drop for Closing {
    fn drop(&mut self) {
        self.0.closing.set(self.0.closing.get() - 1);
    }
}

/// `work`, unless the client is told something before, or by the sweeper that the deadline has passed: a timer for each
/// wait would cost as much as the wait itself.
pub(super) async fn patiently<T>(
    work: impl Future<Output = Result<T, Refused>>,
    deadline: Option<Instant>,
    client: &ClientShared,
) -> Result<T, Refused> {
    client.deadline.set(deadline.map(|at| (at, Signal::QueryWait)));
    let told = poll_fn(|cx| match client.listen(cx) {
        None | Some(Signal::Drain) => Poll::Pending,
        Some(Signal::QueryWait) => {
            client.clear_signal();
            Poll::Ready(Refused::Timeout)
        }
        Some(Signal::Deadlock) => {
            client.clear_signal(); // it came too late
            Poll::Pending
        }
        Some(_) => Poll::Ready(Refused::Cancelled),
    });
    let result = tokio::select! {
        biased;
        done = work => done,
        refused = told => Err(refused),
    };
    client.deadline.set(None);
    result
}

/// What pools ask of their thread.
pub(super) struct PoolHost(pub(super) Weak<Shard>);

impl Host for PoolHost {
    fn connect(
        &self,
        pool: Rc<Pool>,
        permit: Permit,
    ) -> std::pin::Pin<Box<dyn Future<Output = Result<Server, Refused>>>> {
        let shard = self.0.upgrade();
        Box::pin(async move {
            match shard {
                Some(shard) => shard.open(pool, permit).await,
                None => Err(Refused::Cancelled),
            }
        })
    }

    fn ask(&self, pool: &Pool) {
        let Some(shard) = self.0.upgrade() else { return };
        let (side, limit) = (pool.key.side, shard.current().config.pool.max_server_connections);
        let make_room = shard.global.budgets.used(side) >= limit;
        if !make_room && !pool.has_idle_siblings() {
            return;
        }
        for inbox in shard.global.shards() {
            let user = pool.key.user.to_string();
            // A full inbox is no loss: whoever waits asks again.
            let _ = inbox.try_send(Message::Run(Box::new(move |shard| shard.offer(side, &user, make_room))));
        }
    }

    fn adopted(&self, info: &Rc<ServerInfo>) {
        if let Some(shard) = self.0.upgrade() {
            shard.servers.borrow_mut().push(Rc::downgrade(info));
        }
    }

    fn close(&self, server: Box<Server>) {
        if let Some(shard) = self.0.upgrade() {
            shard.close(server);
        }
    }
}
