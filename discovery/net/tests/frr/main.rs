//! Our BFD against FRR's `bfdd`, over a link between two network namespaces. Needs root and the Debian package `frr`.
#![expect(clippy::unwrap_used, reason = "helpers of tests")]

mod bfdd;
mod world;

use std::collections::BTreeSet;
use std::num::NonZeroU8;
use std::sync::Arc;
use std::time::{Duration, Instant};

use hawser_discovery::bfd::{Admin, Diagnostic, Interval, State};
use hawser_discovery_net::{Bfd, BfdChange, BfdConfig, Intervals, spawn_bfd};
use hawser_model::Time;
use tokio::sync::mpsc;

use crate::bfdd::Bfdd;
use crate::world::{Link, OURS, THEIRS};

fn interval(ms: u64) -> Interval {
    Interval::from_duration(Duration::from_millis(ms))
}

fn start() -> (Bfd, mpsc::Receiver<BfdChange>) {
    let started = Instant::now();
    let config = BfdConfig {
        address: OURS,
        device: Some("eth0".into()),
        intervals: Intervals {
            desired_min_tx: interval(200),
            required_min_rx: interval(150),
            detect_mult: NonZeroU8::new(5).unwrap(),
        },
        clock: Arc::new(move || Time::from_duration(started.elapsed())),
        seed: 11,
    };
    spawn_bfd(config).unwrap()
}

async fn until(changes: &mut mpsc::Receiver<BfdChange>, state: State) -> BfdChange {
    loop {
        let waited = tokio::time::timeout(Duration::from_secs(60), changes.recv()).await;
        let change = waited.unwrap_or_else(|_| panic!("the session never became {state}")).unwrap();
        if change.change.to == state {
            return change;
        }
    }
}

/// FRR's word for the session, until it is the expected one.
async fn eventually(bfdd: &Bfdd, what: &str, is: impl Fn(&serde_json::Value) -> bool) {
    let patience = Instant::now() + Duration::from_secs(60);
    loop {
        let peer = bfdd.peer();
        if is(&peer) {
            return;
        }
        assert!(Instant::now() < patience, "never came true: {what}; FRR says {peer}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Waits until our end sends this often, and takes silence of this length for death.
async fn agreed(bfd: &Bfd, transmit: Duration, detection: Duration) {
    let patience = Instant::now() + Duration::from_secs(60);
    loop {
        let session = bfd.snapshot().await.unwrap().sessions[&THEIRS];
        if (session.transmit_interval, session.detection_time) == (Some(transmit), Some(detection)) {
            return;
        }
        assert!(Instant::now() < patience, "{session:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[test]
fn a_session_with_frr_comes_up_agrees_on_timers_and_sees_either_ends_death() {
    let link = Link::new();
    let mut bfdd = Bfdd::start(&link);
    let runtime = link.ours(|| tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap());
    let (bfd, mut changes) = link.ours(|| {
        runtime.block_on(async {
            let (bfd, mut changes) = start();
            bfd.set_peers(BTreeSet::from([THEIRS])).await.unwrap();
            until(&mut changes, State::Up).await;
            eventually(&bfdd, "FRR is up, and knows our timers", |peer| {
                peer["status"] == "up"
                    && peer["remote-transmit-interval"] == 200
                    && peer["remote-receive-interval"] == 150
                    && peer["remote-detect-multiplier"] == 5
            })
            .await;
            // Ours, as FRR takes a packet every 100 ms; and FRR's multiplier of what we take.
            agreed(&bfd, Duration::from_millis(200), Duration::from_millis(150 * 3)).await;

            bfd.set_intervals(interval(120), interval(300)).await.unwrap();
            eventually(&bfdd, "other intervals are agreed upon", |peer| {
                peer["status"] == "up"
                    && peer["remote-transmit-interval"] == 120
                    && peer["remote-receive-interval"] == 300
            })
            .await;
            agreed(&bfd, Duration::from_millis(120), Duration::from_millis(300 * 3)).await;

            bfd.admin(Admin::Down).await.unwrap();
            eventually(&bfdd, "FRR hears that we are down on purpose", |peer| {
                peer["status"] == "down" && peer["remote-diagnostic"] == "administratively down"
            })
            .await;
            bfd.admin(Admin::Up).await.unwrap();
            until(&mut changes, State::Up).await;
            (bfd, changes)
        })
    });
    bfdd.kill();
    link.ours(|| {
        runtime.block_on(async {
            let change = until(&mut changes, State::Down).await.change;
            assert_eq!(change.diagnostic, Diagnostic::DETECTION_TIME_EXPIRED, "FRR's death is seen");
            bfdd.again(&link);
            until(&mut changes, State::Up).await;
            eventually(&bfdd, "up again", |peer| peer["status"] == "up").await;
        });
    });
    // Its tasks end with it, without a word.
    drop((runtime, bfd));
    link.ours(|| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(eventually(&bfdd, "our death is seen", |peer| {
            peer["status"] == "down" && peer["diagnostic"] == "control detection time expired"
        }));
        // And a graceful end says so.
        runtime.block_on(async {
            let (bfd, mut changes) = start();
            bfd.set_peers(BTreeSet::from([THEIRS])).await.unwrap();
            until(&mut changes, State::Up).await;
            eventually(&bfdd, "up once more", |peer| peer["status"] == "up").await;
            drop(bfd);
            eventually(&bfdd, "a graceful stop is no failure", |peer| {
                peer["status"] == "down" && peer["remote-diagnostic"] == "administratively down"
            })
            .await;
        });
    });
}
