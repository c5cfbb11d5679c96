//! An etcd-API server that lies: what the honest one behind it says, distorted as a test asks for.

use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use futures::{Stream, StreamExt as _, stream};
use hawser_etcd::pb;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tonic::{Request, Response, Status, Streaming};

/// What it lies about. Those that begin with `List` tell of another lineage first, so that a list is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Lie {
    None,
    NoHeader,
    LineagePerReply,
    RevisionGoesBack,
    RevisionOfTheEnd,
    RevisionBelowZero,
    EventsBackward,
    EventsTwice,
    EventsFromTheEnd,
    ProgressAhead,
    ProgressOfTheEnd,
    Canceled,
    Compacted,
    CreatedForEver,
    FragmentsForEver,
    KeysNotAskedFor,
    WatchNotAskedFor,
    EventsWithoutKeys,
    HugeKeys,
    Exhausted,
    Silent,
    ListHasMoreForEver,
    ListHasMoreAndGivesNothing,
    ListBackward,
    ListNotAskedFor,
    ListFromTheFuture,
    ListWithoutHeader,
    ListLineagePerPage,
    ListExhausted,
}

impl Lie {
    pub(crate) const ALL: [Self; 28] = [
        Self::NoHeader,
        Self::LineagePerReply,
        Self::RevisionGoesBack,
        Self::RevisionOfTheEnd,
        Self::RevisionBelowZero,
        Self::EventsBackward,
        Self::EventsTwice,
        Self::EventsFromTheEnd,
        Self::ProgressAhead,
        Self::ProgressOfTheEnd,
        Self::Canceled,
        Self::Compacted,
        Self::CreatedForEver,
        Self::FragmentsForEver,
        Self::KeysNotAskedFor,
        Self::WatchNotAskedFor,
        Self::EventsWithoutKeys,
        Self::HugeKeys,
        Self::Exhausted,
        Self::Silent,
        Self::ListHasMoreForEver,
        Self::ListHasMoreAndGivesNothing,
        Self::ListBackward,
        Self::ListNotAskedFor,
        Self::ListFromTheFuture,
        Self::ListWithoutHeader,
        Self::ListLineagePerPage,
        Self::ListExhausted,
    ];

    fn is_of_lists(self) -> bool {
        format!("{self:?}").starts_with("List")
    }
}

/// What is lied now, and how often it was. Clones are the same.
#[derive(Clone, Debug)]
pub(crate) struct Lies(Arc<(Mutex<Lie>, AtomicU64)>);

impl Lies {
    pub(crate) fn none() -> Self {
        Self(Arc::new((Mutex::new(Lie::None), AtomicU64::new(0))))
    }

    pub(crate) fn tell(&self, lie: Lie) {
        *self.0.0.lock().unwrap() = lie;
        self.0.1.store(0, Ordering::SeqCst);
    }

    pub(crate) fn told(&self) -> u64 {
        self.0.1.load(Ordering::SeqCst)
    }

    fn now(&self) -> (Lie, u64) {
        (*self.0.0.lock().unwrap(), self.0.1.fetch_add(1, Ordering::SeqCst))
    }

    fn of_lists(&self) -> Lie {
        let lie = *self.0.0.lock().unwrap();
        if lie.is_of_lists() {
            self.0.1.fetch_add(1, Ordering::SeqCst);
        }
        lie
    }
}

/// In front of an honest server.
#[derive(Clone, Debug)]
pub(crate) struct Liar {
    pub(crate) behind: Channel,
    pub(crate) lies: Lies,
}

type Reply<T> = Result<Response<T>, Status>;
type Heard = Result<pb::WatchResponse, Status>;

#[tonic::async_trait]
impl pb::kv_server::Kv for Liar {
    async fn range(&self, request: Request<pb::RangeRequest>) -> Reply<pb::RangeResponse> {
        let asked = request.get_ref().clone();
        let mut client = pb::kv_client::KvClient::new(self.behind.clone());
        let mut page = client.range(Request::new(asked.clone())).await?.into_inner();
        list(self.lies.of_lists(), &asked, &mut page, self.lies.told())?;
        Ok(Response::new(page))
    }

    async fn put(&self, _: Request<pb::PutRequest>) -> Reply<pb::PutResponse> {
        Err(Status::unimplemented("a peer is only read"))
    }

    async fn delete_range(&self, _: Request<pb::DeleteRangeRequest>) -> Reply<pb::DeleteRangeResponse> {
        Err(Status::unimplemented("a peer is only read"))
    }

    async fn txn(&self, _: Request<pb::TxnRequest>) -> Reply<pb::TxnResponse> {
        Err(Status::unimplemented("a peer is only read"))
    }

    async fn compact(&self, _: Request<pb::CompactionRequest>) -> Reply<pb::CompactionResponse> {
        Err(Status::unimplemented("a peer is only read"))
    }
}

#[tonic::async_trait]
impl pb::watch_server::Watch for Liar {
    type WatchStream = Pin<Box<dyn Stream<Item = Heard> + Send>>;

    async fn watch(&self, request: Request<Streaming<pb::WatchRequest>>) -> Reply<Self::WatchStream> {
        let rounds = request.metadata().get("hawser-progress").cloned();
        let mut asked = request.into_inner();
        let (forward, requests) = mpsc::channel(16);
        tokio::spawn(async move {
            while let Ok(Some(message)) = asked.message().await {
                if forward.send(message).await.is_err() {
                    return;
                }
            }
        });
        let mut request = Request::new(ReceiverStream::new(requests));
        rounds.map(|rounds| request.metadata_mut().insert("hawser-progress", rounds));
        let mut client =
            pb::watch_client::WatchClient::new(self.behind.clone()).max_decoding_message_size(64 << 20);
        let honest = client.watch(request).await?.into_inner();
        let lies = self.lies.clone();
        let said = honest.flat_map(move |heard| {
            let (lie, nth) = lies.now();
            stream::iter(match heard {
                Ok(message) => distort(lie, message, nth),
                Err(status) => vec![Err(status)],
            })
        });
        Ok(Response::new(Box::pin(said)))
    }
}

