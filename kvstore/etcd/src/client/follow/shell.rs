//! The follower's task: carries out what the machine says and hands it what comes back.

use std::future::Future;
use std::pin::Pin;
use std::time::Instant;

use hawser_model::Time;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio_stream::wrappers::ReceiverStream;
use tonic::metadata::AsciiMetadataValue;

use super::machine::{Machine, Output};
use super::meter::Meter;
use super::{FollowConfig, FollowConfigError, FollowEvent, FollowState, FollowStatus, Order};
use crate::client::{CallError, Client, Trouble};
use crate::pb;
use crate::server::PROGRESS_METADATA;

/// A follower at work; dropping it ends it.
#[derive(Debug)]
pub struct Follow {
    events: mpsc::Receiver<FollowEvent>,
    status: watch::Receiver<FollowStatus>,
    task: JoinHandle<()>,
}

impl Follow {
    /// The next event. Never `None` while the runtime lives: a follower does not give up. Cancel safe.
    pub async fn next(&mut self) -> Option<FollowEvent> {
        self.events.recv().await
    }

    /// What has come already, without waiting.
    pub fn try_next(&mut self) -> Option<FollowEvent> {
        self.events.try_recv().ok()
    }

    pub fn status(&self) -> watch::Receiver<FollowStatus> {
        self.status.clone()
    }
}

impl Drop for Follow {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Client {
    /// Follows ranges of the keyspace for as long as the result lives. Starts at once; never waits for the server here.
    pub fn follow(&self, config: FollowConfig) -> Result<Follow, FollowConfigError> {
        let (events, receiver) = mpsc::channel(config.buffer.max(1));
        let started = Instant::now();
        let in_rounds = config.order == Order::Total && config.ranges.len() > 1;
        let meter = config.rate.clone();
        let machine = Machine::new(config, Time::ZERO)?;
        let (status, status_receiver) = watch::channel(FollowStatus {
            state: FollowState::Connecting,
            cluster_id: machine.cluster_id(),
            revision: machine.revision(),
            heard_at: None,
            relists: 0,
            reconnects: 0,
            last_trouble: None,
        });
        let shell = Shell {
            client: self.clone(),
            machine,
            meter,
            in_rounds,
            started,
            events,
            status,
            call: Call::None,
            heard_at: None,
        };
        Ok(Follow { events: receiver, status: status_receiver, task: tokio::spawn(shell.run()) })
    }
}

type Pending<T> = Pin<Box<dyn Future<Output = Result<T, CallError>> + Send>>;

/// The one call under way. A new one replaces, and so ends, the one before.
enum Call {
    None,
    List(Pending<pb::RangeResponse>),
    Opening { reply: Pending<tonic::Streaming<pb::WatchResponse>>, requests: mpsc::Sender<pb::WatchRequest> },
    Watch { stream: Box<tonic::Streaming<pb::WatchResponse>>, requests: mpsc::Sender<pb::WatchRequest> },
}

/// What a call gave.
enum Heard {
    Page(Result<pb::RangeResponse, CallError>),
    Opened(Result<tonic::Streaming<pb::WatchResponse>, CallError>),
    Message(Result<Option<pb::WatchResponse>, CallError>),
}

impl Heard {
    /// Entries and their bytes; a message without any is still one to look at. O(entries).
    fn size(&self) -> (usize, usize) {
        let bytes = |kv: &pb::KeyValue| kv.key.len() + kv.value.len();
        match self {
            Self::Page(Ok(page)) => (page.kvs.len().max(1), page.kvs.iter().map(bytes).sum()),
            Self::Message(Ok(Some(message))) => {
                let kvs = message.events.iter().flat_map(|event| event.kv.iter().chain(&event.prev_kv));
                (message.events.len().max(1), kvs.map(bytes).sum())
            }
            _ => (0, 0),
        }
    }
}

struct Shell {
    client: Client,
    machine: Machine,
    meter: Option<Meter>,
    /// Ask the server to say after each round of events how far it has come.
    in_rounds: bool,
    started: Instant,
    events: mpsc::Sender<FollowEvent>,
    status: watch::Sender<FollowStatus>,
    call: Call,
    heard_at: Option<Instant>,
}

impl Shell {
    async fn run(mut self) {
        while self.carry_out().await {
            if !self.hold().await {
                return;
            }
            let deadline = self.machine.poll_deadline().map(|d| self.started + d.at().since_start());
            tokio::select! {
                biased;
                heard = hear(&mut self.call) => self.feed(heard),
                () = sleep_until(deadline) => {
                    let now = self.now();
                    self.machine.handle_time(now);
                }
                () = self.events.closed() => return,
            }
        }
    }

    fn now(&self) -> Time {
        Time::from_duration(self.started.elapsed())
    }

    /// Reads nothing while more was read than the rate allows. False when the caller is gone.
    async fn hold(&mut self) -> bool {
        let Some(until) = self.meter.as_ref().and_then(Meter::shut_until) else { return true };
        tokio::select! {
            () = tokio::time::sleep_until(until.into()) => {}
            () = self.events.closed() => return false,
        }
        let now = self.now();
        self.machine.handle_caller_waited(now);
        true
    }

