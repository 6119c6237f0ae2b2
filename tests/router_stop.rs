//! How a router process ends: a real binary, real sockets, a real SIGTERM.

#![allow(clippy::unwrap_used, reason = "helpers of tests fail the test")]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use tokio::time::{Instant, sleep};

const PATIENCE: Duration = Duration::from_secs(30);

struct Router {
    process: Child,
    grpc: SocketAddr,
    admin: SocketAddr,
}

impl Router {
    fn start() -> Self {
        let mut process = Command::new(env!("CARGO_BIN_EXE_tailring-router"))
            .args(["--workers", "static://a=127.0.0.1:1"])
            .args(["--listen-grpc", "127.0.0.1:0"])
            .args(["--listen-http", "127.0.0.1:0"])
            .args(["--listen-admin", "127.0.0.1:0"])
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let log = BufReader::new(process.stderr.take().unwrap());
        let (line, lines) = mpsc::channel();
        std::thread::spawn(move || {
            for text in log.lines().map_while(Result::ok) {
                let _gone = line.send(text);
            }
        });
        let address = |of: &str| -> SocketAddr {
            loop {
                let line = lines.recv_timeout(PATIENCE).unwrap();
                if line.contains(of) {
                    let (_, rest) = line.split_once("127.0.0.1:").unwrap();
                    let port: String = rest.chars().take_while(char::is_ascii_digit).collect();
                    return format!("127.0.0.1:{port}").parse().unwrap();
                }
            }
        };
        let admin = address("listening for the operator");
        let grpc = address("\"grpc\"");
        Self {
            process,
            grpc,
            admin,
        }
    }

    fn is_ready(&self) -> bool {
        let Ok(mut stream) = TcpStream::connect(self.admin) else {
            return false;
        };
        stream
            .write_all(b"GET /readyz HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
            .unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer.starts_with("HTTP/1.1 200")
    }
}

impl Drop for Router {
    fn drop(&mut self) {
        // Already ended when the test went well.
        let _ended = self.process.kill();
        let _reaped = self.process.wait();
    }
}

async fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "never: {what}");
        sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test]
async fn a_stopped_router_is_not_ready_first_takes_connections_a_little_longer_and_exits_with_0() {
    let mut router = Router::start();
    until("ready", || router.is_ready()).await;
    let pid = router.process.id().to_string();
    assert!(
        Command::new("kill")
            .args(["-TERM", &pid])
            .status()
            .unwrap()
            .success()
    );
    until("not ready", || !router.is_ready()).await;
    // Endpoints lag behind: whoever still comes is let in.
    TcpStream::connect(router.grpc).unwrap();
    let mut status = None;
    until("exited", || {
        status = router.process.try_wait().unwrap();
        status.is_some()
    })
    .await;
    assert_eq!(status.unwrap().code(), Some(0));
}
