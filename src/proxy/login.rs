//! From a proven identity to a served client.

use std::{cell::RefCell, rc::Rc, sync::Arc};

use bytes::BytesMut;

use super::{
    client::{Client, last_words},
    global::Global,
    operator::Console,
    shard::Shard,
    shared::{ClientShared, Signal},
};
use crate::{
    Side,
    admin::{
        console::{Caller, Role},
        console_wire,
    },
    backend::{
        pool::{Pool, PoolKey, Refused},
        server::Server,
    },
    config::{Config, PoolMode},
    error::ClientError,
    frontend::{
        Peer, listener,
        startup::{self, ADMIN_DATABASE, Login, Startup},
    },
    session::{pipeline::Pipeline, prepared::Registry, settings::Settings, transaction::Transaction},
    statement::Pin,
    wire::{
        conn::{Conn, append},
        frame,
        stream::Stream,
    },
};

/// Serves one accepted connection to its end.
pub(super) async fn serve(shard: Rc<Shard>, stream: Stream, peer: Peer) {
    if let Err(error) = listener::prepare(&stream, &shard.current().config.timeouts) {
        tracing::debug!(%peer, %error, "the connection ended before it began");
        return;
    }
    // Boxed: what a login needs must not stay for the life of an idle client.
    match Box::pin(startup::accept(stream, peer, &shard.global.frontend)).await {
        Startup::Closed => {}
        Startup::Cancel { process_id, key, stream, slot } => {
            let found = shard.global.cancel(process_id, &key).await;
            let outcome = if found { "passed_on" } else { "unknown_key" };
            shard.global.count_cancel(outcome);
            drop((stream, slot));
        }
        Startup::Client(login) if login.database == ADMIN_DATABASE => {
            Box::pin(console(&shard, *login)).await;
        }
        Startup::Client(login) => {
            if let Some((client, slot)) = Box::pin(begin(&shard, *login)).await {
                let (id, process_id) = (client.id(), client.shared.process_id.get());
                Box::pin(client.run()).await;
                shard.clients.borrow_mut().remove(&id);
                shard.global.forget_cancel(process_id, id);
                drop(slot);
            }
        }
    }
}

async fn console(shard: &Rc<Shard>, login: Login) {
    let admin = &shard.current().config.admin;
    let is = |list: &[String]| list.contains(&login.user);
    let role = match (is(&admin.admin_users), is(&admin.stats_users)) {
        (true, _) => Role::Admin,
        (false, true) => Role::Stats,
        (false, false) => {
            let error =
                ClientError::fatal("28000", format!("user \"{}\" may not use the console", login.user))
                    .hint("Name the user in admin.admin_users or admin.stats_users.");
            return last(login, &error).await;
        }
    };
    let (process_id, key) = random_key(4);
    let caller = Caller { user: &login.user, role, client: login.id, process_id };
    let console = Console { global: Arc::clone(&shard.global) };
    let seen = ClientShared::new(login.id, &login, PoolMode::Session, process_id);
    shard.clients.borrow_mut().insert(login.id, Rc::clone(&seen));
    let stop = std::future::poll_fn(|cx| match seen.listen(cx) {
        Some(Signal::Kill | Signal::Drain | Signal::Stop) => std::task::Poll::Ready(()),
        _ => std::task::Poll::Pending,
    });
    let mut stream = login.stream;
    let served = async {
        tokio::io::AsyncWriteExt::write_all(&mut stream, &login.greeting).await?;
        console_wire::serve(stream, &login.rest, caller, &key, &console, stop).await
    };
    if let Err(error) = served.await {
        tracing::debug!(client = login.id, %error, "console session ended");
    }
    shard.clients.borrow_mut().remove(&login.id);
}

/// Says why, and closes.
async fn last(login: Login, error: &ClientError) {
    let id = login.id;
    let mut conn = greeted(login.stream, login.greeting);
    error.encode(id, &mut conn.output);
    say(conn).await;
}

/// The connection, with what is still to be said.
fn greeted(stream: Stream, greeting: BytesMut) -> Conn {
    let mut conn = Conn::new(stream, BytesMut::new());
    conn.output = greeting;
    conn
}

async fn say(mut conn: Conn) {
    use tokio::io::AsyncWriteExt;
    let words = std::mem::take(&mut conn.output);
    let say = async {
        conn.stream.write_all(&words).await?;
        conn.stream.shutdown().await
    };
    let _ = tokio::time::timeout(std::time::Duration::from_secs(2), say).await;
}

/// A fresh process id, and a cancel key of up to 32 bytes that goes with it.
fn random_key(length: usize) -> (i32, Vec<u8>) {
    let mut random = [0; 36];
    getrandom::fill(&mut random).expect("the system has randomness");
    let (id, key) = random.split_first_chunk().expect("there are 36 bytes");
    (i32::from_be_bytes(*id) & i32::MAX | 1 << 30, key[..length].to_vec())
}

