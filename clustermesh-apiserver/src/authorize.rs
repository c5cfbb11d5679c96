//! Roles on the etcd API: the table of contracts.md, "Roles", as code.

use bytes::Bytes;
use hawser_etcd::server::{Access, AccessRequest, Authorize, Denied, KeyspaceHandle, ServedView};
use hawser_kvstore::KeyRange;
use hawser_model::ClusterName;
use hawser_pki::Role;
use hawser_wire::prefix;
use tonic::Status;

use crate::cached;
use crate::exports::Views;

/// Who is at the other end of a connection. Left in every request's extensions by the listener.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Caller {
    /// No certificate: `Agent.Join` and nothing else.
    Anonymous,
    Known(Role),
    /// A certificate that proves nothing here, and why.
    Refused(String),
}

impl Caller {
    /// A request that did not come through the listener has no caller, and is nobody's.
    pub fn of(extensions: &http::Extensions) -> Self {
        extensions.get().cloned().unwrap_or(Self::Anonymous)
    }

    fn describe(&self) -> String {
        match self {
            Self::Anonymous => "a client without a certificate".into(),
            Self::Known(role) => role.to_string(),
            Self::Refused(why) => format!("a client that could not be identified ({why})"),
        }
    }

    /// The refusal of an RPC that is not about keys.
    pub fn refuse(&self, rpc: &str, who: &str) -> Status {
        Status::permission_denied(format!("{} may not call {rpc}: it is for {who}", self.describe()))
    }

    pub fn require_admin(&self, rpc: &str) -> Result<(), Status> {
        match self {
            Self::Known(Role::Admin(_)) => Ok(()),
            other => Err(other.refuse(rpc, "admins (dial with admin.crt)")),
        }
    }
}

/// The table.
#[derive(Debug)]
pub struct Roles {
    own: ClusterName,
    /// Everything below and everything above `hawser/private/`.
    not_private: [KeyRange; 2],
    /// What a peer may read.
    remote: [KeyRange; 5],
    /// What Cilium's agents in this cluster may read of the cached layout.
    local: [KeyRange; 4],
    /// What of that there is for it.
    views: Option<Views>,
}

impl Roles {
    pub fn new(own: ClusterName) -> Self {
        let (private, after) = KeyRange::prefix(prefix::PRIVATE).to_wire();
        let remote = [
            KeyRange::prefix(prefix::HEARTBEAT),
            KeyRange::key(format!("{}{own}", prefix::CLUSTER_CONFIG)),
            KeyRange::prefix(format!("{}{own}/", prefix::SYNCED)),
            KeyRange::prefix(prefix::STATE),
            KeyRange::prefix(prefix::HAWSER_STATE),
        ];
        // As Cilium's own role `local` (cilium-facts §2).
        let local = [prefix::HEARTBEAT, prefix::CACHE, prefix::CLUSTER_CONFIG, prefix::SYNCED];
        Self {
            own,
            not_private: [KeyRange::between(Bytes::new(), private), KeyRange::from_key(after)],
            remote,
            local: local.map(KeyRange::prefix),
            views: None,
        }
    }

    /// Peers are answered from their views of the own keyspace.
    #[must_use]
    pub fn with_views(self, views: Views) -> Self {
        Self { views: Some(views), ..self }
    }

    fn allows(&self, caller: &Caller, request: &AccessRequest<'_>) -> bool {
        let own = request.keyspace == self.own.as_str();
        let within = |ranges: &[KeyRange], range| ranges.iter().any(|allowed| allowed.covers(range));
        match (caller, request.access) {
            (Caller::Known(Role::Admin(_)), Access::Read(_) | Access::Status) => true,
            (Caller::Known(Role::Admin(_)), _) => own,
            (Caller::Known(Role::Agent { .. }), Access::Read(range)) => {
                !own || within(&self.not_private, range)
            }
            (Caller::Known(Role::Agent { .. }), Access::Status) => true,
            (Caller::Known(Role::Remote(_)), Access::Read(range)) => own && within(&self.remote, range),
            (Caller::Known(Role::Local), Access::Read(range)) => {
                request.keyspace == cached::KEYSPACE && within(&self.local, range)
            }
            // As etcd, which asks for no permission; Cilium's agents of some versions look at it.
            (Caller::Known(Role::Remote(_)), Access::Status) => own,
            (Caller::Known(Role::Local), Access::Status) => request.keyspace == cached::KEYSPACE,
            (Caller::Known(Role::Agent { .. } | Role::Remote(_) | Role::Local), _) => false,
            (Caller::Anonymous | Caller::Refused(_), _) => false,
        }
    }
}

