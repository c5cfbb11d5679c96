//! One sweep: connections that are over and say nothing themselves are ended where they live, in every pod's namespace.

use std::io;
use std::time::Duration;

use crate::datapath::Datapath;
use crate::namespaces::{others, within};
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
        let opened = within(&namespace, SockDiag::open);
        note(&mut swept, opened.and_then(|diag| end(&diag, datapath, true)));
    }
    swept
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
