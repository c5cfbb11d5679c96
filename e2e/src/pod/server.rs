//! An HTTP/1.1 server that says where it runs, one thread a connection, one log line a request. Or the same by UDP, a message a message.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

/// A request line or header longer than this ends the connection.
const LINE_BYTES_MAX: u64 = 8192;
const IDLE: Duration = Duration::from_secs(60);
const BULK_MOST: usize = 256 << 20;

#[derive(Clone, Debug, clap::Args)]
pub struct ServerArgs {
    #[arg(long)]
    pub cluster: String,
    #[arg(long)]
    pub node: String,
    #[arg(long)]
    pub pod: String,
    /// May be given more than once.
    #[arg(long = "port", required = true)]
    pub ports: Vec<u16>,
    #[arg(long, default_value = "0.0.0.0")]
    pub listen: IpAddr,
    /// Messages in place of connections: each is answered with what would be the body.
    #[arg(long)]
    pub udp: bool,
}

/// The body of every answer.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Answer {
    pub(super) cluster: String,
    pub(super) node: String,
    pub(super) pod: String,
    /// Who asked, as the server's socket sees it.
    pub(super) peer: SocketAddr,
}

/// Serves until killed.
pub fn run(args: &ServerArgs) -> Result<()> {
    thread::scope(|scope| {
        let mut listeners = Vec::new();
        for port in &args.ports {
            if args.udp {
                let socket =
                    UdpSocket::bind((args.listen, *port)).with_context(|| format!("listening on {port}"))?;
                listeners.push(scope.spawn(move || answer_messages(&socket, args)));
                continue;
            }
            let listener =
                TcpListener::bind((args.listen, *port)).with_context(|| format!("listening on {port}"))?;
            listeners.push(scope.spawn(move || accept(&listener, args)));
        }
        Ok(())
    })
}

fn accept(listener: &TcpListener, args: &ServerArgs) {
    for stream in listener.incoming().flatten() {
        let args = args.clone();
        let spawned = thread::Builder::new().stack_size(128 * 1024).spawn(move || {
            let peer = stream.peer_addr().map_or_else(|_| String::from("?"), |peer| peer.to_string());
            if let Err(error) = serve(stream, &args) {
                println!("{peer}: {error}");
            }
        });
        if let Err(error) = spawned {
            println!("no thread for a connection: {error}");
        }
    }
}

fn answer_messages(socket: &UdpSocket, args: &ServerArgs) {
    let mut message = [0; 64];
    loop {
        // An error is about an answer that nobody took.
        let Ok((_, peer)) = socket.recv_from(&mut message) else { continue };
        println!("{peer} by UDP");
        let told = serde_json::to_vec(&answer(args, peer)).map(|told| socket.send_to(&told, peer));
        if let Ok(Err(error)) = told {
            println!("{peer}: {error}");
        }
    }
}

fn answer(args: &ServerArgs, peer: SocketAddr) -> Answer {
    Answer { cluster: args.cluster.clone(), node: args.node.clone(), pod: args.pod.clone(), peer }
}

/// One connection: requests without bodies, until the client closes or asks to.
fn serve(stream: TcpStream, args: &ServerArgs) -> io::Result<()> {
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(IDLE))?;
    let peer = stream.peer_addr()?;
    let mut writer = stream.try_clone()?;
    let mut reader = BufReader::new(stream);
    while let Some(request) = read_line(&mut reader)? {
        let mut close = false;
        loop {
            match read_line(&mut reader)? {
                None => return Ok(()),
                Some(header) if header.is_empty() => break,
                Some(header) => close |= header.eq_ignore_ascii_case("connection: close"),
            }
        }
        println!("{peer} {request}");
        let body = match bulk(&request) {
            Some(bytes) => bytes,
            None => serde_json::to_vec(&answer(args, peer))?,
        };
        let connection = if close { "close" } else { "keep-alive" };
        let head = format!(
            "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {}\r\nconnection: {connection}\r\n\r\n",
            body.len()
        );
        writer.write_all(head.as_bytes())?;
        writer.write_all(&body)?;
        if close {
            break;
        }
    }
    Ok(())
}

/// `GET /bytes/N` is answered with [`pattern`] instead.
fn bulk(request: &str) -> Option<Vec<u8>> {
    let count = request.strip_prefix("GET /bytes/")?.split(' ').next()?.parse().ok()?;
    (count <= BULK_MOST).then(|| pattern(count))
}

/// Bytes of which no two stretches of a packet's length are alike.
pub fn pattern(count: usize) -> Vec<u8> {
    let words = (0u64..).flat_map(|n| n.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes());
    words.take(count).collect()
}

/// `None` at the end of the stream.
fn read_line(reader: &mut impl BufRead) -> io::Result<Option<String>> {
    let mut line = String::new();
    if reader.by_ref().take(LINE_BYTES_MAX).read_line(&mut line)? == 0 {
        return Ok(None);
    }
    if !line.ends_with('\n') {
        return Err(io::Error::other("a line without an end"));
    }
    Ok(Some(line.trim_end().to_owned()))
}
