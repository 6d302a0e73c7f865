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

mod bad_id;
mod cidr;
mod endpoint;
mod ifname;
mod names;
mod netns;
mod networks;
mod path;
mod protocol;
mod reverse;
mod text;
mod wgkey;

pub use bad_id::BadId;
pub use cidr::Cidr;
pub use endpoint::{Endpoint, Host};
pub use ifname::{IFNAME_MAX, IfName};
pub use names::{DnsName, Label, NetworkName, ServiceName, Zone};
pub use netns::Netns;
pub use networks::Networks;
pub use path::FilePath;
pub use protocol::Protocol;
pub(crate) use text::text_identifier;
pub use wgkey::WgPublicKey;
