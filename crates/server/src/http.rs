//! HTTP: Riak's key-value API, and what operators and their tools ask a node.
//!
//! The server runs on a thread of its own beside the event loop, with hyper doing the protocol. Every request becomes
//! at most a few operations of the core, asked through a [`Handle`]; nothing here knows about replicas or stores
//! anything. What a client may take is limited by [`Limits`]. `docs/http.md` lists every path, parameter, header and
//! status, and what differs from Riak.
//!
//! A request travels so: `guard` refuses what is ambiguous or comes from a foreign page; `route` reads the path,
//! `parameters` the query, `conditions` the `If-` headers, `upload` the body; `object`, `aso`, `listing`, `properties`
//! or `report` serve it; `representation` writes an object's answer, `refusal` any error.
//! Source: Riak KV's HTTP API; RFC 9110.

pub mod body;
pub mod refusal;
pub mod upload;
pub mod framing;
pub mod route;
pub mod parameters;
pub mod conditions;
pub mod representation;
pub mod guard;
pub mod counters;
pub mod shared;
pub mod aso;
pub mod object;
pub mod counter;
pub mod properties;
pub mod listing;
pub mod report;
pub mod socket;

use std::convert::Infallible;
use std::future::{poll_fn, Future};
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::atomic::Ordering;
use std::sync::Arc;
use std::task::Poll;
use std::thread;
use std::time::{Duration, Instant};

use hyper::body::Incoming;
use hyper::header::{HeaderValue, CONNECTION};
use hyper::http::request::Parts;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use oort_core::types::NodeId;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

use crate::handle::Handle;
use crate::http::body::Body;
use crate::http::parameters::Parameters;
use crate::http::refusal::Refusal;
use crate::http::route::Target;
pub use crate::http::shared::Limits;
use crate::http::shared::Shared;
use crate::http::socket::{Socket, Wire};
use crate::http::upload::Upload;

/// hyper holds back reading when this much of a connection waits to be parsed, beyond the largest head.
const READ_AHEAD_BYTES: usize = 64 << 10;
/// The pause after a connection could not be accepted, mostly because no file descriptor is left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// How long it may take to read a refused body that has come already.
const SKIP_PATIENCE: Duration = Duration::from_secs(1);
/// What a client gets that is one too many.
const TOO_MANY: &[u8] = b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 1\r\nConnection: close\r\n\
    Content-Type: text/plain\r\nContent-Length: 31\r\n\r\ntoo many connections: try again";

/// A running server. Dropping it asks it to stop, without waiting.
pub struct HttpServer {
    address: SocketAddr,
    stop: watch::Sender<bool>,
    thread: thread::JoinHandle<()>,
}

impl HttpServer {
    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Stops accepting; requests in flight are finished, within [`Limits::stop_timeout`]. Returns at once.
    pub fn stop(&self) {
        self.stop.send_replace(true);
    }

    /// Stops, and waits for it. The event loop must still answer meanwhile.
    pub fn join(self) {
        self.stop();
        if self.thread.join().is_err() {
            tracing::error!("the http thread panicked");
        }
    }
}

/// Serves HTTP on `listener` for the node `node`, on a thread of its own, until stopped.
///
/// Errors: the listener or the thread cannot be set up.
pub fn serve(
    listener: std::net::TcpListener,
    handle: Handle,
    node: NodeId,
    limits: Limits,
) -> io::Result<HttpServer> {
    listener.set_nonblocking(true)?;
    let address = listener.local_addr()?;
    let (stop, stopping) = watch::channel(false);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().enable_time().build()?;
    let listener = {
        let _context = runtime.enter();
        TcpListener::from_std(listener)?
    };
    let shared = Arc::new(Shared::new(handle, node, limits, stopping));
    let thread = thread::Builder::new()
        .name("http".into())
        .spawn(move || runtime.block_on(accept_until_stopped(listener, shared)))?;
    Ok(HttpServer { address, stop, thread })
}

