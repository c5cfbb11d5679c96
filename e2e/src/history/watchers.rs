//! Watchers: what each is told, recorded as it comes. One kind is our own follower, one reads the raw stream.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use anyhow::{Result, bail};
use hawser_etcd::client::{Follow, FollowConfig, FollowEvent, Pace, Relist, ResetReason, Resume};
use hawser_etcd::pb;
use hawser_kvstore::KeyRange;
use pb::mvccpb::event::EventType;
use pb::watch_request::RequestUnion;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use super::dial::Door;
use super::record::{Change, Final, Heard, Revision, State, Watcher};
use super::writers::{Stage, decode};

/// How a watcher goes about it.
#[derive(Clone, Debug)]
pub struct Habits {
    pub name: String,
    /// Where it may watch. With more than one it moves about between them.
    pub doors: Vec<Door>,
    /// A progress answer is never before an event below it.
    pub trust_progress: bool,
    pub seed: u64,
}

/// How far a watcher is, for whoever waits for it.
pub type Position = Arc<AtomicI64>;

/// What is recorded; events of a revision that may be incomplete are held back.
struct Record {
    stage: Stage,
    habits: Habits,
    /// Which of its doors it is at.
    door: usize,
    heard: Vec<(Duration, Heard)>,
    listing: Option<State>,
    pending: Vec<(Duration, Heard)>,
    pending_at: Revision,
    complete: Revision,
    cluster_id: u64,
    position: Position,
}

impl Record {
    fn new(stage: &Stage, habits: &Habits, position: Position) -> Self {
        Self {
            stage: stage.clone(),
            habits: habits.clone(),
            door: 0,
            heard: Vec::new(),
            listing: None,
            pending: Vec::new(),
            pending_at: 0,
            complete: 0,
            cluster_id: 0,
            position,
        }
    }

    fn note(&mut self, heard: Heard) {
        self.heard.push((self.stage.now(), heard));
    }

    fn event(&mut self, revision: Revision, change: Change, version: i64) {
        if revision != self.pending_at {
            self.flush(self.pending_at);
        }
        self.pending_at = revision;
        self.pending.push((self.stage.now(), Heard::Event { revision, change, version }));
    }

    fn put(&mut self, kv: pb::KeyValue) {
        let (key, value) = (String::from_utf8_lossy(&kv.key).into_owned(), decode(&kv.value));
        match &mut self.listing {
            Some(listing) => _ = listing.insert(key, (value, kv.mod_revision)),
            None => self.event(kv.mod_revision, Change::put(key, value), kv.version),
        }
    }

    fn deleted(&mut self, key: &[u8], revision: Revision) {
        self.event(revision, Change::delete(String::from_utf8_lossy(key)), 0);
    }

    fn listed(&mut self, revision: Revision) {
        let state = self.listing.take().unwrap_or_default();
        self.pending.clear();
        self.note(Heard::Listed { revision, state });
        self.complete = revision;
        self.position.store(revision, Ordering::Relaxed);
    }

    fn progress(&mut self, revision: Revision) {
        self.flush(revision);
        self.note(Heard::Progress(revision));
        self.complete = self.complete.max(revision);
        self.position.store(self.complete, Ordering::Relaxed);
    }

    /// All up to `revision` is complete.
    fn flush(&mut self, revision: Revision) {
        self.heard.append(&mut self.pending);
        self.complete = self.complete.max(revision);
        self.position.store(self.complete, Ordering::Relaxed);
    }

    fn reset(&mut self, reason: &ResetReason) {
        self.pending.clear();
        let door = &self.habits.doors[self.door];
        // A mirror that began anew has what came since its snapshot. A replica replays what etcd has, and the embedded store
        // brings its history back.
        let is_mirror = door.keyspace().is_some();
        let excused = *reason == ResetReason::Start || (is_mirror && *reason == ResetReason::Compacted);
        let reason = format!("{reason:?} at {}", door.name);
        self.note(Heard::Reset { reason, excused });
        self.listing = Some(BTreeMap::new());
    }

    fn finish(mut self) -> Watcher {
        // A revision whose last event came is not incomplete because nothing came after it.
        self.flush(self.pending_at);
        Watcher { name: self.habits.name, heard: self.heard }
    }

