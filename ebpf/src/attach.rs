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
    TunnelOut,
    UnderlayIn,
    UplinkIn,
    UplinkOut,
    GuardIn,
    GuardOut,
}

impl Hook {
    pub const ALL: [Self; 9] = [
        Self::PodFrom,
        Self::PodTo,
        Self::TunnelIn,
        Self::TunnelOut,
        Self::UnderlayIn,
        Self::UplinkIn,
        Self::UplinkOut,
        Self::GuardIn,
        Self::GuardOut,
    ];

    pub const fn program(self) -> &'static str {
        match self {
            Self::PodFrom => "pod_from",
            Self::PodTo => "pod_to",
            Self::TunnelIn => "tunnel_in",
            Self::TunnelOut => "tunnel_out",
            Self::UnderlayIn => "underlay_in",
            Self::UplinkIn => "uplink_in",
            Self::UplinkOut => "uplink_out",
            Self::GuardIn => "guard_in",
            Self::GuardOut => "guard_out",
        }
    }

    pub(crate) const fn direction(self) -> TcAttachType {
        match self {
            Self::PodTo | Self::TunnelOut | Self::UplinkOut | Self::GuardOut => TcAttachType::Egress,
            Self::PodFrom | Self::TunnelIn | Self::UnderlayIn | Self::UplinkIn | Self::GuardIn => {
                TcAttachType::Ingress
            }
        }
    }
}

/// Loaded when the first device wants them: they take the verifier as long as all others, and most nodes serve nobody outside.
pub(crate) const OPTED_IN: [Hook; 2] = [Hook::UplinkIn, Hook::UplinkOut];

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
    /// Those of them whose packets are shown as a service's on their way to the pod.
    pub translated: BTreeSet<u32>,
    pub underlay: BTreeSet<u32>,
    /// Every device of the node by which something could leave or enter beside the tunnel, those of the underlay among them.
    pub edge: BTreeSet<u32>,
    /// Where traffic from outside is served.
    pub uplinks: BTreeSet<u32>,
}

impl Attachments {
    fn wanted(&self) -> BTreeSet<(Hook, u32)> {
        let at = |hook| move |device: &u32| (hook, *device);
        // What enters the underlay is judged there, and by more.
        let inner = self.edge.difference(&self.underlay);
        let pods = self.pods.iter().map(at(Hook::PodFrom)).chain(self.translated.iter().map(at(Hook::PodTo)));
        let underlay = self.underlay.iter().map(at(Hook::UnderlayIn));
        let edge = inner.map(at(Hook::GuardIn)).chain(self.edge.iter().map(at(Hook::GuardOut)));
        let uplinks =
            self.uplinks.iter().flat_map(|link| [(Hook::UplinkIn, *link), (Hook::UplinkOut, *link)]);
        let tunnel = self.tunnel.iter().flat_map(|link| [(Hook::TunnelIn, *link), (Hook::TunnelOut, *link)]);
        pods.chain(underlay).chain(edge).chain(uplinks).chain(tunnel).collect()
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
        if let Some(hook) = OPTED_IN.iter().find(|hook| hook.program() == program) {
            let (program, to) = (hook.program(), pin.to_owned());
            loaded(object, program).map_err(|source| AttachError::Attach {
                program,
                to,
                source: Box::new(source),
            })?;
        }
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
        let known = self.devices.clone();
        if self.kind == TcKind::Clsact {
            let known: BTreeSet<u32> = known.iter().map(|(_, ifindex)| *ifindex).collect();
            let all: BTreeSet<u32> = wanted.iter().map(|(_, ifindex)| *ifindex).collect();
            for ifindex in all.difference(&known) {
                self.detach_strays(&wanted, *ifindex);
            }
        }
        for (hook, ifindex) in wanted.difference(&known) {
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

    /// Filters are not remembered, and an earlier run's that is no longer wanted would go on. Usually there is none to detach.
    fn detach_strays(&self, wanted: &BTreeSet<(Hook, u32)>, ifindex: u32) {
        let places = wanted.iter().filter(|(_, at)| *at == ifindex).map(|(hook, _)| clsact::place(*hook));
        let mut places: Vec<_> = places.collect();
        for hook in Hook::ALL {
            let place = clsact::place(hook);
            if !places.contains(&place) {
                places.push(place);
                let _ = self.detach_device(hook, ifindex);
            }
        }
    }

    pub(crate) fn is_pod(&self, ifindex: u32) -> bool {
        self.devices.contains(&(Hook::PodFrom, ifindex))
    }

    /// Its own program judges what comes in there.
    pub(crate) fn is_underlay(&self, ifindex: u32) -> bool {
        self.devices.contains(&(Hook::UnderlayIn, ifindex))
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
        let classifier = loaded(object, program).map_err(failed)?;
        if self.kind == TcKind::Clsact {
            return clsact::attach(classifier, &name, hook).map_err(failed);
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
            return clsact::detach(&name, hook).map_err(|source| AttachError::Attach {
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

/// Loads it if nothing asked for it before.
pub(crate) fn loaded<'a>(object: &'a mut Ebpf, name: &str) -> Result<&'a mut SchedClassifier, ProgramError> {
    let classifier = classifier(object, name)?;
    if matches!(classifier.fd(), Err(ProgramError::NotLoaded)) {
        classifier.load()?;
    }
    Ok(classifier)
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
