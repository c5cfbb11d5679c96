//! Writers: seeded, each with keys of its own, each write's outcome recorded as what the writer can know.

use std::time::{Duration, Instant};

use anyhow::Result;
use hawser_etcd::client::{CallError, Client};
use hawser_etcd::pb;
use pb::request_op::Request;
use rand::rngs::StdRng;
use rand::seq::index::sample;
use rand::{Rng, SeedableRng};
use tokio_util::sync::CancellationToken;
use tonic::Code;

use super::dial::Door;
use super::record::{Change, Outcome, Write};

/// After this a write's outcome is unknown.
const PATIENCE: Duration = Duration::from_millis(1500);
const KEYS: usize = 8;

/// What all parties of a run share.
#[derive(Clone, Debug)]
pub struct Stage {
    pub began: Instant,
    pub stop: CancellationToken,
    /// Whose keyspace it is.
    pub cluster: String,
    pub id: u16,
}

impl Stage {
    pub fn now(&self) -> Duration {
        self.began.elapsed()
    }

    /// Services, because every peer may read them and every mirror takes them over.
    pub fn prefix(&self) -> String {
        format!("cilium/state/services/v1/{}/soak/", self.cluster)
    }
}

/// Writes until told to stop; gives what it did.
pub async fn run(
    stage: Stage,
    name: String,
    doors: Vec<Door>,
    pace: Duration,
    seed: u64,
) -> Result<Vec<Write>> {
    let mut rng = StdRng::seed_from_u64(seed);
    let mut writes = Vec::new();
    let mut door = rng.random_range(0..doors.len());
    let mut client = doors[door].client()?;
    while !stage.stop.is_cancelled() {
        let changes = choose(&mut rng, &stage, &name, writes.len());
        let request = request(&changes, &stage, &mut rng);
        let began = stage.now();
        let outcome = match tokio::time::timeout(PATIENCE, send(&client, request)).await {
            Ok(Ok(Some(revision))) => Outcome::Acked(revision),
            Ok(Ok(None)) => Outcome::AckedWithoutChange,
            Ok(Err(error)) => judge(&error),
            Err(_) => Outcome::Unknown(format!("no answer within {PATIENCE:?}")),
        };
        let failed = matches!(outcome, Outcome::Unknown(_) | Outcome::Refused(_));
        writes.push(Write { writer: name.clone(), changes, began, ended: stage.now(), outcome });
        let mut wait = pace.mul_f64(rng.random_range(0.2..1.8));
        if failed {
            // Another replica, by a connection that has seen no trouble yet.
            door = (door + 1) % doors.len();
            client = doors[door].client()?;
            wait += Duration::from_millis(rng.random_range(20..80));
        }
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            () = stage.stop.cancelled() => {}
        }
    }
    Ok(writes)
}

fn choose(rng: &mut StdRng, stage: &Stage, name: &str, number: usize) -> Vec<Change> {
    let key = |index: usize| format!("{}{name}-k{index}", stage.prefix());
    match rng.random_range(0..100) {
        0..65 => vec![Change::put(key(rng.random_range(0..KEYS)), format!("{name}.{number}"))],
        65..80 => vec![Change::delete(key(rng.random_range(0..KEYS)))],
        _ => {
            let many = rng.random_range(2..=4);
            let put = |(part, index)| Change::put(key(index), format!("{name}.{number}.{part}"));
            sample(rng, KEYS, many).into_iter().enumerate().map(put).collect()
        }
    }
}

fn request(changes: &[Change], stage: &Stage, rng: &mut StdRng) -> Request {
    let put = |change: &Change, rng: &mut StdRng| pb::PutRequest {
        key: change.key.clone().into(),
        value: encode(change, stage, rng).into(),
        ..Default::default()
    };
    match changes {
        [one] if one.value.is_none() => Request::RequestDeleteRange(pb::DeleteRangeRequest {
            key: one.key.clone().into(),
            ..Default::default()
        }),
        [one] => Request::RequestPut(put(one, rng)),
        many => Request::RequestTxn(pb::TxnRequest {
            success: many
                .iter()
                .map(|change| pb::RequestOp { request: Some(Request::RequestPut(put(change, rng))) })
                .collect(),
            ..Default::default()
        }),
    }
}

