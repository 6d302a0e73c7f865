//! Each kind of damage to each part of a store, as the person who is called finds it.
//!
//! For each: what a start says, and when it refuses, what comes of typing what the message says and nothing else. Prints a line for each; the
//! short form is in `docs/RELIABILITY.md`.
//!
//! Only edits that the last fold did not have yet have one copy alone, in the newest segment. Nothing else may ever be lost.

use std::{
    fmt, fs,
    os::unix::{fs::PermissionsExt, process::CommandExt},
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    process::Command,
};

use nix::mount::{MsFlags, mount, umount};

use super::{
    asked_for, isolated,
    kept::{Kept, big_peer, lay_out},
};
use crate::agent_process::{Agent, PATIENCE, within};

/// What happened to a part. Places are in hundredths of what is used of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Truncated(usize),
    BitFlipped(usize),
    Zeroed,
    Missing,
    /// A directory where a file should be, or a file where a directory should be.
    Replaced,
    Unreadable,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    Format,
    Watermark,
    Lock,
    OlderSegment,
    NewestSegment,
    SledDb,
    SledConf,
    OlderCopy,
    NewestCopy,
    Journal,
    Sled,
    Export,
    Everything,
}

impl Part {
    fn path(self, state_dir: &Path) -> PathBuf {
        let nth = |directory: &str, newest: bool| {
            let entries = fs::read_dir(state_dir.join(directory)).unwrap().flatten();
            let mut paths: Vec<PathBuf> = entries.map(|entry| entry.path()).collect();
            paths.sort();
            assert_eq!(paths.len(), 2, "{paths:?}");
            paths.swap_remove(usize::from(newest))
        };
        match self {
            Self::Format => state_dir.join("FORMAT"),
            Self::Watermark => state_dir.join("watermark"),
            Self::Lock => state_dir.join("lock"),
            Self::OlderSegment => nth("journal", false),
            Self::NewestSegment => nth("journal", true),
            Self::SledDb => state_dir.join("sled/db"),
            Self::SledConf => state_dir.join("sled/conf"),
            Self::OlderCopy => nth("export", false),
            Self::NewestCopy => nth("export", true),
            Self::Journal => state_dir.join("journal"),
            Self::Sled => state_dir.join("sled"),
            Self::Export => state_dir.join("export"),
            Self::Everything => state_dir.into(),
        }
    }
}

impl Kind {
    fn befall(self, path: &Path) {
        let is_dir = path.is_dir();
        match self {
            Self::Truncated(percent) => change(path, |bytes, used| bytes.truncate(place(used, percent))),
            Self::BitFlipped(percent) => change(path, |bytes, used| bytes[place(used, percent)] ^= 4),
            Self::Zeroed => change(path, |bytes, _| bytes.fill(0)),
            Self::Missing | Self::Replaced => {
                if is_dir { fs::remove_dir_all(path) } else { fs::remove_file(path) }.unwrap();
                match (self, is_dir) {
                    (Self::Replaced, true) => fs::write(path, "something else\n").unwrap(),
                    (Self::Replaced, false) => fs::create_dir(path).unwrap(),
                    _ => {}
                }
            }
            Self::Unreadable => fs::set_permissions(path, fs::Permissions::from_mode(0o0)).unwrap(),
        }
    }
}

/// The place in a file of which so much is used; 100 is shortly before the end.
fn place(used: usize, percent: usize) -> usize {
    (used * percent / 100).min(used.saturating_sub(60))
}

fn change(path: &Path, work: impl FnOnce(&mut Vec<u8>, usize)) {
    let mut bytes = fs::read(path).unwrap();
    let used = bytes.iter().rposition(|byte| *byte != 0).unwrap() + 1;
    work(&mut bytes, used);
    fs::write(path, bytes).unwrap();
}

/// Takes the right to read what modes forbid from a command, as hardened services have it.
fn humble(command: &mut Command) {
    // SAFETY: between fork and exec only prctl(2), which takes numbers here.
    unsafe {
        command.pre_exec(|| {
            for capability in [CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH] {
                if libc::prctl(libc::PR_CAPBSET_DROP, capability, 0, 0, 0) != 0 {
                    return Err(std::io::Error::last_os_error());
                }
            }
            Ok(())
        });
    }
}

// linux/capability.h
const CAP_DAC_OVERRIDE: libc::c_ulong = 1;
const CAP_DAC_READ_SEARCH: libc::c_ulong = 2;

