//! What must hold whatever bytes a disk gives back: an error or all of it, and never a document that is silently smaller.
//!
//! Owns these claims for the fuzz target `document` and for the tests that replay its corpus. Nothing that ships contains this file.
//!
//! Upholds I-01 and I-02 by trying to break them: a claim that does not hold is a panic.
//!
//! The first byte says what the rest is: `R` records, one `key TAB value` a line; `C` the checkpoint's rows, the manifest in the first line;
//! `J` journal segments; `E` an exported copy; `W` a watermark. Checksums keep a mutation from getting far, so every piece is read a
//! second time with its checksums made right.

use std::{collections::BTreeMap, path::PathBuf};

use super::{
    checkpoint::{self, Look, RECORD_PREFIX},
    export,
    frame::{self, ALIGN, FRAME_MAGIC, FrameHeader, PAD, SEGMENT_MAGIC, SegmentHeader},
    port::Contents,
    scan::Scan,
    survey::Survey,
    watermark::Mark,
};
use crate::desired::{BadRecord, Document, RecordKey};

/// Reads what a disk gave back; answers the document, if it is one.
pub(crate) fn stored(bytes: &[u8]) -> Option<Document> {
    match bytes.split_first()? {
        (b'R', rest) => document(&Contents { generation: 9, records: rows(rest), settled: 3 }),
        (b'C', rest) => rows_of_a_checkpoint(rest),
        (b'J', rest) => journal(rest),
        (b'E', rest) => copy(rest),
        (b'W', rest) => {
            assert!(Mark::decode(rest).is_none_or(|mark| mark.encode() == rest), "a note is written back as another");
            None
        }
        _ => None,
    }
}

fn rows(lines: &[u8]) -> BTreeMap<String, Vec<u8>> {
    let row = |line: &[u8]| {
        let at = line.iter().position(|byte| *byte == b'\t')?;
        Some((String::from_utf8_lossy(&line[..at]).into_owned(), line[at + 1..].to_vec()))
    };
    lines.split(|byte| *byte == b'\n').filter_map(row).collect()
}

/// The document of these contents; every record that went in is in it.
fn document(contents: &Contents) -> Option<Document> {
    let document = match Document::from_contents(contents) {
        Ok(document) => document,
        Err(bad) => return check_words(&bad),
    };
    let mut records = BTreeMap::new();
    let mut bare = 0;
    for text in contents.records.keys() {
        let key: RecordKey = match text.parse() {
            Ok(key) => key,
            Err(bad) => unreachable!("a document was made of a record that has no key: {bad}"),
        };
        match document.record(&key) {
            Some(record) => drop(records.insert(key.to_string(), record.encode())),
            // What a node says of itself when nobody has said anything.
            None if key == RecordKey::Node => bare += 1,
            None => unreachable!("record {key} was read and is not in the document (I-02)"),
        }
    }
    let (held, given) = (records.len() + bare, contents.records.len());
    assert!(held == given, "{held} of {given} records are in the document (I-02)");
    match Document::from_contents(&Contents { records, ..contents.clone() }) {
        Ok(again) => assert!(again == document, "a document is read back as another"),
        Err(bad) => unreachable!("a document wrote what it cannot read: {bad}"),
    }
    Some(document)
}

fn check_words(bad: &BadRecord) -> Option<Document> {
    let text = bad.to_string();
    assert!(!text.chars().any(char::is_control), "an error with control characters: {text:?}");
    None
}

fn rows_of_a_checkpoint(bytes: &[u8]) -> Option<Document> {
    let end = bytes.iter().position(|byte| *byte == b'\n').unwrap_or(bytes.len());
    let (manifest, records) = (&bytes[..end], rows(&bytes[end..]));
    let read = |manifest: &[u8], records: &BTreeMap<String, Vec<u8>>| {
        let key = |key: &String| [RECORD_PREFIX, key.as_bytes()].concat();
        checkpoint::contents_of_rows(manifest, records.iter().map(|(text, value)| Ok((key(text), value.clone()))))
    };
    if let Ok(contents) = read(manifest, &records) {
        assert!(contents.records == records, "a checkpoint holds other records than its rows");
        document(&contents);
    }
    let contents = Contents { generation: 9, records, settled: 3 };
    let fitting = checkpoint::manifest_of(&contents).unwrap_or_else(|what| unreachable!("plain numbers: {what}"));
    assert!(read(&fitting, &contents.records).as_ref() == Ok(&contents), "a checkpoint is read back as another");
    let mut short = contents.records.clone();
    if short.pop_first().is_some() {
        assert!(read(&fitting, &short).is_err(), "a checkpoint without its first record counts as whole (I-02)");
    }
    document(&contents)
}

