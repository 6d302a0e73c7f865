//! The rules that keep the rooms liveable, held against every file of the crate.
//!
//! Rules are checked on syntax trees: a word in a comment or a text breaks none. Code under `#[cfg(test)]` may do what tests do.

use proc_macro2::{TokenStream, TokenTree};
use syn::{
    Attribute, ExprMethodCall, ExprUnsafe, File, ImplItemFn, Item, ItemEnum, ItemFn, ItemMod, ItemStruct, ItemTrait,
    ItemType, Macro, TraitItemFn,
    spanned::Spanned,
    visit::{self, Visit},
};

use crate::source::{Source, sources};

const FILE_LINES_MAX: usize = 800;
/// Above it a file is printed, so that it is split before it has to be.
const FILE_LINES_WARN: usize = 400;
const FUNCTION_LINES_MAX: usize = 70;

/// Files that break a rule for now: path, rule, why and until when.
const PENDING: &[(&str, &str, &str)] = &[];

/// Marks a room that has a door and nothing behind it yet; its header is not held against the rule.
const UNDER_CONSTRUCTION: &str = "(under construction)";

/// Words that name nothing: whoever needs one has not found the thing's name yet.
const EMPTY_WORDS: [&str; 8] = ["manager", "helper", "helpers", "util", "utils", "common", "handler", "info"];

#[derive(Default)]
struct Findings(Vec<String>);

impl Findings {
    fn note(&mut self, source: &Source, line: usize, rule: &str, what: impl std::fmt::Display) {
        let is_pending = PENDING.iter().any(|(path, of, _)| *path == source.path && *of == rule);
        if !is_pending {
            self.0.push(format!("{}:{line}: {rule}: {what}", source.path));
        }
    }
}

/// Checks one file against every rule.
fn check(source: &Source, findings: &mut Findings) {
    let file = syn::parse_file(&source.text).unwrap_or_else(|error| panic!("{}: {error}", source.path));
    check_length(source, findings);
    check_header(source, &file, findings);
    if source.is_mod_file() {
        check_mod_file(source, &file, findings);
    }
    if let Some(name) = source.module().last() {
        check_name(source, 1, "module", name, findings);
    }
    let mut walk = Walk { source, findings };
    walk.visit_file(&file);
}

fn check_length(source: &Source, findings: &mut Findings) {
    let lines = source.text.lines().count();
    if lines > FILE_LINES_MAX {
        findings.note(source, lines, "file length", format!("{lines} lines, {FILE_LINES_MAX} are allowed; split it"));
    } else if lines > FILE_LINES_WARN {
        println!("{}: {lines} lines; over {FILE_LINES_WARN}, think of splitting it", source.path);
    }
}

/// A room's first sentence says what it is for.
fn check_header(source: &Source, file: &File, findings: &mut Findings) {
    let is_room = source.is_mod_file() || (source.module().len() == 1 && source.path != "src/main.rs");
    if !is_room && source.path != "src/lib.rs" {
        return;
    }
    let texts: Vec<String> = file.attrs.iter().filter_map(doc_text).collect();
    let first: String = texts.iter().take_while(|line| !line.trim().is_empty()).cloned().collect();
    if first.contains(UNDER_CONSTRUCTION) {
        return;
    }
    if !first.contains(". ") && !first.trim_end().ends_with('.') {
        findings.note(source, 1, "header", "begin with `//!` and one sentence that ends in a period");
    }
}

fn doc_text(attribute: &Attribute) -> Option<String> {
    let syn::Meta::NameValue(pair) = &attribute.meta else {
        return None;
    };
    match &pair.value {
        syn::Expr::Lit(syn::ExprLit { lit: syn::Lit::Str(text), .. }) if pair.path.is_ident("doc") => {
            Some(text.value())
        }
        _ => None,
    }
}

/// `mod.rs` holds docs and re-exports, so that a room's door shows what is inside and holds nothing itself.
fn check_mod_file(source: &Source, file: &File, findings: &mut Findings) {
    for item in &file.items {
        let is_door = match item {
            Item::Use(_) => true,
            Item::Mod(module) => module.content.is_none(),
            _ => false,
        };
        if !is_door {
            let line = item.span().start().line;
            findings.note(
                source,
                line,
                "mod file",
                "only `mod`, `use` and docs; move it to a file named after what it is",
            );
        }
    }
}

