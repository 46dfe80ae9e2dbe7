//! What virsh and qemu-img print.

/// A list of names, one a line, sorted.
pub(super) fn names(listed: &str) -> Vec<String> {
    let mut names: Vec<_> = listed.lines().filter(|line| !line.is_empty()).map(str::to_owned).collect();
    names.sort();
    names
}

/// The UUID of a domain, out of `virsh list --uuid --name`.
pub(super) fn uuid_of<'a>(name: &str, listed: &'a str) -> Option<&'a str> {
    let pairs = listed.lines().filter_map(|line| line.split_once(' '));
    pairs.filter(|(_, listed)| *listed == name).map(|(uuid, _)| uuid).next()
}

/// The name of a domain, out of the same list.
pub(super) fn name_of<'a>(uuid: &str, listed: &'a str) -> Option<&'a str> {
    let pairs = listed.lines().filter_map(|line| line.split_once(' '));
    pairs.filter(|(listed, _)| listed.eq_ignore_ascii_case(uuid)).map(|(_, name)| name).next()
}

/// Whether libvirt keeps a definition of the domain, out of `virsh dominfo`.
pub(super) fn is_persistent(told: &str) -> bool {
    field(told, "Persistent") == Some("yes")
}

/// Whether libvirt keeps the memory of a stopped domain, out of `virsh dominfo`.
pub(super) fn is_saved(told: &str) -> bool {
    field(told, "Managed save") == Some("yes")
}

/// Whether a domain is paused for a disk that could not be written, out of `virsh domstate --reason`.
pub(super) fn is_stuck(told: &str) -> bool {
    told.trim() == "paused (I/O error)"
}

/// The job of a whole domain, out of `virsh domjobinfo`.
pub(super) fn domain_job(told: &str) -> Option<String> {
    let kind = field(told, "Job type").filter(|kind| *kind != "None")?;
    Some(field(told, "Operation").unwrap_or(kind).to_owned())
}

/// The kind of a block job, out of `virsh blockjob --raw`, which prints nothing if there is none.
pub(super) fn block_job_kind(told: &str) -> Option<String> {
    told.lines().find_map(|line| line.trim().strip_prefix("type=")).map(str::to_owned)
}

/// Bytes of a disk, out of `virsh domblkinfo`.
pub(super) fn capacity(told: &str) -> Option<u64> {
    field(told, "Capacity")?.parse().ok()
}

/// The format that an image records for its backing file, out of `qemu-img info --output=json`.
pub(super) fn backing_format(told: &str) -> Option<String> {
    let told: serde_json::Value = serde_json::from_str(told).ok()?;
    told.get("backing-filename-format")?.as_str().map(str::to_owned)
}

/// The bitmaps of an image that were in use when whoever used them died, out of `qemu-img info --output=json`.
pub(super) fn unsound_bitmaps(told: &str) -> Vec<String> {
    let told: serde_json::Value = serde_json::from_str(told).unwrap_or_default();
    let bitmaps = told["format-specific"]["data"]["bitmaps"].as_array().into_iter().flatten();
    let in_use = |bitmap: &&serde_json::Value| {
        bitmap["flags"].as_array().is_some_and(|flags| flags.iter().any(|flag| flag == "in-use"))
    };
    bitmaps.filter(in_use).filter_map(|bitmap| bitmap["name"].as_str().map(str::to_owned)).collect()
}

/// A value out of lines such as `Job type:         None`.
fn field<'a>(told: &'a str, name: &str) -> Option<&'a str> {
    told.lines()
        .filter_map(|line| line.split_once(':'))
        .find(|(field, _)| *field == name)
        .map(|(_, value)| value.trim())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_of_names_keep_blanks_within_names() {
        assert_eq!(names("web\n3 odd,name='x' é\nx  \n\n"), ["3 odd,name='x' é", "web", "x  "]);
        assert!(names("\n").is_empty());
    }

    #[test]
    fn a_uuid_is_found_by_the_whole_name() {
        let listed = "28c58171-3401-43fd-b8bd-27b31bc34fe2 slow\n\
                      a3a18527-598d-4624-8b2d-2dc62fe133e0 3\n\
                      3c923692-36d6-467c-b21b-03eb2fcd1a15 3 odd\n\n";
        assert_eq!(uuid_of("3", listed), Some("a3a18527-598d-4624-8b2d-2dc62fe133e0"));
        assert_eq!(uuid_of("3 odd", listed), Some("3c923692-36d6-467c-b21b-03eb2fcd1a15"));
        assert_eq!(uuid_of("28c58171-3401-43fd-b8bd-27b31bc34fe2", listed), None);
        assert_eq!(name_of("3C923692-36D6-467C-B21B-03EB2FCD1A15", listed), Some("3 odd"));
        assert_eq!(name_of("slow", listed), None);
    }

    #[test]
    fn persistence_and_saved_memory_are_told() {
        let told = "Id:             1\nName:           Persistent: no\nPersistent:     yes\nAutostart:      disable\n";
        assert!(is_persistent(told));
        assert!(!is_persistent(&told.replace("yes", "no")));
        assert!(!is_persistent(""));
        assert!(is_saved("Autostart Once: disable\nManaged save:   yes\n"));
        assert!(is_stuck("paused (I/O error)\n\n"));
        assert!(!is_stuck("paused (user)\n\n") && !is_stuck("running (booted)\n\n"));
        assert!(!is_saved("Managed save:   no\n") && !is_saved("Managed save:   unknown\n"));
    }

    #[test]
    fn jobs_of_domains_are_told() {
        assert_eq!(domain_job("Job type:         None        \n\n"), None);
        let migration =
            "Job type:         Unbounded   \nOperation:        Outgoing migration\nTime elapsed:     1 ms\n";
        assert_eq!(domain_job(migration).as_deref(), Some("Outgoing migration"));
        assert_eq!(domain_job("Job type:         Bounded\n").as_deref(), Some("Bounded"));
    }

    #[test]
    fn block_jobs_are_told() {
        let told = " type=Active Block Commit\n bandwidth=4\n cur=16777216\n end=20971520\n\n";
        assert_eq!(block_job_kind(told).as_deref(), Some("Active Block Commit"));
        assert_eq!(block_job_kind("\n"), None);
    }

    #[test]
    fn sizes_are_told() {
        assert_eq!(capacity("Capacity:       67108864\nAllocation:     200704\n"), Some(67_108_864));
        assert_eq!(capacity("Capacity:       -\n"), None);
    }

    #[test]
    fn unsound_bitmaps_are_those_in_use() {
        let told = r#"{"format-specific": {"type": "qcow2", "data": {"bitmaps": [
            {"flags": ["auto"], "name": "sound", "granularity": 65536},
            {"flags": ["in-use", "auto"], "name": "unsound", "granularity": 65536}]}}}"#;
        assert_eq!(unsound_bitmaps(told), ["unsound"]);
        for none in ["{\"format-specific\": {\"data\": {}}}", "{}", "no JSON"] {
            assert!(unsound_bitmaps(none).is_empty(), "{none}");
        }
    }

    #[test]
    fn backing_formats_are_told() {
        assert_eq!(backing_format("{\"backing-filename-format\": \"raw\"}").as_deref(), Some("raw"));
        assert_eq!(backing_format("{\"backing-filename\": \"x\"}"), None);
        assert_eq!(backing_format("no JSON"), None);
    }
}
