use std::{fmt, net::IpAddr, str::FromStr};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::{BadId, text_identifier};

/// A network: address and prefix length, without host bits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Cidr(IpNet);

impl Cidr {
    /// The network that holds `address`: host bits are cut off.
    pub fn containing(address: IpNet) -> Self {
        Self(address.trunc())
    }

    /// The network of one address: /32 or /128.
    pub fn host(address: IpAddr) -> Self {
        Self(IpNet::from(address))
    }

    pub fn net(&self) -> IpNet {
        self.0
    }

    pub fn network(&self) -> IpAddr {
        self.0.network()
    }

    pub fn prefix_len(&self) -> u8 {
        self.0.prefix_len()
    }

    pub fn is_ipv4(&self) -> bool {
        matches!(self.0, IpNet::V4(_))
    }

    /// True when every address of `other` is in `self`; networks of another family are never inside.
    pub fn contains(&self, other: &Cidr) -> bool {
        self.0.contains(&other.0)
    }

    pub fn contains_address(&self, address: &IpAddr) -> bool {
        self.0.contains(address)
    }

    pub fn overlaps(&self, other: &Cidr) -> bool {
        self.contains(other) || other.contains(self)
    }

    /// The address `offset` above the network address, or `None` when it is outside the network.
    pub fn address_at(&self, offset: u128) -> Option<IpAddr> {
        let address = match self.0.network() {
            IpAddr::V4(base) => IpAddr::V4(u32::from(base).checked_add(u32::try_from(offset).ok()?)?.into()),
            IpAddr::V6(base) => IpAddr::V6(u128::from(base).checked_add(offset)?.into()),
        };
        self.0.contains(&address).then_some(address)
    }
}

impl FromStr for Cidr {
    type Err = BadId;
    fn from_str(text: &str) -> Result<Self, BadId> {
        let net: IpNet = text
            .parse()
            .map_err(|_| BadId::new("network", text, "must be ADDRESS/PREFIX, for example 10.200.0.0/16"))?;
        if net.addr() != net.network() {
            return Err(BadId::new(
                "network",
                text,
                "has host bits set; send the network address, or /32 (/128) for one address",
            ));
        }
        Ok(Self(net))
    }
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0.to_string())
    }
}

impl fmt::Debug for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

text_identifier!(Cidr);
