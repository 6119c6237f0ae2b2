//! Which paths the admin pages of the real binaries have.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::{Child, Command, Stdio};

/// A router and a worker that run.
pub struct Served {
    addresses: BTreeMap<&'static str, SocketAddr>,
    processes: Vec<Child>,
    _data: tempfile::TempDir,
}

impl Served {
    pub fn start() -> Self {
        let data = tempfile::tempdir().unwrap();
        let mut served = Self {
            addresses: BTreeMap::new(),
            processes: Vec::new(),
            _data: data,
        };
        let data_dir = served._data.path().to_str().unwrap().to_owned();
        let worker = [
            "--name=a",
            "--export=stdout",
            "--listen-peers=127.0.0.1:0",
            "--data-dir",
            &data_dir,
        ];
        served.add(
            "tailring-router",
            env!("CARGO_BIN_EXE_tailring-router"),
            &[],
        );
        served.add(
            "tailring-worker",
            env!("CARGO_BIN_EXE_tailring-worker"),
            &worker,
        );
        served
    }

    fn add(&mut self, name: &'static str, binary: &str, args: &[&str]) {
        let listeners = ["grpc", "http", "admin"].map(|of| format!("--listen-{of}=127.0.0.1:0"));
        let mut process = Command::new(binary)
            .args(args)
            .args(listeners)
            .arg("--workers=static://a=127.0.0.1:1")
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut log = BufReader::new(process.stderr.take().unwrap()).lines();
        self.processes.push(process);
        let address = log.by_ref().map_while(Result::ok).find_map(|line| {
            let (_, rest) = line.split_once("127.0.0.1:")?;
            let port: String = rest.chars().take_while(char::is_ascii_digit).collect();
            line.contains("listening for the operator")
                .then(|| format!("127.0.0.1:{port}").parse().ok())?
        });
        // Read on, or the process would stop at a full pipe.
        std::thread::spawn(move || log.for_each(drop));
        let address = address.unwrap_or_else(|| panic!("{name} did not start"));
        self.addresses.insert(name, address);
    }

    /// Whether a path is there. Of an unready process it is, with 503.
    pub fn has(&self, binary: &str, path: &str) -> bool {
        let Some(address) = self.addresses.get(binary) else {
            return false;
        };
        let mut stream = TcpStream::connect(address).unwrap();
        write!(stream, "GET {path} HTTP/1.1\r\nhost: x\r\n\r\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        assert!(answer.starts_with("HTTP/1.1 "), "{answer}");
        !answer.starts_with("HTTP/1.1 404")
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        for process in &mut self.processes {
            let _ended = process.kill();
            let _reaped = process.wait();
        }
    }
}
