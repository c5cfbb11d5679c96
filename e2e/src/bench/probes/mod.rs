//! `bench probes`: what liveness costs one node in a mesh of 254 other clusters of 100 nodes, through a tunnel in user space and
//! without one.
//!
//! Two sides probe each other, as nodes do: each is one process with the probing task of the agent and our engine, and has
//! the mesh addresses of all the nodes that the other one asks. What reflects stands for `tunnel_in` and is a process of its
//! own, so its CPU is not counted, as the agent's is not by the kernel's program.

mod part;
mod reflect;

use std::process::Command;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::part::Part;
use super::result::{BenchResult, Row, load};
use crate::enclave::Inside;
use crate::place::Place;
use crate::process::{run, run_with_input};
use crate::wait;
use part::{Counted, Order, Size};

pub(super) use part::run_part;
pub(super) use reflect::run_part as run_reflector;

const PORT: u16 = 51871;
const MTU: u16 = 1420;
const TUNNEL: &str = "hawser0";
const CABLE: &str = "eth0";
/// A responder hears a peer's handshakes no more often than this.
const BETWEEN_HANDSHAKES: Duration = Duration::from_millis(30);

/// How much of everything.
#[derive(Clone, Copy, Debug)]
struct Sizes {
    clusters: u32,
    nodes: u32,
    used: u32,
    /// As many as are ever watched: 64 clusters' nodes.
    most_used: u32,
    sharers: u32,
    /// Every node is asked once before anything is at rest.
    settle: Duration,
    window: Duration,
    handshakes: u32,
}

const FULL: Sizes = Sizes {
    clusters: 254,
    nodes: 100,
    used: 200,
    most_used: 6_400,
    sharers: 100,
    settle: Duration::from_secs(75),
    window: Duration::from_secs(20),
    handshakes: 150,
};

const QUICK: Sizes = Sizes {
    clusters: 10,
    nodes: 20,
    used: 20,
    most_used: 100,
    sharers: 10,
    settle: Duration::from_secs(2),
    window: Duration::from_secs(1),
    handshakes: 5,
};

pub(super) fn measure(quick: bool) -> Result<BenchResult> {
    let (before, sizes) = (load(), if quick { QUICK } else { FULL });
    let mut rows = Vec::new();
    {
        let mut pair = Pair::build(true, &sizes).context("through the tunnel in user space")?;
        let rest = pair.at_rest(&sizes, sizes.used, sizes.settle)?;
        let busy = pair.at_rest(&sizes, sizes.most_used, sizes.settle / 5)?;
        let handshake = pair.handshake(sizes.handshakes)?;
        rows.extend(rows_of(&rest, &busy, handshake));
    }
    let mut plain = Pair::build(false, &sizes).context("without a tunnel in user space")?;
    let rest = plain.at_rest(&sizes, sizes.used, sizes.settle)?;
    rows.push(cpu("without a tunnel in user space, at rest: CPU of the probing task", rest.all(), Some(2.0)));
    Ok(BenchResult::of_rows(if quick { "probes-quick" } else { "probes" }, before, 1, rows))
}

fn cpu(key: &str, share: f64, goal: Option<f64>) -> Row {
    Row::plain(key, share * 100.0, "% core", "lower", goal)
}

fn rows_of(rest: &Seen, busy: &Seen, handshake: f64) -> Vec<Row> {
    let per_second = |key: &str, rate, goal| Row::plain(key, rate, "/s", "lower", goal);
    let counted = &rest.counted;
    // Each of a pair asks the other for itself; who is asked more often has a session that lasts 120 s.
    let seldom = 2.0 * f64::from(counted.others) / counted.interval_of_others_s.max(120.0);
    let handshakes = seldom + f64::from(counted.watched + counted.shared) / 120.0;
    vec![
        per_second("at rest, 200 nodes in use: probes sent", rest.sent, Some(4000.0)),
        per_second("  answered", rest.answered, None),
        cpu("  CPU, with what the other side's probes cost", rest.all(), Some(8.0)),
        cpu("    the probing task", rest.probing, None),
        cpu("    the engine", rest.engine, None),
        cpu("  CPU of handshakes with so many peers, computed", handshakes * handshake, None),
        Row::plain("    one handshake, measured", handshake * 1e6, "us", "lower", None),
        per_second("    handshakes", handshakes, None),
        per_second("64 clusters in use, 6,400 nodes: probes sent", busy.sent, Some(4000.0)),
        cpu("  CPU, with what the other side's probes cost", busy.all(), None),
    ]
}

