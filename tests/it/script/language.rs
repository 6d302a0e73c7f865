//! The language: one step a line, `#` begins a comment, settings are `name=value`.
//!
//! ```text
//! ensure overlay [instance=0] [cluster=NET] [slice=NET|none] [port=N]      remove overlay
//! ensure peer NAME [endpoint=HOST:PORT|none] [ips=NET,…|none] [keepalive=N]  remove peer NAME
//! ensure allowed-ip NAME NET                                                remove allowed-ip NAME NET
//! round            about the edits since the last one; a full one when there were none
//! look             a full round
//! wait 200ms       crash       suspend       resolve HOST ADDRESS
//! drift delete OBJECT          drift set OBJECT name=value …      stranger OBJECT
//! fault next|after N  fail|lose-answer|blind|cut PART            break OBJECT    mend OBJECT
//! handshake NAME [ago=10s]
//! expect plan empty            expect in-sync      expect not in-sync
//! expect action VERB OBJECT    expect no action    expect untouched OBJECT
//! expect present OBJECT [name=value …]             expect absent OBJECT
//! expect CONDITION OBJECT      (realized, pending, blocked, failing, forgotten)
//! expect drift N               expect retry DURATION|none
//! ```
//!
//! An OBJECT is `link`, `device`, `setting`, `route`, `fallback`, `address A/P` or `peer NAME`, all of the node overlay.

use std::collections::BTreeMap;

/// One line: where it stands, its plain words and its settings.
#[derive(Debug, Clone, PartialEq, Eq)]
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