fn copy(bytes: &[u8]) -> Option<Document> {
    let parsed = export::parse(std::str::from_utf8(bytes).ok()?).ok()?;
    let contents = parsed.contents;
    assert!(contents.settled <= contents.generation, "a copy is ahead of itself");
    let text = export::render(&contents).unwrap_or_else(|error| unreachable!("records have a JSON form: {error}"));
    match export::parse(&text) {
        Ok(again) => assert!(again.digest_checked && again.contents == contents, "a copy is read back as another"),
        Err(what) => unreachable!("a copy was written that is none: {what}"),
    }
    // Of a value that is JSON by its grammar only there is no redacted form; that is an error and no panic.
    let _ = export::redacted(&contents, &|_, value| crate::desired::redact(value));
    document(&contents)
}

fn journal(bytes: &[u8]) -> Option<Document> {
    segments(&cut(bytes));
    segments(&cut(&mended(bytes)))
}

/// The bytes of each segment: one begins where its magic stands.
fn cut(bytes: &[u8]) -> Vec<&[u8]> {
    let begins = |at: &usize| bytes[*at..].starts_with(SEGMENT_MAGIC);
    let mut starts: Vec<usize> = (ALIGN..bytes.len()).step_by(ALIGN).filter(begins).collect();
    starts.insert(0, 0);
    starts.push(bytes.len());
    starts.windows(2).map(|pair| &bytes[pair[0]..pair[1]]).collect()
}

/// The same bytes, and the checksum and padding of every header and frame as they should be.
fn mended(bytes: &[u8]) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    let mut at = 0;
    while at + ALIGN <= bytes.len() {
        if bytes[at..].starts_with(FRAME_MAGIC) {
            let length = bytes[at + 4..at + 8].try_into().map_or(0, u32::from_le_bytes) as usize;
            let body = at + ALIGN;
            if let Some(end) = body.checked_add(length).filter(|end| end.next_multiple_of(ALIGN) <= bytes.len()) {
                let crc = crc32fast::hash(&bytes[body..end]);
                bytes[at + 24..at + 28].copy_from_slice(&crc.to_le_bytes());
                bytes[end..end.next_multiple_of(ALIGN)].fill(PAD);
            }
        }
        if bytes[at..].starts_with(FRAME_MAGIC) || bytes[at..].starts_with(SEGMENT_MAGIC) {
            let crc = crc32fast::hash(&bytes[at..at + 28]);
            bytes[at + 28..at + ALIGN].copy_from_slice(&crc.to_le_bytes());
        }
        at += ALIGN;
    }
    bytes
}

/// Judges a journal of these segments as a start does.
fn segments(images: &[&[u8]]) -> Option<Document> {
    let mut scan = Scan::default();
    let path = |number: usize| PathBuf::from(format!("{number}.journal"));
    for (number, image) in images.iter().enumerate() {
        let first = SegmentHeader::decode(image).map_or(1, |header| header.first);
        scan.segment(path(number), first, image, number + 1 == images.len());
    }
    if scan.damage.is_empty() {
        for (number, image) in images.iter().enumerate() {
            let used = image.iter().rposition(|byte| *byte != 0).map_or(0, |last| last as u64 + 1);
            let good = scan.segments.iter().any(|segment| segment.path == path(number) && segment.len >= used);
            let torn = scan.torn.as_ref().is_some_and(|torn| torn.path == path(number) && torn.len >= used);
            let unused = used <= ALIGN as u64 && SegmentHeader::decode(image).is_some();
            assert!(good || torn || unused, "bytes of segment {number} were passed over (I-02)");
        }
    }
    images.iter().for_each(|image| check_frames(image));
    let (entries, highest) = (scan.entries.len(), scan.highest);
    let survey = Survey { mark: None, scan, exports: Vec::new(), look: Look::Missing };
    let contents = survey.verdict().ok()?.contents;
    assert!(
        entries > 0 && contents.generation >= highest,
        "a journal that reaches {highest} was read up to {contents:?}"
    );
    document(&contents)
}

