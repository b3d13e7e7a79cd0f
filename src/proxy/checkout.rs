//! The server connection of a client: taken, given the client's settings, changed for the other side's.

use std::{
    future::poll_fn,
    rc::Rc,
    task::{Poll, ready},
    time::Instant,
};

use super::{client::Client, shard::Shard, shared::Activity};
use crate::{
    Side,
    backend::{
        pool::Refused,
        server::{QueryError, Server, SessionDefaults},
    },
    error::ClientError,
    session::{settings, transaction::Status},
    wire::{conn::Conn, frame},
};

impl Client {
    /// The connection that runs this client's statements on `side`, with the client's settings.
    pub(super) async fn checkout(&mut self, side: Side) -> Result<Box<Server>, Refused> {
        let held = self.servers[side.index()].is_some();
        if held && self.txn.status == Status::Idle && self.shard.global.is_paused(side) {
            Box::pin(self.until_resumed(side)).await?;
        }
        let found = match self.servers[side.index()].take() {
            Some(server) => Some(server),
            None => poll_fn(|cx| Poll::Ready(self.shard.take_idle(cx, &self.pools[side.index()]))).await,
        };
        // Boxed, as all that is rare: the future of a client that waits for its next statement stays small.
        let mut server = match found {
            Some(server) => server,
            None => Box::pin(self.wait_for_server(side)).await?,
        };
        if self.adopt(&mut server) {
            return Ok(server);
        }
        Box::pin(self.prepare_server(server)).await
    }

    async fn wait_for_server(&mut self, side: Side) -> Result<Box<Server>, Refused> {
        let shard = Rc::clone(&self.shard);
        self.shared.activity.set(Activity::Waiting);
        let limits = Shard::pool_limits(&self.shared.user, &self.current.config);
        let wait = self.current.config.timeouts.query_wait;
        let taken = shard.checkout(&self.pools[side.index()], limits, wait, &self.shared);
        let server = unless_gone(taken, &mut self.conn, &shard).await;
        self.shared.activity.set(Activity::Active);
        server
    }

    /// Takes over a connection on which nothing has to be done first; `false` when something has.
    fn adopt(&self, server: &mut Server) -> bool {
        let stranger = server.last_client != self.id();
        let same = || {
            if !self.unread.is_empty() {
                return server.side == self.set_side; // where they were set; elsewhere they must be read first
            }
            Rc::ptr_eq(&server.settings, &self.settings) || server.settings == self.settings
        };
        if stranger && server.tainted || server.status == Status::Idle && !same() {
            return false;
        }
        server.last_client = self.id();
        server.info.client.set(self.id());
        true
    }

    /// Gives the client's settings to a connection that has others, or the remains of another client.
    async fn prepare_server(&mut self, mut server: Box<Server>) -> Result<Box<Server>, Refused> {
        let shard = Rc::clone(&self.shard);
        let io = |e: QueryError| Refused::Unreachable(e.to_string().into());
        if server.last_client != self.id() {
            server.last_client = self.id();
            if server.tainted {
                server.discard(&shard.buffers).await.map_err(io)?;
            }
        }
        server.info.client.set(self.id());
        let unread = !self.unread.is_empty() && server.side != self.set_side;
        if server.status == Status::Idle && (unread || !Rc::ptr_eq(&server.settings, &self.settings)) {
            match self.apply_settings(&mut server).await {
                Ok(()) => {}
                // Nothing of them was set: the session goes on as it was.
                Err(QueryError::Server(frame)) if self.keeps_servers() && server.status == Status::Idle => {
                    let side = server.side;
                    self.servers[side.index()] = Some(server);
                    return Err(Refused::Server(frame.into()));
                }
                Err(QueryError::Server(frame)) => return Err(Refused::Server(frame.into())),
                Err(e) => return Err(io(e)),
            }
        }
        Ok(server)
    }

    /// Gives the session on `server` this client's settings.
    pub(super) async fn apply_settings(&mut self, server: &mut Server) -> Result<(), QueryError> {
        let shard = Rc::clone(&self.shard);
        if !self.unread.is_empty() {
            if server.side == self.set_side {
                return Ok(()); // where they were set
            }
            // Inside a block the values are not settled: whoever looks aside meanwhile gets those of before.
            let settled = |s: &mut Box<Server>| s.status == Status::Idle;
            if let Some(mut origin) = self.servers[self.set_side.index()].take_if(settled) {
                let read = self.read_settings(&mut origin).await;
                self.servers[self.set_side.index()] = Some(origin);
                read?;
            }
        }
        if let Some(sql) = settings::transition(&server.settings, &self.settings) {
            server.query(&sql, &shard.buffers).await?;
        }
        server.settings = Rc::clone(&self.settings);
        Ok(())
    }

