//! Follows the mesh's IPsec secrets in their file, and states by which keys this node is sent to, once it is so.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use hawser_api::agent::ReportRequest;
use hawser_model::EspEnd;
use hawser_tunnels::Keyring;
use tokio::sync::{Notify, mpsc, watch};
use zeroize::Zeroizing;

use crate::causes::chain;
use crate::place::Reporting;
use crate::tunnels::Tunnels;

/// Between two looks at the file, and at what keys have carried.
const EVERY: Duration = Duration::from_secs(5);

/// One line for each secret that counts.
pub(crate) fn read(path: &Path) -> Result<Keyring> {
    let shown = path.display();
    let text = std::fs::read_to_string(path).with_context(|| {
        format!("reading ipsecSecret {shown}. fix: put the mesh's secret there, the same on every node of every cluster")
    })?;
    Keyring::parse(&Zeroizing::new(text)).with_context(|| format!("ipsecSecret {shown}"))
}

pub(crate) fn stated(end: &EspEnd) -> hawser_api::agent::EspEnd {
    let generation =
        |of: hawser_model::Generation| hawser_api::agent::Generation { epoch: of.epoch.get(), turn: of.turn };
    hawser_api::agent::EspEnd { receives: end.receives().map(generation).collect(), in_udp: end.in_udp }
}

#[derive(Debug)]
pub(crate) struct Secrets {
    pub path: PathBuf,
    /// As it was read last.
    pub keyring: Keyring,
    pub tunnels: Arc<Tunnels>,
    pub report: watch::Sender<ReportRequest>,
    pub report_now: Arc<Notify>,
    pub told: mpsc::Sender<Reporting>,
}

impl Secrets {
    /// Until the loop is gone. A file that cannot be read changes nothing; that is a standing problem.
    pub(crate) async fn run(mut self) {
        let mut problem = None;
        loop {
            tokio::time::sleep(EVERY).await;
            let found = self.look().await.err().map(|error| chain(&error));
            if found == problem {
                continue;
            }
            if let Some(problem) = &found {
                tracing::warn!(problem, "IPsec secrets");
            }
            problem = found;
            if self.told.send(Reporting::Secrets(problem.clone())).await.is_err() {
                return;
            }
        }
    }

    async fn look(&mut self) -> Result<()> {
        let (path, tunnels, last) = (self.path.clone(), Arc::clone(&self.tunnels), self.keyring.clone());
        let tended = tokio::task::spawn_blocking(move || {
            let found = read(&path);
            let keyring = found.as_ref().unwrap_or(&last);
            let end = tunnels.tend(keyring).transpose();
            (found, end)
        });
        let (found, end) = tended.await?;
        if let Ok(keyring) = &found {
            self.keyring = keyring.clone();
        }
        if let Some(end) = end? {
            self.state(&end);
        }
        found.map(|_| ())
    }

    /// What is stated is there already.
    fn state(&self, end: &EspEnd) {
        let news = self.report.send_if_modified(|report| {
            let Some(wireguard) = &mut report.wireguard else { return false };
            let newest = end.receives().last().map_or(wireguard.epoch, |of| of.epoch.get());
            let (esp, epoch) = (Some(stated(end)), newest);
            let news = wireguard.esp != esp;
            (wireguard.esp, wireguard.epoch) = (esp, epoch);
            news
        });
        if news {
            tracing::info!(?end, "keys of IPsec: peers are told by which they may send");
            self.report_now.notify_one();
        }
    }
}
