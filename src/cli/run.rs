use std::{
    net::{IpAddr, Ipv6Addr, SocketAddr},
    path::PathBuf,
    process::ExitCode,
    time::Duration,
};

use clap::Args;
use serde::Deserialize;
use tracing_subscriber::{
    Layer,
    filter::{LevelFilter, filter_fn},
    layer::SubscriberExt,
    util::SubscriberInitExt,
};

use super::args::{DEFAULT_RUN_DIR, DEFAULT_SOCKET, DEFAULT_STATE_DIR, DEFAULT_UAPI_DIR, DnsArguments};
use super::outcome::Outcome;
use crate::failure::with_causes;
use crate::{
    daemon::{self, LogFormat, ResolverSettings, Settings},
    desired::{DEFAULT_SERVICE_PREFIX_V4, DEFAULT_SERVICE_PREFIX_V6, Policy},
    ids::IfName,
    platform::{
        DataPlaneChoice,
        device_process::{self, DeviceArgs},
    },
    reconcile::target::DEFAULT_MTU,
    wire::limits::CONNECTIONS_MAX,
};

const DEFAULT_METRICS: &str = "127.0.0.1:9586";
const DEFAULT_RESYNC_SECS: u64 = 30;
/// Smallest MTU that IPv6 works with (RFC 8200 section 5), and the largest that every data plane here carries.
const MTU_RANGE: std::ops::RangeInclusive<u32> = 1280..=4000;

/// Libraries print whole messages and records below this level, and with them keys that they were given to keep or to send (I-14).
const LIBRARIES_UP_TO: LevelFilter = LevelFilter::INFO;

/// Every setting may also be given in the environment and in the file; a flag wins over the environment, which wins over the file.
#[derive(Args)]
pub struct RunArguments {
    /// Settings in TOML; names as the flags, with underscores
    #[arg(long, env = "OVERLAYD_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
    /// Directory of the document [default: /var/lib/overlayd]
    #[arg(long, env = "OVERLAYD_STATE_DIR", value_name = "DIR")]
    state_dir: Option<PathBuf>,
    /// The socket to listen on [default: /run/overlayd/overlayd.sock]
    #[arg(long, env = "OVERLAYD_SOCKET", value_name = "PATH")]
    socket: Option<PathBuf>,
    /// Group that may use the socket, by name or number
    #[arg(long, env = "OVERLAYD_SOCKET_GROUP", value_name = "GROUP")]
    socket_group: Option<String>,
    /// User ids that may speak; none given: whoever the socket's mode lets in
    #[arg(long, env = "OVERLAYD_ALLOWED_UIDS", value_name = "UID,…", value_delimiter = ',')]
    allowed_uids: Option<Vec<u32>>,
    /// Group ids that may speak
    #[arg(long, env = "OVERLAYD_ALLOWED_GIDS", value_name = "GID,…", value_delimiter = ',')]
    allowed_gids: Option<Vec<u32>>,
    /// Where the metrics page listens [default: 127.0.0.1:9586]
    #[arg(long, env = "OVERLAYD_METRICS_LISTEN", value_name = "ADDR:PORT")]
    metrics_listen: Option<SocketAddr>,
    /// Connections that may be open at a time [default: 256]
    #[arg(long, env = "OVERLAYD_CONNECTIONS_MAX", value_name = "N")]
    connections_max: Option<usize>,
    /// Seconds between two full looks at the node when nothing happens [default: 30]
    #[arg(long, env = "OVERLAYD_RESYNC_SECS", value_name = "SECONDS")]
    resync_secs: Option<u64>,
    /// MTU of the overlay device in bytes [default: 1420]
    #[arg(long, env = "OVERLAYD_MTU", value_name = "BYTES")]
    mtu: Option<u32>,
    /// Which WireGuard carries the overlay [default: auto]
    #[arg(long, env = "OVERLAYD_DATA_PLANE", value_name = "auto|kernel|userspace")]
    data_plane: Option<String>,
    /// Directory of the control sockets of userspace WireGuard devices [default: /var/run/wireguard]
    #[arg(long, env = "OVERLAYD_UAPI_DIR", value_name = "DIR")]
    uapi_dir: Option<PathBuf>,
    /// Prefix length of the IPv4 subnets that services get [default: 26]
    #[arg(long, env = "OVERLAYD_SERVICE_PREFIX_V4", value_name = "BITS")]
    service_prefix_v4: Option<u8>,
    /// Prefix length of the IPv6 subnets that services get [default: 120]
    #[arg(long, env = "OVERLAYD_SERVICE_PREFIX_V6", value_name = "BITS")]
    service_prefix_v6: Option<u8>,
    /// Seconds that an address which was given back is not given out again [default: 60]
    #[arg(long, env = "OVERLAYD_ADDRESS_REST_SECS", value_name = "SECONDS")]
    address_rest_secs: Option<u64>,
    /// Address of the host that the free-port proxy listens on [default: ::, which is every address]
    #[arg(long, env = "OVERLAYD_PROXY_LISTEN", value_name = "ADDR")]
    proxy_listen: Option<IpAddr>,
    #[command(flatten)]
    dns: DnsArguments,
    /// Where the system looks for a resolver of one zone, as /etc/resolver of macOS [default: none]
    #[arg(long, env = "OVERLAYD_RESOLVER_DIR", value_name = "DIR")]
    resolver_dir: Option<PathBuf>,
    /// The host's own resolver configuration [default: /etc/resolv.conf, and that of systemd-resolved before it]
    #[arg(long, env = "OVERLAYD_RESOLV_CONF", value_name = "FILE")]
    resolv_conf: Option<PathBuf>,
    /// Where other programs keep what they know at run time [default: /run]
    #[arg(long, env = "OVERLAYD_RUN_DIR", value_name = "DIR")]
    run_dir: Option<PathBuf>,
    /// [default: human]
    #[arg(long, env = "OVERLAYD_LOG_FORMAT", value_name = "human|json")]
    log_format: Option<String>,
    /// What is logged, for example `debug` or `overlayd::reconcile=trace,info` [default: info]
    #[arg(long, env = "OVERLAYD_LOG", value_name = "FILTER")]
    log: Option<String>,
}

