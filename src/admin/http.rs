//! `/metrics`, `/healthz`, `/readyz`, `/state`, and the page that shows it. Nothing here changes anything but `/act`, for who
//! knows `admin.token`.
//!
//! One request a connection, with a limit on its size and a deadline over all of it: the endpoint may be
//! opened to a network, and a scraper that stalls must cost nothing.

use std::{
    future::Future,
    io,
    net::{SocketAddr, TcpListener},
    sync::Arc,
    time::Duration,
};

use axum::{
    Json, Router,
    extract::{DefaultBodyLimit, State},
    http::{StatusCode, header},
    response::IntoResponse,
    routing::{get, post},
};
use hyper::{
    Request,
    body::Incoming,
    server::conn::http1,
    service::{Service, service_fn},
};
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use serde::{Deserialize, Serialize};
use tokio::{net::TcpStream, sync::Semaphore, task::JoinSet, time::timeout};

use super::{
    act::{self, Act, Tokens},
    page,
    snapshot::Snapshot,
};
use crate::{
    Side,
    report::metrics::{BoxFuture, Collect, Metrics},
};

/// Bytes of a request's head.
const MAX_HEAD_BYTES: usize = 16 * 1024;
/// Bytes of its body.
const MAX_BODY_BYTES: usize = 4 * 1024;
/// From accept to the end of the request's head.
const HEAD_TIMEOUT: Duration = Duration::from_secs(5);
/// From accept to the end of the answer.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(30);
/// Connections at once; more wait in the listen backlog.
const MAX_CONNECTIONS: usize = 64;
/// No other origin may read it, and nobody keeps it.
pub(super) const PRIVATE: [(&str, &str); 3] = [
    ("cache-control", "no-store"),
    ("cross-origin-resource-policy", "same-origin"),
    ("x-content-type-options", "nosniff"),
];
/// After a failed accept (no file descriptors left).
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What the endpoints look at.
#[derive(Clone)]
pub struct HttpState {
    /// The process' metrics.
    pub metrics: Arc<Metrics>,
    /// Sets the gauges right before `/metrics` is rendered.
    pub collect: Collect,
    /// State and evidence, for `/state`.
    pub snapshot: Take,
    /// The state of the proxy at this moment.
    pub health: Arc<dyn Fn() -> Health + Send + Sync>,
    /// What may be asked for with the token.
    pub act: Act,
    /// `admin.token`.
    pub token: Tokens,
}

/// Looks at state and evidence.
pub type Take = Arc<dyn Fn() -> BoxFuture<'static, Snapshot> + Send + Sync>;

/// The state of the proxy.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Health {
    /// It is about to stop: no new clients, please.
    pub draining: bool,
    /// By [`Side::index`].
    pub backends: [BackendState; 2],
}

/// What the last health check of a backend said.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum BackendState {
    /// It answered.
    Up,
    /// It did not.
    Down,
    /// There was none yet.
    Unknown,
}

/// Serves until `shutdown` is over; answers under way get a moment to end.
pub async fn serve(
    listener: TcpListener,
    state: HttpState,
    shutdown: impl Future<Output = ()>,
) -> io::Result<()> {
    listener.set_nonblocking(true)?;
    let listener = tokio::net::TcpListener::from_std(listener)?;
    let slots = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let service = TowerToHyperService::new(router(state));
    let mut connections = JoinSet::new();
    let accept = async {
        loop {
            let slot = Arc::clone(&slots).acquire_owned().await.expect("the semaphore is never closed");
            match listener.accept().await {
                Ok((stream, peer)) => {
                    let service = service.clone();
                    connections.spawn(async move {
                        connection(stream, peer, service).await;
                        drop(slot);
                    });
                }
                Err(error) => {
                    tracing::warn!(%error, "could not accept an HTTP connection");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
            while connections.try_join_next().is_some() {}
        }
    };
    tokio::select! {
        () = accept => {}
        () = shutdown => {}
    }
    let rest = async { while connections.join_next().await.is_some() {} };
    // A client that takes longer loses its answer.
    let _ = timeout(Duration::from_secs(1), rest).await;
    Ok(())
}

/// The routes, for tests and for a server of the caller's.
pub fn router(state: HttpState) -> Router {
    Router::new()
        .route("/", get(start_page))
        .route("/metrics", get(metrics))
        .route("/state", get(snapshot))
        .route("/act", post(act::act).layer(DefaultBodyLimit::max(MAX_BODY_BYTES)))
        .route("/healthz", get(async || "ok\n"))
        .route("/readyz", get(readyz))
        .with_state(state)
}

async fn connection(stream: TcpStream, peer: SocketAddr, service: TowerToHyperService<Router>) {
    let service = service_fn(move |mut request: Request<Incoming>| {
        request.extensions_mut().insert(peer);
        service.call(request)
    });
    let serve = http1::Builder::new()
        .keep_alive(false)
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_buf_size(MAX_HEAD_BYTES)
        .max_headers(64)
        .serve_connection(TokioIo::new(stream), service);
    match timeout(CONNECTION_TIMEOUT, serve).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::debug!(%error, "HTTP connection failed"),
        Err(_) => tracing::debug!("HTTP connection took too long"),
    }
}

async fn metrics(State(state): State<HttpState>) -> impl IntoResponse {
    (state.collect)().await;
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], state.metrics.render())
}

