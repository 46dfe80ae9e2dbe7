//! The rules of the rooms, held by a machine: who may name what, how long a file may be, which words are avoided.
//!
//! Rules look at code: comments and string literals are cut out first, and unit tests (everything from a file's
//! `#[cfg(test)]` on, and files or folders named `tests`) may name what they like.

use std::fs;
use std::path::{Path, PathBuf};

/// Lines of one source file outside `tests/`.
const MAXIMUM_LINES: usize = 400;

/// Folders whose functions take and return values: no clock, randomness, file or async in them.
const PURE_ROOMS: [&str; 2] = ["store/src/cut", "store/src/tree"];

/// Files and folders that may call `std::fs::write`, which neither syncs nor replaces whole. Everyone else writes
/// through the backend or through a temporary file that is synced and renamed.
const PLAIN_WRITERS: [&str; 4] = ["tests", "benches", "xtask", "client/src/cli"];

/// Names that say nothing about what a thing does.
const EMPTY_WORDS: [&str; 5] = ["manager", "helper", "helpers", "util", "utils"];

/// One source file, and its code without comments, literals and unit tests.
struct Source {
    path: String,
    text: String,
    code: String,
}

#[test]
fn only_the_catalog_names_rusqlite() {
    only_named_in("rusqlite", |path| path.starts_with("store/src/catalog"));
}

#[test]
fn only_the_backend_names_object_store() {
    only_named_in("object_store", |path| path.starts_with("store/src/backend") || path.starts_with("tests/"));
}

#[test]
fn http_stays_in_its_rooms() {
    let tests = |path: &str| path.starts_with("tests/");
    let clouds =
        |path: &str| path.starts_with("client/src/remote") || path.starts_with("client/src/openstack");
    only_named_in("reqwest", |path| clouds(path) || tests(path));
    only_named_in("axum", |path| path.starts_with("server/src") || tests(path));
    only_named_in("hyper", |path| path == "server/src/serve.rs" || tests(path));
    // Whoever adds a route adds it to the table, where its token is looked at.
    no_source("makes a route of its own", |source| {
        source.is_in("server/src")
            && source.path != "server/src/routes/mod.rs"
            && (source.code.contains(".route(") || source.code.contains("Router::new"))
    });
}

#[test]
fn one_file_names_qcow2_rs() {
    only_named_in("qcow2_rs", |path| path.starts_with("client/src/image"));
    let naming: Vec<_> =
        sources().into_iter().filter(|source| source.names("qcow2_rs")).map(|s| s.path).collect();
    assert!(naming.len() <= 1, "more than one file names qcow2_rs: {naming:?}");
}

#[test]
fn only_the_hypervisor_room_reads_xml_and_starts_programs() {
    only_named_in("roxmltree", |path| path.starts_with("client/src/hypervisor"));
    no_source("starts a program: that is for client/src/hypervisor", |source| {
        source.is_in("client/src")
            && !source.is_in("client/src/hypervisor")
            && source.code.contains("process::Command")
    });
}

#[test]
fn steps_that_change_domains_cannot_be_left_out() {
    no_source("acts on a domain without naming the step: use `Hands`", |source| {
        let room = source.is_in("client/src/domain") && !source.is_in("client/src/domain/steps");
        room && ["hypervisor", "layers", "journal"]
            .iter()
            .any(|part| source.code.contains(&format!("hands.{part}.")))
    });
}

#[test]
fn client_and_server_do_not_import_each_other() {
    no_source("may not name the server", |source| {
        source.is_in("client/src") && source.names("underlay_server")
    });
    no_source("may not name the client", |source| {
        source.is_in("server/src") && source.names("underlay_client")
    });
    let manifest = |room: &str| fs::read_to_string(root().join(room).join("Cargo.toml")).unwrap();
    assert!(!manifest("client").contains("underlay-server"), "client/Cargo.toml names the server");
    assert!(!manifest("server").contains("underlay-client"), "server/Cargo.toml names the client");
    let store = manifest("store");
    assert!(
        !store.contains("underlay-client") && !store.contains("underlay-server"),
        "the store stands alone"
    );
}

#[test]
fn the_store_knows_no_terminal_no_http_server_and_no_disk_image() {
    no_source("belongs to a room above the store", |source| {
        let words = [
            "println",
            "eprintln",
            "print",
            "eprint",
            "axum",
            "hyper",
            "reqwest",
            "rustls",
            "qcow2",
            "qcow2_rs",
            "clap",
            "indicatif",
        ];
        source.is_in("store/src") && words.iter().any(|word| source.names(word))
    });
}

#[test]
fn pure_rooms_are_pure() {
    no_source("is not pure", |source| {
        let words = ["tokio", "async", "getrandom", "SystemTime", "Instant", "rand", "File", "OpenOptions"];
        let file_system = source.code.lines().any(|line| {
            let inside_group =
                line.split_once("std::{").is_some_and(|(_, group)| words_of(group).any(|w| w == "fs"));
            line.contains("std::fs") || line.contains("std::env") || inside_group
        });
        PURE_ROOMS.iter().any(|room| source.is_in(room))
            && (file_system || words.iter().any(|word| source.names(word)))
    });
}

