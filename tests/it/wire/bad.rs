//! What is refused, and in which words.

use super::files;
use overlayd::wire::{
    Decoded, decode_frame, decode_request,
    limits::{NESTING_MAX, VALUES_MAX},
};

/// File in `fixtures/wire/bad/`, the id that the answer carries, the message.
const REFUSED: &[(&str, Option<u64>, &str)] = &[
    ("unknown-op", Some(1), r#"unknown op "add_edge_peer": this overlayd speaks protocol 1"#),
    (
        "unknown-op-very-long",
        Some(2),
        r#"unknown op "xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx…": this overlayd speaks protocol 1"#,
    ),
    ("missing-field", Some(3), r#"setup_global_overlay: missing field "wg_port""#),
    ("missing-flattened-field", Some(4), r#"add_peer: missing field "public_key""#),
    ("missing-nested-field", Some(5), r#"detach_container: missing field "pid""#),
    ("port-too-large", Some(6), r#"setup_global_overlay: field "wg_port": expected u16, not this whole number"#),
    ("port-as-text", Some(7), r#"write_scoped_resolver: field "port": expected u16, not text"#),
    ("invalid-ip", Some(8), r#"release_ip: field "ip": invalid IP address syntax"#),
    ("invalid-flattened-field", Some(9), r#"add_peer: field "allowed_ips": expected a string, not array"#),
    (
        "negative-keepalive",
        Some(10),
        r#"add_peer: field "persistent_keepalive_secs": expected u64, not this whole number"#,
    ),
    (
        "unknown-mode",
        Some(11),
        r#"setup_service_overlay: field "mode": unknown "Auto", expected one of auto, shared, dedicated, isolated"#,
    ),
    (
        "unknown-platform",
        Some(12),
        r#"detach_container: field "handle": unknown "freebsd_jail", expected one of linux_pid, windows_container, guest_managed, host_shared"#,
    ),
    ("unknown-scope", Some(13), r#"remove_peer: field "scope": unknown "node", expected one of global, service"#),
    ("scope-null", Some(14), r#"remove_peer: field "scope": expected internally tagged enum PeerScope, not null"#),
    ("service-scope-without-service", Some(15), r#"remove_peer: missing field "service""#),
    ("credential-of-wrong-type", Some(16), r#"setup_global_overlay: field "nat": expected u16, not text"#),
    (
        "two-fields-wrong-alike",
        Some(17),
        r#"setup_service_overlay: field "mode": expected string or map, not whole number"#,
    ),
    ("field-twice", Some(18), "release_ip: a field is given twice"),
    ("flattened-field-twice", Some(19), "add_peer: a field is given twice"),
    ("op-twice", Some(20), NO_OP),
    ("id-twice", None, NO_ID),
    ("request-twice", Some(23), NO_OP),
    ("id-missing", None, NO_ID),
    ("id-negative", None, NO_ID),
    ("id-beyond-64-bits", None, NO_ID),
    ("id-as-text", None, NO_ID),
    ("request-missing", Some(25), NO_OP),
    ("request-as-text", Some(26), NO_OP),
    ("op-missing", Some(27), NO_OP),
    ("op-as-object", Some(28), NO_OP),
    ("frame-missing", Some(29), NO_FRAME),
    ("frame-unknown", Some(30), r#"unknown frame "Request": overlayd takes requests only"#),
    ("frame-is-response", Some(31), r#"a frame of kind "response" was sent to overlayd, which takes requests only"#),
    ("frame-is-event", None, r#"a frame of kind "event" was sent to overlayd, which takes requests only"#),
    ("a-number", None, NO_FRAME),
    ("an-array", None, NO_FRAME),
    ("null", None, NO_FRAME),
    ("lone-surrogate", Some(32), "unregister_dns: a number or an escape in it cannot be read"),
    ("number-beyond-double", Some(33), "set_local_node_id: a number or an escape in it cannot be read"),
    ("nested-too-deep", Some(34), "the frame is nested deeper than 64 levels"),
];

const NO_ID: &str = r#"field "id" must be given once, as a whole number from 0 to 2^64 - 1"#;
const NO_OP: &str = r#"field "request" must be an object whose field "op" is text"#;
const NO_FRAME: &str = r#"a frame must be an object whose field "frame" is text"#;

#[test]
fn every_bad_request_is_refused_in_these_words() {
    let files = files("bad");
    let named: Vec<_> = REFUSED.iter().map(|(name, ..)| *name).collect();
    for name in files.keys() {
        assert!(named.contains(&name.as_str()), "{name} is not in the table");
    }
    for (name, id, message) in REFUSED {
        let expected = Decoded::NotUnderstood { id: *id, message: (*message).into() };
        assert_eq!(decode_request(files[*name].as_bytes()), expected, "{name}");
    }
}

#[test]
fn what_is_no_json_closes_the_connection() {
    let bodies: [&[u8]; 10] = [
        b"",
        b" ",
        b"{",
        b"GET / HTTP/1.1\r\n\r\n",
        b"{\"frame\":\"request\",\"id\":1,\"request\":{\"op\":\"status\"}",
        b"{\"frame\":\"request\",\"id\":1,\"request\":{\"op\":\"status\"}}x",
        b"{\"frame\":\"request\",\"id\":1,\"request\":{\"op\":\"status\"}}{}",
        b"{'frame':'request'}",
        b"\xef\xbb\xbf{\"frame\":\"request\",\"id\":1,\"request\":{\"op\":\"status\"}}",
        b"{\"frame\":\"request\",\"id\":1,\"request\":{\"op\":\"status\",\"extra\":\"\xff\"}}",
    ];
    for body in bodies {
        assert_eq!(decode_request(body), Decoded::NotJson, "{:?}", String::from_utf8_lossy(body));
    }
}

fn status_with(extra: &str) -> Vec<u8> {
    format!(r#"{{"frame":"request","id":5,"request":{{"op":"status","extra":{extra}}}}}"#).into_bytes()
}

#[test]
fn a_frame_of_very_many_values_is_refused_with_its_id_and_the_same_bytes_as_text_are_not() {
    let zeros = "0,".repeat(VALUES_MAX);
    match decode_request(&status_with(&format!("[{zeros}0]"))) {
        Decoded::NotUnderstood { id: Some(5), message } => assert!(message.contains("values"), "{message}"),
        other => panic!("{other:?}"),
    }
    assert!(matches!(decode_request(&status_with(&format!("\"{zeros}\\\"[[[\""))), Decoded::Request { id: 5, .. }));
}

#[test]
fn nesting_is_accepted_up_to_its_limit_and_a_megabyte_of_brackets_does_no_harm() {
    // The frame and the request are two levels themselves.
    let nested = |levels: usize| status_with(&format!("{}{}", "[".repeat(levels), "]".repeat(levels)));
    assert!(matches!(decode_request(&nested(NESTING_MAX - 2)), Decoded::Request { id: 5, .. }));
    for levels in [NESTING_MAX - 1, 200, 100_000] {
        match decode_request(&nested(levels)) {
            Decoded::NotUnderstood { id: Some(5), message } => assert!(message.contains("nested"), "{message}"),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(decode_request("[".repeat(1 << 20).as_bytes()), Decoded::NotJson);
}

#[test]
fn a_refusal_repeats_no_value_that_was_sent() {
    for (name, text) in files("bad") {
        if let Decoded::NotUnderstood { message, .. } = decode_request(text.as_bytes()) {
            assert!(!message.contains("hunter2"), "{name}: {message}");
            assert!(message.len() < 512, "{name}: {message}");
        }
    }
}

#[test]
fn a_client_is_told_why_an_answer_cannot_be_read_without_its_secret() {
    let body = br#"{"frame":"response","id":1,"response":{"result":"guest_config","private_key":"hunter2","overlay_ip":"hunter2"}}"#;
    let refusal = decode_frame(body).unwrap_err().to_string();
    assert!(!refusal.contains("hunter2"), "{refusal}");
    assert_eq!(decode_frame(b"{").unwrap_err().to_string(), "the body is not JSON, or cannot be read");
}
