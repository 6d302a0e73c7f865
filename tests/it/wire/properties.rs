//! Framing and decoding for any input: frames survive any cutting of the stream, values survive the wire.

use std::net::IpAddr;

use overlayd::wire::{
    AttachHandle, AttachResult, Decoded, DedicatedServiceStatus, Event, Frame, FrameReader, GuestConfig, NatCandidate,
    NatConfig, NatPeer, NatStatus, OverlayMode, Oversized, PeerScope, PeerSpec, PeerStatus, RelayServer, Request,
    Response, ServiceOverlay, StatusSnapshot, TooLarge, TurnServer, decode_frame, decode_request, encode,
    limits::FRAME_MAX,
};
use proptest::{collection::vec, option, prelude::*};

/// Text with everything JSON has to escape.
fn text() -> BoxedStrategy<String> {
    prop_oneof!["[a-z0-9.:/,=+-]{0,24}", ".{0,8}", Just("\u{0}\n\"\\/\u{7f}\u{2028}😀".to_owned())].boxed()
}

fn scope() -> impl Strategy<Value = PeerScope> {
    prop_oneof![Just(PeerScope::Global), text().prop_map(|service| PeerScope::Service { service })]
}

fn mode() -> impl Strategy<Value = OverlayMode> {
    prop::sample::select(vec![OverlayMode::Auto, OverlayMode::Shared, OverlayMode::Dedicated, OverlayMode::Isolated])
}

fn candidates() -> impl Strategy<Value = Vec<NatCandidate>> {
    let candidate = (text(), text(), any::<u32>()).prop_map(|(candidate_type, address, priority)| NatCandidate {
        candidate_type,
        address,
        priority,
    });
    vec(candidate, 0..4)
}

prop_compose! {
    fn peer()(public_key in text(), endpoint in text(), allowed_ips in text(), persistent_keepalive_secs in any::<u64>(),
              candidates in candidates()) -> PeerSpec {
        PeerSpec { public_key, endpoint, allowed_ips, persistent_keepalive_secs, candidates }
    }
}

prop_compose! {
    fn relay()(listen_port in any::<u16>(), external_addr in text(), max_sessions in any::<u64>(),
               credential in option::of(text())) -> RelayServer {
        RelayServer { listen_port, external_addr, max_sessions, auth_credential: credential.map(Into::into) }
    }
}

prop_compose! {
    fn nat()(enabled in any::<bool>(), stun_servers in vec(text(), 0..3), turn in vec((text(), text(), text()), 0..3),
             seconds in any::<(u64, u64)>(), max_candidate_pairs in any::<u64>(), relay_server in option::of(relay())) -> NatConfig {
        let turn_servers = turn.into_iter()
            .map(|(addr, username, credential)| TurnServer { addr, username, credential: credential.into() })
            .collect();
        NatConfig { enabled, stun_servers, turn_servers, hole_punch_timeout_secs: seconds.0,
            stun_refresh_interval_secs: seconds.1, max_candidate_pairs, relay_server }
    }
}

fn handle() -> impl Strategy<Value = AttachHandle> {
    prop_oneof![
        any::<u32>().prop_map(|pid| AttachHandle::LinuxPid { pid }),
        (text(), any::<Option<IpAddr>>())
            .prop_map(|(container_id, ip)| AttachHandle::WindowsContainer { container_id, ip }),
        text().prop_map(|id| AttachHandle::GuestManaged { id }),
        text().prop_map(|id| AttachHandle::HostShared { id }),
    ]
}

prop_compose! {
    fn setup()(deployment in text(), instance_id in text(), cluster_cidr in text(), slice_cidr in option::of(text()),
               wg_port in any::<u16>(), host_adapter_mandatory in any::<bool>(), nat in option::of(nat())) -> Request {
        Request::SetupGlobalOverlay { deployment, instance_id, cluster_cidr, slice_cidr, wg_port, host_adapter_mandatory, nat }
    }
}

prop_compose! {
    fn attach()(handle in handle(), service in text(), flags in any::<(bool, bool)>(), isolation_network in option::of(text()),
                dns_server in any::<Option<IpAddr>>(), dns_domain in option::of(text())) -> Request {
        Request::AttachContainer { handle, service, join_global: flags.0, ephemeral: flags.1, isolation_network, dns_server, dns_domain }
    }
}