fn check_name(source: &Source, line: usize, kind: &str, name: &str, findings: &mut Findings) {
    let words = words_of(name);
    if let Some(word) = words.iter().find(|word| EMPTY_WORDS.contains(&word.as_str())) {
        findings.note(source, line, "name", format!("{kind} {name}: {word:?} names nothing; say what it is"));
    }
    if words.last().is_some_and(|last| last == "data") {
        findings.note(source, line, "name", format!("{kind} {name}: everything is data; say which"));
    }
    let prefix = words.first().map(String::as_str);
    if kind == "function" && words.len() > 1 && matches!(prefix, Some("get" | "do")) {
        findings.note(source, line, "name", format!("{kind} {name}: say what the caller gets, without get_ or do_"));
    }
}

/// `PeerInfo`, `peer_info` and `PEER_INFO` all give `["peer", "info"]`.
fn words_of(name: &str) -> Vec<String> {
    let mut words = vec![String::new()];
    let mut was_lower = false;
    for letter in name.chars() {
        if letter == '_' || (letter.is_uppercase() && was_lower) {
            words.push(String::new());
        }
        was_lower = letter.is_lowercase();
        if letter != '_'
            && let Some(word) = words.last_mut()
        {
            word.extend(letter.to_lowercase());
        }
    }
    words.retain(|word| !word.is_empty());
    words
}

struct Walk<'a> {
    source: &'a Source,
    findings: &'a mut Findings,
}

impl Walk<'_> {
    fn note(&mut self, line: usize, rule: &str, what: impl std::fmt::Display) {
        self.findings.note(self.source, line, rule, what);
    }

    fn name(&mut self, kind: &str, ident: &proc_macro2::Ident) {
        check_name(self.source, ident.span().start().line, kind, &ident.to_string(), self.findings);
    }

    fn function(&mut self, whole: proc_macro2::Span, name: &proc_macro2::Ident) {
        self.name("function", name);
        let lines = whole.end().line - whole.start().line + 1;
        if lines > FUNCTION_LINES_MAX {
            let what = format!("{name} has {lines} lines, {FUNCTION_LINES_MAX} are allowed; name its parts");
            self.note(whole.start().line, "function length", what);
        }
    }

    fn may_print(&self) -> bool {
        self.source.path == "src/main.rs" || self.source.path.starts_with("src/cli")
    }

    fn forbidden_macro(&mut self, name: &str, line: usize) {
        let is_print = matches!(name, "println" | "print" | "eprintln" | "eprint");
        if matches!(name, "panic" | "todo" | "unimplemented" | "dbg") || (is_print && !self.may_print()) {
            self.note(
                line,
                "macro",
                format!("{name}! outside tests; answer an error, log, or say unreachable!(\"why\")"),
            );
        }
    }

    /// An `unsafe` needs a note above it, and a room in which it may stand.
    fn unsafety(&mut self, line: usize) {
        if !self.source.path.starts_with("src/platform") {
            self.note(line, "unsafe", "only platform touches the machine; use a safe call of a library");
        }
        let above: Vec<&str> = self.source.text.lines().take(line).collect();
        let mut comment =
            above.iter().rev().skip(1).map(|text| text.trim_start()).take_while(|text| text.starts_with("//"));
        let same_line = above.last().is_some_and(|text| text.contains("// SAFETY:"));
        if !same_line && !comment.any(|text| text.starts_with("// SAFETY:")) {
            self.note(line, "unsafe", "say in `// SAFETY:` right above why it is sound");
        }
    }
}

fn is_test(attributes: &[Attribute]) -> bool {
    let says_test = |attribute: &Attribute| match &attribute.meta {
        syn::Meta::List(list) => attribute.path().is_ident("cfg") && has_word(list.tokens.clone(), "test"),
        syn::Meta::Path(path) => path.is_ident("test"),
        syn::Meta::NameValue(_) => false,
    };
    attributes.iter().any(says_test)
}

fn has_word(tokens: TokenStream, word: &str) -> bool {
    tokens.into_iter().any(|tree| match tree {
        TokenTree::Ident(ident) => ident == word,
        TokenTree::Group(group) => has_word(group.stream(), word),
        TokenTree::Punct(_) | TokenTree::Literal(_) => false,
    })
}

