//! What was aimed at beside what was measured.

use super::{mebibytes, seconds_text, times};
use crate::data::GUESTS;
use crate::results::{Number, Results, Sample, cpu, peak, seconds, stored, synced};

/// Whether a target was reached; `None` where nothing was measured.
struct Line {
    what: &'static str,
    target: &'static str,
    measured: String,
    reached: bool,
}

/// The table; lines without measurements are left out.
pub fn table(results: &Results) -> String {
    let lines: Vec<Line> = [
        first(results),
        limit(
            results,
            ("first full backup against `zstd -T0 -3` over the same bytes", ">= 0.75x"),
            "first full backup",
            ZSTD,
            0.75,
        ),
        limit(
            results,
            ("the same, encoding unchecked", ">= 0.9x"),
            "first full backup, encoding unchecked",
            ZSTD,
            0.9,
        ),
        at_least(
            results,
            ("everything read again", ">= 30x restic"),
            "unchanged, everything read",
            "restic",
            30.0,
        ),
        limit(
            results,
            ("the same against `b3sum` over what is not zero", ">= 0.7x"),
            "unchanged, everything read",
            B3SUM,
            0.7,
        ),
        unchanged(results),
        disk_size(results),
        next(results),
        at_least(results, ("restore to raw", ">= 3x restic"), "restore to raw", "restic", 3.0),
        at_least(
            results,
            ("restore to qcow2", ">= 3x restic and `qemu-img`"),
            "restore to qcow2",
            "restic",
            3.0,
        ),
        converted(results, ("restore to raw against `qemu-img convert`, both synced", "1.0x"), "raw"),
        converted(results, ("restore to qcow2 against `qemu-img convert`, both synced", "1.0x"), "qcow2"),
        bytes(results, ("stored bytes, guests without databases", "<= 0.90x restic and borg"), false, 0.9),
        bytes(results, ("stored bytes, with both pgbench disks", "<= 0.95x restic and borg"), true, 0.95),
        isolated(results),
        memory(results),
        processor(results),
        remote(results),
        requests(results),
    ]
    .into_iter()
    .flatten()
    .collect();
    let mut text = String::new();
    for Line { what, target, measured, reached } in lines {
        if text.is_empty() {
            text += "| what | target | measured | |\n|---|---|---|---|\n";
        }
        text += &format!("| {what} | {target} | {measured} | {} |\n", if reached { "yes" } else { "**no**" });
    }
    text
}

const UNDERLAY: &str = "underlay";
const ZSTD: &str = "zstd -T0 -3 of what is not zero";
const B3SUM: &str = "b3sum of what is not zero";

fn ratio(results: &Results, step: &str, other: &str, number: Number) -> Option<f64> {
    results.ratio("speed", step, (other, UNDERLAY), number)
}

fn first(results: &Results) -> Option<Line> {
    let step = "first full backup";
    let restic = ratio(results, step, "restic", seconds)?;
    let borg = ratio(results, step, "borg", seconds);
    let measured = match borg {
        Some(borg) => format!("{} restic, {} borg", times(restic), times(borg)),
        None => format!("{} restic", times(restic)),
    };
    let reached = restic >= 5.0 && borg.is_none_or(|borg| borg >= 5.0);
    Some(Line { what: step, target: ">= 5x restic and borg", measured, reached })
}

fn at_least(
    results: &Results,
    (what, target): (&'static str, &'static str),
    step: &str,
    other: &str,
    least: f64,
) -> Option<Line> {
    let ratio = ratio(results, step, other, seconds)?;
    Some(Line { what, target, measured: times(ratio), reached: ratio >= least })
}

/// Speed in terms of a limit's: 1.0x is as fast.
fn limit(
    results: &Results,
    (what, target): (&'static str, &'static str),
    step: &str,
    limit: &str,
    least: f64,
) -> Option<Line> {
    let ratio = results.ratio_of_steps("speed", (limit, "limit"), (step, UNDERLAY), seconds)?;
    Some(Line { what, target, measured: times(ratio), reached: ratio >= least })
}

fn converted(results: &Results, (what, target): (&'static str, &'static str), format: &str) -> Option<Line> {
    let (limit, step) = (format!("qemu-img convert to {format}"), format!("restore to {format}"));
    let ratio = |number| results.ratio_of_steps("speed", (&limit, "limit"), (&step, UNDERLAY), number);
    let (on_disk, returned) = (ratio(synced)?, ratio(seconds)?);
    let measured = format!("{} ({} if only underlay syncs)", times(on_disk), times(returned));
    Some(Line { what, target, measured, reached: on_disk >= 1.0 })
}

fn unchanged(results: &Results) -> Option<Line> {
    let time = results.middle("speed", "unchanged", UNDERLAY, seconds)?;
    let sizes = results.distinct("growth", |sample| &sample.step);
    let large = sizes.iter().rfind(|step| step.starts_with("disk of") && step.ends_with(", unchanged"));
    let large = large.and_then(|step| Some((step, results.middle("growth", step, UNDERLAY, seconds)?)));
    let measured = match large {
        Some((step, large)) => format!("{}; {step}: {}", seconds_text(time), seconds_text(large)),
        None => seconds_text(time),
    };
    let reached = time < 0.2 && large.is_none_or(|(_, large)| large < 0.2);
    Some(Line { what: "unchanged, memo valid", target: "< 0.2 s whatever the size", measured, reached })
}

