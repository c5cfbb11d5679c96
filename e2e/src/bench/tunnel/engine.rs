//! Our tunnel engine in a process by itself, configured with `wg` as `wireguard-go` is.
//!
//! The one place where the lab links to the product: the agent brings programs and routes along, and its peer has none.

use std::path::PathBuf;

use anyhow::{Context, Result};
use hawser_tunnels::DeviceName;
use hawser_tunnels_linux::{Engine, EngineSettings, PrivateKey};

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
}

/// Carries packets until killed.
pub fn run(args: &EngineArgs) -> Result<()> {
    let device = DeviceName::parse(&args.device).context("--device")?;
    let key = PrivateKey::load_or_create(&args.key).context("--key")?;
    let settings = EngineSettings { device, key, port: args.port, mark: 0, mtu: args.mtu, take_over: false };
    let _engine = Engine::start(settings).context("starting the engine")?;
    loop {
        nix::unistd::pause();
    }
}