#[test]
fn files_are_short() {
    no_source(&format!("is longer than {MAXIMUM_LINES} lines"), |source| {
        !source.path.starts_with("tests/") && source.text.lines().count() > MAXIMUM_LINES
    });
}

#[test]
fn plain_writes_stay_where_they_do_no_harm() {
    no_source("calls fs::write: a crash leaves half a file; write, sync and rename instead", |source| {
        !PLAIN_WRITERS.iter().any(|writer| source.is_in(writer)) && source.code.contains("fs::write(")
    });
}

#[test]
fn names_say_what_things_do() {
    no_source("has an empty name", |source| {
        let stem = Path::new(&source.path).file_stem().unwrap_or_default().to_string_lossy().to_lowercase();
        EMPTY_WORDS.contains(&stem.as_str()) || source.declared().any(is_empty_name)
    });
}

#[test]
fn every_public_module_says_what_it_is() {
    let root = root();
    let mut undocumented = Vec::new();
    for source in sources().iter().filter(|source| !source.is_in("tests/tests")) {
        let lines: Vec<_> = source.text.lines().collect();
        for (number, line) in lines.iter().enumerate() {
            let Some(name) = line.trim().strip_prefix("pub mod ").and_then(|rest| rest.strip_suffix(';'))
            else {
                continue;
            };
            let before =
                lines[..number].iter().rev().map(|line| line.trim()).find(|line| !line.starts_with("#["));
            let outside = before.is_some_and(|line| line.starts_with("///"));
            if !outside && !module_files(&root, &source.path, name).iter().any(|file| starts_with_doc(file)) {
                undocumented.push(format!("{}:{}: pub mod {name}", source.path, number + 1));
            }
        }
    }
    assert!(undocumented.is_empty(), "without a doc comment:\n{}", undocumented.join("\n"));
}

#[test]
fn no_test_is_switched_off() {
    no_source("switches a test off", |source| {
        source.text.lines().any(|line| line.trim_start().starts_with(concat!("#[ign", "ore")))
    });
}

#[test]
fn no_tabs_and_no_blanks_at_the_end_of_a_line() {
    let mut found = Vec::new();
    for path in files(&root(), &["rs", "toml", "md", "run"]) {
        let text = fs::read_to_string(root().join(&path)).unwrap();
        for (number, line) in text.lines().enumerate() {
            if line.contains('\t') || line.ends_with(' ') {
                found.push(format!("{path}:{}", number + 1));
            }
        }
    }
    assert!(found.is_empty(), "tabs or trailing blanks:\n{}", found.join("\n"));
}

#[test]
fn the_rules_bite() {
    let source = Source::new(
        "store/src/cut/x.rs",
        "use std::{fs, io}; // rusqlite\nlet a = \"axum \\\" b\"; tokio();",
    );
    assert!(
        source.names("tokio") && !source.names("rusqlite") && !source.names("axum") && !source.names("b")
    );
    let tested = Source::new(
        "a.rs",
        "fn f<'a>(c: char) -> bool { c == '\"' }\nrand();\n#[cfg(test)]\nmod tests { tokio(); }",
    );
    assert!(tested.names("rand") && !tested.names("tokio"));
    assert!(is_empty_name("PackManager") && is_empty_name("string_utils") && !is_empty_name("Utility"));
    assert!(Source::new("a.rs", "pub struct CacheHelper;").declared().any(is_empty_name));
}

impl Source {
    fn new(path: &str, text: &str) -> Self {
        let code = without_comments_and_literals(text);
        let unit_tests = Path::new(path).components().any(|part| part.as_os_str() == "tests")
            || path.ends_with("/tests.rs") && !path.starts_with("tests/");
        let own = if unit_tests && !path.starts_with("tests/") { "" } else { &code };
        let code = own.split("#[cfg(test)]").next().unwrap_or_default().to_owned();
        Self { path: path.to_owned(), text: text.to_owned(), code }
    }

    /// Whether `word` stands in the code as a whole identifier.
    fn names(&self, word: &str) -> bool {
        words_of(&self.code).any(|found| found == word)
    }

    /// Whether the file is `room`, lies in the folder `room`, or is the module file beside it.
    fn is_in(&self, room: &str) -> bool {
        self.path
            .strip_prefix(room)
            .is_some_and(|rest| rest.starts_with('/') || rest == ".rs" || rest.is_empty())
    }

    /// Names of the types and modules that the file declares.
    fn declared(&self) -> impl Iterator<Item = &str> {
        let words: Vec<_> = words_of(&self.code).collect();
        let pairs: Vec<_> = words.windows(2).map(|pair| (pair[0], pair[1])).collect();
        pairs
            .into_iter()
            .filter(|(kind, _)| ["struct", "enum", "trait", "type", "mod"].contains(kind))
            .map(|p| p.1)
    }
}

