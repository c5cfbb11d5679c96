//! What is done to a run, when, from a seed: begun, held for a while, ended; now and then two at a time.

use std::fmt;
use std::time::Duration;

use anyhow::Result;
use rand::Rng;
use rand::rngs::StdRng;

use super::cluster;
use super::world::World;

/// One way to hurt it. Replicas and members by their place; the mirror is the server behind the last replica.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    Kill {
        server: usize,
    },
    /// The replica that exports: `hawser/private/leader` is its.
    KillLeader {
        server: usize,
    },
    Pause {
        server: usize,
    },
    /// kill -9, and the disk forgets what was not synced.
    PowerCut,
    CutWire {
        wire: usize,
    },
    FreezeWire {
        wire: usize,
    },
    /// A replica and all members of its etcd.
    FreezeInner {
        replica: usize,
    },
    SlowDisk {
        ms: u64,
    },
    FailingSync,
    FullDisk,
    /// Never chosen by itself: it shows that the checker finds a loss that is real.
    LyingDisk,
    Clock {
        server: usize,
        seconds: i64,
    },
    KillEtcd {
        member: usize,
    },
    PauseEtcd {
        member: usize,
    },
}

/// What of the world a fault concerns: two at a time never concern the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Target {
    Server(usize),
    Wire(usize),
    Etcd,
}

impl Fault {
    /// One that this world can have.
    pub fn choose(rng: &mut StdRng, world: &World) -> Self {
        let servers = world.replicas.len() + 1;
        let server = rng.random_range(0..servers);
        let wire = rng.random_range(0..world.wires.len());
        let clock = |rng: &mut StdRng| {
            // Forwards over the end of every lease, and backwards.
            let seconds =
                if rng.random() { rng.random_range(1000..3600) } else { -rng.random_range(10..250) };
            Self::Clock { server, seconds }
        };
        // The leader every other time.
        let member = |rng: &mut StdRng| {
            let any = rng.random_range(0..world.etcd.len());
            if rng.random() { cluster::etcd_leader(&world.etcd).unwrap_or(any) } else { any }
        };
        match (world.disk.is_some(), rng.random_range(0..11)) {
            (_, 0) => Self::CutWire { wire },
            (_, 1) => Self::FreezeWire { wire },
            (_, 2) => Self::Pause { server },
            (_, 3) => clock(rng),
            (_, 4) => Self::Kill { server },
            (true, 5) => Self::Kill { server: 0 },
            (true, 6) => Self::PowerCut,
            (true, 7) => Self::SlowDisk { ms: rng.random_range(20..400) },
            (true, 8) => Self::FailingSync,
            (true, _) => Self::FullDisk,
            (false, 5 | 6) => Self::KillEtcd { member: member(rng) },
            (false, 7 | 8) => Self::PauseEtcd { member: member(rng) },
            (false, 10) => match cluster::exporter(&world.etcd, &world.replicas) {
                Some(server) => Self::KillLeader { server },
                None => Self::Kill { server },
            },
            (false, _) => Self::FreezeInner { replica: rng.random_range(0..world.replicas.len()) },
        }
    }

    fn target(self) -> Target {
        match self {
            Self::Kill { server }
            | Self::KillLeader { server }
            | Self::Pause { server }
            | Self::Clock { server, .. } => Target::Server(server),
            Self::PowerCut | Self::SlowDisk { .. } | Self::FailingSync | Self::FullDisk | Self::LyingDisk => {
                Target::Server(0)
            }
            Self::CutWire { wire } | Self::FreezeWire { wire } => Target::Wire(wire),
            // Of three members one may be away, and a replica away from all is as good as two.
            Self::FreezeInner { .. } | Self::KillEtcd { .. } | Self::PauseEtcd { .. } => Target::Etcd,
        }
    }

    pub fn goes_with(self, other: Self) -> bool {
        self.target() != other.target()
    }

