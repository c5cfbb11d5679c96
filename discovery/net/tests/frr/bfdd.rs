//! FRR's `zebra` and `bfdd` in a namespace, with their files in a directory of the test's.

use std::os::unix::fs::PermissionsExt as _;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::world::{Link, OURS};

pub(crate) struct Bfdd {
    directory: tempfile::TempDir,
    zebra: Child,
    bfdd: Child,
}

impl Bfdd {
    /// Its session with us: every 100 ms, three times.
    pub(crate) fn start(link: &Link) -> Self {
        let directory = tempfile::tempdir().unwrap();
        // FRR drops root for its own user, which makes its sockets here.
        std::fs::set_permissions(directory.path(), std::fs::Permissions::from_mode(0o777)).unwrap();
        let config = format!(
            "bfd\n peer {OURS} interface eth0\n  detect-multiplier 3\n  receive-interval 100\n  transmit-interval 100\n"
        );
        std::fs::write(directory.path().join("bfdd.conf"), config).unwrap();
        std::fs::write(directory.path().join("zebra.conf"), "").unwrap();
        let zebra = daemon(link, &directory, "zebra");
        wait_for(&directory, "zserv.api");
        let bfdd = daemon(link, &directory, "bfdd");
        wait_for(&directory, "bfdd.vty");
        Self { directory, zebra, bfdd }
    }

    /// Without a word to anybody.
    pub(crate) fn kill(&mut self) {
        self.bfdd.kill().unwrap();
        self.bfdd.wait().unwrap();
        let _ = std::fs::remove_file(self.directory.path().join("bfdd.vty"));
    }

    pub(crate) fn again(&mut self, link: &Link) {
        self.bfdd = daemon(link, &self.directory, "bfdd");
        wait_for(&self.directory, "bfdd.vty");
    }

    /// What `show bfd peers json` says of us; null when it says nothing.
    pub(crate) fn peer(&self) -> serde_json::Value {
        let output = Command::new("vtysh")
            .arg("--vty_socket")
            .arg(self.directory.path())
            .args(["-c", "show bfd peers json"])
            .output()
            .expect("vtysh runs; fix: install the Debian package frr");
        let peers: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
        peers[0].clone()
    }
}

impl Drop for Bfdd {
    fn drop(&mut self) {
        for child in [&mut self.bfdd, &mut self.zebra] {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn daemon(link: &Link, directory: &tempfile::TempDir, name: &str) -> Child {
    let path = directory.path();
    let mut command = Command::new("ip");
    command.args([
        "netns",
        "exec",
        link.theirs(),
        &format!("/usr/lib/frr/{name}"),
        "-u",
        "frr",
        "-g",
        "frr",
        "-P",
        "0",
    ]);
    command.arg("-z").arg(path.join("zserv.api"));
    command.arg("-i").arg(path.join(format!("{name}.pid")));
    command.arg("--vty_socket").arg(path);
    command.arg("-f").arg(path.join(format!("{name}.conf")));
    if name == "bfdd" {
        command.arg("--bfdctl").arg(path.join("bfdd.sock"));
    }
    // `ip netns exec` becomes the daemon: the child's id is the daemon's.
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command.spawn().unwrap_or_else(|error| panic!("{name}: {error}; fix: install the Debian package frr"))
}

fn wait_for(directory: &tempfile::TempDir, file: &str) {
    let patience = Instant::now() + Duration::from_secs(60);
    while !directory.path().join(file).exists() {
        assert!(Instant::now() < patience, "FRR made no {file}; fix: install the Debian package frr");
        std::thread::sleep(Duration::from_millis(20));
    }
}