/// The settings file.
#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
struct SettingsFile {
    state_dir: Option<PathBuf>,
    socket: Option<PathBuf>,
    socket_group: Option<String>,
    allowed_uids: Option<Vec<u32>>,
    allowed_gids: Option<Vec<u32>>,
    metrics_listen: Option<SocketAddr>,
    connections_max: Option<usize>,
    resync_secs: Option<u64>,
    mtu: Option<u32>,
    data_plane: Option<String>,
    uapi_dir: Option<PathBuf>,
    service_prefix_v4: Option<u8>,
    service_prefix_v6: Option<u8>,
    address_rest_secs: Option<u64>,
    proxy_listen: Option<IpAddr>,
    dns: Option<String>,
    dns_zone: Option<String>,
    dns_port: Option<u16>,
    resolv_conf: Option<PathBuf>,
    resolver_dir: Option<PathBuf>,
    run_dir: Option<PathBuf>,
    log_format: Option<String>,
    log: Option<String>,
}

/// Arguments of the process behind a userspace device.
#[derive(Args)]
pub struct DeviceArguments {
    interface: IfName,
    #[arg(long, default_value = DEFAULT_UAPI_DIR)]
    uapi_dir: PathBuf,
}

pub fn run(arguments: RunArguments) -> Outcome {
    let file = match &arguments.config {
        Some(path) => {
            let text = std::fs::read_to_string(path)
                .map_err(|error| format!("read settings file {}: {error}", path.display()))?;
            toml::from_str(&text).map_err(|error| format!("settings file {}: {error}", path.display()))?
        }
        None => SettingsFile::default(),
    };
    let log = arguments.log.clone().or(file.log.clone()).unwrap_or_else(|| "info".into());
    let settings = merge(arguments, file)?;
    start_log(settings.log_format, &log)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let outcome = runtime.block_on(daemon::run(settings));
    // A blocking look at a slow disk must not keep a stopped agent alive.
    runtime.shutdown_timeout(Duration::from_millis(100));
    if let Err(error) = &outcome {
        tracing::error!(error = error as &dyn std::error::Error, "overlayd did not start; nothing was changed");
    }
    outcome?;
    Ok(ExitCode::SUCCESS)
}

pub fn wg_device(arguments: DeviceArguments) -> Outcome {
    let arguments = DeviceArgs { ifname: arguments.interface, uapi_dir: arguments.uapi_dir };
    match device_process::run(arguments) {
        Ok(()) => Ok(ExitCode::SUCCESS),
        Err(error) => {
            eprintln!("overlayd wg-device: {}", with_causes(&error));
            Ok(ExitCode::from(error.exit_code()))
        }
    }
}