    /// Reads the values of the settings that were changed from the server that has them.
    pub(super) async fn read_settings(&mut self, server: &mut Server) -> Result<(), QueryError> {
        debug_assert_eq!(server.status, Status::Idle, "what a block has set may be rolled back");
        let mut names = std::mem::take(&mut self.unread);
        for (name, _) in self.settings.iter() {
            if !names.contains(name) {
                names.push(name.clone());
            }
        }
        names.sort();
        let rows = server.query(&settings::readback(&names), &self.shard.buffers).await?;
        let values = rows.into_iter().next().unwrap_or_default();
        let pairs = names.into_iter().zip(values).filter_map(|(n, v)| v.map(|v| (n, v)));
        self.settings = Rc::new(pairs.collect());
        server.settings = Rc::clone(&self.settings);
        self.refresh_context(server);
        Ok(())
    }

    /// What unqualified names mean now.
    pub(super) fn refresh_context(&mut self, server: &Server) {
        self.set_context(&server.parameters, &server.defaults);
    }

    /// As above, from what a session reports and starts with.
    pub(super) fn set_context(&mut self, parameters: &[(String, String)], defaults: &SessionDefaults) {
        let get = |name: &str| self.settings.iter().find(|(n, _)| n == name).map(|(_, v)| v.as_str());
        let path = get("search_path").unwrap_or(&defaults.search_path);
        let strings = get("standard_conforming_strings") != Some("off")
            && !parameters.iter().any(|(n, v)| n == "standard_conforming_strings" && v == "off");
        let user = match get("role").filter(|r| *r != "none") {
            Some(role) => role,
            None => get("session_authorization").unwrap_or(&self.shared.user),
        };
        let reported = parameters.iter().find(|(n, _)| n == "client_encoding").map(|(_, v)| v.as_str());
        let encoding = get("client_encoding").or(reported).unwrap_or_default().to_ascii_uppercase();
        let ascii_safe = !UNSAFE_ENCODINGS.contains(&encoding.as_str());
        self.utf8 = matches!(encoding.as_str(), "UTF8" | "UTF-8" | "UNICODE");
        self.context = self.shard.context(settings::search_path(path, user), strings, ascii_safe);
        let isolation = get("default_transaction_isolation").unwrap_or(&defaults.isolation);
        self.read_committed = matches!(isolation, "read committed" | "read uncommitted");
    }

    /// Does a changed setting change what names mean?
    pub(super) fn names_moved(&self) -> bool {
        self.unread.iter().any(|n| CONTEXT.contains(&n.as_str()) || n == "default_transaction_isolation")
    }

    /// Reads what unqualified names mean inside the block; settings are read at its end. SHOW takes no snapshot, which
    /// would forbid a SET TRANSACTION that follows.
    pub(super) async fn read_context(&mut self, server: &mut Server) -> Result<(), QueryError> {
        let show = CONTEXT.map(|name| format!("SHOW {name}")).join("; ");
        let rows = server.query(&show, &self.shard.buffers).await?;
        let values = rows.into_iter().map(|row| row.into_iter().next().flatten());
        let pairs = CONTEXT.iter().zip(values).filter_map(|(n, v)| v.map(|v| ((*n).to_owned(), v)));
        let mut inside: Vec<(String, String)> = pairs.collect();
        inside.sort();
        let outside = std::mem::replace(&mut self.settings, Rc::new(inside));
        let isolation = self.read_committed;
        self.refresh_context(server);
        self.read_committed = isolation;
        self.settings = outside;
        Ok(())
    }

    /// Takes the transaction block to `side`: it is rolled back where it was, and its prologue is repeated there. What
    /// it holds is given back before anything else is asked for, or clients that swap sides would wait for one another.
    pub(super) async fn move_to(&mut self, side: Side) -> Result<(), ClientError> {
        self.restart_block(side.other(), side).await
    }

    /// Rolls the block back on one side and begins it again, on the other or the same.
    pub(super) async fn restart_block(&mut self, from: Side, to: Side) -> Result<(), ClientError> {
        let touched = self.unread.clone();
        self.leave_block(from).await?;
        let (at, result) = match self.enter_block(to).await {
            Ok(()) => (to, Ok(())),
            // The error is the block's own: it goes on where it was, to fail there.
            Err(error) => match self.enter_block(from).await {
                Ok(()) => (from, Err(error)),
                Err(_) => return Err(ClientError { fatal: true, ..error }),
            },
        };
        if !touched.is_empty() {
            self.unread = touched;
            self.set_side = at;
        }
        result
    }

