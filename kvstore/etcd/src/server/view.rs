//! A served view: what some readers see of a keyspace, made once and kept in step by one task, however many read it.
//!
//! It reads like any keyspace, so nothing that answers ranges and watches knows of it. Cost: for an event what the filter takes,
//! once; in memory the keys that are shown a second time, their values shared.

use super::keyspaces::{KeyspaceHandle, SharedKeyspace};
use hawser_kvstore::{Cursor, Filter, Horizon, Identity, KeyRange, Keyspace, PullLimits, Pulled, View};
use std::fmt;
use std::sync::Arc;
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// Cloning it counts a reference; the task ends with the last one.
#[derive(Clone)]
pub struct ServedView(Arc<Inner>);

struct Inner {
    handle: KeyspaceHandle,
    /// It has come as far as the origin had when it began.
    ready: watch::Receiver<bool>,
    task: JoinHandle<()>,
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl ServedView {
    /// Begins to make the view named `view` ([`hawser_kvstore::view_id`]); `filter` is called again whenever all has to be read
    /// again. Must be called in a tokio runtime.
    pub fn start<F>(
        origin: &KeyspaceHandle,
        view: u64,
        filter: impl Fn() -> F + Send + Sync + 'static,
    ) -> Self
    where
        F: Filter + Send + 'static,
    {
        let (limits, identity) = origin.keyspace().read(|k| (k.limits(), k.identity()));
        let identity = identity.of_view(origin.name(), view);
        let keyspace = SharedKeyspace::new(Keyspace::replica(identity, limits));
        let (ready, is_ready) = watch::channel(false);
        let keeper = Keeper {
            origin: origin.keyspace().clone(),
            cluster: origin.name().to_owned(),
            view,
            shown: keyspace.clone(),
            filter,
            ready,
        };
        let handle = origin.with_keyspace(keyspace);
        Self(Arc::new(Inner { handle, ready: is_ready, task: tokio::spawn(keeper.run()) }))
    }

    /// The keyspace to serve, once it is there: nobody takes "not made yet" for "empty". None: it will never be.
    pub async fn ready(&self) -> Option<KeyspaceHandle> {
        let mut ready = self.0.ready.clone();
        ready.wait_for(|ready| *ready).await.is_ok().then(|| self.0.handle.clone())
    }
}

impl fmt::Debug for ServedView {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("ServedView").field(&self.0.handle).finish()
    }
}

/// The one task.
struct Keeper<M> {
    origin: SharedKeyspace,
    cluster: String,
    view: u64,
    shown: SharedKeyspace,
    filter: M,
    ready: watch::Sender<bool>,
}

impl<F: Filter + Send + 'static, M: Fn() -> F> Keeper<M> {
    async fn run(self) {
        let mut progress = self.origin.subscribe();
        loop {
            let Some((mut view, mut cursor)) = self.fill().await else { return };
            while let Some(more) = self.step(&mut view, &mut cursor) {
                if more {
                    tokio::task::yield_now().await;
                    continue;
                }
                self.ready.send_if_modified(|ready| !std::mem::replace(ready, true));
                if progress.changed().await.is_err() {
                    return;
                }
            }
            tracing::debug!(cluster = self.cluster, view = self.view, "a view is made anew");
        }
    }

    /// The oldest state that there is, so that whoever watched elsewhere can go on here. O(keys), on a thread of its own.
    async fn fill(&self) -> Option<(View<F>, Cursor)> {
        let (identity, (revision, kvs, cursor)) =
            self.origin.read(|origin| (origin.identity(), origin.from_the_start()));
        let filter = (self.filter)();
        let (view, shown) = tokio::task::spawn_blocking(move || View::of(filter, kvs)).await.ok()?;
        let identity: Identity = identity.of_view(&self.cluster, self.view);
        let loaded = self.shown.update(|keyspace| keyspace.load(identity, revision, shown));
        if let Err(error) = loaded {
            // The origin's own keys, in its own order.
            tracing::error!(cluster = self.cluster, %error, "a view cannot be made, and its readers are refused");
            return None;
        }
        Some((view, cursor))
    }

    /// Some of what is new; whether there is more. `None`: all has to be read again.
    fn step(&self, view: &mut View<F>, cursor: &mut Cursor) -> Option<bool> {
        let pull = |origin: &Keyspace| -> (Pulled, Horizon) {
            (origin.pull(cursor, &KeyRange::all(), PullLimits::default()), origin.horizon())
        };
        let (pulled, horizon) = self.origin.read(pull);
        let Pulled::Events { events, revision, more } = pulled else { return None };
        // Readers go on meanwhile: nobody else writes here.
        let events = self.shown.read(|shown| view.handle_events(&events, shown));
        self.shown.update(|shown| shown.follow(events, revision, horizon));
        Some(more)
    }
}