const MARK: &str = "\"soak\":\"";

/// A service as Cilium writes it; what it is told apart by is in a label.
fn encode(change: &Change, stage: &Stage, rng: &mut StdRng) -> String {
    let name = change.key.rsplit('/').next().unwrap_or_default();
    let (cluster, id, value) = (&stage.cluster, stage.id, change.value.as_deref().unwrap_or_default());
    // Now and then one that does not share a message with others.
    let pad =
        if rng.random_ratio(1, 100) { rng.random_range(10_000..60_000) } else { rng.random_range(0..200) };
    format!(
        "{{\"cluster\":\"{cluster}\",\"clusterID\":{id},\"namespace\":\"soak\",\"name\":\"{name}\",\"frontends\":{{}},\
         \"backends\":{{}},\"labels\":{{{MARK}{value}\"}},\"selector\":{{}},\"includeExternal\":true,\"shared\":true,\
         \"pad\":\"{}\"}}",
        "x".repeat(pad)
    )
}

/// What a value is told apart by; the value itself when a writer did not make it.
pub fn decode(value: &[u8]) -> String {
    let text = String::from_utf8_lossy(value);
    let marked = text.split_once(MARK).and_then(|(_, rest)| rest.split_once('"'));
    marked.map_or_else(|| text.chars().take(100).collect(), |(value, _)| value.to_owned())
}

/// The revision, or nothing when nothing was there to change.
async fn send(client: &Client, request: Request) -> Result<Option<i64>, CallError> {
    let (header, changed) = match request {
        Request::RequestPut(put) => (client.put(put).await?.header, true),
        Request::RequestTxn(txn) => (client.txn(txn).await?.header, true),
        Request::RequestDeleteRange(delete) => {
            let reply = client.delete_range(delete).await?;
            (reply.header, reply.deleted > 0)
        }
        Request::RequestRange(range) => (client.range(range).await?.header, false),
    };
    Ok(changed.then(|| header.unwrap_or_default().revision))
}

/// Refusals that come before anything is written; everything else leaves it open.
fn judge(error: &CallError) -> Outcome {
    let refused = [
        Code::InvalidArgument,
        Code::NotFound,
        Code::PermissionDenied,
        Code::Unauthenticated,
        Code::FailedPrecondition,
        Code::OutOfRange,
        Code::Unimplemented,
    ];
    match error {
        CallError::Status(status) if refused.contains(&status.code()) => Outcome::Refused(error.to_string()),
        _ => Outcome::Unknown(error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_is_known_again_by_its_label() {
        let stage =
            Stage { began: Instant::now(), stop: CancellationToken::new(), cluster: "us-east".into(), id: 1 };
        let mut rng = StdRng::seed_from_u64(1);
        let change = Change::put(format!("{}w0-k3", stage.prefix()), "w0.17");
        let text = encode(&change, &stage, &mut rng);
        assert!(serde_json::from_str::<serde_json::Value>(&text).is_ok(), "{text}");
        assert_eq!(decode(text.as_bytes()), "w0.17");
        assert_eq!(decode(b"other"), "other");
    }

    #[test]
    fn the_same_seed_writes_the_same() {
        let stage =
            Stage { began: Instant::now(), stop: CancellationToken::new(), cluster: "c".into(), id: 1 };
        let some = |seed| {
            let mut rng = StdRng::seed_from_u64(seed);
            (0..50).map(|n| choose(&mut rng, &stage, "w", n)).collect::<Vec<_>>()
        };
        assert_eq!(some(7), some(7));
        assert_ne!(some(7), some(8));
    }
}
