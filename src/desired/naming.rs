//! Names of links. The driving daemon computes the same names by itself, so the rule is part of the contract.
//!
//! Owns the rule: readable when it fits 15 bytes, else a SipHash-1-3 with key (0, 0) of the parts. Leaves refusing two part lists that
//! give one name to the edit that would introduce the second.
//!
//! The hash is written in hexadecimal *without* leading zeros, so a name can be shorter than its budget.

use std::hash::Hasher;

use siphasher::sip::SipHasher13;

use crate::ids::{IFNAME_MAX, IfName};

/// What a link is for; gives the suffix of its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    /// The node's overlay device.
    NodeDevice,
    /// The bridge of one service.
    ServiceBridge,
    /// The WireGuard device of one dedicated service.
    DedicatedDevice,
    /// The one bridge that all shared services use.
    SharedBridge,
}

impl Role {
    fn suffix(self) -> &'static str {
        match self {
            Role::NodeDevice => "g",
            Role::ServiceBridge => "b",
            Role::DedicatedDevice => "d",
            Role::SharedBridge => "sh",
        }
    }
}

/// Marks the end of a part in the hash, so that ("ab", "c") and ("a", "bc") differ. 0xFF never occurs in UTF-8.
const PART_END: u8 = 0xFF;
const PREFIX: &str = "zl-";

/// The name of the link with this role; `parts` are deployment, instance and, where the role has one, the service.
pub fn interface_name(parts: &[&str], role: Role) -> IfName {
    let suffix = role.suffix();
    let readable = format!("{PREFIX}{}-{suffix}", parts.join("-"));
    if let Ok(name) = readable.parse() {
        return name;
    }
    let mut hasher = SipHasher13::new_with_keys(0, 0);
    for part in parts {
        hasher.write(part.as_bytes());
        hasher.write(&[PART_END]);
    }
    hasher.write(suffix.as_bytes());
    hasher.write(&[PART_END]);
    let mut hex = format!("{:x}", hasher.finish());
    hex.truncate(IFNAME_MAX - PREFIX.len() - 1 - suffix.len());
    match format!("{PREFIX}{hex}-{suffix}").parse() {
        Ok(name) => name,
        Err(_) => unreachable!("a prefix, hexadecimal digits and a suffix within 15 bytes are a valid name"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The examples that the contract's description works out.
    #[test]
    fn names_equal_those_the_driving_daemon_computes() {
        for (parts, role, expected) in [
            (&["zlayer", "a1b2c3d4"][..], Role::NodeDevice, "zl-8884a724fa-g"),
            (&["zlayer", "a1b2c3d4", "web-auto"], Role::ServiceBridge, "zl-b89d93d909-b"),
            (&["zlayer", "a1b2c3d4", "shared"], Role::SharedBridge, "zl-522764a10-sh"),
            (&["zlayer", "a1b2c3d4", "web-dedicated"], Role::ServiceBridge, "zl-95bbb471c1-b"),
            (&["zlayer", "a1b2c3d4", "web-dedicated"], Role::DedicatedDevice, "zl-e55ebb00d1-d"),
            (&["prod", "0", "web"], Role::ServiceBridge, "zl-prod-0-web-b"),
            (&["prod", "0", "database"], Role::ServiceBridge, "zl-18d9a7f712-b"),
            (&["zlayer", "n1"], Role::NodeDevice, "zl-zlayer-n1-g"),
        ] {
            assert_eq!(interface_name(parts, role).as_str(), expected);
        }
    }

    #[test]
    fn a_part_that_no_kernel_would_accept_is_hashed_even_when_it_is_short() {
        let name = interface_name(&["a/b", "c"], Role::NodeDevice);
        assert!(!name.as_str().contains('/'), "{name}");
    }
}
