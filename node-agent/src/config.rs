//! `agent.yaml`: every key has a default, unknown ones are refused with their line (contracts.md, Files).

use std::fmt;
use std::net::SocketAddr;
use std::num::NonZero;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::thread::available_parallelism;
use std::time::Duration;

use hawser_discovery::LivenessConfig;
use hawser_ebpf::LruSizes;
use hawser_model::{Encryption, MorePorts, NodeName, ResetAfter, ServerUrl};
use hawser_tunnels::{DEFAULT_ESP_MTU, DEFAULT_MTU, DeviceName, MIN_MTU_IPV6, Mark};
use hawser_tunnels_linux::Choice;
use serde::{Deserialize, Serialize};

pub const DEFAULT_PATH: &str = "/etc/hawser/agent.yaml";
const MAX_BYTES: usize = 64 << 10;
/// Of an LRU map: the kernel keeps 128 entries a CPU free; an entry takes about 100 bytes.
const MAP_SIZES: RangeInclusive<u32> = 1_024..=4_194_304;
/// Of liveness: below this it is load, above it nobody waits for a verdict.
const MIN_DETECTION: Duration = Duration::from_millis(150);
const MAX_DETECTION: Duration = Duration::from_secs(180);

/// Of one peer, whatever the number of cores.
const MOST_SESSIONS: u16 = MorePorts::MOST as u16 + 1;

/// The file as it is written.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default, rename_all = "camelCase")]
struct File {
    node: Option<String>,
    join: JoinText,
    state: PathBuf,
    socket: PathBuf,
    device: String,
    wireguard: String,
    ipsec: String,
    ipsec_secret: Option<PathBuf>,
    port: u16,
    sessions: u16,
    session_port: u16,
    mtu: Option<u16>,
    mark: u32,
    mark_mask: u32,
    table: u32,
    health: HealthFile,
    underlay: UnderlayFile,
    bpf_dir: String,
    maps: MapsFile,
    node_port: NodePortFile,
    metrics: Option<SocketAddr>,
}

/// Entries of the maps that forget their oldest ones.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default, rename_all = "camelCase")]
struct MapsFile {
    sock_rev: u32,
    socket_pins: u32,
    client_pins: u32,
    flows: u32,
    nat: u32,
    entered: u32,
}

/// Where traffic from outside is served.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default, rename_all = "camelCase")]
struct NodePortFile {
    devices: Vec<String>,
    masquerade_mark: u32,
}

#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default, rename_all = "camelCase")]
struct HealthFile {
    port: u16,
    detection: String,
    multiplier: u32,
    reset_after: String,
}

#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(untagged)]
enum UnderlayFile {
    Word(String),
    Devices(Vec<String>),
}

#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(untagged)]
enum JoinText {
    File(PathBuf),
    Pod(PodText),
}

#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct PodText {
    service_account_token: PathBuf,
    servers: Vec<String>,
    ca: PathBuf,
}

impl Default for File {
    fn default() -> Self {
        Self {
            node: None,
            join: JoinText::File("/etc/hawser/join.yaml".into()),
            state: "/var/lib/hawser/agent".into(),
            socket: "/run/hawser/agent.sock".into(),
            device: "hawser0".into(),
            wireguard: Choice::Auto.as_str().into(),
            ipsec: "kernel".into(),
            ipsec_secret: None,
            port: 51_871,
            sessions: MOST_SESSIONS,
            session_port: 51_880,
            mtu: None,
            mark: 0x0048_0000,
            mark_mask: 0x00ff_0000,
            table: 18_551,
            health: HealthFile::default(),
            underlay: UnderlayFile::Word("auto".into()),
            bpf_dir: "hawser".into(),
            maps: MapsFile::default(),
            node_port: NodePortFile::default(),
            metrics: None,
        }
    }
}

impl Default for HealthFile {
    fn default() -> Self {
        let reset_after = ResetAfter::DEFAULT.to_string();
        Self { port: 51_872, detection: "1s".into(), multiplier: 3, reset_after }
    }
}

