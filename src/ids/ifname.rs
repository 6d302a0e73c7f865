use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use super::{BadId, text_identifier};

/// Longest interface name in bytes: `IFNAMSIZ` (16, `linux/if.h`) without its terminating zero.
pub const IFNAME_MAX: usize = 15;

/// Name of a network interface, as Linux `dev_valid_name()` accepts it.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct IfName(String);

impl IfName {
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for IfName {
    type Err = BadId;
    fn from_str(text: &str) -> Result<Self, BadId> {
        let bad = |rule| BadId::new("interface name", text, rule);
        if text.is_empty() || text.len() > IFNAME_MAX {
            return Err(bad("must have 1 to 15 bytes"));
        }
        if text == "." || text == ".." {
            return Err(bad("is a directory name, not an interface"));
        }
        if text.bytes().any(|b| b == b'/' || b == b':' || !b.is_ascii_graphic()) {
            return Err(bad("may hold printable ASCII only, without '/', ':' or spaces"));
        }
        Ok(Self(text.to_owned()))
    }
}

impl fmt::Display for IfName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl fmt::Debug for IfName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

text_identifier!(IfName);
