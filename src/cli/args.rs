//! Arguments that several commands share, and their defaults.

use std::path::PathBuf;

use clap::Args;

use crate::reconcile::target::DEFAULT_MTU;

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

/// Which instance: its state directory, and where its userspace devices listen.
#[derive(Args, Clone)]
pub struct InstanceArguments {
    /// Directory of the document
    #[arg(long, env = "OVERLAYD_STATE_DIR", default_value = DEFAULT_STATE_DIR, value_name = "DIR")]
    pub state_dir: PathBuf,
    /// Directory of the control sockets of userspace WireGuard devices
    #[arg(long, env = "OVERLAYD_UAPI_DIR", default_value = DEFAULT_UAPI_DIR, value_name = "DIR")]
    pub uapi_dir: PathBuf,
    /// Directory of the resolvers of single zones that the agent was started with
    #[arg(long, env = "OVERLAYD_RESOLVER_DIR", value_name = "DIR")]
    pub resolver_dir: Option<PathBuf>,
    /// MTU that the agent was started with, bytes
    #[arg(long, env = "OVERLAYD_MTU", default_value_t = DEFAULT_MTU, value_name = "BYTES")]
    pub mtu: u32,
}
