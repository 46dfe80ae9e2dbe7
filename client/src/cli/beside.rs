//! Options that mean something only beside others. Where they have no use they are refused: whoever gives them counts on them.

use clap::error::ErrorKind;
use clap::parser::ValueSource;
use clap::{ArgMatches, Command};

/// What names domains to back up, and what names those of Nova.
const DOMAINS: &[&str] = &["domain", "all", "instance", "all_instances"];
const INSTANCES: &[&str] = &["instance", "all_instances"];
/// What acts on domains alone.
const OF_DOMAINS: &[&str] = &[
    "connect",
    "strategy",
    "require_quiesce",
    "no_quiesce",
    "exclude_disk",
    "overlay_dir",
    "parallel",
    "dry_run",
];
/// Verbs, options of theirs, and those of which one must be there, too.
const BESIDE: &[(&str, &[&str], &[&str])] = &[
    ("backup", OF_DOMAINS, DOMAINS),
    ("backup", &["os_cloud", "no_api"], INSTANCES),
    ("restore", &["connect"], &["define", "to_instance"]),
    ("restore", &["os_cloud"], &["to_glance", "to_instance"]),
];

/// Refuses a command line on which an option has no use. What variables say is there for other calls, and not looked at.
pub(super) fn check(command: &mut Command, matches: &ArgMatches) -> Result<(), clap::Error> {
    let Some((verb, matches)) = matches.subcommand() else { return Ok(()) };
    let is_given = |option: &&&str| matches.value_source(option) == Some(ValueSource::CommandLine);
    for (of, options, others) in BESIDE.iter().filter(|(of, ..)| *of == verb) {
        let alone = options.iter().find(is_given).filter(|_| others.iter().find(is_given).is_none());
        if let (Some(option), Some(command)) = (alone, command.find_subcommand_mut(of)) {
            let others: Vec<_> = others.iter().map(|other| flag(other)).collect();
            let message = format!("{} has no use without {}", flag(option), others.join(" or "));
            return Err(command.error(ErrorKind::ArgumentConflict, message));
        }
    }
    Ok(())
}

/// An option as it is written.
fn flag(id: &str) -> String {
    format!("--{}", id.replace('_', "-"))
}