/// Of side 1.
#[derive(Debug)]
struct Seen {
    sent: f64,
    answered: f64,
    /// Of one core.
    probing: f64,
    engine: f64,
    counted: Counted,
}

impl Seen {
    fn all(&self) -> f64 {
        self.probing + self.engine
    }
}

/// Both sides. Everything ends when it is dropped.
struct Pair {
    /// First, so that they end before their places do.
    parts: [Part; 2],
    _reflectors: [Part; 2],
    sides: [Place; 2],
    keys: Option<[String; 2]>,
}

impl Pair {
    fn build(tunnel: bool, sizes: &Sizes) -> Result<Self> {
        let inside = Inside::current().context("a benchmark runs inside of a lab")?;
        let machine = |name: &str| Place::machine(name, name, &inside.cgroup.join(name));
        let kind = if tunnel { "tunnel" } else { "plain" };
        let sides = [machine(&format!("{kind}-1"))?, machine(&format!("{kind}-2"))?];
        let [one, two] = sides.each_ref().map(Place::pid);
        let cable = format!("link add {CABLE} netns {one} type veth peer name {CABLE} netns {two}\n");
        run_with_input(Command::new("ip").args(["-batch", "-"]), &cable).context("the cable")?;
        for (place, side) in sides.iter().zip(1..) {
            let batch =
                format!("link set lo up\naddr add {}/30 dev {CABLE}\nlink set {CABLE} up\n", on_cable(side));
            run_with_input(place.command("ip").args(["-batch", "-"]), &batch)?;
        }
        let device = if tunnel { TUNNEL } else { CABLE };
        let start = |place: &Place, side: u8| -> Result<Part> {
            let Sizes { clusters, nodes, sharers, .. } = *sizes;
            let size = Size {
                side,
                device: device.to_owned(),
                tunnel,
                port: PORT,
                mtu: MTU,
                clusters,
                nodes,
                sharers,
            };
            let mut part = Part::start_in(place, "probes", &size)?;
            part.hear::<String>()?;
            Ok(part)
        };
        let parts = [start(&sides[0], 1)?, start(&sides[1], 2)?];
        for (place, side) in sides.iter().zip(1..) {
            connect(place, side, device)?;
        }
        let reflect = |place: &Place| -> Result<Part> {
            let mut part = Part::start_in(place, "reflect", &())?;
            part.hear::<String>()?;
            Ok(part)
        };
        let reflectors = [reflect(&sides[0])?, reflect(&sides[1])?];
        let mut pair = Self { parts, _reflectors: reflectors, sides, keys: None };
        if tunnel {
            pair.introduce()?;
        }
        for part in &mut pair.parts {
            part.ask::<Counted>(&Order::Begin)?;
        }
        Ok(pair)
    }

    fn introduce(&mut self) -> Result<()> {
        let key = |place: &Place| run(place.command("wg").args(["show", TUNNEL, "public-key"]));
        let keys = [key(&self.sides[0])?.trim().to_owned(), key(&self.sides[1])?.trim().to_owned()];
        self.keys = Some(keys);
        self.set_peer(1)?;
        self.set_peer(2)?;
        wait::until("the tunnel carries", Duration::from_secs(20), || self.ping()).map(drop)
    }

