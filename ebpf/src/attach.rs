//! Programs on devices and cgroups: what should be attached against what is, as pinned links.

use std::collections::BTreeSet;
use std::ffi::CStr;
use std::fs;
use std::io;
use std::os::fd::AsFd as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use aya::Ebpf;
use aya::programs::links::{FdLink, LinkError};
use aya::programs::tc::TcAttachOptions;
use aya::programs::{
    CgroupAttachMode, CgroupSockAddr, LinkOrder, ProgramError, SchedClassifier, SockOps, TcAttachType,
};

use crate::error::AttachError;
use crate::load::TcKind;
use crate::{clsact, sys};

/// A program and the side of a device it sits on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Hook {
    PodFrom,
    PodTo,
    TunnelIn,
    UnderlayIn,
}

impl Hook {
    pub const ALL: [Self; 4] = [Self::PodFrom, Self::PodTo, Self::TunnelIn, Self::UnderlayIn];

    pub const fn program(self) -> &'static str {
        match self {
            Self::PodFrom => "pod_from",
            Self::PodTo => "pod_to",
            Self::TunnelIn => "tunnel_in",
            Self::UnderlayIn => "underlay_in",
        }
    }

    const fn direction(self) -> TcAttachType {
        match self {
            Self::PodTo => TcAttachType::Egress,
            Self::PodFrom | Self::TunnelIn | Self::UnderlayIn => TcAttachType::Ingress,
        }
    }
}

/// What shows a service's address stands before what sends to its backends.
pub(crate) const SOCKET_PROGRAMS: [&str; 8] =
    ["recvmsg4", "recvmsg6", "getpeername4", "getpeername6", "sendmsg4", "sendmsg6", "connect4", "connect6"];
/// Counts users' connections; stands behind the others, and may be missing.
pub(crate) const USERS: &str = "sock_ops";

/// Where programs should be, by interface index.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Attachments {
    pub tunnel: Option<u32>,
    pub pods: BTreeSet<u32>,
    pub underlay: BTreeSet<u32>,
}

impl Attachments {
    fn wanted(&self) -> BTreeSet<(Hook, u32)> {
        let pods = self.pods.iter().flat_map(|pod| [(Hook::PodFrom, *pod), (Hook::PodTo, *pod)]);
        let underlay = self.underlay.iter().map(|device| (Hook::UnderlayIn, *device));
        pods.chain(underlay).chain(self.tunnel.map(|device| (Hook::TunnelIn, device))).collect()
    }
}

/// What is attached, remembered by the pins in one directory; before tcx, by interface only.
#[derive(Debug)]
pub(crate) struct Links {
    directory: PathBuf,
    kind: TcKind,
    devices: BTreeSet<(Hook, u32)>,
    cgroups: BTreeSet<u64>,
    /// Whether the kernel took [`USERS`].
    users: bool,
}

impl Links {
    /// Puts the loaded programs behind every link that an earlier agent pinned: no packet goes unjudged in between. A link
    /// whose device or cgroup is gone loses its pin.
    pub(crate) fn adopt(
        directory: PathBuf,
        kind: TcKind,
        users: bool,
        object: &mut Ebpf,
    ) -> Result<Self, AttachError> {
        let mut links = Self { directory, kind, devices: BTreeSet::new(), cgroups: BTreeSet::new(), users };
        for pin in links.pins()? {
            let Some((program, target)) = pin
                .rsplit_once('-')
                .and_then(|(program, target)| Some((program.to_owned(), target.parse::<u64>().ok()?)))
            else {
                continue;
            };
            if links.replace(&pin, &program, object)? {
                links.remember(&program, target);
            }
        }
        // A cgroup counts when all of its programs are there; the rest is attached by the next look.
        let whole = |cgroup: &u64| links.cgroup_programs().all(|name| links.pin(name, *cgroup).exists());
        links.cgroups = links.cgroups.iter().copied().filter(whole).collect();
        Ok(links)
    }

    fn remember(&mut self, program: &str, target: u64) {
        match (Hook::ALL.into_iter().find(|hook| hook.program() == program), u32::try_from(target)) {
            (Some(hook), Ok(ifindex)) => {
                self.devices.insert((hook, ifindex));
            }
            _ => {
                self.cgroups.insert(target);
            }
        }
    }

