//! Serves the router over TCP or TLS until shutdown, and ends without dropping replies.

use std::io;
use std::net::TcpListener;
use std::sync::Arc;
use std::time::Duration;

use axum_server::tls_rustls::RustlsAcceptor;
use axum_server::{Handle, Server};
use hyper_util::rt::{TokioExecutor, TokioTimer};
use hyper_util::server::conn::auto::Builder;

use crate::handler_runtime::HandlerRuntime;
use crate::routes::router;
use crate::service::Service;
use crate::socket::{CountingListener, Peer, SocketTimeouts};
use crate::tls::Tls;
use kilotok_generation::EngineFailed;

/// Errors that end serving before shutdown.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    #[error("the engine failed: {0}")]
    Engine(#[from] EngineFailed),
    #[error("the listener failed: {0}")]
    Listener(#[from] io::Error),
    #[error("TLS cannot be set up with {file}: {reason}")]
    Tls { file: String, reason: String },
}

/// A client that takes longer to send its headers is disconnected.
const HEADERS_WAIT_MAX: Duration = Duration::from_secs(30);
/// Most bytes of all headers of a request together.
const HEADER_BYTES_MAX: usize = 64 << 10;
/// Bytes of request bodies that an HTTP/2 connection may have in flight, over all its streams.
/// Handlers read them at once into memory of the budget; this much per connection is not in the
/// budget. On a line with a round trip of 50 ms it still allows 5 MB/s.
const HTTP2_WINDOW_BYTES: u32 = 256 << 10;
/// Concurrent requests of an HTTP/2 connection; further ones wait at the client.
const HTTP2_STREAMS_MAX: u32 = 128;
/// Bytes of a reply that may wait for an HTTP/2 client to read; an event has a few hundred.
const HTTP2_SEND_BYTES_MAX: usize = 64 << 10;
/// Time for the last bytes to leave after replies were cut off or failed: a few round trips, even
/// on a slow line. Readers of complete replies have this time and what is left of the shutdown
/// timeout.
const FLUSH_WAIT_MAX: Duration = Duration::from_secs(5);
/// After the engine failed, the server answers requests with that error for at least this long:
/// probes that come every second get a 503, and a restart takes many times longer.
const FAILURE_SHOWN_MIN: Duration = Duration::from_secs(1);

/// Serves until `shutdown` and the drain after it, or until the engine fails. `Service::stop` cuts
/// the drain short.
pub async fn serve(
    listener: TcpListener,
    service: Arc<Service>,
    shutdown: impl Future<Output = ()>,
) -> Result<(), ServeError> {
    listener.set_nonblocking(true)?;
    let handle = Handle::new();
    let handlers = HandlerRuntime::start()?;
    let running = listen(listener, Arc::clone(&service), handlers.handle(), handle.clone())?;
    let mut running = tokio::spawn(running);
    let mut time_left = Duration::ZERO;
    tokio::pin!(shutdown);
    let outcome = tokio::select! {
        () = &mut shutdown => {
            time_left = drain(&service).await;
            let ended = tokio::time::timeout(FLUSH_WAIT_MAX, service.admission.ended()).await;
            let hung = |_| Err(EngineFailed("its last step does not end".into()));
            ended.unwrap_or_else(hung).map_err(ServeError::from)
        }
        outcome = service.admission.ended() => {
            if outcome.is_err() {
                let shown = service.config.drain_delay.max(FAILURE_SHOWN_MIN);
                let _ = tokio::time::timeout(shown, shutdown).await;
            }
            outcome.map_err(ServeError::from)
        }
    };
    // All replies have ended, and their last bytes are being sent. Requests that need no engine may
    // go on while there is time.
    handle.graceful_shutdown(Some(time_left + FLUSH_WAIT_MAX));
    let served = if let Ok(served) = tokio::time::timeout(time_left, &mut running).await {
        served
    } else {
        service.stop();
        running.await
    };
    outcome.and(served.map_err(io::Error::other)?.map_err(ServeError::from))
}

/// Limits of connections.
fn tune(builder: &mut Builder<TokioExecutor>) {
    builder
        .http1()
        .timer(TokioTimer::new())
        // Until something is written, a client that closed its socket looks like one that closed
        // only its sending half. A reply without a reader must not keep its slot until then, and a
        // reply without a stream is written only at its end.
        .half_close(false)
        .header_read_timeout(HEADERS_WAIT_MAX)
        .max_buf_size(HEADER_BYTES_MAX);
    builder
        .http2()
        .timer(TokioTimer::new())
        .keep_alive_interval(HEADERS_WAIT_MAX)
        .initial_connection_window_size(HTTP2_WINDOW_BYTES)
        .initial_stream_window_size(HTTP2_WINDOW_BYTES)
        .max_concurrent_streams(HTTP2_STREAMS_MAX)
        .max_send_buf_size(HTTP2_SEND_BYTES_MAX)
        .max_header_list_size(HEADER_BYTES_MAX as u32);
}

type Serving = std::pin::Pin<Box<dyn Future<Output = io::Result<()>> + Send>>;

/// The future that serves connections.
fn listen(
    listener: TcpListener,
    service: Arc<Service>,
    handlers: tokio::runtime::Handle,
    handle: Handle<Peer>,
) -> Result<Serving, ServeError> {
    let (files, look) = (service.config.tls.clone(), service.config.tls_look);
    let tls = files.map(Tls::open).transpose()?;
    let listener = CountingListener::new(listener, Arc::clone(&service.http_metrics))?;
    let server = Server::<Peer>::from_listener(listener).handle(handle);
    let make = router(service, handlers).into_make_service();
    match tls {
        None => {
            let mut server = server.map(SocketTimeouts);
            tune(server.http_builder());
            Ok(Box::pin(server.serve(make)))
        }
        Some(tls) => {
            let mut server = server.acceptor(SocketTimeouts(RustlsAcceptor::new(tls.config())));
            tune(server.http_builder());
            let served = server.serve(make);
            Ok(Box::pin(async move {
                tokio::select! {
                    served = served => served,
                    never = tls.follow(look) => match never {},
                }
            }))
        }
    }
}

/// Shuts down: `/ready` says no, then new requests are refused, then running replies may finish,
/// then the remaining ones are aborted. Returns what is left of the time to finish.
async fn drain(service: &Service) -> Duration {
    service.leave();
    let delay = service.config.drain_delay;
    if delay > Duration::ZERO {
        let seconds = delay.as_secs_f64();
        tracing::info!(seconds, "shutting down: new requests are taken for a moment longer");
    }
    let ended = service.admission.ended();
    tokio::pin!(ended);
    tokio::select! {
        () = tokio::time::sleep(delay) => {}
        _ = &mut ended => return Duration::ZERO,
    }
    let start = tokio::time::Instant::now();
    service.admission.drain();
    let count = service.admission.load().held;
    tracing::info!(count, "new requests are refused, running ones finish");
    tokio::select! {
        () = tokio::time::sleep(service.config.shutdown_timeout) => {
            tracing::warn!(count = service.admission.load().held, "requests are cut off");
            service.stop();
        }
        _ = &mut ended => {}
    }
    service.config.shutdown_timeout.saturating_sub(start.elapsed())
}