/// What `overlayd run` does.
enum Start {
    /// With the warnings about the store in its log.
    Runs(Vec<String>),
    Refuses(String),
}

/// Starts the agent; it is ready or it has ended when this returns.
fn start(agent: &mut Agent<'_>) -> Start {
    let _ = fs::remove_file(agent.log_path());
    let mut command = agent.run_command();
    humble(&mut command);
    agent.spawn_as(command);
    let is_ready = |agent: &Agent<'_>| agent.page("/readyz").is_ok_and(|page| page.contains("200 OK"));
    let mut runs = false;
    let decided = within(PATIENCE, || {
        runs = is_ready(agent);
        runs || !agent.is_running()
    });
    assert!(decided, "neither ready nor ended: {}", agent.log_end());
    if runs {
        let log = agent.log();
        let notes = log.lines().filter(|line| line.contains("WARN") || line.contains("there was no store"));
        let warnings = notes.map(|line| line.split_once("note=").map_or(line, |(_, note)| note).to_owned()).collect();
        return Start::Runs(warnings);
    }
    assert_eq!(agent.wait_for_end().code(), Some(1), "{}", agent.log());
    Start::Refuses(agent.log().lines().last().unwrap_or_default().to_owned())
}

/// The commands that a message tells a person to type.
fn commands(message: &str) -> Vec<String> {
    let is_command =
        |text: &&str| ["overlayd ", "chmod ", "mv ", "mount ", "df "].iter().any(|word| text.starts_with(word));
    message.split('`').skip(1).step_by(2).filter(is_command).map(str::to_owned).collect()
}

/// Types a command; what it printed, and its exit status.
fn types(command: &str) -> (String, Option<i32>) {
    let binary = Path::new(env!("CARGO_BIN_EXE_overlayd"));
    let path = format!("{}:{}", binary.parent().unwrap().display(), std::env::var("PATH").unwrap());
    let mut shell = Command::new("/bin/sh");
    shell.args(["-c", command]).env("PATH", path).env_remove("OVERLAYD_STATE_DIR");
    if command.starts_with("overlayd ") {
        humble(&mut shell);
    }
    let output = shell.output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap() + &String::from_utf8(output.stderr).unwrap();
    (text, output.status.code())
}

/// First and last generation that a report calls lost.
fn lost(report: &str) -> Option<(u64, u64)> {
    let (_, numbers) = report.split_once("LOST: generations ")?;
    let (from, to) = numbers.lines().next()?.split_once(" to ")?;
    Some((from.parse().unwrap(), to.trim().parse().unwrap()))
}

/// One case, and what came of it.
struct Row {
    kind: Kind,
    part: Part,
    seen: String,
    typed: Vec<String>,
    lost: Option<(u64, u64)>,
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { kind, part, seen, typed, lost } = self;
        write!(f, "{part:?} | {kind:?} | {seen} | ")?;
        match typed.is_empty() {
            true => write!(f, "nothing")?,
            false => write!(f, "{}", typed.join(", then "))?,
        }
        match lost {
            Some((from, to)) => write!(f, " | LOST {from} to {to}"),
            None => write!(f, " | nothing"),
        }
    }
}

/// Ends a running agent; its store is then good in every part.
fn stop_and_check(agent: &mut Agent<'_>, what: &str) {
    assert!(agent.terminate().1.success(), "{what}");
    let check = agent.command(&["store", "check"]);
    let report = String::from_utf8(check.stdout).unwrap();
    let is_good = check.status.success() && !["DAMAGED", "mends", "LOST"].iter().any(|word| report.contains(word));
    assert!(is_good, "{what}: {report}; the log ends:\n{}", agent.log_end());
}