    /// What our own follower says.
    fn take(&mut self, event: FollowEvent) {
        match event {
            FollowEvent::Reset { reason, cluster_id } => {
                self.cluster_id = cluster_id;
                self.reset(&reason);
            }
            FollowEvent::Put { kv, .. } => self.put(kv),
            FollowEvent::Delete { key, mod_revision, .. } => self.deleted(&key, mod_revision),
            FollowEvent::Listed { revision, .. } => self.listed(revision),
            FollowEvent::Progress { revision } => self.progress(revision),
            FollowEvent::Interrupted { reason } => self.note(Heard::Note(format!("interrupted: {reason}"))),
        }
    }
}

/// Follows with our own client until told to stop; when it has several doors it moves between them and resumes.
pub async fn follow(stage: Stage, habits: Habits, position: Position) -> Result<Watcher> {
    let mut rng = StdRng::seed_from_u64(habits.seed);
    let mut record = Record::new(&stage, &habits, position);
    loop {
        let start = (record.cluster_id != 0 && record.listing.is_none()).then(|| Resume {
            cluster_id: record.cluster_id,
            revision: record.complete,
            known: Vec::new(),
        });
        let mut follow = begin(&stage, &habits, record.door, start)?;
        let moving = tokio::time::sleep(stay(&habits, &mut rng));
        tokio::pin!(moving);
        loop {
            tokio::select! {
                event = follow.next() => match event {
                    Some(event) => record.take(event),
                    None => bail!("{}: its follower ended", habits.name),
                },
                () = &mut moving => break,
                () = stage.stop.cancelled() => return Ok(record.finish()),
            }
        }
        drop(follow);
        // What may be the half of a revision is asked for again.
        record.pending.clear();
        record.pending_at = 0;
        record.door = (record.door + 1) % habits.doors.len();
        let to = &habits.doors[record.door].name;
        record.note(Heard::Note(format!("moves to {to}, from {} on", record.complete + 1)));
    }
}

/// Until it moves, unless trouble moves it earlier.
fn stay(habits: &Habits, rng: &mut StdRng) -> Duration {
    match habits.doors.len() {
        1 => Duration::MAX,
        _ => Duration::from_millis(rng.random_range(300..2000)),
    }
}

fn begin(stage: &Stage, habits: &Habits, door: usize, start: Option<Resume>) -> Result<Follow> {
    let config = FollowConfig {
        start,
        relist: Relist::Whole,
        trust_progress: habits.trust_progress,
        pace: Pace {
            ask_after: Duration::from_millis(200),
            silent_after: Duration::from_millis(2500),
            // A server that lags is waited for: it is healed within a run.
            behind_grace: Duration::from_secs(600),
            retry_first: Duration::from_millis(30),
            retry_most: Duration::from_millis(300),
            seed: habits.seed,
        },
        ..FollowConfig::new(vec![KeyRange::prefix(stage.prefix())])
    };
    Ok(habits.doors[door].client()?.follow(config)?)
}

/// Reads the raw stream, asks for progress at once and often, and comes back by revision alone.
pub async fn raw(stage: Stage, habits: Habits, position: Position) -> Result<Watcher> {
    let mut rng = StdRng::seed_from_u64(habits.seed);
    let mut record = Record::new(&stage, &habits, position);
    record.reset(&ResetReason::Start);
    while !stage.stop.is_cancelled() {
        let (at, stay) = (&habits.doors[record.door], stay(&habits, &mut rng));
        let ended = tokio::select! {
            ended = raw_session(&stage, at, &mut record, &mut rng) => ended,
            () = tokio::time::sleep(stay) => "it moves".to_owned(),
            () = stage.stop.cancelled() => break,
        };
        record.pending.clear();
        record.pending_at = 0;
        record.door = (record.door + 1) % habits.doors.len();
        record.note(Heard::Note(format!("resumes from {} on: {ended}", record.complete + 1)));
        tokio::time::sleep(Duration::from_millis(30)).await;
    }
    Ok(record.finish())
}

