//! Two machines with one cable between them, and ways through it that differ in the tunnel alone.

use std::fs;
use std::io::{Read, Write};
use std::net::Ipv4Addr;
use std::num::NonZero;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Command;
use std::thread::available_parallelism;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use hawser_tunnels_linux::MOST_LANES;
use nix::unistd::{SysconfVar, sysconf};

use super::super::part::usage;
use super::engine::ESP_PEER;
use super::many;
use crate::enclave::Inside;
use crate::place::Place;
use crate::process::{Process, run, run_with_input};
use crate::{binaries, wait};

/// Of both tunnels; the cable has 1500.
const MTU: u16 = 1420;
/// As the agent sets it: 45 segments, which encrypted are one UDP message.
const GSO_MAX_SIZE: u32 = 45 * (1420 - 60);
const START: Duration = Duration::from_secs(20);

/// What carries a tunnel's packets in user space.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Engine {
    Hawser,
    /// The same engine: ESP in UDP with AES-256-GCM.
    HawserEsp,
    WireguardGo,
    /// Where somebody has put `boringtun-cli` on the PATH (`cargo install boringtun-cli`).
    Boringtun,
}

impl Engine {
    pub(super) fn device(self) -> &'static str {
        match self {
            Self::Hawser => "hawser0",
            Self::HawserEsp => "hawser1",
            Self::WireguardGo => "wg0",
            Self::Boringtun => "bt0",
        }
    }

    fn port(self) -> u16 {
        match self {
            Self::Hawser => 51871,
            Self::HawserEsp => 4500,
            Self::WireguardGo => 51820,
            Self::Boringtun => 51821,
        }
    }

    /// Of side 1 or 2, in the tunnel.
    pub(super) fn address(self, side: u8) -> String {
        match self {
            Self::Hawser => format!("10.98.0.{side}"),
            Self::HawserEsp => format!("10.95.0.{side}"),
            Self::WireguardGo => format!("10.97.0.{side}"),
            Self::Boringtun => format!("10.96.0.{side}"),
        }
    }

    fn is_ours(self) -> bool {
        matches!(self, Self::Hawser | Self::HawserEsp)
    }

    fn command(self, place: &Place, side: u8) -> Result<Command> {
        let (device, port, mtu) = (self.device(), self.port().to_string(), MTU.to_string());
        match self {
            Self::Hawser | Self::HawserEsp => {
                let mut command = place.command(binaries::find("hawser-lab")?);
                command.args(["tunnel-engine", "--device", device, "--key", "/run/hawser/bench.key"]);
                match self {
                    Self::HawserEsp => command.args(["--esp", &side.to_string()]),
                    // As the agent has them: a session for each core.
                    _ if !more_ports().is_empty() => command.args(["--more-ports", &more_ports()]),
                    _ => &mut command,
                };
                command.args(["--port", &port, "--mtu", &mtu]);
                Ok(command)
            }
            Self::WireguardGo => {
                let mut command = place.command("wireguard-go");
                command.args(["-f", device]).env("WG_PROCESS_FOREGROUND", "1");
                Ok(command)
            }
            Self::Boringtun => {
                let mut command = place.command("boringtun-cli");
                command.args(["--foreground", "--disable-drop-privileges", "--verbosity", "error", device]);
                Ok(command)
            }
        }
    }

    /// Brings the device up on one side, without a peer; returns the process and its public key.
    fn start(self, place: &Place, side: u8, logs: &Path) -> Result<(Process, String)> {
        let device = self.device();
        let process =
            Process::start(&format!("{}-{device}", place.name()), self.command(place, side)?, logs)?;
        wait::until(&format!("{device} of {} answers", place.name()), START, || {
            run(place.command("wg").args(["show", device]))
        })?;
        let mut key = String::new();
        if !self.is_ours() {
            let private = run(Command::new("wg").arg("genkey"))?;
            let mut set = place.command("wg");
            set.args(["set", device, "private-key", "/dev/stdin", "listen-port", &self.port().to_string()]);
            run_with_input(&mut set, &private)?;
            // boringtun-cli shows its own key in a way that `wg` does not read.
            key = run_with_input(Command::new("wg").arg("pubkey"), &private)?;
        }
        let whole = if self.is_ours() { format!("gso_max_size {GSO_MAX_SIZE}") } else { String::new() };
        let address = self.address(side);
        let batch = format!("addr add {address}/30 dev {device}\nlink set {device} mtu {MTU} {whole} up\n");
        run_with_input(place.command("ip").args(["-batch", "-"]), &batch)?;
        if self == Self::HawserEsp {
            key = ESP_PEER.to_owned();
        } else if key.is_empty() {
            key = run(place.command("wg").args(["show", device, "public-key"]))?;
        }
        Ok((process, key.trim().to_owned()))
    }
}

