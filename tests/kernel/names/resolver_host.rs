//! A host with systemd-resolved: the real program and a bus of its own, in the namespaces of a test.
//!
//! Owns fetching and starting them. They run as root there: a test has only the users that it finds.

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use zbus::zvariant::{OwnedObjectPath, OwnedValue};

use crate::{
    lab::{self, Node},
    overlay_node::{block_on, until},
};

const BUS: &str = "/run/dbus/system_bus_socket";
const BUS_SETTINGS: &str = r#"<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN"
 "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig>
  <type>system</type>
  <listen>unix:path=/run/dbus/system_bus_socket</listen>
  <policy context="default">
    <allow user="*"/>
    <allow own="*"/>
    <allow send_destination="*"/>
    <allow receive_sender="*"/>
  </policy>
</busconfig>
"#;
/// What is on for every link unless somebody says otherwise is on.
const SETTINGS: &str = "[Resolve]\nDNS=198.51.100.1\nFallbackDNS=\nLLMNR=yes\nMulticastDNS=yes\nDNSSEC=no\n";
const DESTINATION: &str = "org.freedesktop.resolve1";

fn store() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("target/resolved")
}

/// Fetches the programs. Call it before [`isolated`](crate::lab::isolated): a test's own network leads nowhere.
pub fn fetch() {
    if lab::is_inside() {
        return;
    }
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/kernel/names/fetch-resolved");
    let why = match Command::new(script).arg(store()).output() {
        Ok(output) if output.status.success() => return,
        Ok(output) => String::from_utf8_lossy(&output.stdout).lines().last().unwrap_or("no reason given").to_owned(),
        Err(error) => error.to_string(),
    };
    // The test itself says it. Where nothing can be written it finds nothing either.
    let _ = std::fs::write(store().join("why-not"), why);
}

pub struct ResolverHost {
    node: Node,
    bus: Child,
    program: Option<Child>,
}

impl ResolverHost {
    /// Starts the bus and the program in the node's network; ends the test where they are not to be had.
    pub fn start(node: &Node) -> Self {
        if !store().join("libraries").exists() {
            let why = std::fs::read_to_string(store().join("why-not")).unwrap_or_default();
            lab::skip(&format!("no systemd-resolved: {why}"));
        }
        for directory in ["/run/dbus", "/run/systemd/resolve", "/run/systemd/resolved.conf.d"] {
            std::fs::create_dir_all(directory).unwrap();
        }
        std::fs::write("/run/systemd/resolved.conf.d/test.conf", SETTINGS).unwrap();
        std::fs::write("/run/bus.conf", BUS_SETTINGS).unwrap();
        add_user();
        let mut bus = command("usr/bin/dbus-daemon", "/run/bus.log");
        bus.args(["--config-file=/run/bus.conf", "--nofork", "--nopidfile"]);
        let bus = node.run(move || bus.spawn()).unwrap();
        until("the bus is there", || Path::new(BUS).exists());
        let mut host = Self { node: node.twin(), bus, program: None };
        host.begin();
        host
    }

    /// Starts the program.
    pub fn begin(&mut self) {
        let mut program = command("lib/systemd/systemd-resolved", "/run/resolved.log");
        program.env("SYSTEMD_LOG_LEVEL", "debug");
        self.program = Some(self.node.run(move || program.spawn()).unwrap());
        until("systemd-resolved is on the bus", || self.is_there());
    }

    /// Kills the program, and takes from it what it would know of links when it comes back.
    pub fn end(&mut self) {
        let mut program = self.program.take().unwrap();
        program.kill().unwrap();
        program.wait().unwrap();
        let _ = std::fs::remove_dir_all("/run/systemd/resolve/netif");
    }

    pub fn bus_pid(&self) -> i32 {
        i32::try_from(self.bus.id()).unwrap()
    }

    fn is_there(&self) -> bool {
        block_on(async {
            let Ok(connection) = connect().await else { return false };
            let asked = connection.call_method(
                Some("org.freedesktop.DBus"),
                "/org/freedesktop/DBus",
                Some("org.freedesktop.DBus"),
                "NameHasOwner",
                &DESTINATION,
            );
            asked.await.is_ok_and(|answer| answer.body().deserialize().unwrap())
        })
    }

    /// What the program says of a link, each property as the library prints it.
    pub fn properties(&self, link: &str) -> HashMap<String, OwnedValue> {
        let index = self.index(link);
        block_on(async {
            let connection = connect().await.unwrap();
            let manager = "/org/freedesktop/resolve1";
            let interface = "org.freedesktop.resolve1.Manager";
            let path = connection
                .call_method(Some(DESTINATION), manager, Some(interface), "GetLink", &(index,))
                .await
                .unwrap();
            let path: OwnedObjectPath = path.body().deserialize().unwrap();
            let all = connection
                .call_method(
                    Some(DESTINATION),
                    path,
                    Some("org.freedesktop.DBus.Properties"),
                    "GetAll",
                    &("org.freedesktop.resolve1.Link",),
                )
                .await
                .unwrap();
            all.body().deserialize().unwrap()
        })
    }

    /// Somebody makes the program forget what it was told of a link; false when it refuses.
    pub fn revert(&self, link: &str) -> bool {
        let index = self.index(link);
        block_on(async {
            let connection = connect().await.unwrap();
            let manager = "/org/freedesktop/resolve1";
            let interface = "org.freedesktop.resolve1.Manager";
            connection.call_method(Some(DESTINATION), manager, Some(interface), "RevertLink", &(index,)).await.is_ok()
        })
    }

    pub fn index(&self, link: &str) -> i32 {
        let link = link.to_owned();
        let index = self.node.run(move || nix::net::if_::if_nametoindex(link.as_str())).unwrap();
        i32::try_from(index).unwrap()
    }
}

impl Drop for ResolverHost {
    fn drop(&mut self) {
        for child in self.program.iter_mut().chain([&mut self.bus]) {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

async fn connect() -> zbus::Result<zbus::Connection> {
    let stream = tokio::net::UnixStream::connect(BUS).await?;
    zbus::connection::Builder::unix_stream(stream).build().await
}

fn command(program: &str, log: &str) -> Command {
    let log = std::fs::File::options().create(true).append(true).open(log).unwrap();
    let libraries = std::fs::read_to_string(store().join("libraries")).unwrap();
    let mut command = Command::new(store().join("tree").join(program));
    command.env("LD_LIBRARY_PATH", libraries.trim()).stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
    command
}

/// The program's own user, whom the package would have made.
fn add_user() {
    for (file, line) in
        [("passwd", "systemd-resolve:x:0:0::/:/usr/sbin/nologin\n"), ("group", "systemd-resolve:x:0:\n")]
    {
        let (of_host, of_test) = (format!("/etc/{file}"), format!("/run/{file}"));
        let before: String = std::fs::read_to_string(&of_host).unwrap();
        let others = before.lines().filter(|line| !line.starts_with("systemd-resolve:"));
        let text: String = others.flat_map(|line| [line, "\n"]).chain([line]).collect();
        std::fs::write(&of_test, text).unwrap();
        let flags = nix::mount::MsFlags::MS_BIND;
        nix::mount::mount(Some(of_test.as_str()), of_host.as_str(), None::<&str>, flags, None::<&str>).unwrap();
    }
}