/// What `replication` asks for; `None`: nothing.
fn replication(login: &Login) -> bool {
    let value =
        login.parameters.iter().find(|(n, _)| n == "replication").map(|(_, v)| v.to_ascii_lowercase());
    value.is_some_and(|v| !["false", "off", "no", "0", "f", "n"].contains(&v.as_str()))
}

/// Sets the client's session up and tells it all that a server would.
async fn begin(
    shard: &Rc<Shard>,
    login: Login,
) -> Option<(Box<Client>, crate::frontend::limits::ClientSlot)> {
    let current = shard.current();
    let config = &current.config;
    let database = &config.backends[Side::Source.index()].database;
    let refusal = if shard.is_draining() {
        Some(last_words(Signal::Drain))
    } else if login.database != *database {
        Some(
            ClientError::fatal("3D000", format!("database \"{}\" is not served here", login.database))
                .hint(format!("Connect to \"{database}\", or to \"{ADMIN_DATABASE}\" for the console.")),
        )
    } else {
        None
    };
    if let Some(error) = refusal {
        last(login, &error).await;
        return None;
    }
    let replicates = replication(&login);
    let mode = if replicates {
        PoolMode::Session
    } else {
        config.auth.users.get(&login.user).and_then(|u| u.pool_mode).unwrap_or(config.pool.mode)
    };
    let pools = pools(shard, &login, mode, config);
    let (mut process_id, mut key) = random_key(if login.minor >= 2 { 32 } else { 4 });
    let seen = ClientShared::new(login.id, &login, mode, process_id);
    let home = match home(shard, &pools[0], &seen, mode).await {
        Ok(home) => home,
        Err(refused) => {
            let mut conn = greeted(login.stream, login.greeting);
            match &refused {
                Refused::Server(frame) if is_well_formed(frame) => conn.output.extend_from_slice(frame),
                Refused::Server(_) | Refused::Unreachable(_) | Refused::Timeout | Refused::Cancelled => {
                    unavailable(&refused).encode(login.id, &mut conn.output);
                }
            }
            say(conn).await;
            return None;
        }
    };
    if let Some(server) = &home {
        // In session pooling the client talks to one server process, and is told which.
        process_id = server.process_id;
        key = server.key.to_vec();
        seen.process_id.set(process_id);
    }
    shard.clients.borrow_mut().insert(login.id, Rc::clone(&seen));
    shard.global.register_cancel(process_id, &key, shard.index, login.id);
    let mut conn = Conn::new(login.stream, login.rest.as_slice().into());
    append(&login.greeting, &mut conn.output, &shard.buffers);
    let welcome: Rc<[(String, String)]> = match &home {
        Some(server) => server.parameters.as_slice().into(),
        None => pools[0].welcome.borrow().clone().unwrap_or_default(),
    };
    let own_name = ("application_name".to_owned(), seen.application_name.clone());
    for (name, value) in welcome.iter() {
        let value = if mode == PoolMode::Transaction && *name == own_name.0 { &own_name.1 } else { value };
        frame::put_parameter_status(&mut conn.output, name, value);
    }
    frame::put_key_data(&mut conn.output, process_id, &key);
    frame::put_ready(&mut conn.output, b'I');
    tracing::debug!(client = login.id, user = %login.user, peer = %login.peer, "client logged in");
    if replicates {
        if let Some(server) = home {
            relay_raw(conn, *server, &seen).await;
        }
        shard.clients.borrow_mut().remove(&login.id);
        shard.global.forget_cancel(process_id, login.id);
        return None;
    }
    let client = client(shard, conn, seen, pools, home, own_name);
    Some((Box::new(client), login.slot))
}

fn client(
    shard: &Rc<Shard>,
    conn: Conn,
    seen: Rc<ClientShared>,
    pools: [Rc<Pool>; 2],
    home: Option<Box<Server>>,
    own_name: (String, String),
) -> Client {
    let mut client = Client {
        conn,
        shard: Rc::clone(shard),
        stats: Side::BOTH.map(|side| shard.stats(&seen.user, side)),
        pools,
        servers: [None, None],
        pipeline: Pipeline::default(),
        registry: Registry::default(),
        portals: std::collections::HashMap::new(),
        naming_portals: Vec::new(),
        held_side: None,
        txn: Transaction::default(),
        current: shard.current(),
        context: shard.context(None, true, true),
        settings: Settings::default(),
        unread: Vec::new(),
        read_committed: true,
        wrote_at: None,
        wrote_side: None,
        shadowed: RefCell::default(),
        set_side: Side::Source,
        context_moved: false,
        context_local: false,
        utf8: false,
        discards: false,
        temporary: false,
        late: 0,
        #[cfg(feature = "otlp")]
        trace: super::telemetry::Trace::default(),
        shared: seen,
    };
    if let Some(mut server) = home {
        server.last_client = client.id();
        server.info.client.set(client.id());
        server.settings = Rc::clone(&client.settings);
        client.refresh_context(&server);
        client.servers[Side::Source.index()] = Some(server);
    } else {
        if !own_name.1.is_empty() {
            client.settings = Rc::new(vec![own_name]);
        }
        let pool = &client.pools[Side::Source.index()];
        let welcome = pool.welcome.borrow().clone().unwrap_or_default();
        let defaults = pool.defaults.borrow().clone();
        client.set_context(&welcome, &defaults);
    }
    client
}