/// One connection, until it ends; says why it did.
async fn raw_session(stage: &Stage, door: &Door, record: &mut Record, rng: &mut StdRng) -> String {
    if record.listing.is_some() {
        match list(stage, door).await {
            Ok((revision, state)) => {
                record.listing = Some(state);
                record.listed(revision);
            }
            Err(error) => return format!("{error:#}"),
        }
    }
    let (requests, receiver) = mpsc::channel(8);
    let (key, range_end) = KeyRange::prefix(stage.prefix()).to_wire();
    let create =
        pb::WatchCreateRequest { key, range_end, start_revision: record.complete + 1, ..Default::default() };
    let _ = requests.try_send(ask(RequestUnion::CreateRequest(create)));
    // While it catches up, when an answer is easily too early.
    let _ = requests.try_send(ask(RequestUnion::ProgressRequest(pb::WatchProgressRequest {})));
    let mut client = pb::watch_client::WatchClient::new(door.channel()).max_decoding_message_size(64 << 20);
    let mut request = tonic::Request::new(ReceiverStream::new(receiver));
    if let Some(cluster) = door.keyspace().and_then(|cluster| cluster.parse().ok()) {
        request.metadata_mut().insert("hawser-cluster", cluster);
    }
    let opening = tokio::time::timeout(Duration::from_secs(2), client.watch(request));
    let mut stream = match opening.await {
        Ok(Ok(stream)) => stream.into_inner(),
        Ok(Err(error)) => return error.message().to_owned(),
        Err(_) => return "no answer".to_owned(),
    };
    loop {
        let ask_after = Duration::from_millis(rng.random_range(5..250));
        match tokio::time::timeout(ask_after, stream.message()).await {
            Ok(Ok(Some(message))) => {
                if let Err(ended) = raw_message(record, message) {
                    return ended;
                }
            }
            Ok(Ok(None)) => return "the stream ended".to_owned(),
            Ok(Err(error)) => return error.message().to_owned(),
            Err(_) => {
                if requests.try_send(ask(RequestUnion::ProgressRequest(pb::WatchProgressRequest {}))).is_err()
                {
                    return "questions are not taken any more".to_owned();
                }
            }
        }
    }
}

fn ask(request: RequestUnion) -> pb::WatchRequest {
    pb::WatchRequest { request_union: Some(request) }
}

fn raw_message(record: &mut Record, message: pb::WatchResponse) -> Result<(), String> {
    let revision = message.header.map_or(0, |header| header.revision);
    if message.compact_revision > 0 {
        record.reset(&ResetReason::Compacted);
        return Err(format!("compacted up to {}", message.compact_revision));
    }
    if message.canceled {
        return Err(message.cancel_reason);
    }
    if message.created {
        return Ok(());
    }
    if message.events.is_empty() {
        if record.habits.trust_progress {
            record.progress(revision);
        }
        return Ok(());
    }
    for event in message.events {
        let Some(kv) = event.kv else { return Err("an event without a key".to_owned()) };
        match event.r#type == EventType::Delete as i32 {
            true => record.deleted(&kv.key, kv.mod_revision),
            false => record.put(kv),
        }
    }
    // Without fragments a message never ends within a revision.
    record.flush(record.pending_at);
    Ok(())
}

/// Everything there, at one revision.
async fn list(stage: &Stage, door: &Door) -> Result<(Revision, State)> {
    let (key, range_end) = KeyRange::prefix(stage.prefix()).to_wire();
    let request = pb::RangeRequest { key, range_end, ..Default::default() };
    let client = door.client()?;
    let reply = tokio::time::timeout(Duration::from_secs(3), client.range(request)).await??;
    let entry = |kv: pb::KeyValue| {
        (String::from_utf8_lossy(&kv.key).into_owned(), (decode(&kv.value), kv.mod_revision))
    };
    Ok((reply.header.unwrap_or_default().revision, reply.kvs.into_iter().map(entry).collect()))
}

/// What a server has at the end.
pub async fn last_read(stage: &Stage, door: &Door) -> Result<Final> {
    let (revision, state) = list(stage, door).await?;
    Ok(Final { place: door.name.clone(), revision, state })
}
