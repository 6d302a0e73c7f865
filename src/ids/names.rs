use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use super::{BadId, text_identifier};

/// Longest DNS name in its text form, without the final dot (RFC 1035 section 2.3.4: 255 octets on the wire).
const DNS_NAME_MAX: usize = 253;
/// Longest DNS label (RFC 1035 section 2.3.4).
const DNS_LABEL_MAX: usize = 63;
/// Longest service, deployment or instance name in bytes; the contract gives no bound, so one is written here (I-15).
const NAME_MAX: usize = 255;

/// Name of a service, chosen by the driving daemon; only ever hashed, compared and shown.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ServiceName(String);

/// A part of an object's name: the deployment or the instance that the driving daemon runs.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Label(String);

/// Name of an isolation network, chosen by the driving daemon; only ever hashed, compared and shown.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct NetworkName(String);

/// A DNS name in lower case, without the final dot: letters, digits, `-` and `_` in labels of at most 63.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct DnsName(String);

/// The name of a DNS zone that gets a resolver file. It becomes a file name, so nothing but a DNS name is accepted (B16).
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Zone(DnsName);

fn plain_name(what: &'static str, text: &str) -> Result<String, BadId> {
    if text.is_empty() || text.len() > NAME_MAX {
        return Err(BadId::new(what, text, "must have 1 to 255 bytes"));
    }
    if text.chars().any(|c| c.is_control() || c.is_whitespace()) {
        return Err(BadId::new(what, text, "may not hold spaces or control characters"));
    }
    Ok(text.to_owned())
}

fn dns_name(what: &'static str, text: &str) -> Result<String, BadId> {
    let bad = |rule| BadId::new(what, text, rule);
    let name = text.strip_suffix('.').unwrap_or(text);
    if name.is_empty() || name.len() > DNS_NAME_MAX {
        return Err(bad("must have 1 to 253 characters"));
    }
    for label in name.split('.') {
        if label.is_empty() || label.len() > DNS_LABEL_MAX {
            return Err(bad("must consist of labels of 1 to 63 characters"));
        }
        if !label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_') {
            return Err(bad("may hold only letters, digits, '-', '_' and dots"));
        }
        if label.starts_with('-') || label.ends_with('-') {
            return Err(bad("may not have a label that begins or ends with '-'"));
        }
    }
    Ok(name.to_ascii_lowercase())
}

impl FromStr for ServiceName {
    type Err = BadId;
    fn from_str(text: &str) -> Result<Self, BadId> {
        plain_name("service name", text).map(Self)
    }
}

impl FromStr for Label {
    type Err = BadId;
    fn from_str(text: &str) -> Result<Self, BadId> {
        plain_name("deployment or instance name", text).map(Self)
    }
}

impl FromStr for NetworkName {
    type Err = BadId;
    fn from_str(text: &str) -> Result<Self, BadId> {
        plain_name("isolation network name", text).map(Self)
    }
}

impl FromStr for DnsName {
    type Err = BadId;
    fn from_str(text: &str) -> Result<Self, BadId> {
        dns_name("DNS name", text).map(Self)
    }
}

impl FromStr for Zone {
    type Err = BadId;
    fn from_str(text: &str) -> Result<Self, BadId> {
        dns_name("zone", text).map(|name| Self(DnsName(name)))
    }
}

macro_rules! shown_as_text {
    ($($name:ident),*) => {$(
        impl $name {
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&self.0)
            }
        }
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
        text_identifier!($name);
    )*};
}
shown_as_text!(ServiceName, Label, NetworkName, DnsName);

impl DnsName {
    /// The names that this one is under, the nearest first, the root not among them.
    pub fn ancestors(&self) -> impl Iterator<Item = DnsName> {
        let dots = self.0.match_indices('.').map(|(at, _)| at);
        dots.map(|dot| Self(self.0[dot + 1..].to_owned()))
    }

    /// The name that `label` is called under this one; `None` when it would be no DNS name.
    pub fn child(&self, label: &str) -> Option<DnsName> {
        format!("{label}.{self}").parse().ok()
    }

    /// What stands before `zone` in this name: empty for the zone itself, `None` for a name outside of it.
    pub fn within(&self, zone: &DnsName) -> Option<&str> {
        let before = self.0.strip_suffix(zone.as_str())?;
        if before.is_empty() { Some(before) } else { before.strip_suffix('.') }
    }
}

impl Zone {
    pub fn as_str(&self) -> &str {
        self.0.as_str()
    }
}

impl fmt::Display for Zone {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

impl fmt::Debug for Zone {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

text_identifier!(Zone);
