//! What another cluster may make us hold: every bound of the codec, checked before memory is taken.

/// etcd's default `--max-request-bytes`: no value is larger, whoever wrote it.
pub const VALUE_BYTES: usize = 1_572_864;
/// `cilium/synced/` + cluster + the longest prefix, a namespace (63) and a subdomain (253) fit well.
pub const KEY_BYTES: usize = 1024;
/// An EndpointSlice after decompression, and the decompressor's window: Cilium's readers allow the same.
pub const DECOMPRESSED_BYTES: usize = 16 << 20;
pub const WINDOW_LOG: u32 = 24;

/// Per service and cluster; more do not fit Cilium's value either (CFP-41953).
pub const BACKENDS: usize = 9_999;
pub const FRONTENDS: usize = 256;
pub const PORTS: usize = 256;
/// Addresses of one node or one slice endpoint.
pub const ADDRESSES: usize = 128;
pub const CIDRS: usize = 256;
/// Labels of an identity or object; annotations count apart.
pub const LABELS: usize = 512;
pub const LABEL_KEY_BYTES: usize = 512;
pub const LABEL_VALUE_BYTES: usize = 1024;
/// Kubernetes bounds all annotations of an object together; kubectl's last-applied text is one of them.
pub const ANNOTATION_BYTES: usize = 256 << 10;
/// Host names, zones, pod names: RFC 1123 subdomains.
pub const NAME_BYTES: usize = 253;
/// Kubernetes' own bound on the endpoints of a slice.
pub const SLICE_ENDPOINTS: usize = 1_000;
/// Fields of all kinds in a slice's protobuf, nested ones too: bounds what decoding allocates.
pub const SLICE_FIELDS: usize = 50_000;
/// Servers of a peer, and names of theirs that DNS does not know.
pub const ENDPOINTS: usize = 32;
/// `appProtocol` is a prefixed name: a subdomain, a slash and a label name.
pub const APP_PROTOCOL_BYTES: usize = 317;
/// Kubernetes' bound on a session affinity's timeout: a day.
pub const AFFINITY_SECONDS: u32 = 86_400;
/// One certificate, or two of a rotation.
pub const CA_BYTES: usize = 16 << 10;
/// CAs that a cluster is believed by: one, during a rotation two.
pub const CAS: usize = 4;
/// SHA-256 in hex pairs with colons.
pub const FINGERPRINT_BYTES: usize = 95;
/// ECDSA P-256 in ASN.1 is 72 bytes at the most; this is base64, with room.
pub const SIGNATURE_BYTES: usize = 256;