/// Frames that can be read are written back to the byte.
fn check_frames(image: &[u8]) {
    let mut at = ALIGN;
    while let Some(header) = image.get(at..).and_then(FrameHeader::decode) {
        let Some(entries) = header.entries(&image[at + ALIGN..]) else { return };
        let end = at + header.frame_len();
        match frame::encode(&entries, header.settled) {
            Ok(bytes) => assert!(bytes == image[at..end], "a frame is written back as another"),
            Err(error) => unreachable!("what was one frame fits into one: {error}"),
        }
        at = end;
    }
}

/// A store as it is written, in all of its parts.
#[cfg(test)]
pub(crate) mod seeds {
    use super::*;
    use crate::{
        clock::UnixTime,
        desired::store::{
            frame::Joins,
            port::{Entry, Write},
        },
    };

    pub(crate) fn all(contents: &Contents) -> Vec<(String, Vec<u8>)> {
        let mut all = Vec::new();
        for (number, (key, value)) in contents.records.iter().enumerate() {
            let one = Contents { records: [(key.clone(), value.clone())].into(), ..contents.clone() };
            all.push((format!("record-{number}"), [b"R", &lines(&one)[..]].concat()));
            all.push((format!("copy-{number}"), copied(&one)));
        }
        all.push(("records".into(), [b"R", &lines(contents)[..]].concat()));
        let manifest = checkpoint::manifest_of(contents).unwrap();
        all.push(("checkpoint".into(), [b"C", &manifest[..], b"\n", &lines(contents)].concat()));
        all.push(("copy".into(), copied(contents)));
        all.push((
            "copy-by-hand".into(),
            br#"E{"format":"overlayd-export 1","generation":2,"records":{"node":{},"dns/a.b":{"a":["10.0.0.1"]}}}"#
                .into(),
        ));
        all.push((
            "copy-with-bytes".into(),
            br#"E{"format":"overlayd-export 1","generation":2,"records":{"node":{"$base64":"AAEC"}}}"#.into(),
        ));
        all.push(("note".into(), [b"W", &Mark { acknowledged: 5, settled: 4 }.encode()[..]].concat()));
        all.extend(journals(contents));
        all
    }

    fn lines(contents: &Contents) -> Vec<u8> {
        let line = |(key, value): (&String, &Vec<u8>)| [key.as_bytes(), b"\t", value, b"\n"].concat();
        contents.records.iter().flat_map(line).collect()
    }

    fn copied(contents: &Contents) -> Vec<u8> {
        [b"E", export::render(contents).unwrap().as_bytes()].concat()
    }

    fn journals(contents: &Contents) -> Vec<(String, Vec<u8>)> {
        let entry = |(number, (key, value)): (usize, (&String, &Vec<u8>))| Entry {
            generation: number as u64 + 1,
            at: UnixTime(1000),
            origin: "uid=0 gid=0 pid=1".into(),
            summary: "edit".into(),
            writes: vec![Write { key: key.clone(), value: Some(value.clone()) }],
        };
        let entries: Vec<Entry> = contents.records.iter().enumerate().map(entry).collect();
        let segment = |first, joins, groups: &[&[Entry]]| {
            let frames = groups.iter().flat_map(|group| frame::encode(group, 1).unwrap());
            SegmentHeader { first, joins }.encode().into_iter().chain(frames).collect::<Vec<u8>>()
        };
        let whole = segment(1, Joins::Nothing, &[&entries[..2], &entries[2..3]]);
        let next = segment(4, Joins::Previous, &[&entries[3..5]]);
        let mut removal = entries[1].clone();
        removal.writes[0].value = None;
        let mut torn = whole.clone();
        torn.truncate(torn.len() - 40);
        let mut damaged = whole.clone();
        damaged[100] ^= 1;
        let named = |name: &str, bytes: &[u8]| (name.to_owned(), [b"J", bytes].concat());
        vec![
            named("journal", &whole),
            named("journal-two", &[&whole[..], &next].concat()),
            named("journal-unused", &[&whole[..], &[0; 96]].concat()),
            named("journal-unborn", &[&whole[..], &segment(4, Joins::Previous, &[])].concat()),
            named("journal-removal", &segment(2, Joins::Checkpoint, &[&[removal]])),
            named("journal-torn", &torn),
            named("journal-damaged", &damaged),
            named("journal-gap", &[&whole[..], &segment(9, Joins::Checkpoint, &[])].concat()),
        ]
    }
}
