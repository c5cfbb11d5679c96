//! Reading Ethernet frames: as much as it takes to say what a frame is.

use std::net::Ipv4Addr;

const ETHERNET: usize = 14;

/// An IPv4 packet's addresses and payload.
#[derive(Clone, Copy, Debug)]
pub struct Ipv4<'a> {
    pub source: Ipv4Addr,
    pub destination: Ipv4Addr,
    pub protocol: u8,
    pub payload: &'a [u8],
}

#[derive(Clone, Copy, Debug)]
pub struct Udp<'a> {
    pub source: u16,
    pub destination: u16,
    pub payload: &'a [u8],
}

#[derive(Clone, Copy, Debug)]
pub struct Tcp<'a> {
    pub source: u16,
    pub destination: u16,
    pub sequence: u32,
    pub syn: bool,
    pub payload: &'a [u8],
}

/// What an Ethernet frame carries.
#[derive(Clone, Copy, Debug)]
pub enum Carried<'a> {
    Ipv4(Ipv4<'a>),
    /// The next-header number and what follows the fixed header.
    Ipv6(u8, &'a [u8]),
    Arp,
    /// By EtherType; also frames too short for what they say they are.
    Other(u16),
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

pub fn parse(frame: &[u8]) -> Carried<'_> {
    let Some(ether_type) = u16_at(frame, 12) else { return Carried::Other(0) };
    let body = &frame[ETHERNET..];
    match ether_type {
        0x0800 => parse_ipv4(body).map_or(Carried::Other(ether_type), Carried::Ipv4),
        0x86dd if body.len() >= 40 => Carried::Ipv6(body[6], &body[40..]),
        0x0806 => Carried::Arp,
        other => Carried::Other(other),
    }
}

fn parse_ipv4(body: &[u8]) -> Option<Ipv4<'_>> {
    let header = usize::from(body.first()? & 0x0f) * 4;
    let total = usize::from(u16_at(body, 2)?);
    let address = |at: usize| Some(Ipv4Addr::from(<[u8; 4]>::try_from(body.get(at..at + 4)?).ok()?));
    Some(Ipv4 {
        source: address(12)?,
        destination: address(16)?,
        protocol: body[9],
        payload: body.get(header..total)?,
    })
}

impl<'a> Ipv4<'a> {
    pub fn udp(&self) -> Option<Udp<'a>> {
        (self.protocol == 17).then_some(())?;
        Some(Udp {
            source: u16_at(self.payload, 0)?,
            destination: u16_at(self.payload, 2)?,
            payload: self.payload.get(8..)?,
        })
    }

    pub fn tcp(&self) -> Option<Tcp<'a>> {
        (self.protocol == 6).then_some(())?;
        let header = usize::from(self.payload.get(12)? >> 4) * 4;
        Some(Tcp {
            source: u16_at(self.payload, 0)?,
            destination: u16_at(self.payload, 2)?,
            sequence: u32::from_be_bytes(self.payload.get(4..8)?.try_into().ok()?),
            syn: self.payload.get(13)? & 0x02 != 0,
            payload: self.payload.get(header..)?,
        })
    }
}