fn more_ports() -> String {
    let cores = available_parallelism().map_or(1, NonZero::get).min(MOST_LANES + 1);
    let ports: Vec<String> = (51_880..).take(cores - 1).map(|port: u16| port.to_string()).collect();
    ports.join(",")
}

/// Side 1 and side 2. Everything ends when it is dropped.
#[derive(Debug)]
pub(super) struct Pair {
    /// First, so that they end before their places do.
    processes: Vec<Process>,
    /// Of each engine, both sides.
    engines: Vec<(Engine, [Process; 2])>,
    pub(super) sides: [Place; 2],
}

impl Pair {
    pub(super) fn build(inside: &Inside, engines: &[Engine]) -> Result<Self> {
        let machine = |name: &str| Place::machine(name, name, &inside.cgroup.join(name));
        let sides = [machine("side-1")?, machine("side-2")?];
        let [one, two] = sides.each_ref().map(Place::pid);
        let cable = format!("link add eth0 netns {one} type veth peer name eth0 netns {two}\n");
        run_with_input(Command::new("ip").args(["-batch", "-"]), &cable).context("the cable")?;
        for (place, side) in sides.iter().zip(1..) {
            let batch =
                format!("link set lo up\naddr add {}/30 dev eth0\nlink set eth0 up\n", Self::address(side));
            run_with_input(place.command("ip").args(["-batch", "-"]), &batch)?;
        }
        let mut pair = Self { processes: Vec::new(), engines: Vec::new(), sides };
        let mut server = pair.sides[1].command("iperf3");
        server.arg("-s");
        pair.processes.push(Process::start("iperf3-server", server, &inside.dir)?);
        for engine in engines {
            pair.tunnel(*engine, &inside.dir)?;
        }
        Ok(pair)
    }

    /// Of side 1 or 2, on the cable.
    pub(super) fn address(side: u8) -> String {
        format!("172.31.0.{side}")
    }

    fn tunnel(&mut self, engine: Engine, logs: &Path) -> Result<()> {
        let (one, key_of_one) = engine.start(&self.sides[0], 1, logs)?;
        let (two, key_of_two) = engine.start(&self.sides[1], 2, logs)?;
        self.engines.push((engine, [one, two]));
        for (place, peer, key) in [(&self.sides[0], 2, key_of_two), (&self.sides[1], 1, key_of_one)] {
            let endpoint = format!("{}:{}", Self::address(peer), engine.port());
            let allowed = format!("{}/32", engine.address(peer));
            let mut set = place.command("wg");
            set.args(["set", engine.device(), "peer", &key]);
            set.args(["endpoint", &endpoint, "allowed-ips", &allowed]);
            run(&mut set)?;
        }
        wait::until(&format!("{} carries", engine.device()), START, || {
            run(self.sides[0].command("ping").args(["-c", "1", "-W", "1", &engine.address(2)]))
        })?;
        Ok(())
    }

    /// Tells our engine on both sides of that many peers more, which are never spoken to, or takes them away again; gives the
    /// seconds that this took on one side.
    pub(super) fn strangers(&self, peers: u32, add: bool) -> Result<f64> {
        let began = Instant::now();
        for (side, place) in self.sides.iter().enumerate() {
            let path = place.path(format!("/run/wireguard/{}.sock", Engine::Hawser.device()));
            let mut stream = UnixStream::connect(path).context("our engine's socket")?;
            let all: Vec<u32> = (0..peers).map(|peer| peer * 2 + side as u32).collect();
            for some in all.chunks(1000) {
                let mut text = "set=1\n".to_owned();
                some.iter().try_for_each(|peer| stranger(*peer, add, &mut text))?;
                text.push('\n');
                stream.write_all(text.as_bytes())?;
                let mut answer = [0; 9];
                stream.read_exact(&mut answer)?;
                ensure!(&answer == b"errno=0\n\n", "the engine refused strangers");
            }
        }
        Ok(began.elapsed().as_secs_f64() / 2.0)
    }

