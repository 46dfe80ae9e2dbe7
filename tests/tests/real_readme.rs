//! The README's chapter that brings up a server, run line by line on what looks like a machine of its own.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use underlay_tests::commands::run;
use underlay_tests::program::program;
use underlay_tests::s3;

const README: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../README.md");
const CHAPTER: &str = "### From nothing, with Garage behind it";

/// The indented lines of the chapter, as a person would copy them.
fn commands() -> String {
    let readme = fs::read_to_string(README).unwrap();
    let chapter = readme.split_once(CHAPTER).unwrap().1.split("\n#").next().unwrap();
    let lines = chapter.lines().filter(|line| line.starts_with("    ") || line.is_empty());
    lines.map(|line| format!("{}\n", line.strip_prefix("    ").unwrap_or(line))).collect()
}

/// Stands for what takes long and was done before: cargo builds what the kit has built, apt finds everything installed.
fn shims(folder: &Path) {
    let garage = s3::garage_program().unwrap();
    let built = |name: &str| program(name).unwrap().display().to_string();
    let cargo = format!(
        "#!/bin/sh\nset -e\ncase $1 in\n\
         install) [ \"$2\" = garage ] && install -m 755 {} /usr/local/bin/garage ;;\n\
         build) mkdir -p target/release && cp {} {} target/release/ ;;\n\
         *) exit 1 ;;\nesac\n",
        garage.display(),
        built("underlay"),
        built("underlay-server")
    );
    for (name, script) in
        [("cargo", cargo.as_str()), ("apt-get", "#!/bin/sh\n[ \"$1 $2\" = 'install -y' ]\n")]
    {
        let path = folder.join(name);
        fs::write(&path, script).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    }
}

#[test]
fn the_chapter_about_a_server_with_garage_works_as_written() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let (bin, clone) = (folder.join("bin"), folder.join("clone"));
    fs::create_dir(&bin).unwrap();
    fs::create_dir(&clone).unwrap();
    shims(&bin);
    fs::write(folder.join("commands"), commands()).unwrap();
    // What it writes to the machine's folders is seen by it alone; its own network has only loopback.
    let script = format!(
        "set -eu\nip link set lo up\nmount -t tmpfs none /mnt\n\
         for d in etc var usr root; do\n\
           mkdir -p /mnt/$d/up /mnt/$d/work\n\
           mount -t overlay none -o lowerdir=/$d,upperdir=/mnt/$d/up,workdir=/mnt/$d/work /$d\n\
         done\n\
         export PATH={bin}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin\n\
         cd {clone}\ntrap 'kill $(jobs -p)' EXIT\n. {commands}\n",
        bin = bin.display(),
        clone = clone.display(),
        commands = folder.join("commands").display(),
    );
    let inside = ["--mount", "--net", "--pid", "--fork", "--kill-child", "bash", "-c", &script];
    let said = run("unshare", inside).unwrap();
    assert!(said.contains("Images are identical"), "{said}");
    assert!(said.contains("nothing is damaged") || said.contains("no damage"), "{said}");
}
