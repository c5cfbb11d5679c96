//! `hawser-node-agent`: arguments, exit codes, logs.
fn main() {}