impl Default for MapsFile {
    fn default() -> Self {
        let LruSizes { sock_rev, socket_pins, client_pins, flows, nat, entered } = LruSizes::default();
        Self { sock_rev, socket_pins, client_pins, flows, nat, entered }
    }
}

impl Default for NodePortFile {
    fn default() -> Self {
        // kube-proxy's, in all its modes (KubeProxyConfiguration, masqueradeBit 14).
        Self { devices: Vec::new(), masquerade_mark: 0x4000 }
    }
}

/// Devices that the underlay program is attached to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Underlay {
    /// All physical and veth uplinks with a global address that are not pods.
    Auto,
    Devices(Vec<DeviceName>),
}

/// Who does IPsec: the kernel, in UDP with peers that ask for it, or this process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ipsec {
    Kernel,
    Userspace,
}

/// How this node becomes a member.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Join {
    /// A file with a one-time token, from `hawser ca token`.
    File(PathBuf),
    /// In Kubernetes: the token of the agent's own pod.
    Pod(PodJoin),
}

impl Join {
    /// The file that holds the proof.
    fn path(&self) -> &Path {
        match self {
            Self::File(path) => path,
            Self::Pod(pod) => &pod.token,
        }
    }

    pub(crate) fn display(&self) -> std::path::Display<'_> {
        self.path().display()
    }

    /// Whether there is something to join with.
    pub(crate) fn exists(&self) -> bool {
        self.path().exists()
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodJoin {
    /// A projected volume's file; the kubelet replaces it.
    pub token: PathBuf,
    pub servers: Vec<ServerUrl>,
    /// The cluster's CA, `ca.crt` of `hawser ca init`: it also says which cluster it is.
    pub ca: PathBuf,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    pub node: NodeName,
    pub join: Join,
    pub state: PathBuf,
    pub socket: PathBuf,
    pub device: DeviceName,
    /// Who encrypts.
    pub wireguard: Choice,
    /// The same, where the mesh encrypts with IPsec.
    pub ipsec: Ipsec,
    /// The mesh's secret, where the mesh encrypts with IPsec.
    pub ipsec_secret: Option<PathBuf>,
    pub port: u16,
    /// With each peer at most, and the first port of those beyond the first.
    pub sessions: u16,
    pub session_port: u16,
    /// What the mesh's encryption leaves of 1500, where none.
    pub mtu: Option<u16>,
    pub mark: Mark,
    pub table: u32,
    /// Liveness probes leave from here.
    pub probe_port: u16,
    pub liveness: LivenessConfig,
    /// Connections to what is down are ended so long after the verdict.
    pub reset_after: ResetAfter,
    pub underlay: Underlay,
    /// Where traffic from outside is served.
    pub uplinks: Vec<DeviceName>,
    /// By which netfilter hides clients outside behind this node's address; 0 = it does not.
    pub masquerade_mark: u32,
    pub bpf_dir: String,
    /// Entries of the maps that forget their oldest ones.
    pub lru: LruSizes,
    /// Where /metrics, /livez and /readyz are served; nowhere without it.
    pub metrics: Option<SocketAddr>,
}

/// Refused before anything is changed: exit code 64.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    #[error("cannot read {}: {reason}. fix: write the file, or name another one with --config", path.display())]
    Read { path: PathBuf, reason: String },
    #[error("{}, line {line}: {reason}. fix: see docs, reference/agent.yaml", path.display())]
    Syntax { path: PathBuf, line: u64, reason: String },
    #[error("{}: {key} {value:?} {why}. fix: {fix}", path.display())]
    Value { path: PathBuf, key: &'static str, value: String, why: String, fix: &'static str },
}

impl Config {
    /// The tunnels'.
    pub(crate) fn mtu_of(&self, encryption: Encryption) -> u16 {
        self.mtu.unwrap_or(match encryption {
            Encryption::Wireguard => DEFAULT_MTU,
            Encryption::Ipsec => DEFAULT_ESP_MTU,
        })
    }

    /// Reads the file. `host_name` stands in for a missing `node`. Without `must_exist`, a missing file is an empty one.
    pub fn load(path: &Path, must_exist: bool, host_name: &str) -> Result<Self, ConfigError> {
        match std::fs::read_to_string(path) {
            Ok(text) => Self::parse(&text, path, host_name),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound && !must_exist => {
                Self::parse("", path, host_name)
            }
            Err(error) => Err(ConfigError::Read { path: path.into(), reason: error.to_string() }),
        }
    }

