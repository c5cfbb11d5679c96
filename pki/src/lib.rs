//! Trust: who may say what, decided by which CA signed a certificate and by the name in it.
//!
//! Pure: time is an argument, keys and certificates are bytes, nothing here touches a disk or a socket.

mod admission;
mod bundle;
mod ca;
mod cert;
pub mod fuzz;
mod join;
mod name;
mod role;
mod token;
mod yaml;

pub use admission::{Admission, OwnFacts, Refusal, check_admission};
pub use bundle::{Bundle, BundleError, BundleFacts};
pub use ca::{Ca, CaError, Issued, IssuedWithKey, Profile};
pub use cert::{CaCert, CertError, Leaf};
pub use join::{JoinError, JoinFile};
pub use name::{CommonName, UserName};
pub use role::{Role, RoleError, TrustStore};
pub use token::{StoredToken, Token, TokenError};
pub use yaml::YamlError;
