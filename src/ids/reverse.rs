use std::net::IpAddr;

use ipnet::IpNet;

use super::Cidr;

/// Those of `in-addr.arpa` and of `ip6.arpa`.
const LABELS_OF_THE_TOP: u8 = 2;

/// Reverse names: one label for each octet of an IPv4 address (RFC 1035 section 3.5), or each nibble of an IPv6 one (RFC 3596 section 2.5).
impl Cidr {
    /// The zones of the network's addresses, which hold no other addresses: at most 128, since a network need not end at a dot.
    pub fn reverse_zones(&self) -> impl Iterator<Item = String> {
        let bits = self.prefix_len().next_multiple_of(self.bits_of_a_label());
        self.net().subnets(bits).into_iter().flatten().map(reverse_name)
    }

    /// How many labels the name of each of these zones has.
    pub fn reverse_labels(&self) -> u8 {
        LABELS_OF_THE_TOP + self.prefix_len().div_ceil(self.bits_of_a_label())
    }

    fn bits_of_a_label(&self) -> u8 {
        if self.is_ipv4() { 8 } else { 4 }
    }
}

/// The reverse name of a network that ends at a dot of it, without the final dot.
fn reverse_name(network: IpNet) -> String {
    let (labels, top): (Vec<String>, _) = match network.addr() {
        IpAddr::V4(address) => {
            let octets = address.octets().into_iter().take(usize::from(network.prefix_len() / 8));
            (octets.map(|octet| octet.to_string()).collect(), "in-addr.arpa")
        }
        IpAddr::V6(address) => {
            let nibbles = address.octets().into_iter().flat_map(|octet| [octet >> 4, octet & 0xf]);
            let nibbles = nibbles.take(usize::from(network.prefix_len() / 4));
            (nibbles.map(|nibble| format!("{nibble:x}")).collect(), "ip6.arpa")
        }
    };
    let labels = labels.into_iter().rev().chain([top.to_owned()]);
    labels.collect::<Vec<_>>().join(".")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn zones(text: &str) -> Vec<String> {
        let network: Cidr = text.parse().unwrap();
        let zones: Vec<String> = network.reverse_zones().collect();
        for zone in &zones {
            assert_eq!(zone.split('.').count(), usize::from(network.reverse_labels()), "{zone}");
        }
        zones
    }

    #[test]
    fn every_address_of_a_network_is_in_one_of_its_zones_and_no_other_is() {
        assert_eq!(zones("0.0.0.0/0"), ["in-addr.arpa"]);
        assert_eq!(zones("10.0.0.0/8"), ["10.in-addr.arpa"]);
        assert_eq!(zones("10.200.0.0/16"), ["200.10.in-addr.arpa"]);
        assert_eq!(zones("10.200.16.0/23"), ["16.200.10.in-addr.arpa", "17.200.10.in-addr.arpa"]);
        assert_eq!(zones("10.128.0.0/9").len(), 128);
        assert_eq!(zones("10.0.0.4/31"), ["4.0.0.10.in-addr.arpa", "5.0.0.10.in-addr.arpa"]);
        assert_eq!(zones("fd00:200::/32"), ["0.0.2.0.0.0.d.f.ip6.arpa"]);
        assert_eq!(zones("fd00:200::/31"), ["0.0.2.0.0.0.d.f.ip6.arpa", "1.0.2.0.0.0.d.f.ip6.arpa"]);
        assert_eq!(zones("fd00::1/128").len(), 1);
    }
}
