//! A runtime for the requests of the API, separate from that of connections and probes: however
//! long a request occupies a thread, connections are still read and `/health` still answers. When
//! the server ends, nothing waits for these threads.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use tokio::runtime::{Builder, Handle, Runtime};
use tokio::sync::watch;
use tokio::task::{JoinError, JoinHandle};
use tracing::Instrument;

use crate::error::ApiError;
use kilotok_generation::Refusal;

/// Threads for blocking work, besides those that handle requests. Rendering and tokenizing first
/// wait for a semaphore, so that they never take all of these threads.
const BLOCKING_THREADS_MAX: usize = 32;
/// Idle threads are kept: the system may have none left when a thread that ended is needed again.
const IDLE_MAX: Duration = Duration::from_hours(24 * 365);
/// Time for a request to answer by itself after requests are cut off.
const CUT_OFF_WAIT_MAX: Duration = Duration::from_millis(200);

/// See the file's head.
pub(crate) struct HandlerRuntime {
    handle: Handle,
    /// `None` once it is dropped.
    runtime: Option<Runtime>,
}

impl HandlerRuntime {
    pub(crate) fn start() -> io::Result<Self> {
        let runtime = Builder::new_multi_thread()
            .enable_all()
            .thread_name("kilotok-handler")
            .max_blocking_threads(BLOCKING_THREADS_MAX)
            .thread_keep_alive(IDLE_MAX)
            .build()?;
        // With one blocking thread alive, work queues for it if the system allows no other; with
        // none it would fail.
        runtime.spawn_blocking(|| {});
        Ok(Self { handle: runtime.handle().clone(), runtime: Some(runtime) })
    }

    pub(crate) fn handle(&self) -> Handle {
        self.handle.clone()
    }
}

impl Drop for HandlerRuntime {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

/// The task of a request. Dropping it ends the request.
struct HandlerTask(JoinHandle<Response>);

impl Future for HandlerTask {
    type Output = Result<Response, JoinError>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        Pin::new(&mut self.0).poll(context)
    }
}

impl Drop for HandlerTask {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Runs the handler of a request on the handlers' runtime, until requests are cut off.
pub(crate) async fn run_on_handlers(
    State((handlers, mut cut_off)): State<(Handle, watch::Receiver<bool>)>,
    request: Request,
    next: Next,
) -> Response {
    let mut handling = HandlerTask(handlers.spawn(next.run(request).in_current_span()));
    let handled = tokio::select! {
        handled = &mut handling => handled,
        () = async { drop(cut_off.wait_for(|over| *over).await) } => {
            match tokio::time::timeout(CUT_OFF_WAIT_MAX, &mut handling).await {
                Ok(handled) => handled,
                Err(_) => return ApiError::from_refusal(Refusal::Draining, "").into_response(),
            }
        }
    };
    handled.unwrap_or_else(|error| {
        tracing::error!(%error, "a request could not be handled");
        let status = StatusCode::INTERNAL_SERVER_ERROR;
        ApiError::new(status, "the server failed to handle the request").into_response()
    })
}

#[cfg(test)]
mod tests {
    use std::sync::{Condvar, Mutex};

    use axum::Router;
    use axum::middleware::from_fn_with_state;
    use axum::routing::get;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::{TcpListener, TcpStream};

    use super::*;

    /// More requests than there are threads for handlers.
    const STUCK: usize = 64;
    static OPEN: (Mutex<bool>, Condvar) = (Mutex::new(false), Condvar::new());

    async fn stuck() -> &'static str {
        drop(OPEN.1.wait_while(OPEN.0.lock().unwrap(), |open| !*open).unwrap());
        "done"
    }

    async fn failing() -> &'static str {
        panic!("as tested")
    }

    async fn get_from(address: std::net::SocketAddr, path: &str) -> String {
        let mut socket = TcpStream::connect(address).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n");
        socket.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        socket.read_to_string(&mut answer).await.unwrap();
        answer
    }

    /// One thread does everything except running handlers.
    #[tokio::test]
    async fn probes_are_answered_whatever_requests_do() {
        let handlers = HandlerRuntime::start().unwrap();
        let (cut, cut_off) = watch::channel(false);
        let apart = from_fn_with_state((handlers.handle(), cut_off), run_on_handlers);
        let routes = Router::new().route("/stuck", get(stuck)).route("/failing", get(failing));
        let routes = routes.route_layer(apart).route("/probe", get(|| async { "well" }));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async { axum::serve(listener, routes).await });
        let failed = get_from(address, "/failing").await;
        assert!(failed.starts_with("HTTP/1.1 500") && failed.contains("error"), "{failed}");
        let requests: Vec<_> =
            (0..STUCK).map(|_| tokio::spawn(get_from(address, "/stuck"))).collect();
        assert!(get_from(address, "/probe").await.ends_with("well"));
        // No handler notices by itself that it is cut off.
        cut.send_replace(true);
        for request in requests {
            let answer = request.await.unwrap();
            assert!(answer.starts_with("HTTP/1.1 503"), "{answer}");
        }
        *OPEN.0.lock().unwrap() = true;
        OPEN.1.notify_all();
    }
}
