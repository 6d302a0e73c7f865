//! What other people's programs are told: dig and getent in a container, dnsperf on ten thousand names.
//!
//! A machine that does not have one of them skips its test.

use std::{
    path::Path,
    process::{Command, Output, Stdio},
};

use hickory_resolver::proto::rr::RecordType;
use overlayd::wire::{OverlayMode, Request};

use super::{OWN, Upstream, comes_and_goes, data, register, set, told, unregister};
use crate::{
    container::Container,
    containers::scene::{DUAL, Wish, bridge_of, outside, single, single_with},
    lab::{Node, isolated, skip},
    overlay_node::until,
};

fn need(program: &str, package: &str) {
    if Command::new(program).arg("-h").stdout(Stdio::null()).stderr(Stdio::null()).status().is_err() {
        skip(&format!("no {program} (Debian: {package})"));
    }
}

fn output(node: &Node, program: &'static str, arguments: &[&str]) -> Output {
    let arguments: Vec<String> = arguments.iter().map(|&one| one.to_owned()).collect();
    node.run(move || Command::new(program).args(arguments).output().unwrap())
}

fn said(node: &Node, program: &'static str, arguments: &[&str]) -> String {
    String::from_utf8(output(node, program, arguments).stdout).unwrap()
}

/// Puts a file where programs look, for this test alone.
fn overlay_file(path: &str, content: &str) {
    let own = Path::new("/run").join(Path::new(path).file_name().unwrap());
    std::fs::write(&own, content).unwrap();
    let mounted = nix::mount::mount(Some(&own), path, None::<&str>, nix::mount::MsFlags::MS_BIND, None::<&str>);
    mounted.unwrap_or_else(|errno| panic!("{path}: {errno}"));
}

#[test]
fn dig_and_getent_in_a_container_are_told_everything_as_it_is() {
    isolated(|| {
        need("dig", "bind9-dnsutils");
        let upstreams = "/run/upstreams";
        std::fs::write(upstreams, "nameserver 198.51.100.1\n").unwrap();
        let node = single_with(DUAL, &["--resolv-conf", upstreams]);
        let _upstream = Upstream::start(&outside(&node, &["10.200.0.0/16"]), "198.51.100.1");
        register(&node, "db", "10.200.0.9");
        register(&node, "db", "fd00:200:0:1::9");
        register(&node, "four.only", "10.200.0.11");
        (2..=202).for_each(|last| register(&node, "many", &format!("10.200.9.{last}")));
        let bridge = bridge_of(&node.segment("web", OverlayMode::Auto));
        let (one, two) = (Container::new(), Container::new());
        let first = node.attach(&one, Wish::to("web"));
        let second = node.attach(&two, Wish::to("web"));
        let gateway = node.gateways(&bridge).first().unwrap().addr().to_string();
        let inside = one.node();
        let at = format!("@{gateway}");
        let dig = |question: &str| {
            let arguments: Vec<&str> =
                [at.as_str(), "+time=10", "+tries=1"].into_iter().chain(question.split(' ')).collect();
            said(&inside, "dig", &arguments)
        };
        until("the gateway answers", || dig("ns.overlay A").contains("status: NOERROR"));
        // What is asked, the status, and the data of the answer's records.
        let id = format!("{}.web.overlay", one.pid);
        let (first, second) = (first.to_string(), second.to_string());
        let reverse = |address: &str| address.rsplit('.').collect::<Vec<_>>().join(".") + ".in-addr.arpa";
        let (of_first, of_both) = ([first.as_str()], [first.as_str(), second.as_str()]);
        let full_id = format!("{id}.");
        let table: &[(&str, &str, &[&str])] = &[
            ("db.overlay A", "NOERROR", &["10.200.0.9"]),
            ("DB.OverLay A", "NOERROR", &["10.200.0.9"]),
            ("db.overlay AAAA", "NOERROR", &["fd00:200:0:1::9"]),
            ("db.overlay ANY", "NOERROR", &["10.200.0.9", "fd00:200:0:1::9"]),
            ("-x 10.200.0.9", "NOERROR", &["db.overlay."]),
            ("-x fd00:200:0:1::9", "NOERROR", &["db.overlay."]),
            ("web.overlay A", "NOERROR", &of_both),
            (&format!("{id} A"), "NOERROR", &of_first),
            (&format!("{} PTR", reverse(&first)), "NOERROR", &[&full_id]),
            ("overlay NS", "NOERROR", &["ns.overlay."]),
            ("200.10.in-addr.arpa NS", "NOERROR", &["ns.overlay."]),
            ("four.only.overlay AAAA", "NOERROR", &[]),
            ("only.overlay A", "NOERROR", &[]),
            ("web.overlay MX", "NOERROR", &[]),
            ("nobody.overlay A", "NXDOMAIN", &[]),
            ("1.web.overlay A", "NXDOMAIN", &[]),
            ("-x 10.200.77.1", "NXDOMAIN", &[]),
            ("known.example A", "NOERROR", &["192.0.2.7"]),
            ("gone.example A", "NXDOMAIN", &[]),
            ("version.bind CH TXT", "REFUSED", &[]),
        ];
        for (question, status, records) in table {
            let text = dig(question);
            assert!(text.contains(&format!("status: {status},")), "{question}: {text}");
            let (head, answers) = text
                .split_once("ANSWER SECTION:")
                .map_or((text.as_str(), ""), |(head, rest)| (head, rest.split_once("\n\n").unwrap().0));
            let lines = answers.lines().map(str::split_whitespace).map(Iterator::collect::<Vec<_>>);
            let lines: Vec<_> = lines.filter(|line| !line.is_empty()).collect();
            let found = lines.iter().map(|line| line.last().unwrap().to_string()).collect();
            assert_eq!(set(records), found, "{question}: {text}");
            let is_ours = !question.contains("example") && *status != "REFUSED";
            let flags = head.lines().find(|line| line.starts_with(";; flags:")).unwrap();
            assert_eq!(flags.split([' ', ';']).any(|flag| flag == "aa"), is_ours, "{question}: {text}");
            assert!(!is_ours || lines.iter().all(|line| line[1] == "5"), "{question}: {text}");
            let has_soa = text.contains("\tSOA\t") && text.contains(" 2\n");
            assert!(!(is_ours && records.is_empty()) || has_soa, "{question}: {text}");
            assert!(text.contains("EDNS: version: 0") && text.contains("udp: 1232"), "{question}: {text}");
        }
        let soa = dig("overlay SOA +short");
        assert!(soa.starts_with("ns.overlay. hostmaster.overlay. ") && soa.ends_with(" 1200 180 1209600 2\n"), "{soa}");
        for transfer in ["overlay AXFR", "overlay IXFR=1", "200.10.in-addr.arpa AXFR"] {
            assert!(dig(transfer).contains("Transfer failed"), "{transfer}");
        }
        let cut = dig("many.overlay A +ignore");
        assert!(cut.contains(" tc ") && cut.contains("ANSWER: 0"), "{cut}");
        let whole = dig("many.overlay A");
        assert!(whole.contains("Truncated, retrying in TCP mode") && whole.contains("ANSWER: 201"), "{whole}");
        assert!(dig("db.overlay A +tcp").contains("10.200.0.9"));
        assert!(dig("db.overlay A +noedns").contains("10.200.0.9"));
        assert!(dig("db.overlay A +edns=7 +noednsnegotiation").contains("status: BADVERS"));
        let own = said(&inside, "dig", &[&format!("@{OWN}"), "db.overlay", "A", "+short"]);
        assert_eq!(own, "10.200.0.9\n", "the node's own address answers a container as well");

        // As the programs of a container ask, by the file that its runtime writes.
        overlay_file("/etc/resolv.conf", &format!("nameserver {gateway}\nsearch overlay\noptions ndots:1\n"));
        overlay_file("/etc/nsswitch.conf", "hosts: dns\n");
        let getent = |arguments: &[&str]| {
            let text = said(&inside, "getent", arguments);
            text.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect::<Vec<_>>()
        };
        assert_eq!(getent(&["ahostsv4", "db"])[0], "10.200.0.9 STREAM db.overlay");
        assert_eq!(getent(&["ahostsv6", "db"])[0], "fd00:200:0:1::9 STREAM db.overlay");
        assert_eq!(getent(&["hosts", "10.200.0.9"]), ["10.200.0.9 db.overlay"]);
        assert_eq!(getent(&["hosts", "fd00:200:0:1::9"]), ["fd00:200:0:1::9 db.overlay"]);
        let service = getent(&["ahostsv4", "web"]);
        assert!(
            service.iter().any(|line| line.starts_with(&first)) && service.iter().any(|line| line.starts_with(&second))
        );
        assert_eq!(getent(&["ahostsv4", "known.example"])[0], "192.0.2.7 STREAM known.example");
        for nobody in ["nobody", "gone.example", "10.200.77.1"] {
            assert_eq!(output(&inside, "getent", &["hosts", nobody]).status.code(), Some(2), "{nobody}");
        }
        unregister(&node, "db");
        assert_eq!(output(&inside, "getent", &["hosts", "db"]).status.code(), Some(2), "gone with the answer");
    });
}

