//! Connections of clients. Failed accepts are counted and logged, replies are sent without delay
//! (`TCP_NODELAY`), and reads and writes have timeouts: hyper has one for headers, but none before
//! it knows the HTTP version, and none for writes.

use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use axum_server::accept::Accept;
use axum_server::{AddrListener, Address};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{Instant, Sleep, sleep};

use crate::metrics::HttpMetrics;

/// hyper knows the HTTP version after this many bytes.
const FIRST_BYTES: usize = 24;
/// The same time as for headers.
const FIRST_BYTES_WAIT_MAX: Duration = Duration::from_secs(30);
/// A write waits only when all buffers of the connection are full, megabytes in most systems, and
/// the client reads nothing.
const WRITE_WAIT_MAX: Duration = Duration::from_mins(2);

/// How often a failed accept is logged: it is retried many times a second.
const FAILURE_LOGGED_EVERY: Duration = Duration::from_secs(10);

/// The address of a client, which nothing uses.
#[derive(Clone, Debug)]
pub(crate) struct Peer;

impl Address for Peer {
    type Stream = TcpStream;
    type Listener = CountingListener;
}

/// A listener that counts and logs failed accepts, which `axum_server` ignores.
pub(crate) struct CountingListener {
    listener: TcpListener,
    metrics: Arc<HttpMetrics>,
    logged: Mutex<Option<Instant>>,
}

impl CountingListener {
    pub(crate) fn new(
        listener: std::net::TcpListener,
        metrics: Arc<HttpMetrics>,
    ) -> io::Result<Self> {
        Ok(Self { listener: TcpListener::from_std(listener)?, metrics, logged: Mutex::default() })
    }

    fn failed(&self, error: &io::Error) {
        self.metrics.accepts_failed.inc();
        let now = Instant::now();
        let mut logged = self.logged.lock().unwrap_or_else(PoisonError::into_inner);
        if logged.is_none_or(|logged| now.duration_since(logged) >= FAILURE_LOGGED_EVERY) {
            *logged = Some(now);
            tracing::error!(
                %error,
                "connections cannot be accepted; if files are too many, raise `ulimit -n`"
            );
        }
    }
}

impl AddrListener<TcpStream, Peer> for CountingListener {
    async fn bind_to(_: Peer) -> io::Result<Self> {
        Err(io::ErrorKind::Unsupported.into())
    }

    async fn accept_stream(&self) -> io::Result<(TcpStream, Peer)> {
        let accepted = self.listener.accept().await.inspect_err(|error| self.failed(error));
        accepted.map(|(stream, _)| (stream, Peer))
    }

    fn get_local_addr(&self) -> io::Result<Peer> {
        Ok(Peer)
    }
}

/// Wraps another acceptor, and adds the timeouts to its connections.
#[derive(Clone)]
pub(crate) struct SocketTimeouts<A>(pub(crate) A);

type Accepted<T> = Pin<Box<dyn Future<Output = io::Result<T>> + Send>>;

impl<A, S> Accept<TcpStream, S> for SocketTimeouts<A>
where
    A: Accept<TcpStream, S, Future: Send + 'static>,
{
    type Stream = Socket<A::Stream>;
    type Service = A::Service;
    type Future = Accepted<(Self::Stream, Self::Service)>;

    fn accept(&self, stream: TcpStream, service: S) -> Self::Future {
        // Without this, a token would wait until the client had acknowledged the one before.
        let no_delay = stream.set_nodelay(true);
        let accepted = self.0.accept(stream, service);
        Box::pin(async move {
            no_delay?;
            let (stream, service) = accepted.await?;
            Ok((Socket::new(stream), service))
        })
    }
}

/// See the file's head.
pub(crate) struct Socket<S> {
    inner: S,
    /// How many of the connection's first bytes have not arrived.
    first_bytes_left: usize,
    read_timeout: Timeout,
    write_timeout: Timeout,
}

