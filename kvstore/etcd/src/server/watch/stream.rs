//! One watch stream: its watches are cursors, and what is new is pulled for all of them as fast as the reader reads.

use super::Outgoing;
use super::frame::Message;
use crate::pb;
use crate::pb::watch_create_request::FilterType;
use crate::pb::watch_request::RequestUnion;
use crate::server::authorize::Access;
use crate::server::keyspaces::{Counters, KeyspaceHandle};
use crate::server::reader::{self, WatchPlace};
use crate::server::service::{MAX_MESSAGE, Shared, header};
use bytes::Bytes;
use futures::StreamExt as _;
use hawser_kvstore::{Cursor, Event, EventKind, KeyRange, PullLimits, Pulled, Revision};
use std::collections::BTreeMap;
use std::future::ready;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::MissedTickBehavior;
use tonic::{Status, Streaming};

/// How often a quiet watch with `progress_notify` is told the revision.
const PROGRESS_INTERVAL: Duration = Duration::from_secs(60);
/// A stream's watches are held in memory, so there is a most.
const MAX_WATCHES: usize = 4096;
/// etcd's id for "no watch of yours".
const NO_WATCH: i64 = -1;

pub(crate) struct WatchStream {
    shared: Arc<Shared>,
    keyspace: KeyspaceHandle,
    caller: http::Extensions,
    out: mpsc::Sender<Outgoing>,
    watches: BTreeMap<i64, Watch>,
    next_id: i64,
    /// Some watch has more to pull right now.
    behind: bool,
    /// The reader wants to know after each round how far it has come ([`super::PROGRESS_METADATA`]).
    tell_rounds: bool,
}

struct Watch {
    cursor: Cursor,
    keys: KeyRange,
    prev_kv: bool,
    progress_notify: bool,
    /// A response above what etcd takes as a request, its own overhead included, comes in pieces.
    fragment: bool,
    puts: bool,
    deletes: bool,
    /// Something was sent since the last progress notification.
    busy: bool,
    /// Of a reader whose watches are counted.
    _place: Option<WatchPlace>,
}

/// The reader has gone, or the keyspace: there is nobody to tell.
struct Gone;

impl WatchStream {
    pub(crate) fn new(
        shared: Arc<Shared>,
        keyspace: KeyspaceHandle,
        caller: http::Extensions,
        out: mpsc::Sender<Outgoing>,
        tell_rounds: bool,
    ) -> Self {
        let watches = BTreeMap::new();
        Self { shared, keyspace, caller, out, watches, next_id: 0, behind: false, tell_rounds }
    }

    pub(crate) async fn run(mut self, requests: Streaming<pb::WatchRequest>) {
        if let Ok(status) = self.serve(requests).await {
            // The reader may have gone in the meantime; then nobody needs the status.
            drop(self.out.send(Outgoing::End(status)).await);
        }
    }

    async fn serve(&mut self, requests: Streaming<pb::WatchRequest>) -> Result<Status, Gone> {
        // Looked at when something has come, and not with every event.
        let mut requests = futures::stream::select_all([requests]);
        let mut progress = self.keyspace.keyspace().subscribe();
        let mut tick = tokio::time::interval(PROGRESS_INTERVAL);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let removed = self.keyspace.removed().clone();
        let mut removed = pin!(removed.cancelled());
        loop {
            tokio::select! {
                // Requests first, so that a cancel is heard while the stream catches up.
                biased;
                () = &mut removed => {
                    let name = self.keyspace.name();
                    return Ok(Status::unavailable(format!("cluster {name} is no longer served here")));
                }
                request = requests.next() => match request {
                    Some(Ok(request)) => self.handle(request).await?,
                    Some(Err(status)) => return Ok(status),
                    None => return Ok(Status::ok("")),
                },
                () = ready(()), if self.behind => self.pull_all().await?,
                // The sender lives in the handle that this stream holds.
                _ = progress.changed() => self.pull_all().await?,
                _ = tick.tick() => self.notify_progress().await?,
            }
        }
    }

    async fn handle(&mut self, request: pb::WatchRequest) -> Result<(), Gone> {
        match request.request_union {
            Some(RequestUnion::CreateRequest(request)) => self.create(request).await,
            Some(RequestUnion::CancelRequest(request)) => self.cancel(request.watch_id).await,
            Some(RequestUnion::ProgressRequest(_)) => self.tell_progress().await,
            None => Ok(()),
        }
    }

