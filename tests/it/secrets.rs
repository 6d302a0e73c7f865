//! `Debug` of everything that can hold a secret: the one door through which they leave without anybody asking for them.

use std::{collections::BTreeMap, fmt::Debug, fmt::Write as _};

use overlayd::{
    action::Action,
    desired::{
        Change, Document, Edit, Grant, NatSettings, OverlayRequest, Record, RecordKey, RelayServer, Touched,
        TurnServer, consider,
        store::{Contents, Entry, Write},
    },
    object::{DeviceSpec, Key, KeyPair, Mark, Spec},
    observed::Snapshot,
    reconcile::{
        explain::Diff,
        plan::plan,
        target::{Facts, Scope, lower},
    },
    secret::PrivateKey,
    wire::{Frame, GuestConfig, Request, Response},
};

const CREDENTIAL: &str = "turn-credential-7f3e";

fn key() -> PrivateKey {
    PrivateKey::from_random_bytes([0xa7; 32])
}

/// The ways in which the two secrets would show.
fn spellings() -> Vec<String> {
    let revealed = key().reveal();
    let mut ways = vec![CREDENTIAL.to_owned(), revealed.to_string()];
    for secret in [&key().expose_bytes()[..], revealed.as_bytes(), CREDENTIAL.as_bytes()] {
        let mut hex = String::new();
        for byte in secret {
            let _ = write!(hex, "{byte:02x}");
        }
        ways.push(hex);
        let list: Vec<String> = secret.iter().take(8).map(u8::to_string).collect();
        ways.push(list.join(", "));
        ways.push(list.join(",\n    "));
    }
    ways
}

#[track_caller]
fn silent(value: &dyn Debug) {
    for text in [format!("{value:?}"), format!("{value:#?}")] {
        for way in spellings() {
            assert!(!text.contains(&way), "{way} is in {text}");
        }
    }
}

fn nat() -> NatSettings {
    NatSettings {
        enabled: true,
        stun_servers: Vec::new(),
        turn_servers: vec![TurnServer {
            addr: "turn.example.org:3478".into(),
            username: "somebody".into(),
            credential: CREDENTIAL.into(),
        }],
        hole_punch_timeout_secs: 0,
        stun_refresh_interval_secs: 0,
        max_candidate_pairs: 0,
        relay_server: Some(RelayServer {
            listen_port: 0,
            external_addr: String::new(),
            max_sessions: 0,
            auth_credential: Some(CREDENTIAL.into()),
        }),
    }
}

fn ensure_overlay() -> Edit {
    Edit::EnsureOverlay(OverlayRequest {
        deployment: "lab".parse().unwrap(),
        instance: "a".parse().unwrap(),
        cluster: "10.200.0.0/16".parse().unwrap(),
        slice: Some("10.200.1.0/24".parse().unwrap()),
        port: 51820,
        host_adapter_mandatory: false,
        nat: Some(nat()),
    })
}

#[test]
fn no_secret_shows_in_the_debug_form_of_the_document_and_its_edits() {
    let own = Record::NodeKey(KeyPair::from_private(key()));
    let bytes = own.encode();
    assert!(String::from_utf8_lossy(&bytes).contains(key().reveal().as_str()), "the stored form has the key");
    let records = BTreeMap::from([(RecordKey::NodeKey.to_string(), bytes.clone())]);
    let contents = Contents { generation: 1, records, settled: 0 };
    let document = Document::from_contents(&contents).unwrap();
    let change: Change = consider(&document, &ensure_overlay(), &crate::world::at(2)).unwrap();
    assert!(matches!((&change.touched, &change.grant), (Touched::Everything, Grant::Device(_))));
    let overlay = change.mutations[0].record.as_ref().unwrap().encode();
    let writes = vec![
        Write { key: RecordKey::NodeKey.to_string(), value: Some(bytes) },
        Write { key: RecordKey::Overlay.to_string(), value: Some(overlay) },
    ];
    let entry = Entry {
        generation: 2,
        at: overlayd::clock::UnixTime(0),
        origin: "test".into(),
        summary: change.summary.clone(),
        writes,
    };
    for value in [&own as &dyn Debug, &contents, &document, &ensure_overlay(), &change, &entry, &nat(), &key()] {
        silent(value);
    }
}

#[test]
fn no_secret_shows_in_the_debug_form_of_the_core() {
    let own = Record::NodeKey(KeyPair::from_private(key())).encode();
    let mut contents = Contents::default();
    contents.records.insert(RecordKey::NodeKey.to_string(), own);
    let overlay =
        consider(&Document::from_contents(&contents).unwrap(), &ensure_overlay(), &crate::world::at(1)).unwrap();
    let record = overlay.mutations[0].record.as_ref().unwrap().encode();
    contents.records.insert(RecordKey::Overlay.to_string(), record);
    let document = Document::from_contents(&contents).unwrap();
    let facts = Facts::new(Mark::of_instance("/here"));
    let target = lower(&document, &facts, &|_: &Key| 0, &Scope::Everything);
    let snapshot = Snapshot::default();
    let plan = plan(&target, &snapshot, &Scope::Everything, overlayd::clock::UnixTime(0));
    let diff = Diff::new(&document, &target, &plan);
    let device = DeviceSpec { key: KeyPair::from_private(key()), listen_port: 51820, fwmark: 0 };
    let action = Action::Create { key: Key::Device("zl-lab-a-g".parse().unwrap()), spec: Spec::Device(device) };
    for value in [&target as &dyn Debug, &plan, &diff, &action, &facts, &snapshot] {
        silent(value);
    }
    silent(&serde_json::to_string(&diff).unwrap());
    silent(&diff.to_text());
}

#[test]
fn no_secret_shows_in_the_debug_form_of_the_wire() {
    let request: Request = serde_json::from_value(serde_json::json!({
        "op": "setup_global_overlay", "deployment": "lab", "instance_id": "a", "cluster_cidr": "10.200.0.0/16", "wg_port": 1,
        "nat": {
            "turn_servers": [{"credential": CREDENTIAL}],
            "relay_server": {"auth_credential": CREDENTIAL},
        },
    }))
    .unwrap();
    let config = GuestConfig {
        overlay_ip: [10, 200, 1, 9].into(),
        prefix_len: 16,
        private_key: key().reveal().as_str().into(),
        public_key: key().public_key().to_string(),
        listen_port: 51820,
        peers: Vec::new(),
        dns_server: None,
        dns_domain: None,
    };
    silent(&request);
    silent(&Frame::Request { id: 1, request });
    silent(&Frame::Response { id: 1, response: Response::GuestConfig(config) });
}