/// The pools of this client, by side. In session pooling every start-up parameter is the server's to see; in
/// transaction pooling all but `application_name`, which would make a pool for every worker.
fn pools(shard: &Rc<Shard>, login: &Login, mode: PoolMode, config: &Config) -> [Rc<Pool>; 2] {
    let kept = |name: &str| mode == PoolMode::Session || name != "application_name";
    let parameters: Rc<[_]> = login.parameters.iter().filter(|(n, _)| kept(n)).cloned().collect();
    let user: Rc<str> = login.user.as_str().into();
    Side::BOTH.map(|side| {
        let key = PoolKey {
            side,
            user: Rc::clone(&user),
            database: config.backends[side.index()].database.as_str().into(),
            parameters: Rc::clone(&parameters),
            minor: login.minor,
            applies: false,
            shadow: false,
        };
        shard.pool(key, login.credentials.clone())
    })
}

/// In session pooling the client's own source session; in transaction pooling a look at what a session is told.
async fn home(
    shard: &Rc<Shard>,
    pool: &Rc<Pool>,
    waiting: &ClientShared,
    mode: PoolMode,
) -> Result<Option<Box<Server>>, Refused> {
    if mode == PoolMode::Transaction && pool.knows_welcome() {
        return Ok(None);
    }
    let config = Arc::clone(&shard.current().config);
    let limits = Shard::pool_limits(&pool.key.user, &config);
    // The sweeper does not know it yet.
    let taken = shard.checkout(pool, limits, None, waiting);
    let server = match config.timeouts.query_wait {
        Some(wait) => tokio::time::timeout(wait, taken).await.unwrap_or(Err(Refused::Timeout))?,
        None => taken.await?,
    };
    if mode == PoolMode::Session {
        return Ok(Some(server));
    }
    // One that another thread opened meanwhile: it knows.
    if !pool.knows_welcome() {
        pool.learn(&server);
    }
    shard.give_back(pool, server, std::time::Instant::now());
    Ok(None)
}

/// Does the server's error have what drivers rely on?
fn is_well_formed(error: &[u8]) -> bool {
    let body = error.get(frame::HEADER..).unwrap_or_default();
    frame::error_field(body, b'C').is_some_and(|code| code.len() == 5)
}

fn unavailable(refused: &Refused) -> ClientError {
    match refused {
        Refused::Server(frame) => {
            ClientError::fatal("08006", "the source refused the connection").detail(frame::error_text(frame))
        }
        Refused::Unreachable(why) => {
            ClientError::fatal("08006", format!("the source cannot be reached: {why}"))
                .hint("Is it running? crossfade connects again by itself.")
        }
        Refused::Timeout => last_words(Signal::QueryWait),
        Refused::Cancelled => last_words(Signal::Stop),
    }
}

/// A replication connection: bytes both ways, nothing read.
async fn relay_raw(mut conn: Conn, mut server: Server, seen: &ClientShared) {
    use tokio::io::AsyncWriteExt;
    seen.pinned.set(Some(Pin::Replication));
    let welcome = std::mem::take(&mut conn.output);
    let early = std::mem::take(&mut conn.input);
    let relay = async {
        conn.stream.write_all(&welcome).await?;
        server.conn.stream.write_all(&early).await?;
        tokio::io::copy_bidirectional(&mut conn.stream, &mut server.conn.stream).await
    };
    let told = std::future::poll_fn(|cx| match seen.listen(cx) {
        Some(Signal::Kill | Signal::Stop | Signal::Drain) => std::task::Poll::Ready(()),
        _ => std::task::Poll::Pending,
    });
    tokio::select! {
        result = relay => {
            if let Err(error) = result {
                tracing::debug!(client = seen.id, %error, "replication connection ended");
            }
        }
        () = told => {}
    }
}

impl Global {
    fn count_cancel(&self, outcome: &'static str) {
        self.metrics.add(&crate::report::metrics::CANCEL_REQUESTS, &[outcome.into()], 1);
    }
}