/// Method calls hidden in a macro's arguments: `format!("{}", x.unwrap())`.
fn hidden_calls(tokens: TokenStream, found: &mut Vec<(usize, String)>) {
    let trees: Vec<TokenTree> = tokens.into_iter().collect();
    for (at, tree) in trees.iter().enumerate() {
        if let TokenTree::Group(group) = tree {
            hidden_calls(group.stream(), found);
        }
        if let (TokenTree::Punct(dot), Some(TokenTree::Ident(name)), Some(TokenTree::Group(_))) =
            (tree, trees.get(at + 1), trees.get(at + 2))
            && dot.as_char() == '.'
            && (name == "unwrap" || name == "expect")
        {
            found.push((name.span().start().line, name.to_string()));
        }
    }
}

impl<'ast> Visit<'ast> for Walk<'_> {
    fn visit_item_mod(&mut self, item: &'ast ItemMod) {
        if !is_test(&item.attrs) {
            self.name("module", &item.ident);
            visit::visit_item_mod(self, item);
        }
    }

    fn visit_item_fn(&mut self, item: &'ast ItemFn) {
        if is_test(&item.attrs) {
            return;
        }
        self.function(item.span(), &item.sig.ident);
        if let Some(word) = &item.sig.unsafety {
            self.unsafety(word.span.start().line);
        }
        visit::visit_item_fn(self, item);
    }

    fn visit_impl_item_fn(&mut self, item: &'ast ImplItemFn) {
        if is_test(&item.attrs) {
            return;
        }
        self.function(item.span(), &item.sig.ident);
        if let Some(word) = &item.sig.unsafety {
            self.unsafety(word.span.start().line);
        }
        visit::visit_impl_item_fn(self, item);
    }

    fn visit_trait_item_fn(&mut self, item: &'ast TraitItemFn) {
        self.function(item.span(), &item.sig.ident);
        visit::visit_trait_item_fn(self, item);
    }

    fn visit_item_struct(&mut self, item: &'ast ItemStruct) {
        if !is_test(&item.attrs) {
            self.name("type", &item.ident);
            visit::visit_item_struct(self, item);
        }
    }

    fn visit_item_enum(&mut self, item: &'ast ItemEnum) {
        if !is_test(&item.attrs) {
            self.name("type", &item.ident);
            visit::visit_item_enum(self, item);
        }
    }

    fn visit_item_trait(&mut self, item: &'ast ItemTrait) {
        self.name("trait", &item.ident);
        visit::visit_item_trait(self, item);
    }

    fn visit_item_type(&mut self, item: &'ast ItemType) {
        self.name("type", &item.ident);
        visit::visit_item_type(self, item);
    }

    fn visit_expr_method_call(&mut self, call: &'ast ExprMethodCall) {
        if call.method == "unwrap" || call.method == "expect" {
            let line = call.method.span().start().line;
            self.note(
                line,
                "unwrap",
                format!(".{}() outside tests; answer an error, or unreachable!(\"why\")", call.method),
            );
        }
        visit::visit_expr_method_call(self, call);
    }

    fn visit_macro(&mut self, call: &'ast Macro) {
        if let Some(last) = call.path.segments.last() {
            self.forbidden_macro(&last.ident.to_string(), last.ident.span().start().line);
        }
        let mut hidden = Vec::new();
        hidden_calls(call.tokens.clone(), &mut hidden);
        for (line, name) in hidden {
            self.note(line, "unwrap", format!(".{name}() inside a macro call, outside tests"));
        }
        visit::visit_macro(self, call);
    }

    fn visit_attribute(&mut self, attribute: &'ast Attribute) {
        if attribute.path().is_ident("allow") {
            let line = attribute.span().start().line;
            self.note(line, "allow", "use #[expect(lint, reason = \"…\")], which tells when it is no longer needed");
        }
        visit::visit_attribute(self, attribute);
    }

    fn visit_expr_unsafe(&mut self, block: &'ast ExprUnsafe) {
        self.unsafety(block.unsafe_token.span.start().line);
        visit::visit_expr_unsafe(self, block);
    }

    fn visit_item_impl(&mut self, item: &'ast syn::ItemImpl) {
        if is_test(&item.attrs) {
            return;
        }
        if let Some(word) = &item.unsafety {
            self.unsafety(word.span.start().line);
        }
        visit::visit_item_impl(self, item);
    }
}