/// Damages a copy of the store, and does what the agent says until it runs.
fn case(agent: &mut Agent<'_>, kept: &Kept, part: Part, kind: Kind) -> Row {
    let (state_dir, what) = (agent.state_dir(), format!("{part:?} {kind:?}"));
    types(&format!("rm -rf {} {}.away*", state_dir.display(), state_dir.display()));
    lay_out(&kept.state_dir, &state_dir);
    kind.befall(&part.path(&state_dir));
    let (foretold, status) = types(&format!("overlayd store check --state-dir {}", state_dir.display()));
    let (seen, typed, mut lost_now) = match start(agent) {
        Start::Runs(warnings) => {
            let is_new = part == Part::Everything && kind == Kind::Missing;
            assert!(is_new || status == Some(0), "{what}: it starts, but a check says {foretold}");
            (warnings.join("; "), Vec::new(), None)
        }
        Start::Refuses(message) => {
            assert_eq!(status, Some(1), "{what}: it does not start, but a check says {foretold}; {message}");
            let typed = commands(&message);
            assert!(!typed.is_empty(), "{what}: the message names no command: {message}");
            let mut lost_now = None;
            for command in &typed {
                let (printed, _) = types(command);
                println!("{what}: {command}: {printed}");
                lost_now = lost_now.or(lost(&printed));
            }
            match start(agent) {
                Start::Runs(_) => (message, typed, lost_now),
                Start::Refuses(again) => panic!("{what}: {message}\nafter {typed:?}: {again}"),
            }
        }
    };
    if part == Part::Everything && kind != Kind::Unreadable {
        // Nothing is left that could tell it from a first start.
        lost_now = Some((1, kept.last));
    } else {
        let reached = lost_now.map_or(kept.last, |(from, _)| from - 1);
        let may_lose = matches!(part, Part::NewestSegment | Part::Journal);
        assert!(reached == kept.last || (may_lose && reached >= kept.folded), "{what}: {lost_now:?}");
        kept.assert_is_in(agent, reached);
    }
    stop_and_check(agent, &what);
    Row { kind, part, seen, typed, lost: lost_now }
}

#[test]
fn whatever_is_damaged_the_agent_says_what_to_type_and_nothing_with_a_second_copy_is_lost() {
    isolated(|| {
        let mut agent = Agent::without_device("a");
        let kept = Kept::make(&mut agent, Path::new("/run/kept"));
        use Kind::{BitFlipped, Missing, Replaced, Truncated, Unreadable, Zeroed};
        let file = [Truncated(50), BitFlipped(50), Zeroed, Missing, Replaced, Unreadable];
        let files = [
            Part::Format,
            Part::Watermark,
            Part::OlderSegment,
            Part::NewestSegment,
            Part::SledDb,
            Part::SledConf,
            Part::OlderCopy,
            Part::NewestCopy,
        ];
        let mut cases: Vec<(Part, Kind)> = files.iter().flat_map(|part| file.map(|kind| (*part, kind))).collect();
        for part in [Part::Journal, Part::Sled, Part::Export, Part::Everything] {
            cases.extend([Missing, Replaced, Unreadable].map(|kind| (part, kind)));
        }
        cases.extend([Missing, Replaced, Unreadable].map(|kind| (Part::Lock, kind)));
        // The end alone: the last edits have no other copy. And where sled opens what it then rewrites with fewer rows.
        cases.extend([Truncated(100), BitFlipped(100)].map(|kind| (Part::NewestSegment, kind)));
        cases.extend([0, 10, 30, 99].map(|percent| (Part::SledDb, BitFlipped(percent))));
        // Five and the six kinds share no divisor: every kind is among the sample.
        if asked_for("OVERLAYD_DAMAGE_ALL", 0) == 0 {
            cases = cases.into_iter().step_by(5).collect();
        }
        let (count, mut failures) = (cases.len(), Vec::new());
        for (part, kind) in cases {
            // One that fails must not hide the others.
            match catch_unwind(AssertUnwindSafe(|| case(&mut agent, &kept, part, kind))) {
                Ok(row) => println!("MEASURED: {row}"),
                Err(_) => failures.push(format!("{part:?} {kind:?}")),
            }
            agent.kill();
        }
        assert!(failures.is_empty(), "{failures:#?}");
        println!("MEASURED: {count} kinds of damage to a store of {} generations", kept.last);
    });
}

/// The state directory on a small disk of its own.
fn on_a_small_disk(agent: &Agent<'_>) {
    fs::create_dir_all(agent.state_dir()).unwrap();
    let none: Option<&str> = None;
    mount(none, &agent.state_dir(), Some("tmpfs"), MsFlags::empty(), Some("size=24m,mode=0700")).unwrap();
}

/// Takes all the room that is left, with a file that is nobody's; gives where it is.
fn fill(state_dir: &Path) -> PathBuf {
    fs::create_dir_all(state_dir.join("lost+found")).unwrap();
    let filler = state_dir.join("lost+found/filler");
    let mut file = fs::File::create(&filler).unwrap();
    while std::io::Write::write(&mut file, &[1; 4096]).is_ok() {}
    filler
}