#[test]
fn ten_thousand_names_are_answered_while_others_come_and_go() {
    const NAMES: u32 = 10_000;
    isolated(|| {
        need("dnsperf", "dnsperf");
        let node = single(DUAL);
        let address = |n: u32| format!("10.200.{}.{}", 64 + n / 250, n % 250 + 1);
        let names = (0..NAMES).map(|n| Request::RegisterDns { name: format!("n{n}"), ip: address(n).parse().unwrap() });
        node.pour(names);
        assert_eq!(data(&told(&node.node, "n9999.overlay.", RecordType::A)), set(&[&address(9_999)]));
        let questions: String = (0..NAMES).map(|n| format!("n{n}.overlay A\n")).collect();
        std::fs::write("/run/questions", questions).unwrap();
        let asking = node.node.spawn(|| {
            // As many as an agent with all its checks answers on a busy machine; faster in benches/names.sh.
            let asked = ["-s", OWN, "-d", "/run/questions", "-l", "5", "-c", "4", "-Q", "10000", "-t", "10"];
            Command::new("dnsperf").args(asked).output().unwrap()
        });
        let mut changes = 0;
        while !asking.is_finished() {
            comes_and_goes(&node, &format!("new{changes}"));
            changes += 2;
        }
        let report = String::from_utf8(asking.join().unwrap().stdout).unwrap();
        let figure = |label: &str| {
            let line =
                report.lines().find_map(|line| line.trim().strip_prefix(label)).unwrap_or_else(|| panic!("{report}"));
            line.trim().to_owned()
        };
        println!(
            "MEASURED: {changes} changes; {} questions per second, lost {}",
            figure("Queries per second:"),
            figure("Queries lost:")
        );
        assert!(changes > 0);
        assert!(figure("Queries lost:").starts_with("0 "), "{report}");
        assert!(
            figure("Response codes:").starts_with("NOERROR ") && figure("Response codes:").ends_with("(100.00%)"),
            "{report}"
        );
    });
}