    fn feed(&mut self, heard: Heard) {
        let now = self.now();
        if let Some(meter) = &self.meter {
            let (events, bytes) = heard.size();
            meter.handle_read(events, bytes);
        }
        self.heard_at = match &heard {
            Heard::Page(Ok(_)) | Heard::Message(Ok(Some(_))) => Some(Instant::now()),
            _ => self.heard_at,
        };
        match heard {
            Heard::Page(result) => {
                self.call = Call::None;
                match result {
                    Ok(page) => self.machine.handle_page(page, now),
                    Err(error) => self.machine.handle_list_failed(Trouble::from(&error), now),
                }
            }
            Heard::Opened(Ok(stream)) => {
                if let Call::Opening { requests, .. } = std::mem::replace(&mut self.call, Call::None) {
                    self.call = Call::Watch { stream: Box::new(stream), requests };
                }
            }
            Heard::Message(Ok(Some(message))) => self.machine.handle_watch(message, now),
            Heard::Message(Ok(None)) => {
                self.call = Call::None;
                self.machine.handle_watch_ended("the server closed the watch".to_owned(), now);
            }
            Heard::Opened(Err(error)) | Heard::Message(Err(error)) => {
                self.call = Call::None;
                self.machine.handle_watch_ended(error.to_string(), now);
            }
        }
    }

    /// Everything the machine wants done. False when the caller is gone.
    async fn carry_out(&mut self) -> bool {
        while let Some(output) = self.machine.poll_output() {
            match output {
                Output::List(request) => {
                    let client = self.client.clone();
                    self.call = Call::List(Box::pin(async move { client.page(request).await }));
                }
                Output::Watch(creates) => self.call = self.open(creates),
                Output::AskProgress => self.ask_progress(),
                Output::Close => self.call = Call::None,
                Output::Emit(event) => {
                    if !self.emit(event).await {
                        return false;
                    }
                }
            }
        }
        self.publish();
        true
    }

    fn open(&self, creates: Vec<pb::WatchCreateRequest>) -> Call {
        let (requests, receiver) = mpsc::channel(creates.len() + 4);
        for create in creates {
            let request = pb::watch_request::RequestUnion::CreateRequest(create);
            // There is room: the channel was made for them.
            let _ = requests.try_send(pb::WatchRequest { request_union: Some(request) });
        }
        let (client, in_rounds) = (self.client.clone(), self.in_rounds);
        let reply = Box::pin(async move {
            let mut request = client.request(ReceiverStream::new(receiver));
            if in_rounds {
                request.metadata_mut().insert(PROGRESS_METADATA, AsciiMetadataValue::from_static("rounds"));
            }
            client.stream(request).await
        });
        Call::Opening { reply, requests }
    }

    /// A full channel means that earlier questions have not even been sent; one more would not help.
    fn ask_progress(&mut self) {
        if let Call::Watch { requests, .. } = &self.call {
            let question = pb::watch_request::RequestUnion::ProgressRequest(pb::WatchProgressRequest {});
            let _ = requests.try_send(pb::WatchRequest { request_union: Some(question) });
        }
    }

    async fn emit(&mut self, event: FollowEvent) -> bool {
        if let FollowEvent::Interrupted { reason } = &event {
            tracing::debug!(reason, "following was interrupted, will go on");
            self.status.send_modify(|status| status.last_trouble = Some(reason.clone()));
        }
        match self.events.try_send(event) {
            Ok(()) => true,
            Err(mpsc::error::TrySendError::Closed(_)) => false,
            Err(mpsc::error::TrySendError::Full(event)) => {
                self.publish();
                let sent = self.events.send(event).await.is_ok();
                let now = self.now();
                self.machine.handle_caller_waited(now);
                sent
            }
        }
    }

    fn publish(&self) {
        let machine = &self.machine;
        self.status.send_if_modified(|status| {
            let new = FollowStatus {
                state: machine.state(),
                cluster_id: machine.cluster_id(),
                revision: machine.revision(),
                heard_at: self.heard_at,
                relists: machine.relists(),
                reconnects: machine.reconnects(),
                last_trouble: status.last_trouble.take(),
            };
            let changed = *status != new;
            *status = new;
            changed
        });
    }
}

/// Waits for the call under way; for ever when there is none. Cancel safe.
async fn hear(call: &mut Call) -> Heard {
    match call {
        Call::None => std::future::pending().await,
        Call::List(reply) => Heard::Page(reply.await),
        Call::Opening { reply, .. } => Heard::Opened(reply.await),
        Call::Watch { stream, .. } => Heard::Message(stream.message().await.map_err(CallError::from)),
    }
}

async fn sleep_until(deadline: Option<Instant>) {
    match deadline {
        Some(at) => tokio::time::sleep_until(at.into()).await,
        None => std::future::pending().await,
    }
}
