//! The comparison itself, with small data: that it runs, restores exactly, and reports.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::Path;
use std::process::Command;

#[test]
fn a_quick_comparison_reports_what_it_measured() {
    let program = Path::new(env!("CARGO_BIN_EXE_compare"));
    let name = "bench-test";
    let run = Command::new(program).args(["speed", "--quick", &format!("--as={name}")]).output().unwrap();
    let said = String::from_utf8_lossy(&run.stdout);
    assert!(run.status.success(), "{said}\n{}", String::from_utf8_lossy(&run.stderr));
    assert!(said.contains("underlay: restored qcow2 is identical"), "{said}");
    let target = program.ancestors().find(|folder| folder.ends_with("target")).unwrap();
    let read = |file: &str| fs::read_to_string(target.join(name).join(file)).unwrap();
    let table = read("results.md");
    for row in ["| first full backup |", "| restore to raw |", "| b3sum of what is not zero |"] {
        assert!(table.contains(row), "{row}:\n{table}");
    }
    assert!(read("results.svg").contains("restic") && read("results.json").contains("cpu"));
}
