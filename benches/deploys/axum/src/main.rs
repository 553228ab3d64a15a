//! `hello PID` on the listening socket at descriptor 3; /slow takes two seconds; SIGTERM drains.

use std::io;
use std::net::TcpListener;
use std::os::fd::FromRawFd;
use std::process;
use std::time::Duration;

use axum::Router;
use axum::routing::get;
use tokio::runtime::Runtime;
use tokio::signal::unix::{SignalKind, signal};

fn main() -> io::Result<()> {
    Runtime::new()?.block_on(serve())
}

async fn serve() -> io::Result<()> {
    // SAFETY: the descriptor was inherited for this alone, and nothing else here owns it.
    let listener = unsafe { TcpListener::from_raw_fd(3) };
    listener.set_nonblocking(true)?;
    let listener = tokio::net::TcpListener::from_std(listener)?;
    let mut term = signal(SignalKind::terminate())?;
    let stopped = async move {
        term.recv().await;
    };
    let router = Router::new().route("/", get(hello)).route("/slow", get(slow));
    axum::serve(listener, router).with_graceful_shutdown(stopped).await
}

async fn hello() -> String {
    format!("hello {}\n", process::id())
}

async fn slow() -> String {
    tokio::time::sleep(Duration::from_secs(2)).await;
    hello().await
}
