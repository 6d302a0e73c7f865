use std::{fmt, net::IpAddr, str::FromStr};

use serde::{Deserialize, Serialize};

use super::{BadId, Cidr, text_identifier};

/// One network, or one of each family: `10.200.0.0/16` or `10.200.0.0/16,fd00:200::/48`. The first is the one that is named first.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Networks {
    first: Cidr,
    second: Option<Cidr>,
}

impl Networks {
    /// The network that was named first: what answers with one address are about.
    pub fn first(&self) -> &Cidr {
        &self.first
    }

    /// These networks, if they are one or one of each family.
    pub fn of(networks: impl IntoIterator<Item = Cidr>) -> Option<Self> {
        let mut networks = networks.into_iter();
        let (first, second) = (networks.next()?, networks.next());
        let fits = networks.next().is_none() && second.is_none_or(|second| second.is_ipv4() != first.is_ipv4());
        fits.then_some(Self { first, second })
    }

    pub fn iter(&self) -> impl Iterator<Item = &Cidr> {
        std::iter::once(&self.first).chain(self.second.as_ref())
    }

    /// The network of the same family as `other`.
    pub fn of_family(&self, other: &Cidr) -> Option<&Cidr> {
        self.iter().find(|network| network.is_ipv4() == other.is_ipv4())
    }

    pub fn contains_address(&self, address: &IpAddr) -> bool {
        self.iter().any(|network| network.contains_address(address))
    }

    pub fn overlaps(&self, other: &Cidr) -> bool {
        self.iter().any(|network| network.overlaps(other))
    }
}

impl From<Cidr> for Networks {
    fn from(network: Cidr) -> Self {
        Self { first: network, second: None }
    }
}

impl FromStr for Networks {
    type Err = BadId;
    fn from_str(text: &str) -> Result<Self, BadId> {
        let bad = || {
            BadId::new("networks", text, "must be one network, or one IPv4 and one IPv6 network with a comma between")
        };
        let mut parts = text.split(',').map(|part| part.trim_matches(' ').parse::<Cidr>());
        let first = parts.next().ok_or_else(bad)??;
        let second = parts.next().transpose()?;
        if parts.next().is_some() || second.is_some_and(|second| second.is_ipv4() == first.is_ipv4()) {
            return Err(bad());
        }
        Ok(Self { first, second })
    }
}

impl fmt::Display for Networks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.second {
            None => self.first.fmt(f),
            Some(second) => f.pad(&format!("{},{second}", self.first)),
        }
    }
}

impl fmt::Debug for Networks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

text_identifier!(Networks);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_network_of_each_family_at_most() {
        for good in ["10.200.0.0/16", "fd00::/48", "10.200.0.0/16,fd00::/48"] {
            assert_eq!(good.parse::<Networks>().unwrap().to_string(), good);
        }
        assert_eq!("fd00::/48, 10.0.0.0/8".parse::<Networks>().unwrap().first(), &"fd00::/48".parse().unwrap());
        for bad in ["", ",", "10.0.0.0/8,10.1.0.0/16", "10.0.0.0/8,fd00::/48,fd01::/48", "10.0.0.1/8"] {
            assert!(bad.parse::<Networks>().is_err(), "{bad}");
        }
    }
}
