//! The client process: requests over new connections or by UDP, by several workers, with every outcome recorded.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::client::{Record, Report, Udp, unix_ms};
use super::server::Answer;

const BODY_BYTES_MAX: usize = 64 * 1024;

#[derive(Clone, Debug, clap::Args)]
pub struct ClientArgs {
    /// address:port
    #[arg(long)]
    target: SocketAddr,
    #[arg(long, default_value = "/")]
    path: String,
    /// Without it: until standard input closes.
    #[arg(long)]
    requests: Option<u64>,
    #[arg(long, default_value_t = 1)]
    concurrency: u32,
    #[arg(long, default_value_t = 2000)]
    timeout_ms: u64,
    #[arg(long, default_value_t = 0)]
    interval_ms: u64,
    /// One connection for all requests of a worker.
    #[arg(long)]
    keep_alive: bool,
    /// A message from a socket of its own in place of each request.
    #[arg(long)]
    udp: Option<Udp>,
}

/// Prints the report as JSON.
pub fn run(args: &ClientArgs) -> Result<()> {
    let report = Mutex::new(Report::default());
    let begun = AtomicU64::new(0);
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let workers: Vec<_> =
            (0..args.concurrency).map(|_| scope.spawn(|| work(args, &begun, &stop, &report))).collect();
        if args.requests.is_none() {
            // The end of the input is the order to stop.
            let _ = io::copy(&mut io::stdin(), &mut io::sink());
            stop.store(true, Ordering::Relaxed);
        }
        drop(workers);
    });
    let report = report.into_inner().unwrap_or_else(|poisoned| poisoned.into_inner());
    println!("{}", serde_json::to_string(&report).context("encoding the report")?);
    Ok(())
}

fn work(args: &ClientArgs, begun: &AtomicU64, stop: &AtomicBool, report: &Mutex<Report>) {
    let mut connection = None;
    let mut next = Instant::now();
    loop {
        let number = begun.fetch_add(1, Ordering::Relaxed);
        if stop.load(Ordering::Relaxed) || args.requests.is_some_and(|requests| number >= requests) {
            return;
        }
        let (opened_ms, start) = (unix_ms(), Instant::now());
        let outcome = match args.udp {
            Some(how) => ask_by_udp(args, how),
            None => ask(args, &mut connection),
        };
        if outcome.is_err() || !args.keep_alive {
            connection = None;
        }
        note(report, opened_ms, start.elapsed(), outcome);
        next += Duration::from_millis(args.interval_ms);
        match next.checked_duration_since(Instant::now()) {
            Some(pause) => thread::sleep(pause),
            None => next = Instant::now(),
        }
    }
}

/// Who answered, and from where that seems to come.
fn ask_by_udp(args: &ClientArgs, how: Udp) -> io::Result<(Answer, SocketAddr)> {
    let any: IpAddr = match args.target {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let socket = UdpSocket::bind((any, 0))?;
    socket.set_read_timeout(Some(Duration::from_millis(args.timeout_ms)))?;
    match how {
        Udp::Connected => {
            socket.connect(args.target)?;
            socket.send(args.path.as_bytes())?;
        }
        Udp::Unconnected => drop(socket.send_to(args.path.as_bytes(), args.target)?),
    }
    let mut answer = vec![0; BODY_BYTES_MAX];
    let (len, from) = socket.recv_from(&mut answer)?;
    let peer = if how == Udp::Connected { socket.peer_addr()? } else { from };
    Ok((serde_json::from_slice(&answer[..len])?, peer))
}

/// One request over `connection`, made when there is none.
fn ask(args: &ClientArgs, connection: &mut Option<BufReader<TcpStream>>) -> io::Result<(Answer, SocketAddr)> {
    let reader = match connection {
        Some(reader) => reader,
        None => {
            let timeout = Duration::from_millis(args.timeout_ms);
            let stream = TcpStream::connect_timeout(&args.target, timeout)
                .map_err(|error| io::Error::new(error.kind(), format!("connect: {error}")))?;
            stream.set_nodelay(true)?;
            stream.set_read_timeout(Some(timeout))?;
            stream.set_write_timeout(Some(timeout))?;
            connection.insert(BufReader::new(stream))
        }
    };
    let peer = reader.get_ref().peer_addr()?;
    let close = if args.keep_alive { "" } else { "connection: close\r\n" };
    let request = format!("GET {} HTTP/1.1\r\nhost: {}\r\n{close}\r\n", args.path, args.target);
    reader.get_mut().write_all(request.as_bytes())?;
    let mut status = String::new();
    if reader.read_line(&mut status)? == 0 {
        return Err(io::Error::other("closed without an answer"));
    }
    if !status.starts_with("HTTP/1.1 200 ") {
        return Err(io::Error::other(format!("answered {status:?}")));
    }
    let mut length = 0;
    loop {
        let mut header = String::new();
        reader.read_line(&mut header)?;
        match header.trim_end().split_once(": ") {
            Some(("content-length", value)) => length = value.parse().map_err(io::Error::other)?,
            Some(_) => {}
            None => break,
        }
    }
    if length > BODY_BYTES_MAX {
        return Err(io::Error::other(format!("a body of {length} bytes")));
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body)?;
    Ok((serde_json::from_slice(&body)?, peer))
}

fn note(report: &Mutex<Report>, opened_ms: u64, took: Duration, outcome: io::Result<(Answer, SocketAddr)>) {
    let mut record =
        Record { opened_ms, took_ms: took.as_millis() as u64, cluster: None, pod: None, error: None };
    let mut report = report.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    match outcome {
        Ok((answer, peer)) => {
            let pod = format!("{}/{}", answer.cluster, answer.pod);
            report.ok += 1;
            *report.by_cluster.entry(answer.cluster.clone()).or_default() += 1;
            *report.by_pod.entry(pod).or_default() += 1;
            *report.peers.entry(peer.to_string()).or_default() += 1;
            *report.seen_as.entry(answer.peer.ip().to_string()).or_default() += 1;
            record.cluster = Some(answer.cluster);
            record.pod = Some(answer.pod);
        }
        Err(error) => {
            report.failed += 1;
            record.error = Some(error.to_string());
        }
    }
    report.records.push(record);
}
