#![no_main]
//! Stories that nobody wrote, on the simulated node. The interpreter is that of the tests.

#[path = "../../tests/it/any_story.rs"]
mod any_story;
#[path = "../../tests/it/script/mod.rs"]
#[expect(dead_code, reason = "the tests use the rest")]
mod script;
#[path = "../../tests/it/world.rs"]
#[expect(dead_code, reason = "the tests use the rest")]
mod world;

libfuzzer_sys::fuzz_target!(|text: &[u8]| any_story::story(text));
