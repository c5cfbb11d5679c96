//! Our tunnel engine in a process by itself, configured with `wg` as `wireguard-go` is.
//!
//! The one place where the lab links to the product: the agent brings programs and routes along, and its peer has none.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use hawser_model::PublicKey;
use hawser_tunnels::{DeviceName, EspKey, Sa};
use hawser_tunnels_linux::{AssociateError, Engine, EngineSettings, PrivateKey, Protocol};

#[derive(Clone, Debug, clap::Args)]
pub struct EngineArgs {
    #[arg(long)]
    device: String,
    /// Made when it does not exist.
    #[arg(long)]
    key: PathBuf,
    #[arg(long)]
    port: u16,
    #[arg(long)]
    mtu: u16,
    /// For parallel sessions; every peer has them at the same ports.
    #[arg(long, value_delimiter = ',')]
    more_ports: Vec<u16>,
    /// Speak ESP as this side of a pair, 1 or 2, with keys that everybody knows.
    #[arg(long)]
    esp: Option<u8>,
}

/// The name of the other side of an ESP pair, to which no key belongs: base64 of 32 times 9.
pub(super) const ESP_PEER: &str = "CQkJCQkJCQkJCQkJCQkJCQkJCQkJCQkJCQkJCQkJCQk=";

/// Carries packets until killed.
pub fn run(args: &EngineArgs) -> Result<()> {
    let device = DeviceName::parse(&args.device).context("--device")?;
    let key = PrivateKey::load_or_create(&args.key).context("--key")?;
    let protocol = if args.esp.is_some() { Protocol::Esp } else { Protocol::Wireguard };
    let settings = EngineSettings {
        device,
        key,
        port: args.port,
        more_ports: args.more_ports.clone(),
        mark: 0,
        mtu: args.mtu,
        take_over: false,
        protocol,
    };
    let engine = Engine::start(settings).context("starting the engine")?;
    if let Some(side) = args.esp {
        associate(&engine, side)?;
    } else if !args.more_ports.is_empty() {
        spread(&engine, &args.more_ports);
    }
    loop {
        nix::unistd::pause();
    }
}

/// As soon as `wg` has named a peer.
fn spread(engine: &Engine, ports: &[u16]) {
    while engine.peers().is_empty() {
        std::thread::sleep(Duration::from_millis(20));
    }
    engine.peers().iter().for_each(|peer| engine.spread(peer, ports));
}

/// As soon as `wg` has named the peer.
fn associate(engine: &Engine, side: u8) -> Result<()> {
    let peer = PublicKey::new([9; 32]).context("the peer's name")?;
    let sa = |from: u8| {
        let key = EspKey::new(&[from; 36]).context("256 bits and a salt")?;
        Ok::<_, anyhow::Error>(Sa { spi: 0x100 + u32::from(from), key })
    };
    let (outbound, inbound) = (sa(side)?, sa(3 - side)?);
    while let Err(error) = engine.associate(&peer, Some(&outbound), std::slice::from_ref(&inbound)) {
        ensure!(matches!(error, AssociateError::UnknownPeer { .. }), error);
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}