impl Authorize for Roles {
    fn keyspace(&self, caller: &http::Extensions) -> Option<&str> {
        matches!(Caller::of(caller), Caller::Known(Role::Local)).then_some(cached::KEYSPACE)
    }

    fn view(&self, caller: &http::Extensions, keyspace: &KeyspaceHandle) -> Option<ServedView> {
        match Caller::of(caller) {
            Caller::Known(Role::Remote(peer)) if keyspace.name() == self.own.as_str() => {
                self.views.as_ref().map(|views| views.of(&peer))
            }
            _ => None,
        }
    }

    fn authorize(&self, request: AccessRequest<'_>) -> Result<(), Denied> {
        let caller = Caller::of(request.caller);
        if self.allows(&caller, &request) {
            return Ok(());
        }
        let what = match request.access {
            Access::Read(range) => format!("read {}", show(range)),
            Access::Write(range) => format!("write {}", show(range)),
            Access::Compact => "compact".into(),
            Access::Lease => "use leases".into(),
            Access::Status => "ask for the status".into(),
        };
        let (who, rpc, keyspace) = (caller.describe(), request.rpc, request.keyspace);
        Err(Denied { sentence: format!("{rpc}: {who} may not {what} in the keyspace of cluster {keyspace}") })
    }
}

/// A range as a person would say it; what is not ours to name is shortened.
fn show(range: &KeyRange) -> String {
    let text = |key: &[u8]| String::from_utf8_lossy(&key[..key.len().min(120)]).into_owned();
    if *range == KeyRange::all() {
        return "all keys".into();
    }
    let start = range.start();
    if range.as_single().is_some() {
        return text(start);
    }
    if *range == KeyRange::prefix(start.clone()) {
        return format!("{}*", text(start));
    }
    let (start, end) = range.to_wire();
    match &end[..] {
        [0] => format!("everything from {} on", text(&start)),
        end => format!("{} to {}", text(&start), text(end)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hawser_model::NodeName;
    use hawser_pki::UserName;

    fn may(caller: &Caller, keyspace: &str, access: Access<'_>) -> Result<(), String> {
        let roles = Roles::new(ClusterName::parse("us-east").unwrap());
        let mut extensions = http::Extensions::new();
        extensions.insert(caller.clone());
        let request = AccessRequest { caller: &extensions, keyspace, rpc: "KV.Range", access };
        roles.authorize(request).map_err(|denied| denied.sentence)
    }

    fn callers() -> [Caller; 6] {
        [
            Caller::Known(Role::Admin(UserName::parse("bob").unwrap())),
            Caller::Known(Role::Agent { node: NodeName::parse("node-1").unwrap() }),
            Caller::Known(Role::Remote(ClusterName::parse("eu-west").unwrap())),
            Caller::Anonymous,
            Caller::Refused("expired".into()),
            Caller::Known(Role::Local),
        ]
    }

    fn who_may(keyspace: &str, access: Access<'_>) -> Vec<bool> {
        callers().iter().map(|caller| may(caller, keyspace, access).is_ok()).collect()
    }

    #[test]
    fn the_own_keyspace_is_read_as_the_table_says() {
        let prefix = |text: &'static str| KeyRange::prefix(text);
        let key = |text: &'static str| KeyRange::key(text);
        //                                                     admin  agent  remote anon   refused local
        for (range, expected) in [
            (key("cilium/.heartbeat"), [true, true, true, false, false, false]),
            (prefix("cilium/.heartbeat"), [true, true, true, false, false, false]),
            (key("cilium/cluster-config/us-east"), [true, true, true, false, false, false]),
            (prefix("cilium/synced/us-east/"), [true, true, true, false, false, false]),
            (prefix("cilium/state/"), [true, true, true, false, false, false]),
            (prefix("cilium/state/nodes/v1/us-east/"), [true, true, true, false, false, false]),
            (prefix("hawser/state/"), [true, true, true, false, false, false]),
            (prefix("cilium/cluster-config/us-east"), [true, true, false, false, false, false]),
            (prefix("cilium/cluster-config/"), [true, true, false, false, false, false]),
            (prefix("cilium/synced/"), [true, true, false, false, false, false]),
            (prefix("cilium/"), [true, true, false, false, false, false]),
            (prefix("hawser/local/"), [true, true, false, false, false, false]),
            (prefix("hawser/private/"), [true, false, false, false, false, false]),
            (key("hawser/private/tokens/v1/x"), [true, false, false, false, false, false]),
            (prefix("hawser/"), [true, false, false, false, false, false]),
            (prefix("hawser/p"), [true, false, false, false, false, false]),
            (KeyRange::from_key("hawser/private/zzz"), [true, false, false, false, false, false]),
            (KeyRange::from_key("hawser/q"), [true, true, false, false, false, false]),
            (KeyRange::all(), [true, false, false, false, false, false]),
        ] {
            assert_eq!(who_may("us-east", Access::Read(&range)), expected, "{range:?}");
        }
    }

    #[test]
    fn mirrors_are_read_by_admins_and_agents_and_written_by_nobody() {
        let all = KeyRange::all();
        assert_eq!(who_may("eu-west", Access::Read(&all)), [true, true, false, false, false, false]);
        assert_eq!(who_may("eu-west", Access::Write(&all)), [false; 6]);
        assert_eq!(who_may("eu-west", Access::Compact), [false; 6]);
        assert_eq!(who_may("eu-west", Access::Lease), [false; 6]);
    }

    #[test]
    fn the_cached_layout_is_for_cilium_in_this_cluster() {
        let prefix = |text: &'static str| KeyRange::prefix(text);
        for (range, local) in [
            (prefix("cilium/.heartbeat"), true),
            (prefix("cilium/cache/nodes/v1/eu-west/"), true),
            (KeyRange::key("cilium/cluster-config/eu-west"), true),
            (prefix("cilium/synced/eu-west/"), true),
            (prefix("cilium/state/"), false),
            (prefix("cilium/"), false),
            (KeyRange::all(), false),
        ] {
            let who = who_may(cached::KEYSPACE, Access::Read(&range));
            assert_eq!(who, [true, true, false, false, false, local], "{range:?}");
        }
        assert_eq!(who_may(cached::KEYSPACE, Access::Status), [true, true, false, false, false, true]);
        let key = KeyRange::key("cilium/cache/x");
        assert_eq!(who_may(cached::KEYSPACE, Access::Write(&key)), [false; 6]);
    }

    #[test]
    fn only_admins_write() {
        let key = KeyRange::key("cilium/state/nodes/v1/us-east/node-1");
        for access in [Access::Write(&key), Access::Compact, Access::Lease] {
            assert_eq!(who_may("us-east", access), [true, false, false, false, false, false], "{access:?}");
        }
        assert_eq!(who_may("us-east", Access::Status), [true, true, true, false, false, false]);
        assert_eq!(who_may("eu-west", Access::Status), [true, true, false, false, false, false]);
    }

    #[test]
    fn a_refusal_names_the_role_the_rpc_and_the_range() {
        let [_, agent, remote, anonymous, refused, _] = callers();
        let private = KeyRange::prefix("hawser/private/");
        assert_eq!(
            may(&agent, "us-east", Access::Read(&private)).unwrap_err(),
            "KV.Range: agent of node node-1 may not read hawser/private/* in the keyspace of cluster us-east"
        );
        let all = KeyRange::all();
        assert!(
            may(&remote, "us-east", Access::Read(&all))
                .unwrap_err()
                .contains("remote cluster eu-west may not read all keys")
        );
        assert!(
            may(&anonymous, "us-east", Access::Read(&all)).unwrap_err().contains("without a certificate")
        );
        assert!(may(&refused, "us-east", Access::Read(&all)).unwrap_err().contains("(expired)"));
    }
}
