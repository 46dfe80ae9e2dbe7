//! A target under libFuzzer: `UNDERLAY_FUZZ=<target>` says which. Started by `cargo xtask fuzz`.
#![no_main]

use std::sync::OnceLock;

use libfuzzer_sys::fuzz_target;
use underlay_fuzz::Target;

static TARGET: OnceLock<&'static Target> = OnceLock::new();

fn chosen() -> &'static Target {
    let name = std::env::var("UNDERLAY_FUZZ").unwrap_or_default();
    Target::named(&name).expect("UNDERLAY_FUZZ names a target")
}

fuzz_target!(|bytes: &[u8]| (TARGET.get_or_init(chosen).run)(bytes));