    /// For sessions beyond the first, one for each further core: more would do nothing more.
    pub(crate) fn more_ports(&self) -> Vec<u16> {
        let cores = available_parallelism().map_or(1, NonZero::get).min(self.sessions.into());
        (self.session_port..=u16::MAX).take(cores - 1).collect()
    }

    pub fn parse(text: &str, path: &Path, host_name: &str) -> Result<Self, ConfigError> {
        let file =
            read(text).map_err(|(line, reason)| ConfigError::Syntax { path: path.into(), line, reason })?;
        let value: Bad<'_> = &|key, value, why, fix| ConfigError::Value {
            path: path.into(),
            key,
            value: value.to_string(),
            why: why.to_string(),
            fix,
        };
        let node = file.node.as_deref().unwrap_or(host_name);
        let node = NodeName::parse(node)
            .map_err(|why| value("node", &node, &why, "the node's name as its cluster knows it"))?;
        let name = |key, text: &str| {
            DeviceName::parse(text).map_err(|why| value(key, &text, &why, "an interface's name like hawser0"))
        };
        let device = name("device", &file.device)?;
        let wireguard = Choice::parse(&file.wireguard).ok_or_else(|| {
            value("wireguard", &file.wireguard, &"is no way to encrypt", "auto, kernel or userspace")
        })?;
        let ipsec = match file.ipsec.as_str() {
            "kernel" => Ipsec::Kernel,
            "userspace" => Ipsec::Userspace,
            other => return Err(value("ipsec", &other, &"is no way to encrypt", "kernel or userspace")),
        };
        let underlay = match &file.underlay {
            UnderlayFile::Word(word) if word == "auto" => Underlay::Auto,
            UnderlayFile::Word(word) => {
                return Err(value("underlay", word, &"is neither auto nor a list", "auto, or [eth0, ..]"));
            }
            UnderlayFile::Devices(names) => {
                Underlay::Devices(names.iter().map(|text| name("underlay", text)).collect::<Result<_, _>>()?)
            }
        };
        let uplinks = file.node_port.devices.iter().map(|text| name("nodePort.devices", text));
        let uplinks = uplinks.collect::<Result<_, _>>()?;
        check_numbers(&file, value)?;
        Ok(Self {
            node,
            join: join(file.join, value)?,
            state: file.state,
            socket: file.socket,
            device,
            wireguard,
            ipsec,
            ipsec_secret: file.ipsec_secret,
            port: file.port,
            sessions: file.sessions,
            session_port: file.session_port,
            mtu: file.mtu,
            mark: Mark { value: file.mark, mask: file.mark_mask },
            table: file.table,
            probe_port: file.health.port,
            liveness: liveness(&file.health, value)?,
            reset_after: ResetAfter::parse(&file.health.reset_after)
                .map_err(|why| value("health.resetAfter", &file.health.reset_after, &why, "2s, or never"))?,
            underlay,
            uplinks,
            masquerade_mark: file.node_port.masquerade_mark,
            bpf_dir: file.bpf_dir,
            lru: lru(&file.maps, value)?,
            metrics: file.metrics,
        })
    }
}

fn join(text: JoinText, value: Bad<'_>) -> Result<Join, ConfigError> {
    let PodText { service_account_token: token, servers, ca } = match text {
        JoinText::File(path) => return Ok(Join::File(path)),
        JoinText::Pod(pod) => pod,
    };
    if servers.is_empty() {
        return Err(value("join.servers", &"[]", &"names nobody to ask", "at least one https://host:port"));
    }
    let server = |text: &String| {
        ServerUrl::parse(text)
            .map_err(|why| value("join.servers", text, &why, "what `advertise` in cluster.yaml says"))
    };
    let servers = servers.iter().map(server).collect::<Result<_, _>>()?;
    Ok(Join::Pod(PodJoin { token, servers, ca }))
}