    fn cgroup_programs(&self) -> impl Iterator<Item = &'static str> {
        SOCKET_PROGRAMS.into_iter().chain(self.users.then_some(USERS))
    }

    fn pins(&self) -> Result<Vec<String>, AttachError> {
        let listed = fs::read_dir(&self.directory).and_then(|entries| {
            entries.map(|entry| entry.map(|entry| entry.file_name().to_string_lossy().into_owned())).collect()
        });
        listed.map_err(|source| AttachError::Pinned { verb: "listed", path: self.directory.clone(), source })
    }

    /// False when what the link was attached to is gone.
    fn replace(&self, pin: &str, program: &str, object: &mut Ebpf) -> Result<bool, AttachError> {
        let path = self.directory.join(pin);
        let failed = |verb| {
            let path = path.clone();
            move |source| AttachError::Pinned { verb, path, source }
        };
        let Some(fd) = program_fd(object, program) else {
            fs::remove_file(&path).map_err(failed("removed"))?;
            return Ok(false);
        };
        let link = sys::open_pinned(&path).map_err(failed("opened"))?;
        match sys::update_link(link.as_fd(), fd) {
            Ok(()) => Ok(true),
            Err(error) if error.raw_os_error() == Some(libc::ENOLINK) => {
                fs::remove_file(&path).map_err(failed("removed"))?;
                Ok(false)
            }
            Err(error) => Err(failed("updated")(error)),
        }
    }

    fn pin(&self, program: &str, target: u64) -> PathBuf {
        self.directory.join(format!("{program}-{target}"))
    }

    /// Attaches what is missing, then takes away what is too much. Problems of one device do not hold up the others.
    pub(crate) fn sync_devices(&mut self, object: &mut Ebpf, wanted: &Attachments) -> Vec<AttachError> {
        let wanted = wanted.wanted();
        let mut problems = Vec::new();
        for (hook, ifindex) in wanted.difference(&self.devices.clone()) {
            problems.extend(self.add_device(object, *hook, *ifindex).err());
        }
        for (hook, ifindex) in self.devices.clone().difference(&wanted) {
            match self.detach_device(*hook, *ifindex) {
                Ok(()) => {
                    self.devices.remove(&(*hook, *ifindex));
                }
                Err(error) => problems.push(error),
            }
        }
        problems
    }

    /// One more. One that is known to be there costs nothing.
    pub(crate) fn add_device(
        &mut self,
        object: &mut Ebpf,
        hook: Hook,
        ifindex: u32,
    ) -> Result<(), AttachError> {
        if !self.devices.contains(&(hook, ifindex)) {
            self.attach_device(object, hook, ifindex)?;
            self.devices.insert((hook, ifindex));
        }
        Ok(())
    }

    fn attach_device(&self, object: &mut Ebpf, hook: Hook, ifindex: u32) -> Result<(), AttachError> {
        let program = hook.program();
        let name = interface(ifindex)?;
        let failed = |source| AttachError::Attach { program, to: name.clone(), source: Box::new(source) };
        let classifier = classifier(object, program).map_err(failed)?;
        if self.kind == TcKind::Clsact {
            return clsact::attach(classifier, &name, hook.direction()).map_err(failed);
        }
        // First of all tcx programs: "not mine" hands on to the CNI's, which run behind ours.
        let options = TcAttachOptions::TcxOrder(LinkOrder::first());
        let id = classifier.attach_with_options(&name, hook.direction(), options).map_err(failed)?;
        let link = classifier.take_link(id).map_err(failed)?;
        let pin_failed = |reason: String| AttachError::Pin { program, to: name.clone(), reason };
        let link = FdLink::try_from(link).map_err(|error| pin_failed(error.to_string()))?;
        self.pin_link(link, program, u64::from(ifindex)).map_err(pin_failed)
    }

    fn detach_device(&self, hook: Hook, ifindex: u32) -> Result<(), AttachError> {
        if self.kind == TcKind::Clsact {
            // A device that is gone took its filters along.
            let Ok(name) = interface(ifindex) else { return Ok(()) };
            return clsact::detach(&name, hook.direction()).map_err(|source| AttachError::Attach {
                program: hook.program(),
                to: name,
                source: Box::new(source),
            });
        }
        self.unpin(hook.program(), u64::from(ifindex))
    }

    /// The pin is the last that holds a link, so removing it detaches.
    fn unpin(&self, program: &str, target: u64) -> Result<(), AttachError> {
        let path = self.pin(program, target);
        match fs::remove_file(&path) {
            Ok(()) => Ok(()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(source) => Err(AttachError::Pinned { verb: "removed", path, source }),
        }
    }

    fn pin_link(&self, link: FdLink, program: &str, target: u64) -> Result<(), String> {
        let path = self.pin(program, target);
        // What stands there belongs to a link that is gone.
        if path.exists() {
            fs::remove_file(&path).map_err(|error| error.to_string())?;
        }
        link.pin(&path).map(|_| ()).map_err(|error| error.to_string())
    }

    /// Socket programs at every child cgroup of the root (there they run before the CNI's at the root), or at the root
    /// when it has none. Called at every reconcile: cgroups come and go.
    pub(crate) fn sync_cgroups(&mut self, object: &mut Ebpf, root: &Path) -> Vec<AttachError> {
        let cgroups = match children(root) {
            Ok(cgroups) => cgroups,
            Err(source) => return vec![AttachError::Cgroups { path: root.to_owned(), source }],
        };
        let mut problems = Vec::new();
        let known = self.cgroups.clone();
        for (id, path) in cgroups.iter().filter(|(id, _)| !known.contains(id)) {
            match self.attach_cgroup(object, *id, path) {
                Ok(()) => {
                    self.cgroups.insert(*id);
                }
                Err(error) => problems.push(error),
            }
        }
        let there: BTreeSet<u64> = cgroups.into_iter().map(|(id, _)| id).collect();
        for id in self.cgroups.clone().difference(&there) {
            for program in SOCKET_PROGRAMS.into_iter().chain([USERS]) {
                problems.extend(self.unpin(program, *id).err());
            }
            self.cgroups.remove(id);
        }
        problems
    }

    fn attach_cgroup(&self, object: &mut Ebpf, id: u64, path: &Path) -> Result<(), AttachError> {
        let to = path.display().to_string();
        let cgroup =
            fs::File::open(path).map_err(|source| AttachError::Cgroups { path: path.to_owned(), source })?;
        for program in self.cgroup_programs() {
            if self.pin(program, id).exists() {
                continue;
            }
            let failed = |source| AttachError::Attach { program, to: to.clone(), source: Box::new(source) };
            let link = link_to(object, program, &cgroup).map_err(failed)?;
            let pin_failed = |reason: String| AttachError::Pin { program, to: to.clone(), reason };
            self.pin_link(link, program, id).map_err(pin_failed)?;
        }
        Ok(())
    }
}

