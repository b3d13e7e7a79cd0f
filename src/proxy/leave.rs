//! The end of a client: last words, and what becomes of its servers.

use std::{future::poll_fn, rc::Rc, task::Poll, time::Instant};

use super::client::{Client, End};
use crate::{Side, backend::server::Server, error::ClientError};

impl Client {
    /// Says good-bye to the client, and gives its servers back or closes them.
    pub(super) async fn leave(&mut self, end: End) {
        let error = match &end {
            End::Error(error) => Some(error),
            End::Gone | End::Io(_) | End::ServerSaid => None,
        };
        if let End::Io(error) = &end {
            tracing::debug!(client = self.id(), %error, "the client's socket failed");
        }
        if let Some(error) = error {
            tracing::info!(client = self.id(), sqlstate = error.sqlstate, message = %error.message, "client ended");
            ClientError { fatal: true, ..error.clone() }.encode(self.id(), &mut self.conn.output);
        }
        for side in Side::BOTH {
            if let Some(server) = self.servers[side.index()].take() {
                self.retire(server);
            }
        }
        if !matches!(end, End::Io(_)) && (!self.conn.output.is_empty() || !matches!(end, End::Gone)) {
            let _ = tokio::time::timeout(GOODBYE, self.good_bye()).await;
        }
        // The buffer that its last message came in is another client's next.
        self.conn.consume(self.conn.input.len(), &self.shard.buffers);
    }

    /// Writes what is left and ends the stream. A socket that is closed with bytes unread is reset, and the reset
    /// overtakes what was written: what the client has sent is read first.
    async fn good_bye(&mut self) {
        let shard = Rc::clone(&self.shard);
        if poll_fn(|cx| self.conn.poll_flush(cx, &shard.buffers)).await.is_err() {
            return;
        }
        let close =
            poll_fn(|cx| tokio::io::AsyncWrite::poll_shutdown(std::pin::Pin::new(&mut self.conn.stream), cx));
        let mut unread = !self.conn.input.is_empty();
        let _ = close.await;
        loop {
            self.conn.input.clear();
            let read = poll_fn(|cx| {
                let read = self.conn.poll_fill(cx, &shard.buffers);
                if read.is_pending() && !unread { Poll::Ready(Ok(0)) } else { read }
            });
            match read.await {
                Ok(n) if n > 0 => unread = true,
                _ => return,
            }
        }
    }

    /// DISCARD ALL was carried out elsewhere: it is repeated on the connection to `side` that the client holds.
    pub(super) async fn discard_held(&mut self, side: Side) -> Result<(), End> {
        let Some(mut server) = self.servers[side.index()].take() else { return Ok(()) };
        if !self.keeps_servers() {
            self.retire(server); // the client is pinned no longer
            return Ok(());
        }
        let shard = Rc::clone(&self.shard);
        match server.discard(&shard.buffers).await {
            Ok(()) => self.servers[side.index()] = Some(server),
            Err(error) => {
                shard.lost_server(side, &error.to_string());
                if side == Side::Source {
                    let error = ClientError::fatal("08006", format!("the {side} session was lost: {error}"));
                    return Err(End::Error(error));
                }
            }
        }
        Ok(())
    }

    /// A server connection whose client has left: cleaned for the next one, or closed.
    fn retire(&self, mut server: Box<Server>) {
        let shard = Rc::clone(&self.shard);
        let pool = Rc::clone(&self.pools[server.side.index()]);
        if self.shared.running.borrow().is_some() {
            // It still works for nobody: stop it, else it would run on until it tries to answer.
            if let Some(running) = self.shared.running.take() {
                shard.send_cancel(running);
            }
            // In the middle of a COPY or a message a server can only be told by the end of the connection.
            if !self.pipeline.copies_in() && server.conn.output.is_empty() {
                shard.close_when_cancelled(server);
            }
            return;
        }
        if !server.is_clean() || !self.pipeline.is_idle() || shard.is_draining() {
            shard.close(server);
            return;
        }
        tokio::task::spawn_local(async move {
            let gate = Rc::clone(&server.gate);
            gate.clear().await;
            if server.discard(&shard.buffers).await.is_ok() && server.is_clean() {
                shard.give_back(&pool, server, Instant::now());
            }
        });
    }
}

/// How long last words may take.
const GOODBYE: std::time::Duration = std::time::Duration::from_secs(2);