    pub fn begin(self, world: &mut World) -> Result<()> {
        match self {
            Self::Kill { server } | Self::KillLeader { server } => server_of(world, server).member.kill(),
            Self::Pause { server } => server_of(world, server).member.pause(),
            Self::PowerCut => world.cut_power().map(drop),
            Self::CutWire { wire } => {
                world.wires[wire].cut();
                Ok(())
            }
            Self::FreezeWire { wire } => {
                world.wires[wire].freeze();
                Ok(())
            }
            Self::FreezeInner { replica } => {
                inner(world, replica).iter().for_each(super::wire::Wire::freeze);
                Ok(())
            }
            Self::SlowDisk { ms } => {
                world.disk.iter().for_each(|disk| disk.slow(Duration::from_millis(ms)));
                Ok(())
            }
            Self::FailingSync => {
                world.disk.iter().for_each(|disk| disk.fail_syncs(libc::EIO));
                Ok(())
            }
            Self::FullDisk => {
                world.disk.iter().for_each(|disk| disk.fail_writes(libc::ENOSPC));
                Ok(())
            }
            Self::LyingDisk => {
                world.disk.iter().for_each(super::disk::FaultyDisk::lie);
                Ok(())
            }
            Self::Clock { server, seconds } => server_of(world, server).set_clock(seconds),
            Self::KillEtcd { member } => world.etcd[member].member.kill(),
            Self::PauseEtcd { member } => world.etcd[member].member.pause(),
        }
    }

    pub fn end(self, world: &mut World) -> Result<()> {
        match self {
            Self::Kill { server } | Self::KillLeader { server } => server_of(world, server).member.start(),
            Self::Pause { server } => server_of(world, server).member.go_on(),
            Self::PowerCut => world.replicas[0].member.start(),
            Self::CutWire { wire } | Self::FreezeWire { wire } => {
                world.wires[wire].heal();
                Ok(())
            }
            Self::FreezeInner { replica } => {
                inner(world, replica).iter().for_each(super::wire::Wire::heal);
                Ok(())
            }
            // A store whose sync failed takes no more writes before its process is begun anew.
            Self::FailingSync | Self::LyingDisk => {
                world.disk.iter().for_each(super::disk::FaultyDisk::works_again);
                world.cut_power()?;
                world.replicas[0].member.start()
            }
            Self::SlowDisk { .. } | Self::FullDisk => {
                world.disk.iter().for_each(super::disk::FaultyDisk::works_again);
                Ok(())
            }
            Self::Clock { server, .. } => server_of(world, server).set_clock(0),
            Self::KillEtcd { member } => world.etcd[member].member.start(),
            Self::PauseEtcd { member } => world.etcd[member].member.go_on(),
        }
    }
}

fn server_of(world: &mut World, server: usize) -> &mut super::cluster::Server {
    match server < world.replicas.len() {
        true => &mut world.replicas[server],
        false => &mut world.mirror,
    }
}

fn inner(world: &World, replica: usize) -> &[super::wire::Wire] {
    let members = world.etcd.len();
    &world.inner_wires[replica * members..(replica + 1) * members]
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Kill { server } => write!(f, "kill -9 of server {server}"),
            Self::KillLeader { server } => write!(f, "kill -9 of server {server}, which exports"),
            Self::Pause { server } => write!(f, "SIGSTOP of server {server}"),
            Self::PowerCut => write!(f, "kill -9 of server 0, what was not synced is lost"),
            Self::CutWire { wire } => write!(f, "the way to server {wire} is cut"),
            Self::FreezeWire { wire } => write!(f, "nothing passes to or from server {wire}"),
            Self::FreezeInner { replica } => {
                write!(f, "nothing passes between server {replica} and its etcd")
            }
            Self::SlowDisk { ms } => write!(f, "each fsync takes {ms} ms"),
            Self::FailingSync => write!(f, "each fsync gives EIO"),
            Self::LyingDisk => write!(f, "each fsync is answered and not done, and then the power is cut"),
            Self::FullDisk => write!(f, "each write ends half way with ENOSPC"),
            Self::Clock { server, seconds } => write!(f, "the clock of server {server} jumps by {seconds} s"),
            Self::KillEtcd { member } => write!(f, "kill -9 of etcd-{member}"),
            Self::PauseEtcd { member } => write!(f, "SIGSTOP of etcd-{member}"),
        }
    }
}
