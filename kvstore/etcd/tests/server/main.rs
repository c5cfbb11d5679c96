//! The server under its real clients: Debian's `etcdctl`, tonic clients, and bytes that mean nothing.

mod bytes_that_mean_nothing;
mod choosing;
mod etcdctl;
mod harness;
mod unread_watcher;
mod watching;
