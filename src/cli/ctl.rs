use std::{io::Read, net::IpAddr, path::PathBuf, process::ExitCode};

use clap::{Args, Subcommand, ValueEnum};

use super::args::SocketArgument;
use super::outcome::{Outcome, block_on, print};
use crate::{
    client::{Client, ClientError},
    secret::SecretText,
    wire::{
        AttachHandle, NatCandidate, NatConfig, OverlayMode, PeerScope, PeerSpec, RelayServer, Request, Response,
        TurnServer,
    },
};

#[derive(Args)]
pub struct CtlArguments {
    #[command(flatten)]
    socket: SocketArgument,
    /// Send this JSON frame as it is ("-" reads it from standard input) and print the answer
    #[arg(long, value_name = "FRAME|-")]
    json: Option<String>,
    #[command(subcommand)]
    request: Option<Ctl>,
}

/// One subcommand for each request of the contract.
#[derive(Subcommand)]
enum Ctl {
    SetLocalNodeId {
        node_id: u64,
    },
    SetLocalWgPubkey {
        pubkey: String,
    },
    SetupGlobalOverlay(Box<SetupGlobalOverlay>),
    TeardownGlobalOverlay,
    SetupServiceOverlay {
        service: String,
        #[arg(long, value_enum, default_value = "auto")]
        mode: Mode,
    },
    TeardownServiceOverlay {
        service: String,
    },
    AllocateIp {
        service: String,
        #[arg(long)]
        join_global: bool,
    },
    ReleaseIp {
        ip: IpAddr,
    },
    AttachContainer(AttachContainer),
    DetachContainer {
        #[command(flatten)]
        handle: Handle,
    },
    AddPeer(AddPeer),
    RemovePeer {
        pubkey: String,
        #[command(flatten)]
        scope: Scope,
    },
    AddAllowedIp {
        pubkey: String,
        cidr: String,
        #[command(flatten)]
        scope: Scope,
    },
    RemoveAllowedIp {
        pubkey: String,
        cidr: String,
        #[command(flatten)]
        scope: Scope,
    },
    RegisterDns {
        name: String,
        ip: IpAddr,
    },
    UnregisterDns {
        name: String,
    },
    WriteScopedResolver {
        zone: String,
        node_ip: IpAddr,
        #[arg(long)]
        port: Option<u16>,
    },
    RemoveScopedResolver {
        zone: String,
    },
    PruneOrphanBridges {
        /// Bridges that are to stay
        live_bridge_names: Vec<String>,
    },
    Status,
    NatTick,
    NatStatus,
    Shutdown,
    /// Print events as they come, one JSON object a line
    Watch,
}

#[derive(Args)]
struct SetupGlobalOverlay {
    #[arg(long)]
    deployment: String,
    #[arg(long)]
    instance_id: String,
    #[arg(long, value_name = "CIDR")]
    cluster_cidr: String,
    #[arg(long, value_name = "CIDR")]
    slice_cidr: Option<String>,
    #[arg(long, value_name = "PORT")]
    wg_port: u16,
    #[arg(long)]
    host_adapter_mandatory: bool,
    #[command(flatten)]
    nat: Nat,
}

#[derive(Args)]
struct Nat {
    /// Send a NAT configuration; without this flag none is sent
    #[arg(long)]
    nat: bool,
    #[arg(long, requires = "nat")]
    nat_enabled: bool,
    #[arg(long, requires = "nat", value_name = "HOST:PORT")]
    stun_server: Vec<String>,
    /// The credential is read from FILE, so that no process list shows it
    #[arg(long, requires = "nat", value_name = "HOST:PORT,USER,FILE")]
    turn_server: Vec<String>,
    #[arg(long, requires = "nat", default_value_t = 0)]
    hole_punch_timeout_secs: u64,
    #[arg(long, requires = "nat", default_value_t = 0)]
    stun_refresh_interval_secs: u64,
    #[arg(long, requires = "nat", default_value_t = 0)]
    max_candidate_pairs: u64,
    #[arg(long, requires = "nat", value_name = "PORT")]
    relay_listen_port: Option<u16>,
    #[arg(long, requires = "relay_listen_port", value_name = "HOST:PORT", default_value = "")]
    relay_external_addr: String,
    #[arg(long, requires = "relay_listen_port", default_value_t = 0)]
    relay_max_sessions: u64,
    #[arg(long, requires = "relay_listen_port", value_name = "FILE")]
    relay_auth_credential_file: Option<PathBuf>,
}

#[derive(Args)]
#[group(required = true, multiple = false, id = "handle")]
struct Handle {
    /// A process of the container (Linux)
    #[arg(long, group = "handle")]
    pid: Option<u32>,
    #[arg(long, group = "handle", value_name = "CONTAINER_ID")]
    windows: Option<String>,
    #[arg(long, group = "handle", value_name = "ID")]
    guest: Option<String>,
    #[arg(long, group = "handle", value_name = "ID")]
    host_shared: Option<String>,
}

