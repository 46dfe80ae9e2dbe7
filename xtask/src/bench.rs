use crate::run::{Result, cargo, show};

/// Builds the program and the comparison, both with optimisation, and runs the comparison with these arguments.
pub fn bench(arguments: &[String]) -> Result<()> {
    let build = ["build", "--quiet", "--release", "--locked", "--package"];
    // Apart: together they would share the features that tests switch on.
    show(cargo(build).args(["underlay-client", "--bins"]))?;
    let run = [
        "run",
        "--quiet",
        "--release",
        "--locked",
        "--package",
        "underlay-benches",
        "--bin",
        "compare",
        "--",
    ];
    show(cargo(run).args(arguments))
}