fn request() -> impl Strategy<Value = Request> {
    prop_oneof![
        any::<u64>().prop_map(|node_id| Request::SetLocalNodeId { node_id }),
        text().prop_map(|pubkey| Request::SetLocalWgPubkey { pubkey }),
        setup(),
        attach(),
        (text(), mode()).prop_map(|(service, mode)| Request::SetupServiceOverlay { service, mode }),
        (text(), any::<bool>()).prop_map(|(service, join_global)| Request::AllocateIp { service, join_global }),
        any::<IpAddr>().prop_map(|ip| Request::ReleaseIp { ip }),
        handle().prop_map(|handle| Request::DetachContainer { handle }),
        (peer(), scope()).prop_map(|(peer, scope)| Request::AddPeer { peer, scope }),
        (text(), scope()).prop_map(|(pubkey, scope)| Request::RemovePeer { pubkey, scope }),
        (text(), text(), scope()).prop_map(|(pubkey, cidr, scope)| Request::AddAllowedIp { pubkey, cidr, scope }),
        (text(), any::<IpAddr>()).prop_map(|(name, ip)| Request::RegisterDns { name, ip }),
        (text(), any::<IpAddr>(), any::<Option<u16>>())
            .prop_map(|(zone, node_ip, port)| Request::WriteScopedResolver { zone, node_ip, port }),
        vec(text(), 0..5).prop_map(|live_bridge_names| Request::PruneOrphanBridges { live_bridge_names }),
        prop::sample::select(vec![
            Request::TeardownGlobalOverlay,
            Request::Status,
            Request::NatTick,
            Request::NatStatus,
            Request::Shutdown,
        ]),
    ]
}

prop_compose! {
    fn guest()(overlay_ip in any::<IpAddr>(), prefix_len in any::<u8>(), private_key in text(), public_key in text(),
               listen_port in any::<u16>(), peers in vec(peer(), 0..3), dns_server in any::<Option<IpAddr>>(),
               dns_domain in option::of(text())) -> GuestConfig {
        GuestConfig { overlay_ip, prefix_len, private_key: private_key.into(), public_key, listen_port, peers, dns_server, dns_domain }
    }
}

prop_compose! {
    fn status()(texts in any::<[Option<u8>; 4]>(), node_ip in any::<Option<IpAddr>>(), counts in any::<(u32, u32)>(),
                peers in vec((text(), text(), any::<i64>()), 0..3), dedicated in vec((text(), any::<IpAddr>(), any::<u16>()), 0..3))
                -> StatusSnapshot {
        let [interface, public_key, overlay_cidr, slice_cidr] = texts.map(|text| text.map(|number| number.to_string()));
        let peers = peers.into_iter().map(|(public_key, allowed_ips, last_handshake_unix_secs)| PeerStatus {
            public_key, endpoint: String::new(), allowed_ips, last_handshake_unix_secs }).collect();
        let dedicated_services = dedicated.into_iter().map(|(service, overlay_ip, listen_port)| DedicatedServiceStatus {
            interface: service.clone(), service, public_key: String::new(), listen_port, overlay_ip,
            subnet: String::new(), peer_count: 1 }).collect();
        StatusSnapshot { interface, node_ip, public_key, overlay_cidr, slice_cidr, peer_count: counts.0, service_count: counts.1,
            peers, dedicated_services }
    }
}

prop_compose! {
    fn nat_status()(candidates in candidates(), peers in vec((text(), text(), option::of(text())), 0..3),
                    last_refresh in any::<u64>()) -> NatStatus {
        let peers = peers.into_iter().map(|(node_id, connection_type, remote_endpoint)| NatPeer {
            node_id, connection_type, remote_endpoint }).collect();
        NatStatus { candidates, peers, last_refresh }
    }
}

fn response() -> impl Strategy<Value = Response> {
    prop_oneof![
        Just(Response::Ok),
        any::<IpAddr>().prop_map(|ip| Response::Ip { ip }),
        (any::<IpAddr>(), option::of(text()))
            .prop_map(|(ip, namespace_guid)| Response::Attached(AttachResult { ip, namespace_guid })),
        guest().prop_map(Response::GuestConfig),
        text().prop_map(|name| Response::BridgeName { name }),
        status().prop_map(Response::Status),
        nat_status().prop_map(Response::NatStatus),
        vec(text(), 0..4).prop_map(|reclaimed| Response::PrunedBridges { reclaimed }),
        (text(), mode(), option::of(text()), any::<Option<u16>>(), any::<Option<IpAddr>>()).prop_map(
            |(name, mode, wg_public_key, wg_port, overlay_ip)| Response::ServiceOverlay(ServiceOverlay {
                subnet: wg_public_key.clone(),
                name,
                mode,
                wg_public_key,
                wg_port,
                overlay_ip,
            })
        ),
        text().prop_map(|message| Response::Err { message }),
    ]
}

fn frame() -> impl Strategy<Value = Frame> {
    let id = prop_oneof![Just(0), Just(u64::MAX), any::<u64>()];
    prop_oneof![
        3 => (id.clone(), request()).prop_map(|(id, request)| Frame::Request { id, request }),
        2 => (id, response()).prop_map(|(id, response)| Frame::Response { id, response }),
        1 => (text(), any::<bool>()).prop_map(|(pubkey, healthy)| Frame::Event(Event::PeerHealthChanged { pubkey, healthy })),
    ]
}

