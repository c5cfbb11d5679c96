//! Looking at packets and making them: what proves that nothing leaves in clear and nothing forged comes in.

pub mod echo;
pub mod forge;
pub mod frame;
pub mod packet_socket;
pub mod secrecy;
pub mod sniffer;