    async fn create(&mut self, mut request: pb::WatchCreateRequest) -> Result<(), Gone> {
        if request.key.is_empty() {
            request.key = Bytes::from_static(&[0]);
        }
        let filters: Vec<FilterType> = request.filters().collect();
        let keys = KeyRange::from_wire(request.key, request.range_end);
        let place = match self.place(request.watch_id, &keys) {
            Ok(place) => place,
            Err(reason) => {
                let mut response = self.response(NO_WATCH);
                (response.created, response.canceled, response.cancel_reason) = (true, true, reason);
                return self.send(Message::control(&response)).await;
            }
        };
        let id = self.choose_id(request.watch_id);
        let (cursor, created) = self.keyspace.keyspace().read(|keyspace| {
            let header = Some(header(keyspace, keyspace.revision()));
            let created = pb::WatchResponse { header, watch_id: id, created: true, ..Default::default() };
            (keyspace.watch(request.start_revision), created)
        });
        Counters::count(&self.keyspace.counters().watches);
        self.send(Message::control(&created)).await?;
        match cursor {
            Ok(cursor) => {
                let watch = Watch {
                    cursor,
                    keys,
                    prev_kv: request.prev_kv,
                    progress_notify: request.progress_notify,
                    fragment: request.fragment,
                    puts: !filters.contains(&FilterType::Noput),
                    deletes: !filters.contains(&FilterType::Nodelete),
                    busy: false,
                    _place: place,
                };
                self.watches.insert(id, watch);
                self.behind = true;
                Ok(())
            }
            Err(lost) => self.end_watch(id, &lost).await,
        }
    }

    /// A watch's place among those of its caller; else why it cannot be, in the words that etcd puts into `cancel_reason`.
    fn place(&self, id: i64, keys: &KeyRange) -> Result<Option<WatchPlace>, String> {
        match self.refusal(id, keys) {
            Some(reason) => Err(reason),
            None => reader::watched(&self.caller).map_err(|why| format!("etcdserver: {why}")),
        }
    }

    fn refusal(&self, id: i64, keys: &KeyRange) -> Option<String> {
        if id != 0 && self.watches.contains_key(&id) {
            return Some("mvcc: duplicate watch ID provided on the WatchStream".to_owned());
        }
        if keys.is_empty() {
            return Some("mvcc: watcher range is empty".to_owned());
        }
        if self.watches.len() >= MAX_WATCHES {
            return Some(format!("a stream has {MAX_WATCHES} watches at most: open another stream"));
        }
        let asked = self.shared.authorize(&self.caller, &self.keyspace, "Watch.Watch", Access::Read(keys));
        asked.err().map(|denied| format!("etcdserver: permission denied: {}", denied.message()))
    }

    fn choose_id(&mut self, wanted: i64) -> i64 {
        if wanted != 0 {
            return wanted;
        }
        while self.watches.contains_key(&self.next_id) {
            self.next_id = self.next_id.wrapping_add(1);
        }
        let id = self.next_id;
        self.next_id = self.next_id.wrapping_add(1);
        id
    }

    async fn cancel(&mut self, id: i64) -> Result<(), Gone> {
        if self.watches.remove(&id).is_none() {
            return Ok(());
        }
        Counters::count(&self.keyspace.counters().closed_watches);
        let mut response = self.response(id);
        response.canceled = true;
        self.send(Message::control(&response)).await
    }

    /// One pull for every watch. O(watches * events since the last one).
    async fn pull_all(&mut self) -> Result<(), Gone> {
        self.behind = false;
        let ids: Vec<i64> = self.watches.keys().copied().collect();
        let (mut sent, mut complete) = (false, Revision::MAX);
        for id in ids {
            if let Some(progress) = self.pull(id).await? {
                self.behind |= progress.more;
                sent |= progress.sent;
                complete = complete.min(progress.revision);
            }
        }
        if self.tell_rounds && sent { self.tell_complete(complete).await } else { Ok(()) }
    }

    async fn tell_complete(&self, revision: Revision) -> Result<(), Gone> {
        let mut response = self.response(NO_WATCH);
        if let Some(header) = &mut response.header {
            header.revision = revision;
        }
        self.send(Message::control(&response)).await
    }

