//! The kernel programs' decisions, on the host.

mod choice;
mod common;
mod interleaving;
mod mss;
mod packets;
mod verdicts;
