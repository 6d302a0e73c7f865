//! Arguments that several commands share, and their defaults.

use std::path::PathBuf;

use clap::Args;

use crate::reconcile::target::{DEFAULT_MTU, Served};

const DEFAULT_ZONE: &str = "overlay";
const DNS_PORT: u16 = 53;

pub const DEFAULT_STATE_DIR: &str = "/var/lib/overlayd";
pub const DEFAULT_SOCKET: &str = "/run/overlayd/overlayd.sock";
pub const DEFAULT_RUN_DIR: &str = "/run";
pub const DEFAULT_UAPI_DIR: &str = "/var/run/wireguard";

/// Where the agent's socket is.
#[derive(Args, Clone)]
pub struct SocketArgument {
    /// The agent's socket
    #[arg(long, env = "OVERLAYD_SOCKET", default_value = DEFAULT_SOCKET, value_name = "PATH", global = true)]
    pub socket: PathBuf,
}

/// Which instance, and how it was started.
#[derive(Args, Clone)]
pub struct InstanceArguments {
    /// Directory of the document
    #[arg(long, env = "OVERLAYD_STATE_DIR", default_value = DEFAULT_STATE_DIR, value_name = "DIR")]
    pub state_dir: PathBuf,
    #[command(flatten)]
    pub started: StartedWith,
}

/// What the agent was started with, and what looking at its node without it therefore takes.
#[derive(Args, Clone)]
pub struct StartedWith {
    /// Directory of the control sockets of userspace WireGuard devices
    #[arg(long, env = "OVERLAYD_UAPI_DIR", default_value = DEFAULT_UAPI_DIR, value_name = "DIR")]
    pub uapi_dir: PathBuf,
    /// Directory of the resolvers of single zones that the agent was started with
    #[arg(long, env = "OVERLAYD_RESOLVER_DIR", value_name = "DIR")]
    pub resolver_dir: Option<PathBuf>,
    /// MTU that the agent was started with, bytes
    #[arg(long, env = "OVERLAYD_MTU", default_value_t = DEFAULT_MTU, value_name = "BYTES")]
    pub mtu: u32,
    #[command(flatten)]
    pub dns: DnsArguments,
}

/// How the agent serves the overlay's zone.
#[derive(Args, Clone, Default)]
pub struct DnsArguments {
    /// Whether the overlay's zone is served at its addresses and gateways [default: on]
    #[arg(long, env = "OVERLAYD_DNS", value_name = "on|off")]
    pub dns: Option<String>,
    /// What all names of the overlay end in [default: overlay]
    #[arg(long, env = "OVERLAYD_DNS_ZONE", value_name = "NAME")]
    pub dns_zone: Option<String>,
    /// UDP and TCP port of the overlay's resolver [default: 53]
    #[arg(long, env = "OVERLAYD_DNS_PORT", value_name = "PORT")]
    pub dns_port: Option<u16>,
}

impl DnsArguments {
    /// The same, with what another source says where this one says nothing.
    pub fn or(self, other: DnsArguments) -> Self {
        Self {
            dns: self.dns.or(other.dns),
            dns_zone: self.dns_zone.or(other.dns_zone),
            dns_port: self.dns_port.or(other.dns_port),
        }
    }

    /// The zone that is served; `None` when none is.
    ///
    /// # Errors
    /// With a text for people when an argument is not valid.
    pub fn served(&self) -> Result<Option<Served>, String> {
        match self.dns.as_deref() {
            None | Some("on") => {}
            Some("off") => return Ok(None),
            Some(other) => return Err(format!("dns {other:?}: must be on or off")),
        }
        let zone = self.dns_zone.as_deref().unwrap_or(DEFAULT_ZONE);
        let zone = zone.parse().map_err(|error| format!("dns_zone: {error}"))?;
        match self.dns_port.unwrap_or(DNS_PORT) {
            0 => Err("dns_port: must be from 1 to 65535; to serve no names, say dns off".into()),
            port => Ok(Some(Served { zone, port })),
        }
    }
}