    /// Rolls the block back where it is; what was set before it is known from then on.
    async fn leave_block(&mut self, side: Side) -> Result<(), ClientError> {
        let shard = Rc::clone(&self.shard);
        let Some(mut server) = self.servers[side.index()].take() else { return Ok(()) };
        let mut left = server.query("ROLLBACK", &shard.buffers).await.map(|_| ());
        if left.is_ok() && !self.unread.is_empty() && self.set_side == side {
            left = self.read_settings(&mut server).await;
        }
        if let Err(e) = left {
            shard.lost_server(side, &e.to_string());
            return Err(ClientError::fatal(UNREACHABLE, format!("the {side} session was lost: {e}")));
        }
        if self.keeps_servers() {
            self.servers[side.index()] = Some(server);
        } else {
            shard.give_back(&self.pools[side.index()], server, Instant::now());
        }
        Ok(())
    }

    /// Begins the block on `side`, as far as it can be repeated.
    async fn enter_block(&mut self, side: Side) -> Result<(), ClientError> {
        let shard = Rc::clone(&self.shard);
        let failed = |what: String| {
            ClientError::error(UNREACHABLE, format!("the transaction could not move to the {side}: {what}")).hint(
                "Roll back and try again; routing.transactions = \"lead\" keeps transactions on the lead.",
            )
        };
        let refused = |r: Refused| match r {
            Refused::Server(frame) => failed(frame::error_text(&frame)),
            Refused::Unreachable(why) => failed(why.to_string()),
            Refused::Timeout => failed("no server connection became free in time".to_owned()),
            Refused::Cancelled => ClientError::error("57014", "canceling statement due to user request"),
        };
        // Outside of any block for this moment: a session's settings are applied.
        let mut server = self.checkout(side).await.map_err(refused)?;
        let mut replayed = server.query(&self.txn.prologue.join(";\n"), &shard.buffers).await.map(|_| ());
        if replayed.is_ok() && self.context_local {
            replayed = self.read_context(&mut server).await;
        }
        if let Err(e) = replayed {
            shard.close(server);
            return Err(failed(e.to_string()));
        }
        self.servers[side.index()] = Some(server);
        self.txn.side = Some(side);
        self.shared.side.set(Some(side));
        Ok(())
    }

    /// Holds a session back while the side of its next transaction is paused.
    pub(super) async fn until_resumed(&mut self, side: Side) -> Result<(), Refused> {
        let shard = Rc::clone(&self.shard);
        self.shared.activity.set(Activity::Waiting);
        let wait = self.current.config.timeouts.query_wait;
        let resumed = shard.until_resumed(side, wait, &self.shared);
        let resumed = unless_gone(resumed, &mut self.conn, &shard).await;
        self.shared.activity.set(Activity::Active);
        resumed
    }
}

/// Settings that change how a text is read and what names mean.
pub(super) const CONTEXT: [&str; 5] =
    ["search_path", "standard_conforming_strings", "client_encoding", "role", "session_authorization"];

/// Client encodings in which the second byte of a letter may be ASCII (manual, 24.3: not allowed as a server encoding).
pub(super) const UNSAFE_ENCODINGS: [&str; 7] =
    ["BIG5", "GB18030", "GBK", "JOHAB", "SJIS", "SHIFT_JIS_2004", "UHC"];

/// `work`, unless the client closes its socket first: what nobody waits for any more is not begun.
pub(super) async fn unless_gone<T>(
    work: impl Future<Output = Result<T, Refused>>,
    conn: &mut Conn,
    shard: &Shard,
) -> Result<T, Refused> {
    let gone = poll_fn(|cx| {
        while conn.input.len() < MAX_AHEAD {
            match ready!(conn.poll_fill(cx, &shard.buffers)) {
                Ok(n) if n > 0 => {}
                Ok(_) | Err(_) => return Poll::Ready(()),
            }
        }
        Poll::Pending
    });
    tokio::select! {
        biased;
        done = work => done,
        () = gone => Err(Refused::Cancelled),
    }
}

/// SQLSTATE of a connection that cannot be had.
pub(super) const UNREACHABLE: &str = "08006";

/// What a client may send ahead while it waits before it is no longer read.
pub(super) const MAX_AHEAD: usize = 64 << 10;