/// How a value is refused: its key, itself, why, and the fix.
type Bad<'a> = &'a dyn Fn(&'static str, &dyn fmt::Display, &dyn fmt::Display, &'static str) -> ConfigError;

fn liveness(file: &HealthFile, value: Bad<'_>) -> Result<LivenessConfig, ConfigError> {
    let refused =
        |why: &str| value("health.detection", &file.detection, &why, "1s, or 250ms for faster verdicts");
    let detection =
        parse_duration(&file.detection).ok_or_else(|| refused("is not a number and ms, s or m"))?;
    let multiplier = file.multiplier;
    if !(3..=12).contains(&multiplier) {
        let fix = "3: down after three probes' time of silence";
        return Err(value("health.multiplier", &multiplier, &"is not between 3 and 12", fix));
    }
    let least = MIN_DETECTION / 3 * multiplier;
    if !(least..=MAX_DETECTION).contains(&detection) {
        return Err(refused(&format!(
            "is not between {}ms ({multiplier} probes) and 180s",
            least.as_millis()
        )));
    }
    Ok(LivenessConfig::detecting_in(detection, multiplier))
}

fn lru(file: &MapsFile, value: Bad<'_>) -> Result<LruSizes, ConfigError> {
    let MapsFile { sock_rev, socket_pins, client_pins, flows, nat, entered } = *file;
    let all = [
        ("maps.sockRev", sock_rev),
        ("maps.socketPins", socket_pins),
        ("maps.clientPins", client_pins),
        ("maps.flows", flows),
        ("maps.nat", nat),
        ("maps.entered", entered),
    ];
    match all.into_iter().find(|(_, size)| !MAP_SIZES.contains(size)) {
        Some((key, size)) => {
            Err(value(key, &size, &"is not between 1024 and 4194304", "entries; leave it out"))
        }
        None => Ok(LruSizes { sock_rev, socket_pins, client_pins, flows, nat, entered }),
    }
}

fn check_numbers(file: &File, value: Bad<'_>) -> Result<(), ConfigError> {
    for (key, port) in [("port", file.port), ("health.port", file.health.port)] {
        if port == 0 {
            return Err(value(key, &port, &"is no port", "1 to 65535, the same on all nodes"));
        }
    }
    if !(1..=MOST_SESSIONS).contains(&file.sessions) {
        return Err(value("sessions", &file.sessions, &"is no number of sessions", "1 to 8"));
    }
    let ports = u32::from(file.session_port)..u32::from(file.session_port) + u32::from(file.sessions) - 1;
    let taken = [file.port, file.health.port].into_iter().any(|port| ports.contains(&port.into()));
    if file.session_port == 0 || ports.end > 65_536 || taken {
        let why = "and those behind it are not free";
        return Err(value(
            "sessionPort",
            &file.session_port,
            &why,
            "one like 51880, apart from port and health.port",
        ));
    }
    if let Some(mtu) = file.mtu.filter(|mtu| *mtu < MIN_MTU_IPV6) {
        return Err(value("mtu", &mtu, &"is below IPv6's 1280", "1420 on a network of 1500"));
    }
    if file.mark == 0 || file.mark & !file.mark_mask != 0 {
        let why = format!("is zero or has bits outside of markMask {:#x}", file.mark_mask);
        return Err(value("mark", &format_args!("{:#x}", file.mark), &why, "a value within the mask"));
    }
    if matches!(file.table, 0 | 252..=255) {
        return Err(value("table", &file.table, &"is the kernel's own", "a free number like 18551"));
    }
    if file.bpf_dir.is_empty() || file.bpf_dir.contains(['/', '.']) {
        let why = "is not one directory's name (bpffs allows no dots)";
        return Err(value("bpfDir", &file.bpf_dir, &why, "a name like hawser"));
    }
    Ok(())
}