#[derive(Args)]
struct AttachContainer {
    #[command(flatten)]
    handle: Handle,
    #[arg(long)]
    service: String,
    /// Address that the runtime reserved (with --windows)
    #[arg(long, requires = "windows")]
    ip: Option<IpAddr>,
    #[arg(long)]
    join_global: bool,
    #[arg(long)]
    ephemeral: bool,
    #[arg(long)]
    isolation_network: Option<String>,
    #[arg(long)]
    dns_server: Option<IpAddr>,
    #[arg(long)]
    dns_domain: Option<String>,
}

#[derive(Args)]
struct AddPeer {
    public_key: String,
    #[arg(long, value_name = "HOST:PORT", default_value = "")]
    endpoint: String,
    /// Networks with commas between them
    #[arg(long, value_name = "CIDR,…", default_value = "")]
    allowed_ips: String,
    #[arg(long, value_name = "SECONDS", default_value_t = 0)]
    persistent_keepalive_secs: u64,
    #[arg(long, value_name = "TYPE,HOST:PORT,PRIORITY")]
    candidate: Vec<String>,
    #[command(flatten)]
    scope: Scope,
}

#[derive(Args)]
struct Scope {
    /// The dedicated device of this service instead of the node's
    #[arg(long)]
    service: Option<String>,
}

#[derive(Clone, Copy, ValueEnum)]
enum Mode {
    Auto,
    Shared,
    Dedicated,
    Isolated,
}

pub fn ctl(arguments: CtlArguments) -> Outcome {
    let socket = arguments.socket.socket;
    match (arguments.json, arguments.request) {
        (Some(frame), None) => {
            let body = if frame == "-" { read_stdin()? } else { frame.into_bytes() };
            let answer = block_on(async { Client::connect(&socket).await?.raw(&body).await })??;
            print(&format!("{}\n", String::from_utf8_lossy(&answer)));
            Ok(ExitCode::SUCCESS)
        }
        (None, Some(Ctl::Watch)) => {
            block_on(watch(&socket))??;
            Ok(ExitCode::SUCCESS)
        }
        (None, Some(request)) => {
            let request = request.into_request()?;
            let response = block_on(async { Client::connect(&socket).await?.request(request).await })??;
            print(&format!("{:#}\n", serde_json::to_value(&response)?));
            Ok(if matches!(response, Response::Err { .. }) { ExitCode::FAILURE } else { ExitCode::SUCCESS })
        }
        (Some(_), Some(_)) => Err("give either --json or a request, not both".into()),
        (None, None) => Err("give a request (see `overlayd ctl --help`) or --json FRAME".into()),
    }
}

async fn watch(socket: &std::path::Path) -> Result<(), ClientError> {
    let mut client = Client::connect(socket).await?;
    loop {
        let event = client.next_event().await?;
        print(&format!("{}\n", serde_json::to_string(&event).unwrap_or_default()));
    }
}

fn read_stdin() -> std::io::Result<Vec<u8>> {
    let mut body = Vec::new();
    std::io::stdin().read_to_end(&mut body)?;
    Ok(body)
}

impl Ctl {
    fn into_request(self) -> Result<Request, String> {
        Ok(match self {
            Ctl::SetLocalNodeId { node_id } => Request::SetLocalNodeId { node_id },
            Ctl::SetLocalWgPubkey { pubkey } => Request::SetLocalWgPubkey { pubkey },
            Ctl::SetupGlobalOverlay(setup) => setup.into_request()?,
            Ctl::TeardownGlobalOverlay => Request::TeardownGlobalOverlay,
            Ctl::SetupServiceOverlay { service, mode } => Request::SetupServiceOverlay { service, mode: mode.into() },
            Ctl::TeardownServiceOverlay { service } => Request::TeardownServiceOverlay { service },
            Ctl::AllocateIp { service, join_global } => Request::AllocateIp { service, join_global },
            Ctl::ReleaseIp { ip } => Request::ReleaseIp { ip },
            Ctl::AttachContainer(attach) => attach.into_request()?,
            Ctl::DetachContainer { handle } => Request::DetachContainer { handle: handle.into_handle(None)? },
            Ctl::AddPeer(add) => add.into_request()?,
            Ctl::RemovePeer { pubkey, scope } => Request::RemovePeer { pubkey, scope: scope.into() },
            Ctl::AddAllowedIp { pubkey, cidr, scope } => Request::AddAllowedIp { pubkey, cidr, scope: scope.into() },
            Ctl::RemoveAllowedIp { pubkey, cidr, scope } => {
                Request::RemoveAllowedIp { pubkey, cidr, scope: scope.into() }
            }
            Ctl::RegisterDns { name, ip } => Request::RegisterDns { name, ip },
            Ctl::UnregisterDns { name } => Request::UnregisterDns { name },
            Ctl::WriteScopedResolver { zone, node_ip, port } => Request::WriteScopedResolver { zone, node_ip, port },
            Ctl::RemoveScopedResolver { zone } => Request::RemoveScopedResolver { zone },
            Ctl::PruneOrphanBridges { live_bridge_names } => Request::PruneOrphanBridges { live_bridge_names },
            Ctl::Status => Request::Status,
            Ctl::NatTick => Request::NatTick,
            Ctl::NatStatus => Request::NatStatus,
            Ctl::Shutdown => Request::Shutdown,
            Ctl::Watch => unreachable!("watch sends no request"),
        })
    }
}

