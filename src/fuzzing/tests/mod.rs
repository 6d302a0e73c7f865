//! Every case of the corpora, and everything that was ever found, once more.
//!
//! `OVERLAYD_BLESS_CORPUS=1` adds the seeds of [`seeds`] to the corpora; `cargo fuzz cmin` then drops what says nothing new.

mod seeds;

use std::{
    fs,
    path::{Path, PathBuf},
};

fn folder(name: &str, target: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz").join(name).join(target)
}

/// The files of a folder, sorted.
fn files(folder: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(folder) else { return Vec::new() };
    let mut files: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files
}

fn replay(target: &str, run: fn(&[u8])) {
    let corpus = files(&folder("corpus", target));
    assert!(corpus.len() >= 20, "the corpus of {target} has {} cases", corpus.len());
    for file in corpus.into_iter().chain(files(&folder("findings", target))) {
        let bytes = fs::read(&file).unwrap();
        // The name of the case that ends the test is the last one that it prints.
        println!("{}", file.display());
        run(&bytes);
    }
}

#[test]
fn every_stream_of_the_corpus_is_read_and_what_it_says_is_said_again() {
    replay("frame", super::frame);
}

#[test]
fn every_disk_of_the_corpus_gives_its_whole_document_or_an_error() {
    replay("document", super::document);
}

#[test]
fn every_message_of_the_corpus_gets_an_answer_that_can_be_read_or_none() {
    replay("dns", super::dns);
}

#[cfg(target_os = "linux")]
#[test]
fn every_datagram_of_the_corpus_is_read_to_its_end() {
    replay("netlink", super::netlink);
}

#[cfg(target_os = "linux")]
#[test]
fn every_text_of_the_corpus_is_read_and_written_again() {
    replay("uapi", super::uapi);
}

#[test]
fn every_message_that_we_make_ourselves_is_read_and_becomes_a_seed_when_that_is_asked_for() {
    let mut all = seeds::made();
    for (target, name, bytes) in &all {
        println!("{target}: {name}");
        seeds::door(target)(bytes);
    }
    assert!(all.len() > 100, "there are only {} seeds", all.len());
    if std::env::var_os("OVERLAYD_BLESS_CORPUS").is_some() {
        all.extend(seeds::asked());
        for (target, name, bytes) in all {
            let folder = folder("corpus", target);
            fs::create_dir_all(&folder).unwrap();
            fs::write(folder.join(name), bytes).unwrap();
        }
    }
}
