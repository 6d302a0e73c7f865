//! The language: one step a line, `#` begins a comment, settings are `name=value`. `yes`, `none` and lists with commas are values.
//!
//! What clients ask of the agent; `refused` before it says that the answer is a refusal:
//! ```text
//! ensure overlay [instance=0] [cluster=NETS] [slice=NETS|none] [port=N]      remove overlay
//! ensure peer NAME [endpoint=HOST:PORT|none] [ips=NET,…|none] [keepalive=N]  remove peer NAME
//! ensure allowed-ip NAME NET                                                remove allowed-ip NAME NET
//! ensure segment NAME [mode=auto|dedicated|shared|isolated]                 remove segment NAME
//! prune [live=SEGMENT,…]
//! attach NAME to SEGMENT [global=yes] [isolation=NETWORK] [ephemeral=yes] [ip=ADDRESS]    detach NAME
//! withdraw NAME    the attach that brought NAME to where it is could not be brought about, and is taken back
//! publish NAME PORT at=PORT-OF-HOST [protocol=udp]                          unpublish NAME PORT
//! ```
//! `ip` is the address that the attach has to be granted.
//!
//! What the agent does of itself:
//! ```text
//! round            about the edits since the last one; a full one when there were none
//! look             a full round, also into the containers
//! hint             the kernel told of a change: the next round is a full one, though not into the containers
//! notice           it notices which containers have ended
//! wait 200ms       crash (another one starts, and notices ends)       suspend       resolve HOST ADDRESS
//! ```
//!
//! What happens to the node:
//! ```text
//! container NAME [pid-of=OTHER]       a container begins, in a network of its own; with the pid of one that has ended
//! end NAME                            its last process ends, and the kernel takes its network away
//! drift delete OBJECT                 drift set OBJECT name=value …      stranger OBJECT (a link, the firewall)
//! forwarding dropped|accepted ipv4    another program's forward chain drops what it does not know, or no longer does
//! way-out LINK comes|goes             a link of the host's with a default route
//! fault next|after N  fail|lose-answer|blind|cut PART            break OBJECT    mend OBJECT
//! handshake NAME [ago=10s]
//! ```
//!
//! What the story expects:
//! ```text
//! expect plan empty            expect in-sync      expect not in-sync
//! expect action VERB OBJECT    expect no action    expect untouched OBJECT
//! expect present OBJECT [name=value …]             expect absent OBJECT
//! expect CONDITION OBJECT      (realized, pending, blocked, failing, forgotten)
//! expect drift N               expect retry DURATION|none
//! expect published PORT-OF-HOST to NAME            expect unpublished PORT-OF-HOST
//! ```
//! Of actions, only those since the last edit or disturbance count. Published ports are the document's: the sockets are no object of a node.
//!
//! An OBJECT, and what can be set and expected of it. LINK is nothing for the node's device, or `bridge SEGMENT`, `segment SEGMENT` (a
//! dedicated segment's device), `port NAME [global]`, `way-out NAME`:
//! ```text
//! link [LINK], bridge SEGMENT, port NAME [global]    mtu up master stp kind
//! device [LINK]                 port fwmark
//! address A/P [LINK]
//! setting [NAME LINK]           value; NAME as the kernel has it, such as rp_filter; without a name the one of the device for its family
//! route [NET], fallback         to; without a network the cluster's
//! peer NAME                     keepalive ips preshared endpoint
//! inside NAME [global]          addresses routes (NET or NET@GATEWAY) mtu up: the container's side; deleting it takes addresses and routes
//! firewall                      intact overlay local node links: deleting it is what flushing all rules does; not intact: the rules are flushed
//! member ADDRESS|NAME [global]  network ports
//! guest ipv4|ipv6               networks: our rules in another program's forward chain
//! ```

use std::{collections::BTreeMap, fmt::Display, str::FromStr};

/// One line: where it stands, its plain words and its settings.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Step {
    pub line: usize,
    pub words: Vec<String>,
    pub settings: BTreeMap<String, String>,
}

impl Step {
    /// The words as a slice of texts, to match on.
    pub fn shape(&self) -> Vec<&str> {
        self.words.iter().map(String::as_str).collect()
    }

    pub fn setting(&self, name: &str) -> Option<&str> {
        self.settings.get(name).map(String::as_str)
    }
}

/// The steps of a script, without its comments.
pub fn parse(text: &str) -> Vec<Step> {
    let meaning = |line: &str| line.split('#').next().unwrap_or_default().trim().to_owned();
    let lines = text.lines().enumerate().map(|(at, line)| (at + 1, meaning(line)));
    lines.filter(|(_, line)| !line.is_empty()).map(|(line, text)| step(line, &text)).collect()
}

fn step(line: usize, text: &str) -> Step {
    let mut step = Step { line, words: Vec::new(), settings: BTreeMap::new() };
    for word in text.split_whitespace() {
        match word.split_once('=') {
            Some((name, value)) => drop(step.settings.insert(name.to_owned(), value.to_owned())),
            None => step.words.push(word.to_owned()),
        }
    }
    step
}

/// A word as what it is meant to be.
pub fn parsed<T: FromStr<Err: Display>>(step: &Step, text: &str) -> T {
    text.parse().unwrap_or_else(|error| panic!("line {}: {text:?}: {error}", step.line))
}

/// `200ms`, `30s` or `2m`.
pub fn duration(text: &str) -> std::time::Duration {
    use std::time::Duration;
    let number = |unit: &str| text.strip_suffix(unit).and_then(|number| number.parse::<u64>().ok());
    if let Some(milliseconds) = number("ms") {
        Duration::from_millis(milliseconds)
    } else if let Some(seconds) = number("s") {
        Duration::from_secs(seconds)
    } else if let Some(minutes) = number("m") {
        Duration::from_secs(60 * minutes)
    } else {
        panic!("{text:?} is no duration; write 200ms, 30s or 2m")
    }
}

#[test]
fn a_line_is_words_and_settings_and_no_comment() {
    let steps = parse("# a story\n\nensure peer b ips=10.0.0.0/8,::/0  keepalive=5 # why\n");
    assert_eq!(steps.len(), 1);
    assert_eq!((steps[0].line, steps[0].shape()), (3, vec!["ensure", "peer", "b"]));
    assert_eq!(steps[0].setting("keepalive"), Some("5"));
    assert_eq!(duration("200ms") * 5, duration("1s"));
}
