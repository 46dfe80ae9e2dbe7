//! Accepting connections, and ending in order.

use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::http::{Request, Response};
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsAcceptor;
use tower_service::Service;

use crate::config::{Config, Limits};
use crate::connection::Connection;
use crate::jobs;
use crate::routes::router;
use crate::server::Server;
use crate::tls::{self, TlsError};

/// How long requests under way have when the server ends.
const PATIENCE: Duration = Duration::from_secs(30);
const STREAMS: u32 = 64;
const STREAM_WINDOW: u32 = 2 << 20;
const CONNECTION_WINDOW: u32 = 8 << 20;
const PING: Duration = Duration::from_secs(20);

/// Why a server does not start.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The address cannot be listened on.
    #[error("cannot listen on {address}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// The operating system's report.
        #[source]
        source: io::Error,
    },
    /// There is no usable certificate.
    #[error("no certificate")]
    Tls(#[source] TlsError),
    /// A repository that is to be taken over is not configured.
    #[error("{0}")]
    Unknown(String),
}

/// A server that listens.
#[derive(Debug)]
pub struct Running {
    /// Where it listens.
    pub address: SocketAddr,
    /// `sha256:` and the certificate's SHA-256; `None` without TLS.
    pub fingerprint: Option<String>,
    stop: watch::Sender<bool>,
    loop_: tokio::task::JoinHandle<()>,
}

impl Running {
    /// Ends it in order: requests under way are finished, jobs stopped.
    pub async fn stop(self) {
        self.stop.send_replace(true);
        let _ = self.loop_.await;
    }
}

/// Starts a server. Repositories named in `take_over` are taken from whoever owns them.
///
/// # Errors
/// [`ServeError`]. A repository that cannot be opened is none: it is logged, and tried again when asked for.
pub async fn start(config: &Config, take_over: &[String]) -> Result<Running, ServeError> {
    let identity = match config.insecure_http {
        true => None,
        false => Some(tls::identity(config).map_err(ServeError::Tls)?),
    };
    let address = config.listen;
    let failed = |source| ServeError::Listen { address, source };
    let listener = TcpListener::bind(address).await.map_err(failed)?;
    let address = listener.local_addr().map_err(failed)?;
    let server = Arc::new(Server::new(config));
    server.open_all(take_over).await.map_err(ServeError::Unknown)?;
    let (stop, stopping) = watch::channel(false);
    tokio::spawn(jobs::schedule(Arc::clone(&server), stopping.clone()));
    let acceptor = identity.as_ref().map(|identity| TlsAcceptor::from(Arc::clone(&identity.config)));
    let listening =
        Listening { router: router(Arc::clone(&server)), server, acceptor, limits: config.limits, stopping };
    let loop_ = tokio::spawn(listening.run(listener));
    let fingerprint = identity.map(|identity| identity.fingerprint);
    Ok(Running { address, fingerprint, stop, loop_ })
}

struct Listening {
    router: Router,
    server: Arc<Server>,
    acceptor: Option<TlsAcceptor>,
    limits: Limits,
    stopping: watch::Receiver<bool>,
}

impl Listening {
    async fn run(self, listener: TcpListener) {
        let room = Arc::new(Semaphore::new(self.limits.connections as usize));
        let mut connections = JoinSet::new();
        let mut stopping = self.stopping.clone();
        loop {
            while connections.try_join_next().is_some() {}
            let next = async {
                // Whoever comes when there is no room waits in the kernel's queue.
                let permit = Arc::clone(&room).acquire_owned().await.ok()?;
                Some((listener.accept().await, permit))
            };
            tokio::select! {
                accepted = next => match accepted {
                    Some((Ok((stream, peer)), permit)) => {
                        drop(connections.spawn(self.serve(stream, peer, permit)));
                    }
                    Some((Err(error), _)) => {
                        // Out of descriptors, perhaps: others will be given back.
                        tracing::warn!(error = &error as &dyn std::error::Error, "cannot accept");
                        sleep(Duration::from_millis(100)).await;
                    }
                    None => break,
                },
                () = stopped(&mut stopping) => break,
            }
        }
        drop(listener);
        self.server.jobs.stop_all();
        let finished = async {
            while connections.join_next().await.is_some() {}
            self.server.all_is_done().await;
        };
        if timeout(PATIENCE, finished).await.is_err() {
            tracing::warn!("requests are still under way; they are cut off");
        }
    }

    fn serve(
        &self,
        stream: TcpStream,
        peer: SocketAddr,
        permit: OwnedSemaphorePermit,
    ) -> impl Future<Output = ()> + Send + 'static {
        let (router, acceptor, limits) = (self.router.clone(), self.acceptor.clone(), self.limits);
        let stopping = self.stopping.clone();
        async move {
            let _permit = permit;
            let _ = stream.set_nodelay(true);
            let connection = Connection::new(peer, &limits);
            let service = Labelled { router, connection: Arc::clone(&connection) };
            let Some(acceptor) = acceptor else {
                return converse(stream, false, service, connection, limits, stopping).await;
            };
            let patience = Duration::from_secs(u64::from(limits.handshake_seconds));
            match timeout(patience, acceptor.accept(stream)).await {
                Ok(Ok(stream)) => {
                    let http2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
                    converse(stream, http2, service, connection, limits, stopping).await;
                }
                Ok(Err(error)) => tracing::debug!(%peer, %error, "no TLS"),
                Err(_) => tracing::debug!(%peer, "TLS took too long"),
            }
        }
    }
}

/// Returns when the server is to end.
async fn stopped(stopping: &mut watch::Receiver<bool>) {
    let _ = stopping.wait_for(|stop| *stop).await;
}

/// Answers requests until the connection ends, keeps still for too long, or the server ends.
async fn converse(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    http2: bool,
    service: Labelled,
    connection: Arc<Connection>,
    limits: Limits,
    mut stopping: watch::Receiver<bool>,
) {
    let mut builder = Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(Duration::from_secs(u64::from(limits.head_seconds)))
        .max_buf_size(64 << 10);
    builder
        .http2()
        .timer(TokioTimer::new())
        .keep_alive_interval(PING)
        .keep_alive_timeout(PING)
        .max_concurrent_streams(STREAMS)
        .max_header_list_size(16 << 10)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW);
    let builder = if http2 { builder.http2_only() } else { builder.http1_only() };
    let mut conversation =
        pin!(builder.serve_connection(TokioIo::new(stream), TowerToHyperService::new(service)));
    let outcome = tokio::select! {
        outcome = conversation.as_mut() => outcome,
        () = connection.is_still() => return,
        () = stopped(&mut stopping) => {
            conversation.as_mut().graceful_shutdown();
            conversation.await
        }
    };
    if let Err(error) = outcome {
        tracing::debug!(peer = %connection.peer(), %error, "a connection broke");
    }
}

/// The routes, with the connection put into each request's extensions.
#[derive(Clone)]
struct Labelled {
    router: Router,
    connection: Arc<Connection>,
}

impl Service<Request<Incoming>> for Labelled {
    type Response = Response<Body>;
    type Error = std::convert::Infallible;
    type Future = <Router as Service<Request<Body>>>::Future;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, mut request: Request<Incoming>) -> Self::Future {
        request.extensions_mut().insert(Arc::clone(&self.connection));
        self.router.call(request.map(Body::new))
    }
}
