//! Trust: who may say what, decided by which CA signed a certificate and by the name in it.
//!
//! Pure: time is an argument, keys and certificates are bytes, nothing here touches a disk or a socket.

mod admission;
mod bundle;
mod ca;
mod ca_set;
mod cert;
mod cilium;
pub mod fuzz;
mod join;
mod name;
mod notice;
mod renewal;
mod role;
mod rotation;
pub mod session;
mod token;
mod yaml;

pub use admission::{Admission, CiliumFacts, OwnFacts, Refusal, check_admission, check_cilium};
pub use bundle::{Bundle, BundleError, BundleFacts};
pub use ca::{Ca, CaError, Issued, IssuedWithKey, Lifetime, Profile};
pub use ca_set::CaSet;
pub use cert::{CaCert, CertError, Leaf};
pub use cilium::{CiliumConfig, CiliumConfigError, CiliumFiles, MAX_FILE as CILIUM_FILE_MAX};
pub use join::{JoinError, JoinFile};
pub use name::{CommonName, UserName};
pub use notice::{NoticeError, announce, heed};
pub use renewal::{renew_at, retry_after};
pub use role::{Role, RoleError, TrustStore};
pub use rotation::{
    Authority, CA_CERT, CA_KEY, Member, MemberKind, Phase, ROTATION, Rotation, RotationError, Write,
};
pub use token::{StoredToken, Token, TokenError};
pub use yaml::YamlError;