/// No flag: a link always stands beside others (kernel/bpf/cgroup.c, cgroup_bpf_link_attach refuses flags).
fn link_to(object: &mut Ebpf, program: &str, cgroup: &fs::File) -> Result<FdLink, ProgramError> {
    let alone = CgroupAttachMode::Single;
    if program == USERS {
        let users = users_program(object)?;
        let link = users.attach(cgroup, alone)?;
        return users.take_link(link)?.try_into().map_err(no_link);
    }
    let socket = socket_program(object, program)?;
    let link = socket.attach(cgroup, alone)?;
    socket.take_link(link)?.try_into().map_err(no_link)
}

/// Before kernel 5.7 there are none to cgroups.
fn no_link(error: LinkError) -> ProgramError {
    ProgramError::IOError(io::Error::other(error))
}

/// Cgroup id (the directory's inode) and path.
fn children(root: &Path) -> io::Result<Vec<(u64, PathBuf)>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(root)? {
        let entry = entry?;
        // One that vanished while we looked is not there.
        if let Ok(metadata) = entry.metadata()
            && metadata.is_dir()
        {
            found.push((metadata.ino(), entry.path()));
        }
    }
    if found.is_empty() {
        found.push((fs::metadata(root)?.ino(), root.to_owned()));
    }
    Ok(found)
}

pub(crate) fn classifier<'a>(
    object: &'a mut Ebpf,
    name: &str,
) -> Result<&'a mut SchedClassifier, ProgramError> {
    object.program_mut(name).ok_or(ProgramError::NotLoaded)?.try_into()
}

pub(crate) fn socket_program<'a>(
    object: &'a mut Ebpf,
    name: &str,
) -> Result<&'a mut CgroupSockAddr, ProgramError> {
    object.program_mut(name).ok_or(ProgramError::NotLoaded)?.try_into()
}

pub(crate) fn users_program(object: &mut Ebpf) -> Result<&mut SockOps, ProgramError> {
    object.program_mut(USERS).ok_or(ProgramError::NotLoaded)?.try_into()
}

fn program_fd<'a>(object: &'a mut Ebpf, name: &str) -> Option<std::os::fd::BorrowedFd<'a>> {
    object.program(name)?.fd().ok().map(|fd| fd.as_fd())
}

fn interface(ifindex: u32) -> Result<String, AttachError> {
    let mut name = [0 as libc::c_char; libc::IF_NAMESIZE];
    // SAFETY: the buffer has IF_NAMESIZE octets, as if_indextoname(3) asks.
    let found = unsafe { libc::if_indextoname(ifindex, name.as_mut_ptr()) };
    if found.is_null() {
        return Err(AttachError::Interface { ifindex });
    }
    // SAFETY: on success the buffer holds a terminated string.
    Ok(unsafe { CStr::from_ptr(name.as_ptr()) }.to_string_lossy().into_owned())
}