#[test]
fn every_file_keeps_the_rules_of_the_house() {
    let mut findings = Findings::default();
    for source in sources() {
        check(&source, &mut findings);
    }
    assert!(findings.0.is_empty(), "{} breaches:\n{}", findings.0.len(), findings.0.join("\n"));
}

#[test]
fn every_pending_breach_is_real_and_has_a_reason() {
    for (path, _, why) in PENDING {
        assert!(why.len() > 20, "{path} needs a reason");
        assert!(sources().iter().any(|source| source.path == *path), "{path} is gone; remove it from PENDING");
    }
}

/// The rules that a text breaks as the file at `path`.
fn broken(path: &str, text: &str) -> Vec<String> {
    let source = Source { path: path.into(), text: text.into() };
    let mut findings = Findings::default();
    check(&source, &mut findings);
    let rule = |line: String| line.split(": ").nth(1).unwrap_or_default().to_owned();
    findings.0.into_iter().map(rule).collect()
}

#[test]
fn what_can_end_the_process_is_found_and_tests_may_do_it() {
    assert_eq!(broken("src/a/b.rs", "fn f() { x().unwrap() }"), ["unwrap"]);
    assert_eq!(broken("src/a/b.rs", "fn f() { x().expect(\"\") }"), ["unwrap"]);
    assert_eq!(broken("src/a/b.rs", "fn f() { format!(\"{}\", x.unwrap()); }"), ["unwrap"]);
    assert_eq!(broken("src/a/b.rs", "fn f() { panic!() } fn g() { todo!() } fn h() { dbg!(1); }"), ["macro"; 3]);
    assert_eq!(broken("src/a/b.rs", "#[cfg(test)] mod tests { fn f() { x().unwrap(); panic!() } }"), [""; 0]);
    assert_eq!(broken("src/a/b.rs", "// x.unwrap()\nfn f() { log(\".unwrap()\"); unreachable!(\"why\") }"), [""; 0]);
}

#[test]
fn printing_is_for_the_command_line() {
    assert_eq!(broken("src/a/b.rs", "fn f() { println!(\"x\") }"), ["macro"]);
    assert_eq!(broken("src/cli/b.rs", "fn f() { println!(\"x\") }"), [""; 0]);
}

#[test]
fn an_allow_and_an_unexplained_unsafe_are_found() {
    assert_eq!(broken("src/a/b.rs", "#[allow(dead_code)] fn f() {}"), ["allow"]);
    assert_eq!(broken("src/a/b.rs", "#[expect(dead_code, reason = \"x\")] fn f() {}"), [""; 0]);
    assert_eq!(broken("src/platform/b.rs", "fn f() { unsafe { g() } }"), ["unsafe"]);
    assert_eq!(
        broken("src/platform/b.rs", "fn f() {\n    // SAFETY: g takes nothing.\n    unsafe { g() }\n}"),
        [""; 0]
    );
    assert_eq!(broken("src/a/b.rs", "fn f() {\n    // SAFETY: g takes nothing.\n    unsafe { g() }\n}"), ["unsafe"]);
}

#[test]
fn empty_names_are_found() {
    assert_eq!(broken("src/a/b.rs", "struct PeerManager; struct PeerInfo; struct PeerData; struct Data2;").len(), 3);
    assert_eq!(broken("src/a/b.rs", "fn get_peer() {} fn do_it() {} fn get() {} fn target() {}").len(), 2);
    assert_eq!(broken("src/a/utils.rs", "fn f() {}"), ["name"]);
}

#[test]
fn lengths_headers_and_doors_are_checked() {
    let long = format!("fn f() {{\n{}}}", "    g();\n".repeat(FUNCTION_LINES_MAX));
    assert_eq!(broken("src/a/b.rs", &long), ["function length"]);
    assert_eq!(broken("src/a/b.rs", &"// x\n".repeat(FILE_LINES_MAX + 1)), ["file length"]);
    assert_eq!(broken("src/a/mod.rs", "mod b;"), ["header"]);
    assert_eq!(broken("src/a.rs", "//! Without an end\n//!\n//! Other."), ["header"]);
    assert_eq!(broken("src/a/mod.rs", "//! What it is for.\nmod b;\npub use b::B;\nstruct C;"), ["mod file"]);
}
