//! The free-port proxy on loopback: bytes arrive, ends are passed on, clients are told apart.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    time::Duration,
};

use overlayd::{ids::Protocol, proxy::Listening};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream, UdpSocket},
    time::timeout,
};

const HERE: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
const PATIENCE: Duration = Duration::from_secs(10);

/// A proxy in front of `to`; ends with the returned task.
async fn proxy(protocol: Protocol, address: IpAddr, to: SocketAddr) -> (u16, tokio::task::JoinHandle<()>) {
    let listening = Listening::open(protocol, address, 0).await.unwrap();
    let port = listening.port().unwrap();
    (port, tokio::spawn(listening.serve(to)))
}

#[tokio::test]
async fn a_connection_is_copied_both_ways_and_an_end_of_one_side_does_not_end_the_other() {
    let server = TcpListener::bind((HERE, 0)).await.unwrap();
    let (port, task) = proxy(Protocol::Tcp, HERE, server.local_addr().unwrap()).await;
    let answering = tokio::spawn(async move {
        let (mut connection, _) = server.accept().await.unwrap();
        let mut heard = Vec::new();
        // Ends only when the client's end was passed on.
        connection.read_to_end(&mut heard).await.unwrap();
        connection.write_all(&heard).await.unwrap();
    });
    let mut client = TcpStream::connect((HERE, port)).await.unwrap();
    let sent = vec![7; 3 << 20];
    client.write_all(&sent).await.unwrap();
    client.shutdown().await.unwrap();
    let mut heard = Vec::new();
    timeout(PATIENCE, client.read_to_end(&mut heard)).await.unwrap().unwrap();
    assert!(heard == sent, "{} bytes came back", heard.len());
    answering.await.unwrap();
    task.abort();
}

#[tokio::test]
async fn the_end_of_a_proxy_ends_what_is_under_way_and_frees_the_port() {
    let server = TcpListener::bind((HERE, 0)).await.unwrap();
    let (port, task) = proxy(Protocol::Tcp, HERE, server.local_addr().unwrap()).await;
    let mut client = TcpStream::connect((HERE, port)).await.unwrap();
    let (_connection, _) = timeout(PATIENCE, server.accept()).await.unwrap().unwrap();
    task.abort();
    let mut byte = [0];
    let ended = timeout(PATIENCE, client.read(&mut byte)).await.unwrap();
    assert!(matches!(ended, Ok(0) | Err(_)));
    assert!(Listening::open(Protocol::Tcp, HERE, port).await.is_ok());
}

#[tokio::test]
async fn each_client_of_a_datagram_port_hears_its_own_answers_from_the_address_that_it_wrote_to() {
    for (any, addresses) in [("0.0.0.0", ["127.0.0.1", "127.0.0.2"]), ("::", ["127.0.0.3", "::1"])] {
        let server = UdpSocket::bind((HERE, 0)).await.unwrap();
        let (port, task) = proxy(Protocol::Udp, any.parse().unwrap(), server.local_addr().unwrap()).await;
        tokio::spawn(async move {
            let mut buffer = [0; 64];
            while let Ok((length, from)) = server.recv_from(&mut buffer).await {
                server.send_to(&buffer[..length], from).await.unwrap();
            }
        });
        for (address, said) in addresses.into_iter().zip(["one", "two"]) {
            let address: IpAddr = address.parse().unwrap();
            let any = if address.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
            let client = UdpSocket::bind(any).await.unwrap();
            client.send_to(said.as_bytes(), (address, port)).await.unwrap();
            let mut buffer = [0; 64];
            let (length, from) = timeout(PATIENCE, client.recv_from(&mut buffer)).await.unwrap().unwrap();
            assert_eq!((&buffer[..length], from), (said.as_bytes(), SocketAddr::new(address, port)));
        }
        task.abort();
    }
}
