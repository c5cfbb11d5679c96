//! What a run stands on: a cluster with one store or three, a mirror of it, and everything that can be done to them.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};

use super::cluster::{self, EtcdMember, Server, ServerPlan, free_address};
use super::dial::Door;
use super::disk::FaultyDisk;
use super::wire::Wire;
use crate::enclave::Inside;

pub const ORIGIN: &str = "us-east";
pub const ORIGIN_ID: u16 = 1;
const MIRROR: &str = "eu-west";
const MIRROR_ID: u16 = 2;

/// What keeps the origin's keyspace.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Store {
    /// One replica, its log on the faulty disk.
    Embedded,
    /// Two replicas over three members of a real etcd.
    Etcd,
}

/// Everything that runs. Fields drop in this order: processes before the disk that they use.
#[derive(Debug)]
pub struct World {
    /// Replicas of the origin.
    pub replicas: Vec<Server>,
    pub mirror: Server,
    pub etcd: Vec<EtcdMember>,
    /// From clients and the mirror to each replica.
    pub wires: Vec<Wire>,
    /// From each replica to each member of etcd, replica by replica.
    pub inner_wires: Vec<Wire>,
    pub disk: Option<FaultyDisk>,
    backing: PathBuf,
}

impl World {
    /// Started, connected and answering.
    pub async fn build(store: Store, inside: &Inside, round: u32) -> Result<Self> {
        let dir = PathBuf::from(format!("/run/soak-{round}"));
        let logs = inside.dir.join(format!("round-{round}"));
        fs::create_dir_all(&logs).context("making the logs' directory")?;
        let backing = dir.join("backing");
        let pki = dir.join("pki");
        for (cluster, id) in [(ORIGIN, ORIGIN_ID), (MIRROR, MIRROR_ID)] {
            let pki = pki.join(cluster);
            fs::create_dir_all(pki.parent().unwrap_or(&pki))?;
            cluster::make_ca(&pki, cluster, id)?;
        }
        let (mut etcd, mut disk) = (Vec::new(), None);
        match store {
            Store::Embedded => disk = Some(FaultyDisk::mount(&backing, &dir.join("disk"))?),
            Store::Etcd => etcd = cluster::etcd(3, &dir, &logs)?,
        }
        for member in &mut etcd {
            member.member.start()?;
        }
        if !etcd.is_empty() {
            cluster::wait_for_etcd(&etcd)?;
        }
        let count = if store == Store::Embedded { 1 } else { 2 };
        let addresses: Vec<SocketAddr> = (0..count).map(|_| free_address()).collect::<Result<_>>()?;
        let (mut wires, mut inner_wires, mut replicas) = (Vec::new(), Vec::new(), Vec::new());
        for address in &addresses {
            wires.push(Wire::to(*address).await?);
        }
        let advertise: Vec<SocketAddr> = wires.iter().map(|wire| wire.address).collect();
        for (index, address) in addresses.iter().enumerate() {
            let mut members = Vec::new();
            for member in &etcd {
                let wire = Wire::to(member.client).await?;
                members.push(wire.address.to_string());
                inner_wires.push(wire);
            }
            let plan = ServerPlan {
                name: &format!("{ORIGIN}-{index}"),
                cluster: ORIGIN,
                id: ORIGIN_ID,
                advertise: advertise.clone(),
                store: match &disk {
                    Some(disk) => format!("embedded:{}", disk.path.display()),
                    None => format!("etcd://{}", members.join(",")),
                },
                pki: &pki.join(ORIGIN),
            };
            replicas.push(Server::prepare(&dir, *address, &plan, &logs)?);
        }
        let mirror = Self::mirror(&dir, &pki, &logs)?;
        let mut world = Self { replicas, mirror, etcd, wires, inner_wires, disk, backing };
        for server in world.servers() {
            server.member.start()?;
        }
        for server in world.servers() {
            server.wait()?;
        }
        cluster::connect(&world.replicas[0], &world.mirror, &dir)?;
        Ok(world)
    }