    /// `None`: the watch has ended.
    async fn pull(&mut self, id: i64) -> Result<Option<Progress>, Gone> {
        // Room first: events are not taken out for a reader that does not read.
        let permit = self.reserve().await?;
        let Some(watch) = self.watches.get_mut(&id) else { return Ok(None) };
        let (pulled, mut header) = self.keyspace.keyspace().read(|keyspace| {
            let pulled = keyspace.pull(&mut watch.cursor, &watch.keys, PullLimits::default());
            (pulled, header(keyspace, keyspace.revision()))
        });
        let (mut events, revision, more) = match pulled {
            Pulled::Events { events, revision, more } => (events, revision, more),
            lost => {
                drop(permit);
                self.end_watch(id, &lost).await?;
                return Ok(None);
            }
        };
        if !(watch.puts && watch.deletes) {
            events.retain(|event| watch.wants(event));
        }
        let sent = !events.is_empty();
        if sent {
            watch.busy = true;
            self.keyspace.counters().events.fetch_add(events.len() as u64, Ordering::Relaxed);
            header.revision = revision;
            let head = pb::WatchResponse { header: Some(header), watch_id: id, ..Default::default() };
            let most = if watch.fragment { MAX_MESSAGE } else { usize::MAX };
            let mut room = Some(permit);
            for message in Message::fragments(&head, &events, watch.prev_kv, most) {
                let permit = match room.take() {
                    Some(permit) => permit,
                    None => self.reserve().await?,
                };
                permit.send(Outgoing::Message(message));
            }
        }
        Ok(Some(Progress { revision, more, sent }))
    }

    /// The etcd answer to a watch that cannot go on: canceled, and the revision from which another may start.
    async fn end_watch(&mut self, id: i64, lost: &Pulled) -> Result<(), Gone> {
        self.watches.remove(&id);
        Counters::count(&self.keyspace.counters().closed_watches);
        let mut response = self.response(id);
        response.canceled = true;
        match lost {
            Pulled::FellBehind { compact_revision } => {
                Counters::count(&self.keyspace.counters().fell_behind);
                response.compact_revision = *compact_revision;
            }
            // Another lineage. Go's clients look at `compact_revision` alone before they list again, ours at the cluster id.
            _ => {
                response.compact_revision = response.header.as_ref().map_or(1, |header| header.revision + 1);
                "the keyspace was replaced by another lineage: list again"
                    .clone_into(&mut response.cancel_reason);
            }
        }
        self.send(Message::control(&response)).await
    }

    /// Every watch has been sent everything up to the revision that is told (etcd's manual progress request).
    async fn tell_progress(&mut self) -> Result<(), Gone> {
        let target = self.keyspace.keyspace().read(hawser_kvstore::Keyspace::revision);
        let ids: Vec<i64> = self.watches.keys().copied().collect();
        for id in ids {
            while let Some(progress) = self.pull(id).await? {
                if !progress.more || progress.revision >= target {
                    break;
                }
            }
        }
        self.tell_complete(target).await
    }

    async fn notify_progress(&mut self) -> Result<(), Gone> {
        let ids: Vec<i64> =
            self.watches.iter().filter(|(_, w)| w.progress_notify).map(|(&id, _)| id).collect();
        for id in ids {
            let Some(progress) = self.pull(id).await? else { continue };
            let Some(watch) = self.watches.get_mut(&id) else { continue };
            let quiet = !std::mem::take(&mut watch.busy);
            if quiet && !progress.more {
                let mut response = self.response(id);
                if let Some(header) = &mut response.header {
                    header.revision = progress.revision;
                }
                self.send(Message::control(&response)).await?;
            }
        }
        Ok(())
    }

    fn response(&self, watch_id: i64) -> pb::WatchResponse {
        let header = self.keyspace.keyspace().read(|keyspace| header(keyspace, keyspace.revision()));
        pb::WatchResponse { header: Some(header), watch_id, ..Default::default() }
    }

    async fn send(&self, message: Message) -> Result<(), Gone> {
        self.reserve().await?.send(Outgoing::Message(message));
        Ok(())
    }

    /// Waits for the reader, which HTTP/2's flow control may hold back for as long as it likes.
    async fn reserve(&self) -> Result<mpsc::OwnedPermit<Outgoing>, Gone> {
        if let Ok(permit) = self.out.clone().try_reserve_owned() {
            return Ok(permit);
        }
        tokio::select! {
            permit = self.out.clone().reserve_owned() => permit.map_err(|_| Gone),
            () = self.keyspace.removed().cancelled() => Err(Gone),
        }
    }
}

impl Drop for WatchStream {
    fn drop(&mut self) {
        for _ in &self.watches {
            Counters::count(&self.keyspace.counters().closed_watches);
        }
    }
}

/// How far a watch has been told.
struct Progress {
    revision: Revision,
    more: bool,
    /// There were events.
    sent: bool,
}

impl Watch {
    fn wants(&self, event: &Event) -> bool {
        match event.kind() {
            EventKind::Put => self.puts,
            EventKind::Delete => self.deletes,
        }
    }
}