async fn snapshot(State(state): State<HttpState>) -> impl IntoResponse {
    (PRIVATE, Json((state.snapshot)().await))
}

async fn start_page() -> impl IntoResponse {
    let headers = [
        (header::CONTENT_TYPE.as_str(), "text/html; charset=utf-8"),
        (header::CONTENT_SECURITY_POLICY.as_str(), page::policy()),
        (header::REFERRER_POLICY.as_str(), "no-referrer"),
    ];
    (PRIVATE, headers, page::live())
}

/// Ready: clients should be sent here. A dead target does not make it unready, since what runs on the source
/// goes on; without the source nothing does.
async fn readyz(State(state): State<HttpState>) -> impl IntoResponse {
    let health = (state.health)();
    let [source, target] = health.backends;
    let ready = !health.draining && health.backends[Side::Source.index()] == BackendState::Up;
    let body = Answer { ready, draining: health.draining, source, target };
    (if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE }, Json(body))
}

#[derive(Serialize)]
struct Answer {
    ready: bool,
    draining: bool,
    source: BackendState,
    target: BackendState,
}

#[cfg(test)]
mod tests {
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        sync::oneshot,
    };

    use super::*;
    use crate::{
        admin::act::Action,
        config::Token,
        report::metrics::{self, Value},
    };

    fn state(health: Health) -> HttpState {
        let metrics = Arc::new(Metrics::new());
        let mirrored = Arc::clone(&metrics);
        let collect: Collect = Arc::new(move || {
            let metrics = Arc::clone(&mirrored);
            Box::pin(async move { metrics.gauge(&metrics::POOL_WAITERS, &[Value::Word("source")], 4.0) })
        });
        let snapshot: Take = Arc::new(|| {
            Box::pin(async { Snapshot { version: "crossfade 1".to_owned(), ..Snapshot::default() } })
        });
        let act: Act = Arc::new(|action| {
            Box::pin(async move {
                if let Action::Forget { repository } = &action {
                    return Err(format!("there is no repository {repository:?}"));
                }
                Ok(format!("{action:?}"))
            })
        });
        let token = Token::new("a-token-of-twenty-and");
        HttpState {
            metrics,
            collect,
            snapshot,
            health: Arc::new(move || health),
            act,
            token: Arc::new(move || (!health.draining).then_some(token)),
        }
    }

    async fn exchange(address: SocketAddr, request: &[u8]) -> String {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(request).await.unwrap();
        let mut answer = Vec::new();
        // A refused request may end in a reset; what came before counts.
        let _ = stream.read_to_end(&mut answer).await;
        String::from_utf8(answer).unwrap()
    }

    async fn with_server<T>(health: Health, test: impl AsyncFnOnce(SocketAddr) -> T) -> T {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let (stop, stopped) = oneshot::channel::<()>();
        let server = tokio::spawn(serve(listener, state(health), async { drop(stopped.await) }));
        let result = test(address).await;
        drop(stop);
        server.await.unwrap().unwrap();
        result
    }

    const UP: Health = Health { draining: false, backends: [BackendState::Up, BackendState::Up] };

    #[tokio::test]
    async fn answers() {
        with_server(UP, async |address| {
            for (request, status, part) in [
                ("GET / HTTP/1.1", 200, "<title>crossfade</title>"),
                ("GET / HTTP/1.1", 200, "content-security-policy: default-src 'none'; script-src 'sha256-"),
                ("GET /healthz HTTP/1.1", 200, "ok"),
                ("HEAD /healthz HTTP/1.1", 200, "content-length: 3"),
                ("GET /metrics HTTP/1.1", 200, "crossfade_pool_waiters{backend=\"source\"} 4\n"),
                ("GET /metrics HTTP/1.1", 200, "content-type: text/plain; version=0.0.4"),
                ("GET /state HTTP/1.1", 200, "{\"version\":\"crossfade 1\","),
                ("GET /state HTTP/1.1", 200, "cache-control: no-store"),
                ("POST /metrics HTTP/1.1", 405, ""),
                ("POST /state HTTP/1.1", 405, ""),
                ("GET /reload HTTP/1.1", 404, ""),
                ("nonsense", 400, ""),
            ] {
                let answer = exchange(address, format!("{request}\r\nHost: x\r\n\r\n").as_bytes()).await;
                assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{request}: {answer}");
                assert!(answer.contains(part), "{request}: {answer}");
            }
        })
        .await;
    }

    async fn post(address: SocketAddr, headers: &str, body: &str) -> String {
        let length = body.len();
        let request =
            format!("POST /act HTTP/1.1\r\nHost: x\r\n{headers}Content-Length: {length}\r\n\r\n{body}");
        exchange(address, request.as_bytes()).await
    }

    #[tokio::test]
    async fn actions_need_the_token() {
        const RIGHT: &str = "Authorization: Bearer a-token-of-twenty-and\r\n";
        const WRONG: &str = "Authorization: Bearer a-token-of-twenty-ann\r\n";
        const BASIC: &str = "Authorization: Basic a-token-of-twenty-and\r\n";
        const JSON: &str = "Content-Type: application/json\r\n";
        let pause = r#"{"action":"pause","side":"both"}"#;
        let done = r#"{"done":"Pause { side: Both }"}"#;
        let long = format!(r#"{{"action":"forget","repository":"{}"}}"#, "x".repeat(5_000));
        with_server(UP, async |address| {
            for (headers, body, status, part) in [
                ([RIGHT, JSON], pause, 200, done),
                ([RIGHT, JSON], r#"{"action":"nothing"}"#, 200, r#"{"done":"the token is right"}"#),
                ([RIGHT, JSON], r#"{"action":"forget","repository":"x"}"#, 409, r#"{"error":"there is no"#),
                (["", JSON], pause, 401, "www-authenticate: Bearer"),
                ([BASIC, JSON], pause, 401, r#"{"error":"say admin.token as Authorization: Bearer"}"#),
                ([WRONG, JSON], pause, 403, r#"{"error":"this is not admin.token"}"#),
                // A form of another page is none of these, and a slip of the pen pauses nothing.
                ([RIGHT, "Content-Type: text/plain\r\n"], pause, 415, "error"),
                ([RIGHT, JSON], r#"{"action":"pause"}"#, 422, "missing field `side`"),
                ([RIGHT, JSON], r#"{"action":"pause","side":"both","for":1}"#, 422, "unknown field"),
                ([RIGHT, JSON], r#"{"action":"weights"}"#, 422, "unknown variant"),
                ([RIGHT, JSON], &long, 413, "error"),
            ] {
                let answer = post(address, &headers.concat(), body).await;
                assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{headers:?} {body}: {answer}");
                assert!(answer.contains(part), "{headers:?} {body}: {answer}");
            }
            let answer = exchange(address, b"GET /act HTTP/1.1\r\nHost: x\r\n\r\n").await;
            assert!(answer.starts_with("HTTP/1.1 405 "), "{answer}");
            let preflight = "OPTIONS /act HTTP/1.1\r\nHost: x\r\nOrigin: http://y\r\n\r\n";
            let answer = exchange(address, preflight.as_bytes()).await;
            assert!(!answer.contains("access-control-allow"), "{answer}");
        })
        .await;
        let without = Health { draining: true, ..UP };
        let answer = with_server(without, async |a| post(a, &[RIGHT, JSON].concat(), pause).await).await;
        assert!(answer.starts_with("HTTP/1.1 403 ") && answer.contains("admin.token is not set"), "{answer}");
    }

    #[tokio::test]
    async fn a_huge_head_is_refused() {
        with_server(UP, async |address| {
            let request = format!("GET / HTTP/1.1\r\nHost: {}\r\n\r\n", "x".repeat(MAX_HEAD_BYTES * 2));
            let answer = exchange(address, request.as_bytes()).await;
            assert!(!answer.starts_with("HTTP/1.1 200"), "{answer}");
        })
        .await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_silent_client_is_dropped() {
        with_server(UP, async |address| {
            let answer = exchange(address, b"GET / HT").await;
            assert!(!answer.contains("200"), "{answer}");
        })
        .await;
    }

    #[tokio::test]
    async fn readiness() {
        use BackendState::{Down, Unknown, Up};
        for (draining, backends, status, body) in [
            (false, [Up, Up], 200, r#"{"ready":true,"draining":false,"source":"up","target":"up"}"#),
            (false, [Up, Down], 200, r#"{"ready":true,"draining":false,"source":"up","target":"down"}"#),
            (false, [Down, Up], 503, r#"{"ready":false,"draining":false,"source":"down","target":"up"}"#),
            (
                false,
                [Unknown, Up],
                503,
                r#"{"ready":false,"draining":false,"source":"unknown","target":"up"}"#,
            ),
            (true, [Up, Up], 503, r#"{"ready":false,"draining":true,"source":"up","target":"up"}"#),
        ] {
            let request = b"GET /readyz HTTP/1.1\r\nHost: x\r\n\r\n";
            let answer =
                with_server(Health { draining, backends }, async |a| exchange(a, request).await).await;
            assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{answer}");
            assert!(answer.ends_with(body), "{answer}");
        }
    }
}
