//! A userspace WireGuard device in a process of its own: `overlayd wg-device IFNAME`.
//!
//! Owns the process ([`run`]), the TUN it serves ([`create_persistent`]) and the way it is started ([`start`]). Packets are gotatun's
//! business; changes and questions come over the socket of [`uapi`](super::uapi). Leaves addresses, routes and the link itself to the agent.
//!
//! Upholds I-03 (only a TUN that exists and is persistent is attached to), I-04, I-08 (a live peer is changed in place), I-11, I-14, I-15, B1, B27, B29.
//!
//! The process keeps nothing: after a start it has no key and no peers. The interface, its addresses and routes outlive it in the kernel,
//! the configuration comes from the agent's next round, and the first packet to every endpoint is a handshake, because a far side with an
//! old session waits 15 s before it starts one itself.

mod attach;
mod engine;
mod failed;
mod ledger;
mod place;
mod run;
mod server;
mod sockets;
mod spawn;
mod tun;

pub use failed::DeviceError;
pub use run::{DEFAULT_UAPI_DIR, DeviceArgs, run};
pub use spawn::{CURRENT_EXE, START_LIMIT, StartError, start};
pub use tun::{TunError, create_persistent};