    /// Tells this side of the other one.
    fn set_peer(&self, side: u8) -> Result<()> {
        let other = 3 - side;
        let keys = self.keys.as_ref().context("a tunnel")?;
        let mut set = self.sides[usize::from(side) - 1].command("wg");
        set.args(["set", TUNNEL, "peer", &keys[usize::from(other) - 1]]);
        set.args([
            "endpoint",
            &format!("{}:{PORT}", on_cable(other)),
            "allowed-ips",
            &format!("{}.0.0.0/8", 240 + other),
        ]);
        run(&mut set).map(drop)
    }

    fn ping(&self) -> Result<String> {
        run(self.sides[0].command("ping").args(["-c", "1", "-W", "2", &part::own(2).to_string()]))
    }

    /// What side 1 does once it knows everybody.
    fn at_rest(&mut self, sizes: &Sizes, used: u32, settle: Duration) -> Result<Seen> {
        for part in &mut self.parts {
            part.ask::<Counted>(&Order::Use { nodes: used })?;
        }
        sleep(settle);
        let (before, threads, began) =
            (self.parts[0].ask::<Counted>(&Order::Count)?, self.parts[0].threads()?, Instant::now());
        sleep(sizes.window);
        let (took, after) = (began.elapsed().as_secs_f64(), self.parts[0].threads()?);
        let counted: Counted = self.parts[0].ask(&Order::Count)?;
        let share = |probing: bool| {
            let of = |threads: &[(String, u64)]| -> u64 {
                let ours = threads.iter().filter(|(name, _)| name.starts_with("tokio") == probing);
                ours.map(|(_, ns)| ns).sum()
            };
            (of(&after) - of(&threads)) as f64 / 1e9 / took
        };
        let seen = Seen {
            sent: (counted.sent - before.sent) as f64 / took,
            answered: (counted.replies - before.replies) as f64 / took,
            probing: share(true),
            engine: share(false),
            counted,
        };
        let all = sizes.clusters * sizes.nodes;
        ensure!(seen.counted.up == all, "{} of {all} nodes are up: {seen:?}", seen.counted.up);
        println!(
            "{used} nodes in use: {:.0} probes a second, {:.0} answers, {:.2} % of a core; {:?}",
            seen.sent,
            seen.answered,
            seen.all() * 100.0,
            seen.counted
        );
        Ok(seen)
    }

    /// Seconds of CPU on side 1 for a handshake that it begins, with what is told to the engine for it taken off.
    fn handshake(&mut self, count: u32) -> Result<f64> {
        for part in &mut self.parts {
            part.ask::<Counted>(&Order::Rest)?;
        }
        let keys = self.keys.clone().context("a tunnel")?;
        let spent = |anew: bool| -> Result<f64> {
            let total = |threads: Vec<(String, u64)>| threads.iter().map(|(_, ns)| ns).sum::<u64>();
            let before = total(self.parts[0].threads()?);
            for _ in 0..count {
                if anew {
                    run(self.sides[0].command("wg").args(["set", TUNNEL, "peer", &keys[1], "remove"]))?;
                } else {
                    self.set_peer(1)?;
                }
                self.set_peer(1)?;
                self.ping()?;
                sleep(BETWEEN_HANDSHAKES);
            }
            Ok((total(self.parts[0].threads()?) - before) as f64 / 1e9)
        };
        let (with, without) = (spent(true)?, spent(false)?);
        Ok((with - without).max(0.0) / f64::from(count))
    }
}

fn on_cable(side: u8) -> String {
    format!("172.31.1.{side}")
}

/// Gives a side its mesh address, the way to the other side's, and those of the nodes that the other one asks.
fn connect(place: &Place, side: u8, device: &str) -> Result<()> {
    let (other, own) = (3 - side, part::own(side));
    let via = if device == CABLE { format!("via {} ", on_cable(other)) } else { String::new() };
    let batch = format!(
        "addr add {own}/32 dev {device}\nlink set {device} mtu {MTU} up\n\
         route add {}.0.0.0/8 {via}dev {device} src {own}\n\
         rule add iif {device} lookup 100\nroute add local {}.0.0.0/8 dev lo table 100\n",
        240 + other,
        240 + side
    );
    run_with_input(place.command("ip").args(["-batch", "-"]), &batch).map(drop)
}
