//! What runs in pods: a small HTTP server and a client that counts who answered.

pub mod client;
mod client_main;
pub mod server;

pub use client_main::{ClientArgs, run as run_client};
pub use server::{ServerArgs, run as run_server};
