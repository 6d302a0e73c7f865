//! The golden files of `fixtures/wire/`: the contract's bytes, as `zlayer-types` 0.13.0 wrote them.
//!
//! `request-<op>[-<shape>].json`, `response-…`, `event-…` and `type-…` are canonical: decoding and encoding gives the same bytes.
//! `…-without-<fields>.json` is what an older sender writes; `means/` holds the same file as that crate wrote it after reading it.
//! `agent-…` are overlayd's own. `bad/` is what must be refused, with the words in [`bad`].

mod bad;
mod properties;

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Debug,
    fs,
    path::{Path, PathBuf},
};

use overlayd::wire::{
    AgentFrame, AgentRequest, AgentResponse, AttachHandle, Decoded, Event, Frame, NatConfig, OverlayConfig,
    OverlayMode, PeerScope, RelayServer, Request, Response, TurnServer, agent, decode_frame, decode_request, encode,
    encode_agent,
};
use serde::{Serialize, de::DeserializeOwned};

fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/wire").join(name)
}

/// Every JSON file of a folder by its name without the ending; the final newline is not part of a body.
fn files(name: &str) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(folder(name)).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|ending| ending == "json") {
            let text = fs::read_to_string(&path).unwrap();
            let stem = path.file_stem().unwrap().to_str().unwrap();
            found.insert(stem.to_owned(), text.strip_suffix('\n').unwrap().to_owned());
        }
    }
    assert!(!found.is_empty(), "no golden files in {name:?}");
    found
}

/// What a file decodes to and encodes to again.
fn again<T: Serialize + DeserializeOwned>(name: &str, text: &str) -> String {
    let value: T = serde_json::from_str(text).unwrap_or_else(|error| panic!("{name}: {error}"));
    serde_json::to_string(&value).unwrap()
}

/// The body of an encoded frame; checks the length in front of it.
fn body(framed: &[u8]) -> String {
    let (length, body) = framed.split_first_chunk::<4>().unwrap();
    assert_eq!(u32::from_le_bytes(*length) as usize, body.len());
    String::from_utf8(body.to_vec()).unwrap()
}

fn request_of(name: &str, text: &str) -> Frame {
    match decode_request(text.as_bytes()) {
        Decoded::Request { id, request } => Frame::Request { id, request },
        other => panic!("{name}: {other:?}"),
    }
}

fn frame_of(name: &str, text: &str) -> Frame {
    let frame = decode_frame(text.as_bytes()).unwrap_or_else(|refusal| panic!("{name}: {refusal}"));
    if name.starts_with("request-") {
        assert_eq!(request_of(name, text), frame, "{name}: a server and a client read it alike");
    }
    frame
}

/// Reads a file as what its name says it is, and writes it again.
fn encoded_again(name: &str, text: &str) -> String {
    let mut words = name.split('-');
    match (words.next().unwrap(), words.next().unwrap()) {
        ("request" | "response" | "event", _) => body(&encode(&frame_of(name, text)).unwrap()),
        ("agent", _) => body(&encode_agent(&agent_frame_of(name, text)).unwrap()),
        ("type", "nat_config") => again::<NatConfig>(name, text),
        ("type", "turn_server") => again::<TurnServer>(name, text),
        ("type", "relay_server") => again::<RelayServer>(name, text),
        ("type", "overlay_config") => again::<OverlayConfig>(name, text),
        (kind, of) => panic!("{name}: no test reads {kind}-{of} files"),
    }
}

fn agent_frame_of(name: &str, text: &str) -> AgentFrame {
    agent::decode_agent_frame(text.as_bytes()).unwrap_or_else(|refusal| panic!("{name}: {refusal}"))
}

#[test]
fn every_golden_file_is_written_again_to_the_byte() {
    for (name, text) in files("") {
        if !name.contains("-without-") {
            assert_eq!(encoded_again(&name, &text), text, "{name}");
        }
    }
}

#[test]
fn what_an_older_sender_leaves_out_means_what_it_means_to_the_contract() {
    let means = files("means");
    let without: BTreeMap<_, _> = files("").into_iter().filter(|(name, _)| name.contains("-without-")).collect();
    assert_eq!(without.keys().collect::<Vec<_>>(), means.keys().collect::<Vec<_>>());
    for (name, text) in without {
        assert_eq!(encoded_again(&name, &text), means[&name], "{name}");
    }
}

fn golden_request(name: &str) -> Request {
    match request_of(name, &files("")[name]) {
        Frame::Request { request, .. } => request,
        other => panic!("{name}: {other:?}"),
    }
}