impl SetupGlobalOverlay {
    fn into_request(self) -> Result<Request, String> {
        Ok(Request::SetupGlobalOverlay {
            deployment: self.deployment,
            instance_id: self.instance_id,
            cluster_cidr: self.cluster_cidr,
            slice_cidr: self.slice_cidr,
            wg_port: self.wg_port,
            host_adapter_mandatory: self.host_adapter_mandatory,
            nat: self.nat.into_config()?,
        })
    }
}

impl Nat {
    fn into_config(self) -> Result<Option<NatConfig>, String> {
        if !self.nat {
            return Ok(None);
        }
        let turn_server = |text: &String| match text.splitn(3, ',').collect::<Vec<_>>()[..] {
            [addr, username, file] => {
                Ok(TurnServer { addr: addr.into(), username: username.into(), credential: read_secret(file.as_ref())? })
            }
            _ => Err(format!("--turn-server {text:?}: must be HOST:PORT,USER,FILE")),
        };
        let relay_server = match self.relay_listen_port {
            None => None,
            Some(listen_port) => Some(RelayServer {
                listen_port,
                external_addr: self.relay_external_addr,
                max_sessions: self.relay_max_sessions,
                auth_credential: self.relay_auth_credential_file.as_deref().map(read_secret).transpose()?,
            }),
        };
        Ok(Some(NatConfig {
            enabled: self.nat_enabled,
            stun_servers: self.stun_server,
            turn_servers: self.turn_server.iter().map(turn_server).collect::<Result<_, String>>()?,
            hole_punch_timeout_secs: self.hole_punch_timeout_secs,
            stun_refresh_interval_secs: self.stun_refresh_interval_secs,
            max_candidate_pairs: self.max_candidate_pairs,
            relay_server,
        }))
    }
}

fn read_secret(file: &std::path::Path) -> Result<SecretText, String> {
    let text = std::fs::read_to_string(file).map_err(|error| format!("read {}: {error}", file.display()))?;
    Ok(text.trim_end().into())
}

impl Handle {
    fn into_handle(self, ip: Option<IpAddr>) -> Result<AttachHandle, String> {
        match self {
            Handle { pid: Some(pid), .. } => Ok(AttachHandle::LinuxPid { pid }),
            Handle { windows: Some(container_id), .. } => Ok(AttachHandle::WindowsContainer { container_id, ip }),
            Handle { guest: Some(id), .. } => Ok(AttachHandle::GuestManaged { id }),
            Handle { host_shared: Some(id), .. } => Ok(AttachHandle::HostShared { id }),
            Handle { .. } => Err("give one of --pid, --windows, --guest, --host-shared".into()),
        }
    }
}

impl AttachContainer {
    fn into_request(self) -> Result<Request, String> {
        Ok(Request::AttachContainer {
            handle: self.handle.into_handle(self.ip)?,
            service: self.service,
            join_global: self.join_global,
            ephemeral: self.ephemeral,
            isolation_network: self.isolation_network,
            dns_server: self.dns_server,
            dns_domain: self.dns_domain,
        })
    }
}

impl AddPeer {
    fn into_request(self) -> Result<Request, String> {
        let candidate = |text: &String| {
            let bad = || format!("--candidate {text:?}: must be TYPE,HOST:PORT,PRIORITY");
            let [candidate_type, address, priority] = text.splitn(3, ',').collect::<Vec<_>>()[..] else {
                return Err(bad());
            };
            let priority = priority.parse().map_err(|_| bad())?;
            Ok(NatCandidate { candidate_type: candidate_type.into(), address: address.into(), priority })
        };
        let peer = PeerSpec {
            public_key: self.public_key,
            endpoint: self.endpoint,
            allowed_ips: self.allowed_ips,
            persistent_keepalive_secs: self.persistent_keepalive_secs,
            candidates: self.candidate.iter().map(candidate).collect::<Result<_, String>>()?,
        };
        Ok(Request::AddPeer { peer, scope: self.scope.into() })
    }
}

impl From<Scope> for PeerScope {
    fn from(scope: Scope) -> Self {
        match scope.service {
            Some(service) => PeerScope::Service { service },
            None => PeerScope::Global,
        }
    }
}

impl From<Mode> for OverlayMode {
    fn from(mode: Mode) -> Self {
        match mode {
            Mode::Auto => OverlayMode::Auto,
            Mode::Shared => OverlayMode::Shared,
            Mode::Dedicated => OverlayMode::Dedicated,
            Mode::Isolated => OverlayMode::Isolated,
        }
    }
}
