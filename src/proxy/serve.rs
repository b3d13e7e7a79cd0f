//! Starts the data threads and what runs beside them; ends when told to.

use std::{
    io,
    path::Path,
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::Duration,
};

use arc_swap::ArcSwapOption;
use tokio::{
    runtime::LocalOptions,
    sync::{mpsc, watch},
};

use super::{
    global::{Global, Message},
    health::{Controls, load_catalog, user_lookup, watch_backends, watchdog},
    login, mirror, operator, shadow,
    shard::Shard,
    shared::Signal,
    snapshot,
};
use crate::{
    Side,
    admin::{
        http::{self, Health, HttpState},
        notify::{self, State},
    },
    backend::tls::BackendTlsContext,
    config::{
        Config,
        file::Mistake,
        reload::{self, Live, Observer, Why},
    },
    frontend::{self, Peer, listener, tls::ServerTls},
    report::{log, metrics::Metrics},
    wire::stream::Stream,
};

/// Why crossfade could not start.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// Mistakes in the configuration.
    #[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))]
    Config(Vec<Mistake>),
    /// An address that cannot be listened on.
    #[error(transparent)]
    Bind(#[from] listener::BindError),
    /// A certificate or key.
    #[error("{what}: {why}")]
    Tls {
        /// Which table of the configuration.
        what: &'static str,
        /// What is wrong.
        why: String,
    },
    /// The operating system refused.
    #[error("{0}: {1}")]
    Io(&'static str, io::Error),
    /// The filter of `[log]`.
    #[error("log.filter: {0}")]
    Log(String),
}

/// Serves until SIGTERM or SIGINT, then drains; a second one stops at once.
pub fn serve(path: &Path, environment: Vec<(String, String)>) -> Result<(), ServeError> {
    let (live, warnings) = Live::open(path, environment).map_err(ServeError::Config)?;
    let live = Arc::new(live);
    let config = live.get();
    let logs = log::init(&config.log).map_err(ServeError::Log)?;
    for warning in &warnings {
        tracing::warn!("{warning}");
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|e| ServeError::Io("could not start the runtime", e))?;
    raise_descriptor_limit();
    tokio::task::LocalSet::new().block_on(&runtime, run(live, config, logs))
}

async fn run(live: Arc<Live>, config: Arc<Config>, logs: log::Handle) -> Result<(), ServeError> {
    let listeners = listener::bind(&config.listen)?;
    let http = match config.admin.http {
        Some(address) => Some(
            std::net::TcpListener::bind(address)
                .map_err(|e| ServeError::Io("could not listen on admin.http", e))?,
        ),
        None => None,
    };
    let client_tls = Arc::new(ArcSwapOption::new(load_client_tls(&config)?.map(Arc::new)));
    let tls = [load_backend_tls(&config, Side::Source)?, load_backend_tls(&config, Side::Target)?];
    let metrics = Arc::new(Metrics::new());
    let controls = Arc::new(Controls::default());
    let lookup = Some(user_lookup(Arc::clone(&live), Arc::clone(&controls)));
    let frontend = frontend::Shared::new(live.shared(), Arc::clone(&client_tls), lookup);
    let global = Arc::new(Global::new(Arc::clone(&live), frontend, Arc::clone(&metrics), tls));
    metrics.config_accepted(&config.hash, &config.policy);
    controls.set(&config);
    let fingerprints = Box::pin(load_catalog(&global, &controls, None)).await;
    let learning = mirror::learn(&global, &controls);

    let (threads, ended) = start_threads(&global, &config);
    let mirroring =
        mirror::start(&global).map_err(|e| ServeError::Io("could not start the thread of mirroring", e))?;
    let shadowing = shadow::start(&global)
        .map_err(|e| ServeError::Io("could not start the thread of shadow reads", e))?;
    mirror::ready(&global).await;
    follow_reloads(&global, &client_tls, logs, &controls);
    let _watching = reload::watch(&live).map_err(|e| {
        ServeError::Io("could not watch the configuration file", io::Error::other(e.to_string()))
    })?;
    let (stop, stopping) = watch::channel(false);
    let accepting: Vec<_> = listeners.into_iter().map(|l| accept(l, stopping.clone(), &threads)).collect();
    let health = tokio::spawn(watch_backends(Arc::clone(&global), Arc::clone(&controls), fingerprints));
    if let Some(listener) = http {
        tokio::spawn(serve_http(Arc::clone(&global), listener, stopping.clone()));
    }
    #[cfg(feature = "otlp")]
    let export = super::telemetry::Export::start(&global);
    let _ = notify::notify(State::Ready);
    tracing::info!(
        addresses = ?config.listen.addresses, threads = threads.len(), version = env!("CARGO_PKG_VERSION"), "crossfade serves"
    );
    let mut again = signals(&global, &stop).await;
    for task in accepting {
        let _ = task.await;
    }
    let deadline = live.get().timeouts.drain;
    drain(&global, deadline, &mut again).await;
    for ended in ended {
        let _ = ended.await;
    }
    #[cfg(feature = "otlp")]
    export.end().await;
    drop(mirroring);
    drop(shadowing);
    // Control connections say good-bye when their pools are gone.
    health.abort();
    learning.iter().for_each(tokio::task::JoinHandle::abort);
    controls.close();
    tokio::time::sleep(GOODBYE).await;
    tracing::info!("crossfade has stopped");
    Ok(())
}

/// As many descriptors as the system allows: each client and each server connection takes one.
fn raise_descriptor_limit() {
    if let Ok((soft, hard)) = rlimit::Resource::NOFILE.get()
        && soft < hard
    {
        // Failing leaves what there was; accept() says so when it is not enough.
        let _ = rlimit::Resource::NOFILE.set(hard, hard);
    }
}

fn load_client_tls(config: &Config) -> Result<Option<ServerTls>, ServeError> {
    let load = |files| {
        ServerTls::load(files).map_err(|e| ServeError::Tls { what: "client_tls", why: e.to_string() })
    };
    config.client_tls.as_ref().map(load).transpose()
}

fn load_backend_tls(config: &Config, side: Side) -> Result<BackendTlsContext, ServeError> {
    let load = BackendTlsContext::load(&config.backends[side.index()]);
    load.map_err(|e| ServeError::Tls { what: side.name(), why: e.to_string() })
}

type Threads = Arc<Vec<(mpsc::Sender<Message>, Arc<AtomicUsize>)>>;

/// Threads with a runtime of their own: half the futex calls of a shared one, and no lock on the way of a statement.
fn start_threads(
    global: &Arc<Global>,
    config: &Config,
) -> (Threads, Vec<tokio::sync::oneshot::Receiver<()>>) {
    let mut threads = Vec::new();
    let mut ended = Vec::new();
    for index in 0..config.listen.threads {
        let (sender, inbox) = mpsc::channel(1024);
        let clients = Arc::new(AtomicUsize::new(0));
        let (end, over) = tokio::sync::oneshot::channel();
        let (global, counted) = (Arc::clone(global), Arc::clone(&clients));
        let body = move || {
            // Not a LocalSet: that is a second scheduler inside the first, on the way of every wake-up.
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build_local(LocalOptions::default());
            let runtime = runtime.expect("a runtime can be made");
            runtime.block_on(thread_main(index, global, inbox, counted));
            let _ = end.send(());
        };
        // Deeply nested statements are walked recursively.
        let builder = thread::Builder::new().name(format!("data-{index}")).stack_size(64 << 20);
        builder.spawn(body).expect("a thread can be started");
        threads.push((sender, clients));
        ended.push(over);
    }
    global.start(threads.iter().map(|(sender, _)| sender.clone()).collect());
    (Arc::new(threads), ended)
}

async fn thread_main(
    index: usize,
    global: Arc<Global>,
    mut inbox: mpsc::Receiver<Message>,
    clients: Arc<AtomicUsize>,
) {
    let shard = Shard::new(index, Arc::clone(&global));
    let sweeper = tokio::task::spawn_local(Rc::clone(&shard).sweep());
    while let Some(message) = inbox.recv().await {
        match message {
            Message::Accept(socket, peer) => {
                let counted = Counted(Arc::clone(&clients));
                match socket.attach() {
                    Ok(stream) => begin(&shard, stream, peer, counted),
                    Err(error) => tracing::debug!(%peer, %error, "the connection ended before it began"),
                }
            }
            Message::Run(f) => f(&shard),
            Message::End => break,
        }
    }
    sweeper.abort();
    shard.drop_idle();
    // What is closing gets a moment to say good-bye.
    let closed = async {
        while shard.closing() > 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let _ = tokio::time::timeout(Duration::from_secs(1), closed).await;
}

fn begin(shard: &Rc<Shard>, stream: Stream, peer: Peer, counted: Counted) {
    let shard = Rc::clone(shard);
    tokio::task::spawn_local(async move {
        login::serve(shard, stream, peer).await;
        drop(counted);
    });
}

/// One client of a thread, from accept to the end; the count was raised by the acceptor.
struct Counted(Arc<AtomicUsize>);

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

fn accept(
    listener: listener::Listener,
    stopping: watch::Receiver<bool>,
    threads: &Threads,
) -> tokio::task::JoinHandle<()> {
    let threads = Arc::clone(threads);
    tokio::task::spawn_local(async move {
        if let [only] = &threads[..] {
            return accept_there(listener, stopping, only).await;
        }
        let hand_over = |stream: Stream, peer| {
            // SO_REUSEPORT can put six of eight clients on one thread: the emptiest one is chosen instead.
            let least = threads.iter().min_by_key(|(_, n)| n.load(Ordering::Relaxed));
            let (sender, clients) = least.expect("there is a thread");
            clients.fetch_add(1, Ordering::Relaxed);
            let sent = stream.detach().is_ok_and(|s| sender.try_send(Message::Accept(s, peer)).is_ok());
            if !sent {
                clients.fetch_sub(1, Ordering::Relaxed);
                tracing::warn!("a connection was closed: its thread does not keep up");
            }
        };
        if let Err(error) = listener::serve(listener, stopping, hand_over).await {
            tracing::error!(%error, "a listener ended");
        }
    })
}

/// The only data thread accepts by itself: a connection that changes threads costs a wake-up and four system calls.
async fn accept_there(
    listener: listener::Listener,
    stopping: watch::Receiver<bool>,
    (sender, clients): &(mpsc::Sender<Message>, Arc<AtomicUsize>),
) {
    let clients = Arc::clone(clients);
    let (end, over) = tokio::sync::oneshot::channel::<()>();
    let errand = move |shard: &Rc<Shard>| {
        let shard = Rc::clone(shard);
        tokio::task::spawn_local(async move {
            let serve = |stream, peer| {
                clients.fetch_add(1, Ordering::Relaxed);
                begin(&shard, stream, peer, Counted(Arc::clone(&clients)));
            };
            if let Err(error) = listener::serve(listener, stopping, serve).await {
                tracing::error!(%error, "a listener ended");
            }
            drop(end);
        });
    };
    if sender.send(Message::Run(Box::new(errand))).await.is_ok() {
        let _ = over.await;
    }
}

/// A published configuration reaches what is not read from it at each use.
fn follow_reloads(
    global: &Arc<Global>,
    client_tls: &Arc<ArcSwapOption<ServerTls>>,
    logs: log::Handle,
    controls: &Arc<Controls>,
) {
    let (weak, client_tls, controls) = (Arc::downgrade(global), Arc::clone(client_tls), Arc::clone(controls));
    let main = tokio::runtime::Handle::current();
    global.live.observe(Observer::new(move |result, old| {
        let Some(global) = weak.upgrade() else { return };
        let Ok(config) = result else { return global.metrics.config_refused() };
        match load_client_tls(config) {
            Ok(tls) => client_tls.store(tls.map(Arc::new)),
            Err(error) => tracing::error!(%error, "the old certificate stays"),
        }
        for side in Side::BOTH {
            match load_backend_tls(config, side) {
                Ok(tls) => global.set_backend_tls(side, tls),
                Err(error) => tracing::error!(%error, "the old TLS settings stay"),
            }
        }
        if config.backends != old.backends {
            let (config, controls) = (Arc::clone(config), Arc::clone(&controls));
            main.spawn(async move { controls.set(&config) });
        }
        if let Err(error) = logs.apply(&config.log) {
            tracing::error!(error, "log.filter");
        }
        global.changed();
        global.metrics.config_accepted(&config.hash, &config.policy);
    }));
}

async fn serve_http(
    global: Arc<Global>,
    listener: std::net::TcpListener,
    mut stopping: watch::Receiver<bool>,
) {
    let hour = snapshot::Hour::default();
    let keeper = tokio::spawn(snapshot::keep(Arc::clone(&global), Arc::clone(&hour)));
    let state = HttpState {
        snapshot: {
            let global = Arc::clone(&global);
            Arc::new(move || Box::pin(snapshot::take(Arc::clone(&global), Arc::clone(&hour))))
        },
        metrics: Arc::clone(&global.metrics),
        collect: {
            let global = Arc::clone(&global);
            Arc::new(move || Box::pin(operator::collect(Arc::clone(&global))))
        },
        act: {
            let global = Arc::clone(&global);
            Arc::new(move |action| Box::pin(operator::act(Arc::clone(&global), action)))
        },
        token: {
            let global = Arc::clone(&global);
            Arc::new(move || global.live.get().admin.token)
        },
        health: {
            let global = Arc::clone(&global);
            Arc::new(move || Health {
                draining: global.draining.load(Ordering::Relaxed),
                backends: Side::BOTH.map(|side| global.backend(side)),
            })
        },
    };
    // Probes must see the drain: the endpoint ends with the process.
    let never = async move {
        let _ = stopping.wait_for(|_| false).await;
    };
    if let Err(error) = http::serve(listener, state, never).await {
        tracing::error!(%error, "the HTTP endpoint ended");
    }
    keeper.abort();
}

/// Handles signals until one asks to stop; those that come then are returned.
async fn signals(global: &Arc<Global>, stop: &watch::Sender<bool>) -> [tokio::signal::unix::Signal; 2] {
    use tokio::signal::unix::{SignalKind, signal};
    let mut hangup = signal(SignalKind::hangup()).expect("signals can be handled");
    let mut terminate = signal(SignalKind::terminate()).expect("signals can be handled");
    let mut interrupt = signal(SignalKind::interrupt()).expect("signals can be handled");
    if let Some(interval) = notify::watchdog_interval() {
        tokio::spawn(watchdog(Arc::clone(global), interval));
    }
    loop {
        tokio::select! {
            _ = hangup.recv() => {
                let _ = notify::notify(State::Reloading);
                let live = Arc::clone(&global.live);
                // Its mistakes are logged and counted by the reload itself.
                let _ = tokio::task::spawn_blocking(move || live.reload(Why::Signal)).await;
                let _ = notify::notify(State::Ready);
            }
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
        }
    }
    tracing::info!("draining: no new clients; those inside a transaction may end it");
    let _ = notify::notify(State::Stopping);
    global.draining.store(true, Ordering::Relaxed);
    stop.send_replace(true);
    [terminate, interrupt]
}

/// Clients leave when they are outside a transaction; after `deadline`, or when asked again, all of them.
async fn drain(global: &Arc<Global>, deadline: Duration, again: &mut [tokio::signal::unix::Signal; 2]) {
    let [terminate, interrupt] = again;
    let why = tokio::select! {
        () = emptied(global, Signal::Drain) => None,
        () = tokio::time::sleep(deadline) => Some("timeouts.drain passed: ending the clients that are left"),
        _ = terminate.recv() => Some("stopping at once"),
        _ = interrupt.recv() => Some("stopping at once"),
    };
    if let Some(why) = why {
        tracing::warn!("{why}");
        // Those that do not take their last words are not waited for.
        let _ = tokio::time::timeout(LAST_WORDS, emptied(global, Signal::Stop)).await;
    }
    for shard in global.shards() {
        let _ = shard.send(Message::End).await;
    }
}

/// Tells all clients, those too that are just logging in, until none is left.
async fn emptied(global: &Global, signal: Signal) {
    loop {
        tell_all(global, signal).await;
        let counts = global.on_every_shard(|shard| shard.clients.borrow().len()).await;
        if counts.iter().sum::<usize>() == 0 {
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

async fn tell_all(global: &Global, signal: Signal) {
    global
        .on_every_shard(move |shard| {
            for client in shard.clients.borrow().values() {
                client.tell(signal);
            }
        })
        .await;
}

const GOODBYE: Duration = Duration::from_millis(100);
const LAST_WORDS: Duration = Duration::from_millis(500);