/// Fails when a source outside the allowed ones names a crate.
fn only_named_in(crate_name: &str, allowed: impl Fn(&str) -> bool) {
    no_source(&format!("may not name {crate_name}"), |source| {
        !allowed(&source.path) && source.names(crate_name)
    });
}

fn no_source(what: &str, breaks_the_rule: impl Fn(&Source) -> bool) {
    let found: Vec<_> =
        sources().iter().filter(|source| breaks_the_rule(source)).map(|s| s.path.clone()).collect();
    assert!(found.is_empty(), "{what}:\n{}", found.join("\n"));
}

/// Every Rust file of the workspace.
fn sources() -> Vec<Source> {
    let root = root();
    let read = |path: &String| {
        Source::new(path, &fs::read_to_string(root.join(path)).expect("a source is readable"))
    };
    let found: Vec<_> = files(&root, &["rs"]).iter().map(read).collect();
    assert!(found.len() > 10, "the walk found only {} files: it looks in the wrong place", found.len());
    found
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the workspace holds this package").to_owned()
}

/// Paths below `root`, relative to it, of the files whose name ends in one of `endings`.
fn files(root: &Path, endings: &[&str]) -> Vec<String> {
    let mut found = Vec::new();
    let mut folders = vec![root.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).expect("a folder is readable").flatten() {
            let path = entry.path();
            let name = entry.file_name().to_string_lossy().into_owned();
            let kind = entry.file_type().expect("an entry has a type");
            if kind.is_dir() && ![".git", "target", "golden", "damaged", "corpus"].contains(&name.as_str()) {
                folders.push(path);
            } else if kind.is_file() && endings.contains(&name.rsplit('.').next().unwrap_or_default()) {
                let relative = path.strip_prefix(root).expect("the walk stays below the root");
                found.push(relative.display().to_string());
            }
        }
    }
    found.sort();
    found
}

fn words_of(code: &str) -> impl Iterator<Item = &str> {
    code.split(|c: char| !c.is_alphanumeric() && c != '_').filter(|word| !word.is_empty())
}

fn is_empty_name(name: &str) -> bool {
    let spaced: String = name
        .chars()
        .flat_map(|c| if c.is_uppercase() { vec!['_', c.to_ascii_lowercase()] } else { vec![c] })
        .collect();
    spaced.split('_').any(|word| EMPTY_WORDS.contains(&word))
}

fn module_files(root: &Path, parent: &str, name: &str) -> Vec<PathBuf> {
    let parent = root.join(parent);
    let folder = parent.parent().unwrap_or(root);
    let own = match parent.file_stem().and_then(|stem| stem.to_str()) {
        Some("lib" | "main" | "mod") | None => folder.to_owned(),
        Some(stem) => folder.join(stem),
    };
    vec![own.join(format!("{name}.rs")), own.join(name).join("mod.rs")]
}

fn starts_with_doc(file: &Path) -> bool {
    fs::read_to_string(file).is_ok_and(|text| text.starts_with("//!"))
}

/// Rust source without line comments, block comments, strings and character literals. Lines stay where they are.
fn without_comments_and_literals(text: &str) -> String {
    let mut code = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let length = skipped_length(rest);
        if length > 0 {
            code.extend(rest[..length].chars().filter(|&c| c == '\n'));
            code.push(' ');
            rest = &rest[length..];
        } else {
            code.push(first);
            rest = &rest[first.len_utf8()..];
        }
    }
    code
}

/// Length in bytes of the comment or literal that `rest` starts with; 0 when it starts with code.
fn skipped_length(rest: &str) -> usize {
    let through =
        |from: usize, end: &str| rest[from..].find(end).map_or(rest.len(), |at| from + at + end.len());
    if rest.starts_with("//") {
        return rest.find('\n').unwrap_or(rest.len());
    }
    if rest.starts_with("/*") {
        return through(2, "*/");
    }
    if let Some(raw) = rest.strip_prefix('r') {
        let hashes = raw.len() - raw.trim_start_matches('#').len();
        if raw[hashes..].starts_with('"') {
            return through(hashes + 2, &format!("\"{}", "#".repeat(hashes)));
        }
    }
    match rest.as_bytes() {
        [b'"', ..] => closing_quote(rest, '"'),
        // A lifetime has no closing quote right after its first character.
        [b'\'', b'\\', ..] => closing_quote(rest, '\''),
        [b'\'', ..] if rest.chars().nth(2) == Some('\'') => {
            rest.char_indices().nth(3).map_or(rest.len(), |(at, _)| at)
        }
        _ => 0,
    }
}

fn closing_quote(rest: &str, quote: char) -> usize {
    let mut escaped = false;
    for (at, c) in rest.char_indices().skip(1) {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            _ if c == quote => return at + 1,
            _ => {}
        }
    }
    rest.len()
}
