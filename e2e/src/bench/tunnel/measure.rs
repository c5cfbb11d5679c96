//! One measurement of one way through the pair: a few seconds, one or two numbers.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::pair::{Engine, Pair};
use crate::process::run;

const ROUND_TRIPS: usize = 4000;
const PATIENCE: Duration = Duration::from_secs(5);

/// Gb/s of TCP as side 2 received them, and the CPU that both ends of the engine spent on a GB. Checks that the bytes
/// came through the engine that they are credited to.
pub(super) fn tcp(pair: &Pair, engine: Option<Engine>, flows: u32, seconds: u32) -> Result<(f64, f64)> {
    let target = target(engine);
    let before = engine
        .map(|engine| Ok::<_, anyhow::Error>((pair.received(engine)?, pair.cpu(engine)?)))
        .transpose()?;
    let report = iperf(pair, &target, &["-t", &seconds.to_string(), "-P", &flows.to_string()])?;
    let sum = &report["end"]["sum_received"];
    let (rate, bytes) = (number(sum, "bits_per_second")?, number(sum, "bytes")?);
    ensure!(bytes > 0.0, "nothing arrived at {target}");
    let mut cpu = 0.0;
    if let (Some(engine), Some((received, spent))) = (engine, before) {
        let carried = pair.received(engine)? - received;
        ensure!(carried as f64 >= bytes, "{} carried {carried} of {bytes} bytes", engine.device());
        cpu = (pair.cpu(engine)? - spent) / (bytes / 1e9);
    }
    Ok((rate / 1e9, cpu))
}

/// Datagrams of `payload` bytes a second that side 2 received, in thousands, while side 1 sent as many as it could. iperf3's own
/// words may be lost in its flood, and then its report says nothing of packets: it is asked again.
pub(super) fn udp(pair: &Pair, engine: Option<Engine>, payload: u32, seconds: u32) -> Result<f64> {
    let args = ["-u", "-b", "0", "-l", &payload.to_string(), "-t", &seconds.to_string()];
    let once = || -> Result<f64> {
        let report = iperf(pair, &target(engine), &args)?;
        let sum = &report["end"]["sum"];
        let received = number(sum, "packets")? - number(sum, "lost_packets")?;
        Ok(received / number(sum, "seconds")? / 1e3)
    };
    once().or_else(|_| once()).or_else(|_| once())
}

/// Microseconds from one byte's leaving to its answer's coming, over TCP: the median and the 99th percentile.
pub(super) fn ping_pong(pair: &Pair, engine: Option<Engine>) -> Result<(f64, f64)> {
    let [one, two] = &pair.sides;
    let at = SocketAddr::new(target(engine).parse().context("an address")?, 0);
    let listener = two.in_network(|| TcpListener::bind(at).context("listening on side 2"))?;
    let at = listener.local_addr()?;
    let echo = std::thread::spawn(move || -> std::io::Result<()> {
        let (mut stream, _) = listener.accept()?;
        stream.set_nodelay(true)?;
        let mut message = [0; 64];
        while let Ok(()) = stream.read_exact(&mut message) {
            stream.write_all(&message)?;
        }
        Ok(())
    });
    let mut stream =
        one.in_network(|| TcpStream::connect_timeout(&at, PATIENCE).context("reaching side 2"))?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut times = Vec::with_capacity(ROUND_TRIPS);
    let mut message = [7; 64];
    for _ in 0..ROUND_TRIPS {
        let start = Instant::now();
        stream.write_all(&message)?;
        stream.read_exact(&mut message)?;
        times.push(start.elapsed());
    }
    drop(stream);
    echo.join().ok().context("the echo panicked")??;
    times.sort_unstable();
    let micros = |at: usize| times[at].as_secs_f64() * 1e6;
    Ok((micros(ROUND_TRIPS / 2), micros(ROUND_TRIPS * 99 / 100)))
}

fn target(engine: Option<Engine>) -> String {
    engine.map_or_else(|| Pair::address(2), |engine| engine.address(2))
}

fn iperf(pair: &Pair, target: &str, args: &[&str]) -> Result<Value> {
    let mut client = pair.sides[0].command("iperf3");
    let text = run(client.args(["--json", "--connect-timeout", "5000", "-c", target]).args(args))?;
    serde_json::from_str(&text).context("iperf3's report")
}

fn number(report: &Value, name: &str) -> Result<f64> {
    report[name].as_f64().with_context(|| format!("iperf3 states no {name}"))
}
