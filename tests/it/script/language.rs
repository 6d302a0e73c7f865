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

use std::{
    collections::BTreeMap,
    fmt::{self, Display},
    str::FromStr,
    time::Duration,
};

use super::stage::Unsupported;

/// Most steps of one story; the longest in `fixtures/scripts` has about fifty.
const STEPS_MAX: usize = 200;
/// Longest time that is named in a story: a clock has to survive two hundred of them.
const DURATION_MAX: Duration = Duration::from_secs(24 * 60 * 60);

/// Why a story does not go on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Stop {
    /// The stage has no way to do that.
    Unsupported(&'static str),
    /// It is no step: what to write instead.
    Malformed(String),
    /// The document refuses the edit.
    Refused(String),
    /// It is not as the story says.
    Wrong(String),
}

impl Display for Stop {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Stop::Unsupported(what) => write!(f, "the stage cannot do it: {what}"),
            Stop::Malformed(text) | Stop::Refused(text) | Stop::Wrong(text) => f.write_str(text),
        }
    }
}

impl From<Unsupported> for Stop {
    fn from(missing: Unsupported) -> Self {
        Stop::Unsupported(missing.0)
    }
}

/// One line: where it stands, its plain words and its settings.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Step {
    pub line: usize,
    /// At least one.
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

    pub(super) fn malformed(&self, instead: &str) -> Stop {
        Stop::Malformed(format!("line {}: {:?}: {instead}", self.line, self.shape()))
    }

    pub(super) fn refused(&self, refusal: &impl Display) -> Stop {
        Stop::Refused(format!("line {}: the document refuses it: {refusal}", self.line))
    }

    pub(super) fn wrong(&self, why: fmt::Arguments<'_>) -> Stop {
        Stop::Wrong(format!("line {}: {:?}: {why}", self.line, self.shape()))
    }
}

/// The steps of a script, without its comments.
///
/// # Errors
/// [`Stop::Malformed`] for a line without a plain word, and for a story that is too long.
pub fn parse(text: &str) -> Result<Vec<Step>, Stop> {
    let meaning = |line: &str| line.split('#').next().unwrap_or_default().trim().to_owned();
    let lines = text.lines().enumerate().map(|(at, line)| (at + 1, meaning(line)));
    let steps: Vec<Step> = lines.filter(|(_, line)| !line.is_empty()).map(|(line, text)| step(line, &text)).collect();
    if let Some(step) = steps.iter().find(|step| step.words.is_empty()) {
        return Err(step.malformed("a step begins with a word; settings come after it"));
    }
    match steps.get(STEPS_MAX) {
        Some(step) => Err(step.malformed(&format!("a story has at most {STEPS_MAX} steps; split it"))),
        None => Ok(steps),
    }
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
///
/// # Errors
/// [`Stop::Malformed`].
pub fn parsed<T: FromStr<Err: Display>>(step: &Step, text: &str) -> Result<T, Stop> {
    text.parse().map_err(|error| step.malformed(&format!("{text:?}: {error}")))
}

/// A setting as what it stands for, or `otherwise` where it is not there.
///
/// # Errors
/// [`Stop::Malformed`].
pub fn setting<T: FromStr<Err: Display>>(step: &Step, name: &str, otherwise: T) -> Result<T, Stop> {
    step.setting(name).map_or(Ok(otherwise), |text| parsed(step, text))
}

/// A word as the one of `all` that is called so.
///
/// # Errors
/// [`Stop::Malformed`], with the words that there are.
pub fn chosen<T: Copy>(step: &Step, word: &str, all: &[T], name: impl Fn(T) -> &'static str) -> Result<T, Stop> {
    all.iter().copied().find(|one| name(*one) == word).ok_or_else(|| {
        let names: Vec<&str> = all.iter().map(|one| name(*one)).collect();
        step.malformed(&format!("{word:?} is none of {}", names.join(", ")))
    })
}

/// `200ms`, `30s` or `2m`, up to a day.
///
/// # Errors
/// [`Stop::Malformed`].
pub fn duration(step: &Step, text: &str) -> Result<Duration, Stop> {
    let number = |unit: &str| text.strip_suffix(unit).and_then(|number| number.parse::<u64>().ok());
    let found = if let Some(milliseconds) = number("ms") {
        Some(Duration::from_millis(milliseconds))
    } else if let Some(seconds) = number("s") {
        Some(Duration::from_secs(seconds))
    } else {
        number("m").and_then(|minutes| minutes.checked_mul(60)).map(Duration::from_secs)
    };
    found
        .filter(|found| *found <= DURATION_MAX)
        .ok_or_else(|| step.malformed(&format!("{text:?} is no duration; write 200ms, 30s or 2m, up to a day")))
}

#[test]
fn a_line_is_words_and_settings_and_no_comment() {
    let steps = parse("# a story\n\nensure peer b ips=10.0.0.0/8,::/0  keepalive=5 # why\n").unwrap();
    assert_eq!(steps.len(), 1);
    assert_eq!((steps[0].line, steps[0].shape()), (3, vec!["ensure", "peer", "b"]));
    assert_eq!(steps[0].setting("keepalive"), Some("5"));
    let of = |text| duration(&steps[0], text);
    assert_eq!(of("200ms").unwrap() * 5, of("1s").unwrap());
    for bad in ["", "5", "m", "-1s", "18446744073709551615m", "25000h", "1441m"] {
        assert!(matches!(of(bad), Err(Stop::Malformed(_))), "{bad}");
    }
}

#[test]
fn a_line_that_is_no_step_is_named_with_what_to_write_instead() {
    let Err(Stop::Malformed(why)) = parse("round\nips=none\n") else { panic!() };
    assert!(why.starts_with("line 2: ") && why.contains("begins with a word"), "{why}");
    assert!(parse(&"round\n".repeat(STEPS_MAX)).is_ok());
    assert!(parse(&"round\n".repeat(STEPS_MAX + 1)).is_err());
}