/// Starts the agent, which must refuse, and types what it says; `help` stands for what a person does besides.
fn refuses_until(agent: &mut Agent<'_>, needle: &str, help: impl FnOnce()) {
    let Start::Refuses(message) = start(agent) else { panic!("it starts: {}", agent.log()) };
    println!("MEASURED: {message}");
    assert!(message.contains(needle), "{message}");
    let typed = commands(&message);
    assert!(!typed.is_empty(), "{message}");
    for command in &typed {
        let (printed, status) = types(command);
        assert_eq!(status, Some(0), "{command}: {printed}");
    }
    help();
    let Start::Runs(_) = start(agent) else { panic!("{}", agent.log()) };
}

#[test]
fn a_disk_that_is_full_or_cannot_be_written_is_named_and_loses_nothing() {
    isolated(|| {
        let mut agent = Agent::without_device("a");
        let kept = Kept::make(&mut agent, Path::new("/run/kept"));
        fs::remove_dir_all(agent.state_dir()).unwrap();
        on_a_small_disk(&agent);
        let (state_dir, none) = (agent.state_dir(), None::<&str>);
        let filler = fill(&state_dir);
        refuses_until(&mut agent, "No space left", || fs::remove_file(&filler).unwrap());
        agent.kill();
        umount(&state_dir).unwrap();
        on_a_small_disk(&agent);
        lay_out(&kept.state_dir, &state_dir);
        mount(none, &state_dir, none, MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY, none).unwrap();
        let (report, status) = types(&format!("overlayd store check --state-dir {}", state_dir.display()));
        assert!(status == Some(1) && report.contains("mount -o remount,rw"), "{report}");
        refuses_until(&mut agent, "Read-only file system", || {});
        kept.assert_is_in(&agent, kept.last);
        agent.kill();
        let filler = fill(&state_dir);
        let Start::Runs(_) = start(&mut agent) else { panic!("{}", agent.log()) };
        let mut added = 0;
        let refusal = loop {
            let request = big_peer(5000 + added);
            match agent.request(request) {
                overlayd::wire::Response::Err { message } => break message,
                _ => added += 1,
            }
            assert!(added < 4000, "a full disk takes everything");
        };
        println!("MEASURED: {added} edits fit on a full disk, then: {refusal}");
        assert!(refusal.contains("was not made") && refusal.contains("`df -h "), "{refusal}");
        agent.kill();
        let Start::Runs(_) = start(&mut agent) else { panic!("{}", agent.log()) };
        kept.assert_is_part_of(&agent);
        fs::remove_file(&filler).unwrap();
        // With room again the running agent goes on.
        agent.must(big_peer(5000 + added));
        let generation = agent.generation();
        assert_eq!(generation, kept.last + u64::from(added) + 1);
        agent.kill();
        let Start::Runs(_) = start(&mut agent) else { panic!("{}", agent.log()) };
        kept.assert_is_part_of(&agent);
        assert_eq!(agent.generation(), generation);
        stop_and_check(&mut agent, "a disk that was full");
    });
}

#[test]
fn a_recovery_on_a_full_disk_changes_nothing_and_works_once_there_is_room() {
    isolated(|| {
        let mut agent = Agent::without_device("a");
        let kept = Kept::make(&mut agent, Path::new("/run/kept"));
        fs::remove_dir_all(agent.state_dir()).unwrap();
        on_a_small_disk(&agent);
        let state_dir = agent.state_dir();
        lay_out(&kept.state_dir, &state_dir);
        Kind::BitFlipped(50).befall(&Part::OlderSegment.path(&state_dir));
        let filler = fill(&state_dir);
        let recover = format!("overlayd store recover --state-dir {}", state_dir.display());
        let (said, status) = types(&recover);
        println!("MEASURED: {said}");
        assert!(status == Some(1) && said.contains("`df -h "), "{said}");
        fs::remove_file(&filler).unwrap();
        let (said, status) = types(&recover);
        assert!(status == Some(0) && lost(&said).is_none(), "{said}");
        let Start::Runs(_) = start(&mut agent) else { panic!("{}", agent.log()) };
        kept.assert_is_in(&agent, kept.last);
        stop_and_check(&mut agent, "a recovery after one without room");
    });
}
