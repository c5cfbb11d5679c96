//! The rule that led everything but the engine's own packets to a table of ours, in earlier versions: found and taken away.

use std::collections::BTreeSet;
use std::io;

use hawser_tunnels::{Family, Mark, Rule};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::rule::{RuleAction, RuleAttribute, RuleFlags, RuleMessage};

use super::netlink::Netlink;
use super::{PROTOCOL, address_family, header_table, unless};

/// Ours alone: our protocol, leading to our table.
pub(super) fn list(netlink: &mut Netlink, table: u32) -> io::Result<BTreeSet<Rule>> {
    let mut rules = BTreeSet::new();
    for family in [Family::V4, Family::V6] {
        let mut filter = RuleMessage::default();
        filter.header.family = address_family(family);
        let found = match netlink.dump(&RouteNetlinkMessage::GetRule(filter)) {
            Err(error) if matches!(error.raw_os_error(), Some(libc::EAFNOSUPPORT | libc::EOPNOTSUPP)) => {
                continue;
            }
            found => found?,
        };
        rules.extend(found.into_iter().filter_map(|message| match message {
            RouteNetlinkMessage::NewRule(rule) => read(&rule, family).filter(|rule| rule.table == table),
            _ => None,
        }));
    }
    Ok(rules)
}

fn read(message: &RuleMessage, family: Family) -> Option<Rule> {
    let mut rule = Rule {
        family,
        priority: 0,
        table: message.header.table.into(),
        mark: Mark { value: 0, mask: u32::MAX },
    };
    let mut ours = false;
    for attribute in &message.attributes {
        match attribute {
            RuleAttribute::Priority(number) => rule.priority = *number,
            RuleAttribute::Table(number) => rule.table = *number,
            RuleAttribute::FwMark(value) => rule.mark.value = *value,
            RuleAttribute::FwMask(mask) => rule.mark.mask = *mask,
            RuleAttribute::Protocol(protocol) => ours = *protocol == PROTOCOL,
            _ => {}
        }
    }
    (ours && message.header.flags.contains(RuleFlags::Invert)).then_some(rule)
}

pub(super) fn remove(netlink: &mut Netlink, rule: &Rule) -> io::Result<()> {
    unless(netlink.request(RouteNetlinkMessage::DelRule(message(rule)), 0), &[libc::ENOENT])
}

fn message(rule: &Rule) -> RuleMessage {
    let mut message = RuleMessage::default();
    message.header.family = address_family(rule.family);
    message.header.table = header_table(rule.table);
    message.header.action = RuleAction::ToTable;
    message.header.flags = RuleFlags::Invert;
    message.attributes.push(RuleAttribute::Table(rule.table));
    message.attributes.push(RuleAttribute::Priority(rule.priority));
    message.attributes.push(RuleAttribute::FwMark(rule.mark.value));
    message.attributes.push(RuleAttribute::FwMask(rule.mark.mask));
    message.attributes.push(RuleAttribute::Protocol(PROTOCOL));
    message
}
