//! Identifiers that cannot be wrong once they are parsed.
//!
//! Owns the spelling rules of every name, key and address that crosses a boundary; each type has one
//! way in (`FromStr`, also used by serde) and one way out (`Display`). Leaves meaning to the rooms above:
//! an `IfName` here may or may not exist on the node.
//!
//! Upholds I-15 (every identifier has a written bound).
//!
//! A newcomer would expect `ipnet::IpNet` to do for [`Cidr`]; it accepts host bits, and a route to
//! `10.200.0.1/16` is not a route.

mod cidr;
mod endpoint;
mod ifname;
mod names;
mod wgkey;

pub use cidr::Cidr;
pub use endpoint::{Endpoint, Host};
pub use ifname::{IFNAME_MAX, IfName};
pub use names::{DnsName, Label, ServiceName, Zone};
pub use wgkey::WgPublicKey;

/// Why a text is not the identifier it was meant to be. Reads as a sentence that says what to send instead.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what} {shown}: {rule}")]
pub struct BadId {
    what: &'static str,
    shown: String,
    rule: &'static str,
}

/// Longest part of a refused text that is repeated back, in characters.
const SHOWN_MAX: usize = 64;

impl BadId {
    pub(crate) fn new(what: &'static str, text: &str, rule: &'static str) -> Self {
        let mut shown: String = text.chars().take(SHOWN_MAX).collect();
        if shown.len() < text.len() {
            shown.push('…');
        }
        Self {
            what,
            shown: format!("{shown:?}"),
            rule,
        }
    }

    /// For texts that may hold a secret (a private key sent in the wrong field): the text is not repeated.
    pub(crate) fn hidden(what: &'static str, rule: &'static str) -> Self {
        Self {
            what,
            shown: "(not shown)".into(),
            rule,
        }
    }
}

/// Gives a type that is a checked text its conversions: `Display`, `TryFrom<String>`, `Into<String>`, serde through them.
macro_rules! text_identifier {
    ($name:ident) => {
        impl TryFrom<String> for $name {
            type Error = crate::ids::BadId;
            fn try_from(text: String) -> Result<Self, Self::Error> {
                text.parse()
            }
        }
        impl From<$name> for String {
            fn from(value: $name) -> Self {
                value.to_string()
            }
        }
    };
}
pub(crate) use text_identifier;