fn disk_size(results: &Results) -> Option<Line> {
    let step = |size: u64| format!("disk of {size} GiB, 102 MiB changed");
    let ratio = results.ratio_of_steps("growth", (&step(1024), UNDERLAY), (&step(10), UNDERLAY), seconds)?;
    let memory = results.middle("growth", &step(1024), UNDERLAY, peak)?;
    Some(Line {
        what: "the same overlay on 1 TiB as on 10 GiB",
        target: "<= 1.5x the time, <= 300 MiB",
        measured: format!("{}, {}", times(ratio), mebibytes(memory)),
        reached: ratio <= 1.5 && memory <= f64::from(300 << 20),
    })
}

fn next(results: &Results) -> Option<Line> {
    let sample = results.of("speed", "next machine on that base", UNDERLAY).next()?;
    let read = *sample.counts.get("bytes_read")? as f64;
    let overlay: f64 = results.facts.get("bytes of the next machine's overlay")?.parse().ok()?;
    let measured = format!("read {} of an overlay file of {}", mebibytes(read), mebibytes(overlay));
    Some(Line {
        what: "next machine on a known base",
        target: "its overlay alone",
        measured,
        reached: read <= overlay * 1.1,
    })
}

fn bytes(
    results: &Results,
    (what, target): (&'static str, &'static str),
    databases: bool,
    most: f64,
) -> Option<Line> {
    let last = GUESTS.iter().rfind(|guest| guest.database == databases)?.name;
    let own = results.middle("storage", last, UNDERLAY, stored)?;
    let other = |tool| results.middle("storage", last, tool, stored).map(|other| own / other);
    let (restic, borg) = (other("restic")?, other("borg")?);
    let measured = format!("{} restic, {} borg", times(restic), times(borg));
    Some(Line { what, target, measured, reached: restic <= most && borg <= most })
}

fn isolated(results: &Results) -> Option<Line> {
    let grown = |tool: &str| {
        let after = results.middle("speed", "300 isolated changes", tool, stored)?;
        Some(after - results.middle("speed", "unchanged, everything read", tool, stored)?)
    };
    let (own, restic) = (grown(UNDERLAY)?, grown("restic")?);
    let measured = format!("{} ({} against {})", times(own / restic), mebibytes(own), mebibytes(restic));
    let what = "stored for 300 isolated changes of 64 KiB";
    Some(Line { what, target: "<= 0.2x restic", measured, reached: own <= 0.2 * restic })
}

fn of_underlay(results: &Results) -> impl Iterator<Item = &Sample> {
    results.samples.iter().filter(|sample| ["underlay", "folder", "S3"].contains(&&*sample.tool))
}

fn memory(results: &Results) -> Option<Line> {
    let most = of_underlay(results).max_by_key(|sample| sample.cost.peak)?;
    let measured = format!("{} ({}: {})", mebibytes(peak(most)), most.part, most.step);
    let reached = most.cost.peak <= 300 << 20;
    Some(Line { what: "peak memory of anything measured", target: "<= 300 MiB", measured, reached })
}

fn processor(results: &Results) -> Option<Line> {
    let steps = ["first full backup", "unchanged, everything read", "300 isolated changes", "restore to raw"];
    let ratios: Vec<(f64, &str)> =
        steps.iter().filter_map(|step| Some((1.0 / ratio(results, step, "restic", cpu)?, *step))).collect();
    let (worst, step) = ratios.into_iter().max_by(|a, b| a.0.total_cmp(&b.0))?;
    let measured = format!("at most {} ({step})", times(worst));
    Some(Line { what: "processor seconds", target: "<= 0.5x restic", measured, reached: worst <= 0.5 })
}

fn remote(results: &Results) -> Option<Line> {
    let ratio = |step| results.ratio_of_steps("remote", (step, "folder"), (step, "S3"), seconds);
    let (backup, restore) = (ratio("first full backup")?, ratio("restore to raw")?);
    let measured = format!("backup {}, restore {}", times(backup), times(restore));
    let what = "a repository on S3 (Garage) against one in a folder";
    Some(Line { what, target: ">= 0.8x", measured, reached: backup >= 0.8 && restore >= 0.8 })
}

fn requests(results: &Results) -> Option<Line> {
    let sample = results.of("remote", "first full backup", "S3").next()?;
    let (puts, sent) =
        (*sample.counts.get("requests PUT")? as f64, *sample.counts.get("bytes_uploaded")? as f64);
    let each = puts / (sent / f64::from(1 << 30));
    let measured = format!("{puts} for {}: {each:.0} a GiB", mebibytes(sent));
    Some(Line { what: "PUT per GiB of new stored data", target: "<= 40", measured, reached: each <= 40.0 })
}
