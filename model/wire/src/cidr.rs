//! CIDRs as Go's `net.IPNet` prints them, `{"IP":"10.4.0.0","Mask":"//8AAA=="}`, and as people write them.

use std::fmt;
use std::net::IpAddr;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hawser_model::IpNet;
use serde::de::value::MapAccessDeserializer;
use serde::de::{Deserializer, MapAccess, Visitor};
use serde::{Deserialize, Serialize};

use crate::error::{Reason, short};
use crate::json::{Text, ip};

/// Either form: readers since 2026 accept the plain one, everyone the object.
pub(crate) enum CidrIn<'a> {
    Plain(Text<'a>),
    Object(ObjectIn<'a>),
}

#[derive(Deserialize)]
pub(crate) struct ObjectIn<'a> {
    #[serde(rename = "IP", borrow)]
    ip: Text<'a>,
    #[serde(rename = "Mask", borrow)]
    mask: Text<'a>,
}

/// Always the object, keys in this order, because older readers know nothing else.
#[derive(Serialize)]
pub(crate) struct CidrOut {
    #[serde(rename = "IP")]
    ip: IpAddr,
    #[serde(rename = "Mask")]
    mask: String,
}

impl<'de: 'a, 'a> Deserialize<'de> for CidrIn<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct V;
        impl<'de> Visitor<'de> for V {
            type Value = CidrIn<'de>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(r#"{"IP","Mask"} or "a.b.c.d/len""#)
            }
            fn visit_borrowed_str<E: serde::de::Error>(self, text: &'de str) -> Result<Self::Value, E> {
                Text::deserialize(serde::de::value::BorrowedStrDeserializer::new(text)).map(CidrIn::Plain)
            }
            fn visit_str<E: serde::de::Error>(self, _: &str) -> Result<Self::Value, E> {
                Err(E::custom("a CIDR holds no escapes"))
            }
            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Self::Value, A::Error> {
                ObjectIn::deserialize(MapAccessDeserializer::new(map)).map(CidrIn::Object)
            }
        }
        deserializer.deserialize_any(V)
    }
}

impl CidrIn<'_> {
    /// The network, host bits cut off.
    pub(crate) fn parse(&self, v6: bool) -> Result<IpNet, Reason> {
        let (net, text) = match self {
            Self::Plain(text) => (text.parse::<IpNet>().ok(), text.to_string()),
            Self::Object(object) => (object.parse(), format!("{} mask {}", &*object.ip, &*object.mask)),
        };
        net.filter(|net| net.addr().is_ipv6() == v6 && ip(&net.addr().to_string()).is_ok())
            .map(|net| net.trunc())
            .ok_or_else(|| Reason::Cidr { text: short(&text) })
    }
}

impl ObjectIn<'_> {
    fn parse(&self) -> Option<IpNet> {
        let ip = ip(&self.ip).ok()?;
        // 24 characters hold 16 bytes; more is no mask, and is not decoded.
        if self.mask.len() > 24 {
            return None;
        }
        let mask = STANDARD.decode(self.mask.as_bytes()).ok()?;
        let mask = match ip {
            IpAddr::V4(_) => IpAddr::from(<[u8; 4]>::try_from(mask).ok()?),
            IpAddr::V6(_) => IpAddr::from(<[u8; 16]>::try_from(mask).ok()?),
        };
        IpNet::with_netmask(ip, mask).ok()
    }
}

impl From<&IpNet> for CidrOut {
    fn from(net: &IpNet) -> Self {
        let mask = match net.netmask() {
            IpAddr::V4(mask) => STANDARD.encode(mask.octets()),
            IpAddr::V6(mask) => STANDARD.encode(mask.octets()),
        };
        Self { ip: net.network(), mask }
    }
}
