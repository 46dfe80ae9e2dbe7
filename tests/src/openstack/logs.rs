use std::fs;
use std::path::Path;

/// Bytes of one service's log that an error quotes.
const QUOTED: usize = 6000;

/// How oslo.reports begins its reports.
const REPORT: &str = "Guru Meditation";

/// What every service of a site has logged, each after its name.
pub(super) fn whole_in(folder: &Path) -> String {
    each_in(folder, whole_of)
}

/// The ends of the logs of a site's services, for an error.
pub(super) fn all_in(folder: &Path) -> String {
    each_in(folder, end_of)
}

/// The end of one service's log.
pub(super) fn end_of(folder: &Path, name: &str) -> String {
    let text = whole_of(folder, name);
    let from = text.len().saturating_sub(QUOTED);
    text.get(text.ceil_char_boundary(from)..).unwrap_or_default().to_owned()
}

/// What one of Nova's services said last of its threads, when it was asked.
pub(super) fn report_of(folder: &Path, name: &str) -> String {
    let text = whole_of(folder, name);
    text.rfind(REPORT).map(|from| text[from..].to_owned()).unwrap_or_default()
}

fn each_in(folder: &Path, read: fn(&Path, &str) -> String) -> String {
    let entries = fs::read_dir(folder.join("log")).into_iter().flatten().flatten();
    let mut names: Vec<_> = entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names.iter().map(|name| format!("--- {name}\n{}\n", read(folder, name))).collect()
}

fn whole_of(folder: &Path, name: &str) -> String {
    let text = fs::read(folder.join("log").join(name)).unwrap_or_default();
    String::from_utf8_lossy(&text).into_owned()
}