fn header(message: &mut pb::WatchResponse) -> &mut pb::ResponseHeader {
    message.header.get_or_insert_default()
}

fn event(key: Bytes, value: Bytes, mod_revision: i64) -> pb::Event {
    pb::Event {
        kv: Some(pb::KeyValue { key, value, mod_revision, ..Default::default() }),
        ..Default::default()
    }
}

/// What is said in place of `message`.
fn distort(lie: Lie, mut message: pb::WatchResponse, nth: u64) -> Vec<Heard> {
    let revision = header(&mut message).revision;
    match lie {
        Lie::None => {}
        Lie::NoHeader => message.header = None,
        Lie::LineagePerReply => header(&mut message).cluster_id = 1 + nth,
        _ if lie.is_of_lists() => header(&mut message).cluster_id = 1,
        Lie::RevisionGoesBack => header(&mut message).revision = 1,
        Lie::RevisionOfTheEnd => header(&mut message).revision = i64::MAX,
        Lie::RevisionBelowZero => header(&mut message).revision = i64::MIN,
        Lie::EventsBackward => {
            message.events.reverse();
            for kv in message.events.iter_mut().filter_map(|event| event.kv.as_mut()) {
                kv.mod_revision -= 3;
            }
        }
        Lie::EventsTwice => return vec![Ok(message.clone()), Ok(message)],
        Lie::EventsFromTheEnd => {
            for kv in message.events.iter_mut().filter_map(|event| event.kv.as_mut()) {
                (kv.mod_revision, kv.version, kv.lease) = (i64::MAX, i64::MIN, i64::MIN);
            }
        }
        Lie::ProgressAhead | Lie::ProgressOfTheEnd if !message.created => {
            let mut progress = pb::WatchResponse { watch_id: -1, ..message.clone() };
            progress.events.clear();
            header(&mut progress).revision = match lie {
                Lie::ProgressAhead => revision + 20,
                _ => i64::MAX - 1,
            };
            return vec![Ok(progress), Ok(message)];
        }
        Lie::Canceled => (message.canceled, message.cancel_reason) = (true, "etcdserver: no".into()),
        Lie::Compacted => (message.canceled, message.compact_revision) = (true, revision + 1),
        Lie::CreatedForEver => {
            let again = pb::WatchResponse { created: true, events: Vec::new(), ..message.clone() };
            return std::iter::repeat_n(Ok(again), 100).chain([Ok(message)]).collect();
        }
        Lie::FragmentsForEver if !message.events.is_empty() => {
            message.fragment = true;
            return std::iter::repeat_n(Ok(message), 200).collect();
        }
        Lie::KeysNotAskedFor if !message.created => {
            for key in ["hawser/local/peers/v1/ap-south", "hawser/private/leader", "zzz"] {
                message.watch_id = 4;
                message.events.push(event(key.into(), "{}".into(), revision));
            }
        }
        Lie::WatchNotAskedFor if !message.created => message.watch_id = 99,
        Lie::EventsWithoutKeys if !message.created => message.events = vec![pb::Event::default(); 10_000],
        Lie::HugeKeys if !message.created => {
            let key = [b"cilium/state/", &vec![b'k'; 4 << 20][..]].concat();
            message.events = vec![event(key.into(), vec![b'v'; 4 << 20].into(), revision)];
            message.watch_id = 5;
        }
        Lie::Exhausted => return vec![Err(Status::resource_exhausted("cluster us-east asks too much"))],
        Lie::Silent => return Vec::new(),
        _ => {}
    }
    vec![Ok(message)]
}

fn list(lie: Lie, asked: &pb::RangeRequest, page: &mut pb::RangeResponse, nth: u64) -> Result<(), Status> {
    let after = |key: &Bytes, n: u32| Bytes::from([&key[..], format!("/{n}").as_bytes()].concat());
    let kv = |key: Bytes| pb::KeyValue { key, value: "{}".into(), mod_revision: 1, ..Default::default() };
    match lie {
        Lie::ListHasMoreForEver if !asked.range_end.is_empty() => {
            page.more = true;
            let mut keys: Vec<_> = (0..500).map(|n| after(&asked.key, n)).collect();
            keys.sort();
            page.kvs = keys.into_iter().map(kv).collect();
        }
        Lie::ListHasMoreAndGivesNothing => (page.more, page.kvs) = (true, Vec::new()),
        Lie::ListBackward => {
            page.kvs.push(kv(after(&asked.key, 1)));
            page.kvs.push(kv(after(&asked.key, 0)));
        }
        Lie::ListNotAskedFor => page.kvs.push(kv("zzz".into())),
        Lie::ListFromTheFuture => {
            for kv in &mut page.kvs {
                kv.mod_revision = i64::MAX;
            }
        }
        Lie::ListWithoutHeader => page.header = None,
        Lie::ListLineagePerPage => page.header.get_or_insert_default().cluster_id = 1 + nth,
        Lie::ListExhausted => return Err(Status::resource_exhausted("cluster us-east lists too much")),
        _ => {}
    }
    Ok(())
}
