//! Ports of containers published on the host, by the command line and by real clients in the world outside.

use std::{
    io::{Read, Write},
    net::{IpAddr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

use overlayd::wire::OverlayMode;

use super::scene::{DUAL, NODE_OUTSIDE, Wish, bridge_of, outside, single};
use crate::{
    container::Container,
    lab::{Node, isolated},
    overlay_node::{OverlayNode, until},
    probe::{PORT, Server},
};

/// How long one question waits for its answer; [`until`] asks again.
const ANSWER_WITHIN: Duration = Duration::from_millis(500);

/// Sends each datagram back.
struct Echo {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Echo {
    fn start(node: &Node) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let socket = node.run(|| UdpSocket::bind((Ipv6Addr::UNSPECIFIED, PORT))).unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
        let is_over = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            let mut buffer = [0; 2048];
            while !is_over.load(Ordering::Relaxed) {
                if let Ok((length, from)) = socket.recv_from(&mut buffer) {
                    let _ = socket.send_to(&buffer[..length], from);
                }
            }
        });
        Self { stop, thread: Some(thread) }
    }
}

impl Drop for Echo {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// What a server of the container says to a client of the world: the address that it sees.
fn over_tcp(client: &Node, to: SocketAddr) -> Option<IpAddr> {
    client.run(move || {
        let mut stream = TcpStream::connect_timeout(&to, ANSWER_WITHIN).ok()?;
        stream.set_read_timeout(Some(ANSWER_WITHIN)).ok()?;
        stream.write_all(b"?").ok()?;
        let mut text = String::new();
        stream.read_to_string(&mut text).ok()?;
        text.parse().ok()
    })
}

fn over_udp(client: &Node, to: SocketAddr) -> bool {
    client.run(move || {
        let socket = UdpSocket::bind((if to.is_ipv4() { "0.0.0.0" } else { "::" }, 0)).unwrap();
        socket.set_read_timeout(Some(ANSWER_WITHIN)).unwrap();
        let mut buffer = [0; 64];
        socket.send_to(b"there and back", to).is_ok()
            && socket
                .recv_from(&mut buffer)
                .is_ok_and(|(length, from)| (&buffer[..length], from) == (&b"there and back"[..], to))
    })
}

fn command(node: &OverlayNode, verb: &str, container: &Container, protocol: &str) -> Result<String, String> {
    let (socket, pid, port) =
        (node.socket().to_string_lossy().into_owned(), container.pid.to_string(), PORT.to_string());
    let output = node.command(&[verb, "--socket", &socket, "--pid", &pid, "--port", &port, "--protocol", protocol]);
    match output.status.success() {
        true => Ok(String::from_utf8(output.stdout).unwrap().trim().to_owned()),
        false => Err(String::from_utf8(output.stderr).unwrap()),
    }
}

fn publish(node: &OverlayNode, container: &Container, protocol: &str) -> u16 {
    command(node, "publish", container, protocol).unwrap().parse().unwrap()
}

#[test]
fn a_published_port_leads_the_world_to_the_container_by_tcp_and_udp_also_after_kill_9_until_it_is_taken_back() {
    isolated(|| {
        let mut node = single(DUAL);
        let world = outside(&node, &[]);
        let bridge = bridge_of(&node.segment("web", OverlayMode::Shared));
        let container = Container::new();
        node.attach(&container, Wish::to("web"));
        let (_server, _echo) = (Server::start(&container.node()), Echo::start(&container.node()));
        let (tcp, udp) = (publish(&node, &container, "tcp"), publish(&node, &container, "udp"));
        assert_eq!(publish(&node, &container, "tcp"), tcp, "the same again");
        let gateways: Vec<IpAddr> = node.gateways(&bridge).iter().map(ipnet::IpNet::addr).collect();
        let serves = |when: &str| {
            for address in NODE_OUTSIDE {
                until(&format!("{when} TCP arrives at {address}"), || {
                    let seen = over_tcp(&world, SocketAddr::new(address, tcp));
                    assert!(seen.is_none_or(|seen| gateways.contains(&seen)), "{seen:?}");
                    seen.is_some()
                });
                until(&format!("{when} UDP arrives at {address}"), || over_udp(&world, SocketAddr::new(address, udp)));
            }
        };
        serves("at first");
        node.assert_no_difference();
        for _ in 0..3 {
            node.kill();
            assert_eq!(over_tcp(&world, SocketAddr::new(NODE_OUTSIDE[0], tcp)), None, "nobody listens");
            node.start();
            serves("after kill -9");
            assert_eq!((publish(&node, &container, "tcp"), publish(&node, &container, "udp")), (tcp, udp));
        }
        command(&node, "unpublish", &container, "tcp").unwrap();
        command(&node, "unpublish", &container, "tcp").unwrap();
        until("TCP is taken back", || over_tcp(&world, SocketAddr::new(NODE_OUTSIDE[0], tcp)).is_none());
        assert!(over_udp(&world, SocketAddr::new(NODE_OUTSIDE[0], udp)), "UDP is still published");
        node.request(container.detach());
        until("the rest went with the container", || !over_udp(&world, SocketAddr::new(NODE_OUTSIDE[0], udp)));
        assert_eq!(node.total("overlayd_published_ports"), 0.0);
        node.assert_no_difference();
    });
}

#[test]
fn only_an_attached_container_of_the_shared_bridge_is_published_and_a_port_that_another_has_is_taken_once_it_is_free() {
    isolated(|| {
        let mut node = single(DUAL);
        node.segment("web", OverlayMode::Shared);
        node.segment("own", OverlayMode::Auto);
        let (shared, own, nobody) = (Container::new(), Container::new(), Container::new());
        node.attach(&shared, Wish::to("web"));
        node.attach(&own, Wish::to("own"));
        assert!(command(&node, "publish", &nobody, "tcp").unwrap_err().contains("nothing is attached"));
        assert!(command(&node, "publish", &own, "tcp").unwrap_err().contains("shared service"));
        assert_eq!(node.total("overlayd_published_ports"), 0.0);
        let port = publish(&node, &shared, "tcp");
        // While no agent holds it somebody else takes the port.
        node.kill();
        let foreign = node.node.run(move || std::net::TcpListener::bind((Ipv6Addr::UNSPECIFIED, port))).unwrap();
        node.start();
        let socket = node.socket().to_string_lossy().into_owned();
        until("the status says that another has it", || {
            let status = node.command(&["status", "--socket", &socket, "--json"]);
            String::from_utf8_lossy(&status.stdout).contains("in use")
        });
        drop(foreign);
        let _server = Server::start(&shared.node());
        let published = SocketAddr::from((Ipv6Addr::LOCALHOST, port));
        until("the same port is served once it is free", || over_tcp(&node.node, published).is_some());
        node.assert_no_difference();
    });
}
