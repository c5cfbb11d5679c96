//! One etcd of several members as one service: a call goes to the next member that has not just failed one.

use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use tonic::body::Body;
use tonic::transport::Channel;
use tower::{Service, ServiceExt as _};

/// A member that failed a call is passed over for so long, as long as there is another one.
const REST: Duration = Duration::from_secs(1);

/// Cloning counts references.
#[derive(Clone, Debug)]
pub(crate) struct Members(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    members: Box<[Member]>,
    turn: AtomicUsize,
}

#[derive(Debug)]
struct Member {
    channel: Channel,
    failed: Mutex<Option<Instant>>,
}

impl Members {
    /// At least one.
    pub(crate) fn new(channels: impl IntoIterator<Item = Channel>) -> Self {
        let members = channels.into_iter().map(|channel| Member { channel, failed: Mutex::default() });
        Self(Arc::new(Inner { members: members.collect(), turn: AtomicUsize::new(0) }))
    }

    fn next(&self) -> usize {
        let count = self.0.members.len();
        let turn = self.0.turn.fetch_add(1, Ordering::Relaxed);
        (0..count).map(|n| (turn + n) % count).find(|place| !self.rests(*place)).unwrap_or(turn % count)
    }

    fn rests(&self, place: usize) -> bool {
        let failed = self.0.members[place].failed.lock().unwrap_or_else(PoisonError::into_inner);
        failed.is_some_and(|at| at.elapsed() < REST)
    }

    fn note(&self, place: usize, failed: Option<Instant>) {
        *self.0.members[place].failed.lock().unwrap_or_else(PoisonError::into_inner) = failed;
    }
}

/// A call that nobody waits for any more was too slow: that counts as failed.
struct Outcome {
    members: Members,
    place: usize,
    well: bool,
}

impl Drop for Outcome {
    fn drop(&mut self) {
        self.members.note(self.place, (!self.well).then(Instant::now));
    }
}

impl Service<http::Request<Body>> for Members {
    type Response = http::Response<Body>;
    type Error = tonic::transport::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let place = self.next();
        let channel = self.0.members[place].channel.clone();
        let members = self.clone();
        Box::pin(async move {
            let mut outcome = Outcome { members, place, well: false };
            let reply = channel.oneshot(request).await;
            outcome.well = reply.is_ok();
            reply
        })
    }
}