    /// MiB that the processes of our engine have had at most, the larger of both.
    pub(super) fn peak_mib(&self) -> Result<f64> {
        let ends = self.engines.iter().filter(|(of, _)| *of == Engine::Hawser).flat_map(|(_, ends)| ends);
        ends.map(|end| Ok(usage(end.id())?.peak_mib))
            .try_fold(0.0, |most: f64, mib: Result<f64>| Ok(most.max(mib?)))
    }

    /// Bytes of UDP payload that the engine of side 2 has received, of all its peers: most of them may never have spoken.
    pub(super) fn received(&self, engine: Engine) -> Result<u64> {
        let text = run(self.sides[1].command("wg").args(["show", engine.device(), "transfer"]))?;
        let of = |peer: &str| peer.split_whitespace().nth(1)?.parse::<u64>().ok();
        let bytes = text.lines().map(of).sum::<Option<u64>>().filter(|_| !text.is_empty());
        bytes.with_context(|| format!("`wg show {} transfer` says {text:?}", engine.device()))
    }

    /// Seconds of CPU that both ends of an engine have used, in user space and for it in the kernel.
    pub(super) fn cpu(&self, engine: Engine) -> Result<f64> {
        let ends = self.engines.iter().filter(|(of, _)| *of == engine).flat_map(|(_, ends)| ends);
        ends.map(|end| cpu_of(end.id())).sum()
    }

    /// Cuts superpackets on their way out of either machine, as for a card that cannot; and lays them together again at
    /// the other, or not.
    pub(super) fn cable(&self, cable: Cable) -> Result<()> {
        let (whole, joined) = match cable {
            Cable::Whole => ("on", "off"),
            Cable::CutAndJoined => ("off", "on"),
            Cable::Cut => ("off", "off"),
        };
        for place in &self.sides {
            let mut ethtool = place.command("ethtool");
            ethtool.args(["-K", "eth0", "tso", whole, "tx-udp-segmentation", whole]);
            run(ethtool.args(["gro", joined, "rx-udp-gro-forwarding", joined]))?;
        }
        Ok(())
    }

    /// An error when anything has ended by itself.
    pub(super) fn check_alive(&mut self) -> Result<()> {
        let engines = self.engines.iter_mut().flat_map(|(_, ends)| ends);
        self.processes.iter_mut().chain(engines).try_for_each(Process::check_alive)
    }
}

/// With as many prefixes as a node has.
fn stranger(peer: u32, add: bool, text: &mut String) -> Result<()> {
    let key: String = many::key(peer)?.as_bytes().iter().map(|byte| format!("{byte:02x}")).collect();
    text.extend(["public_key=", &key, "\n"]);
    if !add {
        text.push_str("remove=true\n");
        return Ok(());
    }
    text.push_str(&format!("endpoint={}:51871\n", Ipv4Addr::from(0xac20_0000 | peer)));
    for at in 0..many::PREFIXES {
        let number = peer * many::PREFIXES + at;
        text.push_str(&format!("allowed_ip={}/28\n", Ipv4Addr::from(0x6400_0000 + (number << 4))));
    }
    Ok(())
}

/// What the cable does to a superpacket. A veth carries it whole, which no wire does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cable {
    Whole,
    CutAndJoined,
    Cut,
}

/// utime and stime of `proc(5)`, behind a name in parentheses.
fn cpu_of(process: u32) -> Result<f64> {
    let path = format!("/proc/{process}/stat");
    let text = fs::read_to_string(&path).with_context(|| path.clone())?;
    let fields = text.rsplit(") ").next().unwrap_or_default().split(' ');
    let ticks: u64 = fields.skip(11).take(2).filter_map(|field| field.parse::<u64>().ok()).sum();
    let second = sysconf(SysconfVar::CLK_TCK)?.context("ticks in a second")?;
    Ok(ticks as f64 / second as f64)
}