    fn mirror(dir: &Path, pki: &Path, logs: &Path) -> Result<Server> {
        let address = free_address()?;
        let plan = ServerPlan {
            name: MIRROR,
            cluster: MIRROR,
            id: MIRROR_ID,
            advertise: vec![address],
            store: format!("embedded:{}", dir.join(MIRROR).join("store").display()),
            pki: &pki.join(MIRROR),
        };
        Server::prepare(dir, address, &plan, logs)
    }

    pub fn servers(&mut self) -> impl Iterator<Item = &mut Server> {
        self.replicas.iter_mut().chain(std::iter::once(&mut self.mirror))
    }

    /// To each replica itself, past the wires.
    pub fn doors(&self) -> Result<Vec<Door>> {
        let door = |server: &Server| Door::new(&server.member.name, server.address, ORIGIN, &server.pki);
        self.replicas.iter().map(door).collect()
    }

    /// To each replica, by its wire.
    pub fn wired_doors(&self) -> Result<Vec<Door>> {
        let door = |(server, wire): (&Server, &Wire)| {
            Door::new(&format!("{} by wire", server.member.name), wire.address, ORIGIN, &server.pki)
        };
        self.replicas.iter().zip(&self.wires).map(door).collect()
    }

    /// To each replica, by its wire, as the other cluster's API server: what is exported to it is a view of its own, and the
    /// mirror's.
    pub fn peer_doors(&self) -> Result<Vec<Door>> {
        let door = |(server, wire): (&Server, &Wire)| {
            let name = format!("{} as {MIRROR}", server.member.name);
            Door::as_peer(&name, wire.address, (ORIGIN, &server.pki), (MIRROR, &self.mirror.pki))
        };
        self.replicas.iter().zip(&self.wires).map(door).collect()
    }

    /// To the other cluster's mirror of the origin.
    pub fn mirror_door(&self) -> Result<Door> {
        let door = Door::new("the mirror", self.mirror.address, MIRROR, &self.mirror.pki)?;
        Ok(door.mirror_of(ORIGIN))
    }

    pub fn etcd_doors(&self) -> Vec<Door> {
        self.etcd.iter().map(|member| Door::etcd(&member.member.name, member.client)).collect()
    }

    /// Kills the replica on the faulty disk, and the disk forgets what was not synced. Returns how many bytes that was.
    pub fn cut_power(&mut self) -> Result<u64> {
        self.replicas[0].member.kill()?;
        self.disk.as_ref().map_or(Ok(0), |disk| disk.cut_power(&self.backing))
    }

    /// An error when a process ended that nobody killed.
    pub fn check_alive(&mut self) -> Result<()> {
        let servers = self
            .replicas
            .iter_mut()
            .chain(std::iter::once(&mut self.mirror))
            .map(|server| &mut server.member);
        cluster::check_alive(servers.chain(self.etcd.iter_mut().map(|member| &mut member.member)))
    }

    /// Everything works and runs; waits until every server answers.
    pub fn heal(&mut self) -> Result<()> {
        self.wires.iter().chain(&self.inner_wires).for_each(Wire::heal);
        if let Some(disk) = &self.disk {
            disk.works_again();
        }
        for member in self.etcd.iter_mut().map(|member| &mut member.member) {
            member.go_on()?;
            if !member.is_running() {
                member.start()?;
            }
        }
        if !self.etcd.is_empty() {
            cluster::wait_for_etcd(&self.etcd)?;
        }
        for server in self.servers() {
            server.set_clock(0)?;
            server.member.go_on()?;
            if !server.member.is_running() {
                server.member.start()?;
            }
        }
        // Their clocks are looked at anew within that.
        std::thread::sleep(Duration::from_millis(300));
        for server in self.servers() {
            server.wait()?;
        }
        Ok(())
    }
}
