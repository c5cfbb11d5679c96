//! The other network namespaces of this machine, and which of them are those of pods that the socket load balancer leaves out.
//!
//! A pod's namespace is the one that has its address: so it is found whatever the CNI did to connect it. Where the address lives in
//! another kernel there is none, and none is needed: that kernel's sockets are not seen here.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io;
use std::net::IpAddr;
use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;

use hawser_agent_core::Interfaces;
use hawser_ebpf::own_netns_cookie;
use nix::ifaddrs::getifaddrs;
use nix::sched::{CloneFlags, setns};

/// Every other network namespace of this machine that can be found: by its processes, and by the names that container
/// runtimes give them.
pub(crate) fn others() -> Vec<File> {
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

/// What `act` does is done there.
pub(crate) fn within<T: Send>(namespace: &File, act: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
    // A namespace belongs to a thread, and this one ends with it.
    std::thread::scope(|scope| {
        let enter = || {
            setns(namespace, CloneFlags::CLONE_NEWNET)?;
            act()
        };
        scope.spawn(enter).join().unwrap_or_else(|_| Err(io::Error::other("the thread panicked")))
    })
}

/// The cookies of the left-out pods' namespaces. What was known of a pod behind the same interface is still so. Cost, when there is
/// something new: a thread and a dump of addresses for each namespace of this machine. To be called where blocking is allowed.
pub(crate) fn cookies(
    left_out: &BTreeSet<IpAddr>,
    found: &Interfaces,
    known: &Interfaces,
) -> BTreeMap<IpAddr, u64> {
    let there = |pod: &&IpAddr| found.pods.contains_key(*pod);
    let of = |pod: &IpAddr| known.namespaces.get(pod).filter(|_| known.pods.get(pod) == found.pods.get(pod));
    let mut cookies = BTreeMap::new();
    let mut sought = BTreeSet::new();
    for pod in left_out.iter().filter(there) {
        match of(pod) {
            Some(cookie) => drop(cookies.insert(*pod, *cookie)),
            None => drop(sought.insert(*pod)),
        }
    }
    if sought.is_empty() {
        return cookies;
    }
    for namespace in others() {
        // One that ends meanwhile is no pod's any more.
        if let Ok((cookie, addresses)) = within(&namespace, || Ok((own_netns_cookie()?, addresses()?))) {
            cookies.extend(addresses.intersection(&sought).map(|pod| (*pod, cookie)));
        }
    }
    cookies
}

fn addresses() -> io::Result<BTreeSet<IpAddr>> {
    let all = getifaddrs()?.filter_map(|interface| interface.address);
    let ip = |address: nix::sys::socket::SockaddrStorage| {
        let v4 = address.as_sockaddr_in().map(|v4| IpAddr::V4(v4.ip()));
        v4.or_else(|| address.as_sockaddr_in6().map(|v6| IpAddr::V6(v6.ip())))
    };
    Ok(all.filter_map(ip).collect())
}