impl<S> Socket<S> {
    fn new(inner: S) -> Self {
        let (read_timeout, write_timeout) =
            (Timeout::new(FIRST_BYTES_WAIT_MAX), Timeout::new(WRITE_WAIT_MAX));
        Self { inner, first_bytes_left: FIRST_BYTES, read_timeout, write_timeout }
    }
}

/// The timeout of one direction of a connection.
struct Timeout {
    wait_max: Duration,
    over: Option<Pin<Box<Sleep>>>,
}

impl Timeout {
    fn new(wait_max: Duration) -> Self {
        Self { wait_max, over: None }
    }

    /// Fails an operation that is pending for too long. Each completed operation restarts the
    /// timeout.
    fn bound<T>(
        &mut self,
        polled: Poll<io::Result<T>>,
        context: &mut Context<'_>,
    ) -> Poll<io::Result<T>> {
        if polled.is_ready() {
            self.over = None;
            return polled;
        }
        let over = self.over.get_or_insert_with(|| Box::pin(sleep(self.wait_max)));
        over.as_mut().poll(context).map(|()| Err(io::ErrorKind::TimedOut.into()))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Socket<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let polled = Pin::new(&mut self.inner).poll_read(context, buffer);
        if self.first_bytes_left == 0 {
            return polled;
        }
        if polled.is_ready() {
            let count = buffer.filled().len() - before;
            self.first_bytes_left = self.first_bytes_left.saturating_sub(count);
            return polled;
        }
        self.read_timeout.bound(polled, context)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Socket<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.inner).poll_write(context, bytes);
        self.write_timeout.bound(polled, context)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.inner).poll_write_vectored(context, parts);
        self.write_timeout.bound(polled, context)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let polled = Pin::new(&mut self.inner).poll_flush(context);
        self.write_timeout.bound(polled, context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let polled = Pin::new(&mut self.inner).poll_shutdown(context);
        self.write_timeout.bound(polled, context)
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::io::Write;

    use axum_server::accept::DefaultAcceptor;
    use tokio::net::TcpListener;
    use tokio::time::timeout;

    use super::*;

    /// Longer than any timeout; the paused clock jumps forward when all tasks are idle.
    const LONG: Duration = Duration::from_hours(1);

    async fn pair() -> (std::net::TcpStream, Socket<TcpStream>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let client = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (stream, _) = listener.accept().await.unwrap();
        let (socket, ()) = SocketTimeouts(DefaultAcceptor).accept(stream, ()).await.unwrap();
        (client, socket)
    }

    /// Returns how many bytes arrived.
    async fn read(socket: &mut Socket<TcpStream>) -> io::Result<usize> {
        let mut bytes = [0; 100];
        let mut buffer = ReadBuf::new(&mut bytes);
        poll_fn(|context| Pin::new(&mut *socket).poll_read(context, &mut buffer)).await?;
        Ok(buffer.filled().len())
    }

    #[tokio::test]
    async fn tokens_are_not_held_back() {
        let (_client, socket) = pair().await;
        assert!(socket.inner.nodelay().unwrap());
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_must_send_first_bytes_and_may_pause_then() {
        let (mut client, mut socket) = pair().await;
        client.write_all(b"PRI * HT").unwrap();
        assert_eq!(read(&mut socket).await.unwrap(), 8);
        assert_eq!(read(&mut socket).await.unwrap_err().kind(), io::ErrorKind::TimedOut);
        let (mut client, mut socket) = pair().await;
        client.write_all(&[b'a'; FIRST_BYTES]).unwrap();
        assert_eq!(read(&mut socket).await.unwrap(), FIRST_BYTES);
        assert!(timeout(LONG, read(&mut socket)).await.is_err(), "it waits for more");
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_must_read() {
        let (client, mut socket) = pair().await;
        let filled = async {
            loop {
                let write = |context: &mut Context<'_>| {
                    Pin::new(&mut socket).poll_write(context, &[0; 1 << 12])
                };
                if let Err(error) = poll_fn(write).await {
                    return error.kind();
                }
            }
        };
        let error = timeout(LONG, filled).await;
        assert_eq!(error.unwrap(), io::ErrorKind::TimedOut);
        drop(client);
    }
}