async fn accept_until_stopped(listener: TcpListener, shared: Arc<Shared>) {
    let connections = GracefulShutdown::new();
    let mut stopping = shared.stopping.clone();
    let mut stopped = pin!(stopping.wait_for(|is_stopping| *is_stopping));
    let mut is_failing = false;
    loop {
        let next = poll_fn(|cx| match stopped.as_mut().poll(cx) {
            Poll::Ready(_) => Poll::Ready(None),
            Poll::Pending => listener.poll_accept(cx).map(Some),
        });
        match next.await {
            None => break,
            Some(Ok((stream, _))) => {
                is_failing = false;
                admit(stream, &shared, &connections);
            }
            Some(Err(error)) => {
                if !std::mem::replace(&mut is_failing, true) {
                    tracing::warn!(%error, "cannot accept HTTP connections");
                }
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
    drop(listener);
    if tokio::time::timeout(shared.limits.stop_timeout, connections.shutdown()).await.is_err() {
        tracing::warn!("some HTTP requests did not finish before the stop");
    }
}

/// Serves a connection, or refuses it when there are too many.
fn admit(stream: TcpStream, shared: &Arc<Shared>, connections: &GracefulShutdown) {
    if connections.count() >= shared.limits.connections_max {
        shared.counters.connections_refused.fetch_add(1, Ordering::Relaxed);
        // A new socket's buffer takes this whole; if not, the client sees a closed connection.
        let _ = stream.try_write(TOO_MANY);
        return;
    }
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, "cannot set TCP_NODELAY");
    }
    let limits = &shared.limits;
    let address = stream.peer_addr().ok();
    let wire = Arc::new(Wire::default());
    let socket = TokioIo::new(Socket::new(stream, wire.clone(), limits.write_timeout));
    let service = {
        let shared = shared.clone();
        service_fn(move |mut request: Request<Incoming>| {
            let (shared, wire) = (shared.clone(), wire.clone());
            if let Some(address) = address {
                request.extensions_mut().insert(address);
            }
            async move { Ok::<_, Infallible>(answer(&shared, &wire, request).await) }
        })
    };
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(limits.head_timeout)
        .max_header_size(limits.head_bytes_max)
        .max_buf_size(limits.head_bytes_max + READ_AHEAD_BYTES)
        .title_case_headers(true)
        .serve_connection(socket, service);
    let connection = connections.watch(connection);
    let shared = shared.clone();
    shared.counters.connections.fetch_add(1, Ordering::Relaxed);
    tokio::spawn(async move {
        if let Err(error) = connection.await {
            tracing::debug!(%error, "HTTP connection ended");
        }
        shared.counters.connections.fetch_sub(1, Ordering::Relaxed);
    });
}

async fn answer(shared: &Shared, wire: &Wire, request: Request<Incoming>) -> Response<Body> {
    let start = Instant::now();
    let (head, body) = request.into_parts();
    let mut body = Upload::new(body);
    let framing = wire.next_framing();
    let result = match guard::check(&head, framing) {
        Ok(()) => dispatch(shared, &head, &mut body).await,
        Err(refusal) => Err(refusal),
    };
    let mut response = result.unwrap_or_else(Refusal::into_response);
    if !body.is_read() && wire.has_whole_requests() {
        body.skip(SKIP_PATIENCE).await;
    }
    // The next request begins behind this one's body, so where that was not read there is none.
    if !body.is_read() || framing.is_some_and(|framing| framing.is_ambiguous()) {
        wire.note_early();
        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    }
    shared.counters.answered(&head.method, response.status(), start.elapsed());
    response
}

async fn dispatch(shared: &Shared, head: &Parts, body: &mut Upload) -> Result<Response<Body>, Refusal> {
    let target = route::parse(head.uri.path())?;
    let allow = target.methods();
    if !allow.split(", ").any(|method| method == head.method.as_str()) {
        return Err(Refusal::method(&head.method, allow));
    }
    guard::check_origin(head)?;
    let parameters = Parameters::parse(head.uri.query())?;
    match target {
        Target::Index => Ok(report::index(&head.headers)),
        Target::Ping => Ok(report::ping()),
        Target::Stats => report::stats(shared).await,
        Target::Health => report::health(shared).await,
        Target::Metrics => report::metrics(shared).await,
        Target::ClusterStatus => report::cluster_status(shared).await,
        Target::Buckets { prefix } => listing::buckets(shared, &parameters, prefix).await,
        Target::Properties(place) => properties::serve(shared, head, &parameters, body, &place).await,
        Target::Object { place, key } => object::serve(shared, head, parameters, body, place, &key).await,
        Target::Counter { place, key } => counter::serve(shared, head, parameters, body, (place, key)).await,
        Target::Active { bucket, key, part } => {
            aso::serve(shared, head, parameters, body, (bucket, key, part)).await
        }
        Target::Keys(place) => match head.method {
            Method::POST => object::create(shared, head, parameters, body, place).await,
            _ => listing::keys(shared, &parameters, &place).await,
        },
        Target::OldBucket(place) => match head.method {
            Method::POST => object::create(shared, head, parameters, body, place).await,
            Method::PUT => properties::set(shared, &parameters, body, &place).await,
            _ => listing::old_bucket(shared, &parameters, &place).await,
        },
    }
}