fn merge(flags: RunArguments, file: SettingsFile) -> Result<Settings, String> {
    let data_plane = match flags.data_plane.or(file.data_plane).as_deref() {
        None | Some("auto") => DataPlaneChoice::Auto,
        Some("kernel") => DataPlaneChoice::Kernel,
        Some("userspace") => DataPlaneChoice::Userspace,
        Some(other) => return Err(format!("data plane {other:?}: must be auto, kernel or userspace")),
    };
    let log_format = match flags.log_format.or(file.log_format).as_deref() {
        None | Some("human") => LogFormat::Human,
        Some("json") => LogFormat::Json,
        Some(other) => return Err(format!("log format {other:?}: must be human or json")),
    };
    let mtu = flags.mtu.or(file.mtu).unwrap_or(DEFAULT_MTU);
    if !MTU_RANGE.contains(&mtu) {
        return Err(format!("MTU {mtu}: must be from {} to {} bytes", MTU_RANGE.start(), MTU_RANGE.end()));
    }
    let resync_secs = flags.resync_secs.or(file.resync_secs).unwrap_or(DEFAULT_RESYNC_SECS);
    if resync_secs == 0 {
        return Err("resync_secs: must be at least 1".into());
    }
    let policy = Policy {
        service_prefix_v4: service_prefix(
            flags.service_prefix_v4.or(file.service_prefix_v4),
            DEFAULT_SERVICE_PREFIX_V4,
            30,
        )?,
        service_prefix_v6: service_prefix(
            flags.service_prefix_v6.or(file.service_prefix_v6),
            DEFAULT_SERVICE_PREFIX_V6,
            126,
        )?,
        address_rest: flags
            .address_rest_secs
            .or(file.address_rest_secs)
            .map_or(Policy::default().address_rest, Duration::from_secs),
        ..Policy::default()
    };
    let run_dir = flags.run_dir.or(file.run_dir).unwrap_or_else(|| DEFAULT_RUN_DIR.into());
    let of_file = DnsArguments { dns: file.dns, dns_zone: file.dns_zone, dns_port: file.dns_port };
    let configurations = match flags.resolv_conf.or(file.resolv_conf) {
        Some(path) => vec![path],
        None => vec![run_dir.join("systemd/resolve/resolv.conf"), "/etc/resolv.conf".into()],
    };
    let served = flags.dns.or(of_file).served()?;
    let resolver = served.map(|served| ResolverSettings { served, configurations });
    let metrics = DEFAULT_METRICS.parse().map_err(|_| "the default metrics address is not an address")?;
    Ok(Settings {
        state_dir: flags.state_dir.or(file.state_dir).unwrap_or_else(|| DEFAULT_STATE_DIR.into()),
        socket: flags.socket.or(file.socket).unwrap_or_else(|| DEFAULT_SOCKET.into()),
        socket_gid: flags.socket_group.or(file.socket_group).map(|group| group_id(&group)).transpose()?,
        allowed_uids: flags.allowed_uids.or(file.allowed_uids).unwrap_or_default(),
        allowed_gids: flags.allowed_gids.or(file.allowed_gids).unwrap_or_default(),
        metrics_listen: flags.metrics_listen.or(file.metrics_listen).unwrap_or(metrics),
        connections_max: flags.connections_max.or(file.connections_max).unwrap_or(CONNECTIONS_MAX).max(1),
        resync_every: Duration::from_secs(resync_secs),
        mtu,
        data_plane,
        uapi_dir: flags.uapi_dir.or(file.uapi_dir).unwrap_or_else(|| DEFAULT_UAPI_DIR.into()),
        policy,
        proxy_listen: flags.proxy_listen.or(file.proxy_listen).unwrap_or(IpAddr::V6(Ipv6Addr::UNSPECIFIED)),
        run_dir,
        resolver_dir: flags.resolver_dir.or(file.resolver_dir),
        log_format,
        resolver,
    })
}

/// A subnet has room for its network address, the gateway and at least one container.
fn service_prefix(given: Option<u8>, default: u8, longest: u8) -> Result<u8, String> {
    match given.unwrap_or(default) {
        bits if (8..=longest).contains(&bits) => Ok(bits),
        bits => Err(format!("service prefix /{bits}: must be from 8 to {longest} bits")),
    }
}

fn group_id(group: &str) -> Result<u32, String> {
    if let Ok(gid) = group.parse() {
        return Ok(gid);
    }
    match nix::unistd::Group::from_name(group) {
        Ok(Some(found)) => Ok(found.gid.as_raw()),
        Ok(None) => Err(format!("socket group {group:?}: there is no such group")),
        Err(error) => Err(format!("socket group {group:?}: {error}")),
    }
}

fn start_log(format: LogFormat, filter: &str) -> Result<(), String> {
    let filter =
        tracing_subscriber::EnvFilter::try_new(filter).map_err(|error| format!("log filter {filter:?}: {error}"))?;
    let is_fit_to_print = filter_fn(|metadata| {
        let target = metadata.target();
        // It has lines for every question, and warnings about what anybody may send.
        let up_to = if target.starts_with("hickory") { LevelFilter::ERROR } else { LIBRARIES_UP_TO };
        *metadata.level() <= up_to || target == "overlayd" || target.starts_with("overlayd::")
    });
    let layer = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
    let layer = match format {
        LogFormat::Human => layer.with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr())).boxed(),
        LogFormat::Json => layer.json().flatten_event(true).boxed(),
    };
    tracing_subscriber::registry().with(filter).with(layer.with_filter(is_fit_to_print)).init();
    Ok(())
}