/// The configuration in effect, as a file that means the same. It holds no secrets: they are in the files it names.
impl fmt::Display for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "node: {}", self.node)?;
        match &self.join {
            Join::File(path) => writeln!(f, "join: {}", path.display())?,
            Join::Pod(PodJoin { token, servers, ca }) => {
                let servers: Vec<_> = servers.iter().map(|url| format!("\"{url}\"")).collect();
                let (token, servers, ca) = (token.display(), servers.join(", "), ca.display());
                writeln!(f, "join: {{ serviceAccountToken: {token}, servers: [{servers}], ca: {ca} }}")?;
            }
        }
        writeln!(f, "state: {}", self.state.display())?;
        writeln!(f, "socket: {}", self.socket.display())?;
        writeln!(f, "device: {}", self.device)?;
        writeln!(f, "wireguard: {}", self.wireguard.as_str())?;
        writeln!(f, "port: {}", self.port)?;
        writeln!(f, "sessions: {}", self.sessions)?;
        writeln!(f, "sessionPort: {}", self.session_port)?;
        match self.mtu {
            Some(mtu) => writeln!(f, "mtu: {mtu}")?,
            None => {
                writeln!(
                    f,
                    "# mtu: {DEFAULT_MTU}, and {DEFAULT_ESP_MTU} where the mesh encrypts with IPsec"
                )?;
            }
        }
        writeln!(f, "mark: {:#010x}", self.mark.value)?;
        writeln!(f, "markMask: {:#010x}", self.mark.mask)?;
        writeln!(f, "table: {}", self.table)?;
        // An interval is whole nanoseconds, so the product may be short of the milliseconds that were asked for.
        let detection = (self.liveness.detection() + Duration::from_micros(500)).as_millis();
        let (port, multiplier, reset) = (self.probe_port, self.liveness.multiplier, self.reset_after);
        writeln!(
            f,
            "health: {{ port: {port}, detection: {detection}ms, multiplier: {multiplier}, resetAfter: {reset} }}"
        )?;
        match &self.underlay {
            Underlay::Auto => writeln!(f, "underlay: auto")?,
            Underlay::Devices(names) => {
                let names: Vec<_> = names.iter().map(DeviceName::as_str).collect();
                writeln!(f, "underlay: [{}]", names.join(", "))?;
            }
        }
        writeln!(f, "bpfDir: {}", self.bpf_dir)?;
        let LruSizes { sock_rev, socket_pins, client_pins, flows, nat, entered } = self.lru;
        writeln!(
            f,
            "maps: {{ sockRev: {sock_rev}, socketPins: {socket_pins}, clientPins: {client_pins}, flows: {flows}, nat: {nat}, entered: {entered} }}"
        )?;
        let devices: Vec<_> = self.uplinks.iter().map(DeviceName::as_str).collect();
        writeln!(
            f,
            "nodePort: {{ devices: [{}], masqueradeMark: {:#x} }}",
            devices.join(", "),
            self.masquerade_mark
        )?;
        self.metrics.map_or(Ok(()), |address| writeln!(f, "metrics: {address}"))
    }
}

fn read(text: &str) -> Result<File, (u64, String)> {
    if text.len() > MAX_BYTES {
        return Err((1, format!("the file is {} bytes long, more than {MAX_BYTES}", text.len())));
    }
    let empty = |line: &str| line.trim().is_empty() || line.trim_start().starts_with('#');
    if text.lines().all(empty) {
        return Ok(File::default());
    }
    let options = serde_saphyr::options! {
        budget: serde_saphyr::budget! { max_depth: 8, max_aliases: 0, max_anchors: 0, max_documents: 1 },
        with_snippet: false,
    };
    serde_saphyr::from_str_with_options(text, options).map_err(|error| {
        let line = error.location().map_or(0, |location| location.line());
        let reason: String = error.to_string().chars().take(200).collect();
        (line, reason.split(" at line ").next().unwrap_or_default().to_owned())
    })
}

fn parse_duration(text: &str) -> Option<Duration> {
    let digits = text.find(|c: char| !c.is_ascii_digit())?;
    let (number, unit) = text.split_at(digits);
    let number: u64 = number.parse().ok().filter(|number| *number <= 1_000_000)?;
    match unit {
        "ms" => Some(Duration::from_millis(number)),
        "s" => Some(Duration::from_secs(number)),
        "m" => Some(Duration::from_secs(number * 60)),
        _ => None,
    }
}

#[cfg(test)]
#[path = "config_tests.rs"]
mod tests;
