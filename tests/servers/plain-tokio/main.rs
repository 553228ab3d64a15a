//! `hello PID` at the port given as the first argument.

use std::{env, io, process};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;

fn main() -> io::Result<()> {
    let port: u16 = env::args().nth(1).and_then(|port| port.parse().ok()).expect("a port");
    Runtime::new()?.block_on(async {
        let listener = TcpListener::bind(("0.0.0.0", port)).await?;
        loop {
            let (client, _) = listener.accept().await?;
            tokio::spawn(answer(client));
        }
    })
}

async fn answer(mut client: TcpStream) -> io::Result<()> {
    client.read(&mut [0; 4096]).await?;
    let body = format!("hello {}\n", process::id());
    let head = format!("HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: {}\r\n\r\n", body.len());
    client.write_all((head + &body).as_bytes()).await
}
