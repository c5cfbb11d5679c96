//! Two network namespaces and a link between them.

use std::fs::File;
use std::net::Ipv4Addr;
use std::process::Command;

use nix::sched::{CloneFlags, setns};

pub(crate) const OURS: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 1);
pub(crate) const THEIRS: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 2);

pub(crate) struct Link {
    names: [String; 2],
}

impl Link {
    pub(crate) fn new() -> Self {
        let names = ["a", "b"].map(|side| format!("hwbfd{}{side}", std::process::id()));
        let link = Self { names };
        let [a, b] = &link.names;
        for name in [a, b] {
            ip(&format!("netns add {name}"));
        }
        ip(&format!("link add eth0 netns {a} type veth peer name eth0 netns {b}"));
        for (name, address) in [(a, OURS), (b, THEIRS)] {
            ip(&format!("-n {name} addr add {address}/24 dev eth0"));
            ip(&format!("-n {name} link set lo up"));
            ip(&format!("-n {name} link set eth0 up"));
        }
        link
    }

    pub(crate) fn theirs(&self) -> &str {
        &self.names[1]
    }

    /// Runs a closure on a thread in our namespace.
    pub(crate) fn ours<T: Send>(&self, body: impl FnOnce() -> T + Send) -> T {
        std::thread::scope(|scope| {
            let inside = scope.spawn(|| {
                let file = File::open(format!("/run/netns/{}", self.names[0])).unwrap();
                setns(file, CloneFlags::CLONE_NEWNET).expect("this test needs root");
                body()
            });
            inside.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        for name in &self.names {
            let _ = Command::new("ip").args(["netns", "del", name]).output();
        }
    }
}

fn ip(arguments: &str) {
    let output = Command::new("ip").args(arguments.split_whitespace()).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "ip {arguments}: {said}; this test needs root");
}