/// Feeds a stream in pieces of the given sizes, again and again.
fn read_in_pieces(stream: &[u8], sizes: &[usize]) -> Result<Vec<Vec<u8>>, Oversized> {
    let (mut reader, mut bodies, mut rest, mut received) = (FrameReader::default(), Vec::new(), stream, 0);
    for size in sizes.iter().cycle() {
        if rest.is_empty() {
            break;
        }
        let (mut piece, later) = rest.split_at((*size).min(rest.len()));
        rest = later;
        received += piece.len();
        while let Some(body) = reader.feed(&mut piece)? {
            bodies.push(body);
        }
        assert!(piece.is_empty(), "a reader that wants more has taken all");
        // A vector of bytes starts at a capacity of eight.
        assert!(reader.held() <= (2 * received).max(8), "{} bytes held after {received}", reader.held());
    }
    assert!(!reader.is_inside_a_frame());
    Ok(bodies)
}

proptest! {
    #[test]
    fn what_is_encoded_is_decoded_to_the_same(frame in frame()) {
        let bytes = encode(&frame).unwrap();
        prop_assert_eq!(decode_frame(&bytes[4..]), Ok(frame.clone()));
        match (frame, decode_request(&bytes[4..])) {
            (Frame::Request { id, request }, decoded) => prop_assert_eq!(decoded, Decoded::Request { id, request }),
            (Frame::Response { id: sent, .. }, Decoded::NotUnderstood { id, .. }) => prop_assert_eq!(id, Some(sent)),
            (Frame::Event(_), Decoded::NotUnderstood { id, .. }) => prop_assert_eq!(id, None),
            (frame, decoded) => prop_assert!(false, "{:?} was decoded as {:?}", frame, decoded),
        }
    }

    #[test]
    fn frames_survive_any_cutting_of_the_stream(frames in vec(frame(), 0..6), sizes in vec(1_usize..40, 1..12)) {
        let encoded: Vec<_> = frames.iter().map(|frame| encode(frame).unwrap()).collect();
        let bodies = read_in_pieces(&encoded.concat(), &sizes).unwrap();
        let decoded: Vec<_> = bodies.iter().map(|body| decode_frame(body).unwrap()).collect();
        prop_assert_eq!(decoded, frames);
    }

    #[test]
    fn any_bytes_are_decoded_without_a_panic(bytes in vec(any::<u8>(), 0..200)) {
        decode_request(&bytes);
        let _ = decode_frame(&bytes);
    }

    #[test]
    fn a_request_with_one_byte_changed_never_panics_and_never_loses_its_bounds(
        frame in frame(), at in any::<prop::sample::Index>(), byte in any::<u8>()
    ) {
        let mut body = encode(&frame).unwrap().split_off(4);
        let at = at.index(body.len());
        body[at] = byte;
        if let Decoded::NotUnderstood { message, .. } = decode_request(&body) {
            prop_assert!(message.len() < 1024);
        }
    }
}

#[test]
fn a_length_is_refused_before_a_byte_of_the_body_is_kept() {
    let length = FRAME_MAX as u32 + 1;
    let mut reader = FrameReader::default();
    let mut input: &[u8] = &[length.to_le_bytes().as_slice(), b"{}"].concat();
    assert_eq!(reader.feed(&mut input), Err(Oversized { length }));
    assert_eq!(reader.feed(&mut input), Err(Oversized { length }), "there is no way back into step");
    assert_eq!(reader.held(), 0);
}

#[test]
fn the_largest_frame_is_accepted_and_an_announced_one_costs_nothing() {
    let mut reader = FrameReader::default();
    let header = (FRAME_MAX as u32).to_le_bytes();
    assert_eq!(reader.feed(&mut header.as_slice()), Ok(None));
    assert_eq!(reader.held(), 0);
    assert!(reader.is_inside_a_frame());
    let body = vec![b' '; FRAME_MAX];
    assert_eq!(reader.feed(&mut body.as_slice()).unwrap().map(|body| body.len()), Some(FRAME_MAX));
    assert_eq!(reader.held(), 0);
}

#[test]
fn an_empty_body_is_a_frame_and_no_json() {
    let bodies = read_in_pieces(&[0; 8], &[3]).unwrap();
    assert_eq!(bodies, vec![Vec::<u8>::new(); 2]);
    assert_eq!(decode_request(&bodies[0]), Decoded::NotJson);
}

#[test]
fn an_answer_of_exactly_the_limit_is_encoded_and_one_byte_more_is_not() {
    let err = |length: usize| Frame::Response { id: 1, response: Response::Err { message: "m".repeat(length) } };
    let envelope = encode(&err(0)).unwrap().len() - 4;
    assert_eq!(encode(&err(FRAME_MAX - envelope)).unwrap().len(), FRAME_MAX + 4);
    assert_eq!(encode(&err(FRAME_MAX - envelope + 1)), Err(TooLarge));
}