#[test]
fn a_setup_from_an_older_daemon_has_no_slice_and_no_nat_and_no_mandatory_adapter() {
    match golden_request("request-setup_global_overlay-without-nat-slice-host_adapter_mandatory") {
        Request::SetupGlobalOverlay { slice_cidr, host_adapter_mandatory, nat, wg_port, .. } => {
            assert_eq!((slice_cidr, host_adapter_mandatory, nat, wg_port), (None, false, None, 51820));
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn an_attach_from_an_older_daemon_joins_the_open_network_and_keeps_the_segment() {
    match golden_request("request-attach_container-without-ephemeral-isolation_network-dns") {
        Request::AttachContainer { handle, ephemeral, isolation_network, dns_server, dns_domain, .. } => {
            assert_eq!(handle, AttachHandle::LinuxPid { pid: u32::MAX });
            assert_eq!((ephemeral, isolation_network, dns_server, dns_domain), (false, None, None, None));
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_peer_without_scope_and_candidates_is_one_of_the_node_device() {
    match golden_request("request-add_peer-without-scope-candidates") {
        Request::AddPeer { peer, scope } => {
            assert_eq!((scope, peer.candidates, peer.persistent_keepalive_secs), (PeerScope::Global, vec![], 25));
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_setting_left_out_of_nat_is_zero_or_empty() {
    assert_eq!(serde_json::from_str::<NatConfig>("{}").unwrap(), NatConfig::default());
    assert_eq!(serde_json::from_str::<RelayServer>("{}").unwrap().auth_credential, None);
}

/// Fails when one of `tags` has no canonical file, or when that file holds another variant.
fn each_has_a_golden<T: Debug>(prefix: &str, tags: &[&str], read: impl Fn(&str, &str) -> (&'static str, T)) {
    let files = files("");
    for tag in tags {
        let name = format!("{prefix}-{tag}");
        let text = files.get(&name).unwrap_or_else(|| panic!("fixtures/wire/{name}.json is missing"));
        let (found, value) = read(&name, text);
        assert_eq!(found, *tag, "{name} holds {value:?}");
    }
}

#[test]
fn every_variant_has_a_golden_file() {
    each_has_a_golden("request", Request::OPS, |name, text| match frame_of(name, text) {
        Frame::Request { request, .. } => (request.op(), request),
        other => panic!("{name}: {other:?}"),
    });
    each_has_a_golden("response", Response::RESULTS, |name, text| match frame_of(name, text) {
        Frame::Response { response, .. } => (response.result(), response),
        other => panic!("{name}: {other:?}"),
    });
    each_has_a_golden("event", Event::EVENTS, |name, text| match frame_of(name, text) {
        Frame::Event(event) => (event.event(), event),
        other => panic!("{name}: {other:?}"),
    });
    each_has_a_golden("agent-request", AgentRequest::OPS, |name, text| match agent_frame_of(name, text) {
        AgentFrame::Request { request, .. } => (request.op(), request),
        other @ AgentFrame::Response { .. } => panic!("{name}: {other:?}"),
    });
    each_has_a_golden("agent-response", AgentResponse::RESULTS, |name, text| match agent_frame_of(name, text) {
        AgentFrame::Response { response, .. } => (response.result(), response),
        other @ AgentFrame::Request { .. } => panic!("{name}: {other:?}"),
    });
}

#[test]
fn every_handle_scope_and_mode_is_in_some_golden_file() {
    let (mut platforms, mut scopes, mut modes) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
    for (name, text) in files("").into_iter().filter(|(name, _)| name.starts_with("request-")) {
        match request_of(&name, &text) {
            Frame::Request { request: Request::AttachContainer { handle, .. }, .. } => {
                platforms.insert(handle.platform());
            }
            Frame::Request { request: Request::AddPeer { scope, .. }, .. } => {
                scopes.insert(scope.scope());
            }
            Frame::Request { request: Request::SetupServiceOverlay { mode, .. }, .. } => {
                modes.insert(mode.mode());
            }
            _ => {}
        }
    }
    assert_eq!(platforms, AttachHandle::PLATFORMS.iter().copied().collect());
    assert_eq!(scopes, PeerScope::SCOPES.iter().copied().collect());
    assert_eq!(modes, OverlayMode::MODES.iter().copied().collect());
}

#[test]
fn overlayds_own_requests_are_found_after_the_contracts() {
    for op in AgentRequest::OPS {
        let name = format!("agent-request-{op}");
        match decode_request(files("")[&name].as_bytes()) {
            Decoded::Agent { id: 7, request } => assert_eq!(request.op(), *op),
            other => panic!("{name}: {other:?}"),
        }
        assert!(!Request::OPS.contains(op), "{op} would hide one of the contract");
    }
}

#[test]
fn unknown_fields_are_ignored_at_every_level() {
    let plain = &files("")["request-attach_container"];
    let extended = plain
        .replacen('{', r#"{"later":[1,{"op":"shutdown","id":9}],"#, 1)
        .replace(r#""op":"#, r#""priority":{"id":3},"op":"#)
        .replace(r#""pid":"#, r#""cgroup":null,"pid":"#);
    assert_ne!(&extended, plain);
    assert_eq!(request_of("extended", &extended), request_of("plain", plain));
}

#[test]
fn null_is_the_same_as_leaving_an_optional_field_out() {
    let golden = &files("")["request-setup_global_overlay-no-slice-no-nat"];
    let with_null = golden.replace(r#""wg_port":"#, r#""nat":null,"slice_cidr":null,"wg_port":"#);
    assert_ne!(&with_null, golden);
    assert_eq!(request_of("with null", &with_null), request_of("golden", golden));
}

#[test]
fn no_secret_is_shown_by_debug() {
    for name in ["request-setup_global_overlay", "response-guest_config"] {
        let text = &files("")[name];
        let shown = format!("{:?}", frame_of(name, text));
        for secret in ["turn-credential", "relay-credential", "gI6EdUSYvn8ugXOt8QQD6Yc+JyiZxIhp3GInSWRfWGE="] {
            assert!(!shown.contains(secret), "{name} shows a secret");
        }
        assert!(shown.contains("(redacted)"), "{name} has lost its secret");
    }
}
