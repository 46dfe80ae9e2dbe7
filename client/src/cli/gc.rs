//! `underlay gc`.

use std::time::Duration;

use clap::Args;
use jiff::{SignedDuration, Span, SpanRelativeTo};
use serde_json::json;
use underlay_store::gc::{Count, DEFAULT_LEASE, DEFAULT_MAX_UNUSED, GcOptions, GcReport};

use super::App;
use super::owning::Owning;
use super::report::{DAMAGE, Failure};
use super::text::{count, say, size, warn};

/// Collect the space of what no snapshot needs.
///
/// Backups and restores can go on meanwhile. Packs that hold nothing any more are deleted; of those that hold little, it is copied to new ones
/// first. Needs no key. Interrupted at any moment, the next run goes on.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  underlay gc\n  underlay gc --dry-run\n  underlay gc --max-unused 0%")]
pub(super) struct Gc {
    /// Say what would be done, and do nothing
    #[arg(long)]
    dry_run: bool,
    /// Copy until at most this share of what is kept is unused: 0% frees most, 100% copies least
    #[arg(long, value_name = "SHARE", default_value_t = Share(DEFAULT_MAX_UNUSED), value_parser = share)]
    max_unused: Share,
    /// Shut out backups that were not heard of for so long, such as 12h or 2d: what only they hold can go
    #[arg(long, value_name = "TIME", default_value = "24h", value_parser = lease)]
    fence_after: Duration,
    #[command(flatten)]
    owning: Owning,
}

/// A part of a whole; shown in percent.
#[derive(Clone, Copy, Debug)]
struct Share(f64);

impl std::fmt::Display for Share {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}%", self.0 * 100.0)
    }
}

fn share(text: &str) -> Result<Share, String> {
    match text.strip_suffix('%').unwrap_or(text).parse::<f64>() {
        Ok(percent) if percent >= 0.0 && percent.is_finite() => Ok(Share(percent / 100.0)),
        _ => Err("expected a share such as 5%".into()),
    }
}

fn lease(text: &str) -> Result<Duration, String> {
    let span: Span = text.parse().map_err(|error: jiff::Error| error.to_string())?;
    let length: SignedDuration =
        span.to_duration(SpanRelativeTo::days_are_24_hours()).map_err(|error| error.to_string())?;
    Duration::try_from(length).map_err(|_| "a time to wait is not negative".to_owned())
}

impl Gc {
    pub fn run(self, app: &App) -> Result<(), Failure> {
        debug_assert_eq!(lease("24h"), Ok(DEFAULT_LEASE));
        let access = self.owning.writing_unless(self.dry_run);
        let repository = app.authority(access)?;
        let options =
            GcOptions { dry_run: self.dry_run, max_unused: self.max_unused.0, lease: self.fence_after };
        let report = app.wait(repository.gc(&options, &*app.progress))?;
        app.progress.finish();
        self.tell(app, &report)?;
        match report.missing == 0 && report.damaged.is_empty() {
            true => Ok(()),
            false => {
                Err(Failure::after_result(DAMAGE, "the repository is damaged: `underlay check` says where"))
            }
        }
    }

    fn tell(&self, app: &App, report: &GcReport) -> Result<(), Failure> {
        if app.global.json {
            return say(json!({ "dry_run": self.dry_run, "freed": report.freed(), "report": report }));
        }
        let would = if self.dry_run { "would be " } else { "" };
        let told = |what: &str, packs: Count| match packs.packs {
            0 => Ok(()),
            _ => say(format!("{} ({}) {what}", count(packs.packs, "pack"), size(packs.bytes))),
        };
        told(&format!("{would}deleted, as an earlier run had decided"), report.finished)?;
        told(&format!("{would}deleted: nothing needs them"), report.dropped)?;
        let rewritten = format!(
            "{would}replaced by {} ({}): little of them is needed",
            count(report.copied_to.packs, "pack"),
            size(report.copied_to.bytes)
        );
        told(&rewritten, report.copied_from)?;
        told("kept", report.kept)?;
        if report.keepers > 0 {
            say(format!("{} read: another copy of what is in them goes", count(report.keepers, "pack")))?;
        }
        if report.held.packs > 0 {
            told("of those by backups under way", report.held)?;
        }
        if report.resurrected > 0 {
            say(format!("{} kept after all: a backup came to need them", count(report.resurrected, "pack")))?;
        }
        if report.fenced_sessions > 0 {
            warn(format_args!(
                "{} shut out: nothing was heard of them for longer than --fence-after",
                count(report.fenced_sessions, "backup")
            ));
        }
        for damaged in &report.damaged {
            warn(format_args!("damage: {damaged}; it is left as it is"));
        }
        if report.missing > 0 {
            warn(format_args!(
                "damage: {} that snapshots need are in no pack",
                count(report.missing, "chunk or node")
            ));
        }
        say(format!(
            "{} {would}freed; {} in kept packs are unused",
            size(report.freed()),
            size(report.unused)
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_and_leases() {
        assert!(share("5%").is_ok_and(|share| (share.0 - 0.05).abs() < 1e-9));
        assert!(share("0").is_ok_and(|share| share.0 == 0.0));
        for text in ["-1%", "x", "NaN", "inf"] {
            assert!(share(text).is_err(), "{text}");
        }
        assert_eq!(lease("24h"), Ok(DEFAULT_LEASE));
        assert_eq!(lease("2d 1h"), Ok(Duration::from_secs(49 * 3600)));
        assert!(lease("-1h").is_err());
    }
}
