//! One sweep: connections that are over and say nothing themselves are ended where they live, in every pod's namespace.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;
use std::time::Duration;

use nix::sched::{CloneFlags, setns};

use crate::datapath::Datapath;
use crate::sock_diag::SockDiag;

/// Ended at a time, and then a pause: at most 5,000 a second, so that their successors do not come all at once.
const AT_A_TIME: usize = 50;
const PAUSE: Duration = Duration::from_millis(10);

/// What sweeps did, and what this kernel lets them do.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Swept {
    pub ended: u64,
    /// Network namespaces looked into, this one among them.
    pub namespaces: usize,
    /// What went wrong, the first of it.
    pub problem: Option<String>,
}

/// Why silent connections cannot be ended here; none when they can.
pub(crate) fn missing() -> Option<String> {
    match SockDiag::open().and_then(|diag| diag.can_destroy()) {
        Ok(true) => None,
        Ok(false) => Some(
            "this kernel has no SOCK_DESTROY (CONFIG_INET_DIAG_DESTROY): connections to a lost cluster that say nothing end by their own timeouts".into(),
        ),
        Err(error) => Some(format!("sockets cannot be asked for: {error}")),
    }
}

/// Goes through this namespace and those of the pods. Cost: all TCP sockets of the node, once, and three system calls for
/// each one to another cluster. To be called where blocking is allowed.
pub(crate) fn sweep(datapath: &Datapath) -> Swept {
    let mut swept = Swept::default();
    let note = |swept: &mut Swept, result: io::Result<u64>| match result {
        Ok(ended) => (swept.ended, swept.namespaces) = (swept.ended + ended, swept.namespaces + 1),
        Err(error) => swept.problem = swept.problem.take().or_else(|| Some(error.to_string())),
    };
    note(&mut swept, SockDiag::open().and_then(|diag| end(&diag, datapath, false)));
    for namespace in others() {
        // A namespace belongs to a thread, and this one ends with it.
        let opened = std::thread::scope(|scope| {
            let enter = || {
                setns(&namespace, CloneFlags::CLONE_NEWNET)?;
                SockDiag::open()
            };
            scope.spawn(enter).join().unwrap_or_else(|_| Err(io::Error::other("the thread panicked")))
        });
        note(&mut swept, opened.and_then(|diag| end(&diag, datapath, true)));
    }
    swept
}

/// Every other network namespace of this machine that can be found: by its processes, and by the names that container
/// runtimes give them.
fn others() -> Vec<File> {
    let inode = |path: &PathBuf| fs::metadata(path).map(|metadata| metadata.ino()).ok();
    let mut seen: BTreeSet<u64> = inode(&"/proc/self/ns/net".into()).into_iter().collect();
    let list = |directory: &str| {
        let entries = fs::read_dir(directory).into_iter().flatten().flatten();
        entries.map(|entry| entry.path()).collect::<Vec<_>>()
    };
    let is_process = |path: &PathBuf| {
        path.file_name().is_some_and(|name| name.as_encoded_bytes().iter().all(u8::is_ascii_digit))
    };
    let processes = list("/proc").into_iter().filter(is_process).map(|path| path.join("ns/net"));
    let paths = processes.chain(list("/run/netns"));
    paths
        .filter(|path| inode(path).is_some_and(|inode| seen.insert(inode)))
        .filter_map(|path| File::open(path).ok())
        .collect()
}

fn end(diag: &SockDiag, datapath: &Datapath, of_pods: bool) -> io::Result<u64> {
    let over: Vec<_> = {
        let sockets = diag.connections()?;
        sockets.into_iter().filter(|socket| datapath.is_over(&socket.connection, of_pods)).collect()
    };
    let mut ended = 0;
    for some in over.chunks(AT_A_TIME) {
        for socket in some {
            ended += u64::from(diag.destroy(socket)?);
        }
        std::thread::sleep(PAUSE);
    }
    Ok(ended)
}
