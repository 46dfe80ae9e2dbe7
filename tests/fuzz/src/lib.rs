//! Fuzz targets for every parser of underlay.
//!
//! A [`Target`] takes any bytes and asserts what must hold of them. The tests of this package replay `corpus/` and try
//! mutants of it for a few seconds; `cargo xtask fuzz` runs a target under libFuzzer, guided by coverage, for as long as
//! one likes. `README.md` says what is asserted where.

/// How many bytes this thread holds on the heap.
pub mod allocations;
/// What the services of a cloud answer, and the files that say who one is there.
pub mod clouds;
/// Documents, key files and paper copies.
pub mod documents;
/// What libvirt says of domains, and what this host remembers of them.
pub mod domains;
/// Disk images.
pub mod images;
/// Changes to inputs, without knowing what they mean.
pub mod mutate;
/// Names of objects, and times.
pub mod names;
/// Pages of trees.
pub mod nodes;
/// Packs, and the chunks in them.
pub mod packs;
/// A second reader of qcow2, as plain as can be.
pub mod plain_qcow2;
/// Files of mostly zeros, written down briefly.
pub mod sparse;
/// Messages between a client and a server.
pub mod wire;

use std::path::{Path, PathBuf};

/// An input with a name for its file.
pub type Seed = (String, Vec<u8>);

/// One parser, or a few that read the same bytes.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    /// Its name, and that of its folder below `corpus/`.
    pub name: &'static str,
    /// Asserts what must hold of any bytes. Panics if it does not.
    pub run: fn(&[u8]),
    /// Inputs that the code itself, or QEMU, writes.
    pub seeds: fn() -> Vec<Seed>,
}

/// All of them.
pub const TARGETS: &[Target] = &[
    Target { name: "descriptor", run: documents::descriptor, seeds: documents::seeds::descriptors },
    Target { name: "snapshot", run: documents::snapshot, seeds: documents::seeds::snapshots },
    Target { name: "slot", run: documents::slot, seeds: documents::seeds::slots },
    Target { name: "claim", run: documents::claim, seeds: documents::seeds::claims },
    Target { name: "deletion", run: documents::deletion, seeds: documents::seeds::deletions },
    Target { name: "protection", run: documents::protection, seeds: documents::seeds::protections },
    Target { name: "key_file", run: documents::key_file, seeds: documents::seeds::key_files },
    Target { name: "paper", run: documents::paper, seeds: documents::seeds::papers },
    Target { name: "node", run: nodes::node, seeds: nodes::seeds },
    Target { name: "data_pack", run: packs::data, seeds: packs::data_seeds },
    Target { name: "node_pack", run: packs::nodes, seeds: packs::node_seeds },
    Target { name: "chunk", run: packs::chunk, seeds: packs::chunk_seeds },
    Target { name: "object_name", run: names::object_name, seeds: names::seeds },
    Target { name: "qcow2", run: images::qcow2, seeds: images::seeds },
    Target { name: "domain_xml", run: domains::definition, seeds: domains::definition_seeds },
    Target { name: "domain_record", run: domains::record, seeds: domains::record_seeds },
    Target { name: "wire_binary", run: wire::binary, seeds: wire::binary_seeds },
    Target { name: "wire_json", run: wire::json, seeds: wire::json_seeds },
    Target { name: "cloud_answer", run: clouds::answer, seeds: clouds::answer_seeds },
    Target { name: "clouds_yaml", run: clouds::files, seeds: clouds::file_seeds },
];

impl Target {
    /// The target of that name.
    #[must_use]
    pub fn named(name: &str) -> Option<&'static Self> {
        TARGETS.iter().find(|target| target.name == name)
    }

    /// The folder of its inputs in the source tree.
    #[must_use]
    pub fn folder(&self) -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(self.name)
    }
}

/// Asserts that an error says which object it is about.
///
/// # Panics
/// If it does not.
pub fn assert_names(object: &str, error: &dyn std::error::Error) {
    let text = error.to_string();
    assert!(text.contains(object), "an error that does not name {object}: {text}");
}
