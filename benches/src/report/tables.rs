use std::fmt::Write;

use super::{mebibytes, megabytes, seconds_text, targets, times};
use crate::results::{Number, Results, cpu, peak, seconds, stored, synced};

/// How a number is written.
type Text = fn(f64) -> String;

/// Everything as Markdown.
pub fn markdown(results: &Results) -> String {
    let mut text = String::new();
    let mut section = |title: &str, body: String| {
        if !body.is_empty() {
            let _ = write!(text, "### {title}\n\n{body}\n");
        }
    };
    section("Targets", targets::table(results));
    section("Wall-clock seconds, median", by_tool(results, "speed", seconds, seconds_text));
    section("Until it is on the disk", restores(results));
    section("Times as long as underlay, median of the rounds' ratios", ratios(results));
    section("Processor seconds, median", by_tool(results, "speed", cpu, seconds_text));
    section("Peak memory, median", by_tool(results, "speed", peak, mebibytes));
    section("Limits", limits(results));
    section("Bytes stored after each guest", by_tool(results, "storage", stored, megabytes));
    section("Seconds for each guest", by_tool(results, "storage", seconds, seconds_text));
    section("Growth", growth(results));
    section("On S3", remote(results));
    section("Commands", commands(results));
    section("This run", facts(results));
    text
}

fn row(cells: impl IntoIterator<Item = String>) -> String {
    format!("| {} |\n", cells.into_iter().collect::<Vec<_>>().join(" | "))
}

fn header(cells: impl IntoIterator<Item = String>) -> String {
    let cells: Vec<String> = cells.into_iter().collect();
    let line = format!("|{}\n", "---|".repeat(cells.len()));
    row(cells) + &line
}

/// The programs of a part, limits left out.
fn tools(results: &Results, part: &str) -> Vec<String> {
    let mut tools = results.distinct(part, |sample| &sample.tool);
    tools.retain(|tool| tool != "limit");
    tools.sort_by_key(|tool| (!tool.starts_with("underlay"), tool.clone()));
    tools
}

fn by_tool(results: &Results, part: &str, number: Number, text: Text) -> String {
    let tools = tools(results, part);
    let steps = results.distinct(part, |sample| &sample.step);
    let mut table = String::new();
    for step in steps {
        let cells: Vec<_> = tools.iter().map(|tool| results.middle(part, &step, tool, number)).collect();
        if cells.iter().all(Option::is_none) {
            continue;
        }
        if table.is_empty() {
            table = header([String::new()].into_iter().chain(tools.iter().cloned()));
        }
        let cells = cells.into_iter().map(|value| value.map_or_else(String::new, text));
        table += &row([step].into_iter().chain(cells));
    }
    table
}

fn restores(results: &Results) -> String {
    let tools = tools(results, "speed");
    let mut table = String::new();
    for step in ["restore to raw", "restore to qcow2"] {
        if results.middle("speed", step, "underlay", synced).is_none() {
            continue;
        }
        if table.is_empty() {
            table = header([String::new()].into_iter().chain(tools.iter().cloned()));
        }
        let cells = tools
            .iter()
            .map(|tool| results.middle("speed", step, tool, synced).map_or_else(String::new, seconds_text));
        table += &row([step.to_owned()].into_iter().chain(cells));
    }
    table
}

fn ratios(results: &Results) -> String {
    let tools: Vec<_> = tools(results, "speed").into_iter().filter(|tool| tool != "underlay").collect();
    let mut table = String::new();
    for step in results.distinct("speed", |sample| &sample.step) {
        let ratio = |tool: &String| results.ratio("speed", &step, (tool, "underlay"), seconds);
        if tools.iter().all(|tool| ratio(tool).is_none()) {
            continue;
        }
        if table.is_empty() {
            table = header([String::new()].into_iter().chain(tools.iter().cloned()));
        }
        let cells: Vec<_> = tools.iter().map(|tool| ratio(tool).map_or_else(String::new, times)).collect();
        table += &row([step].into_iter().chain(cells));
    }
    table
}

fn limits(results: &Results) -> String {
    let steps = results.distinct("speed", |sample| &sample.step);
    let mut table = String::new();
    for step in steps {
        let Some(time) = results.middle("speed", &step, "limit", seconds) else { continue };
        if table.is_empty() {
            table = header(["", "seconds", "on the disk", "processor seconds"].map(str::to_owned));
        }
        let number =
            |number| results.middle("speed", &step, "limit", number).map_or_else(String::new, seconds_text);
        table += &row([step.clone(), seconds_text(time), number(synced), number(cpu)]);
    }
    table
}

fn growth(results: &Results) -> String {
    let mut table = String::new();
    for step in results.distinct("growth", |sample| &sample.step) {
        let middle = |number| results.middle("growth", &step, "underlay", number).unwrap_or_default();
        let count =
            |name: &str| results.of("growth", &step, "underlay").find_map(|sample| sample.counts.get(name));
        let mib = |name| count(name).map_or_else(String::new, |bytes| mebibytes(*bytes as f64));
        if table.is_empty() {
            table =
                header(["", "seconds", "peak memory", "read", "sent", "stored in all"].map(str::to_owned));
        }
        table += &row([
            step.clone(),
            seconds_text(middle(seconds)),
            mebibytes(middle(peak)),
            mib("bytes_read"),
            mib("bytes_uploaded"),
            if middle(stored) > 0.0 { megabytes(middle(stored)) } else { String::new() },
        ]);
    }
    table
}

fn remote(results: &Results) -> String {
    let mut table = String::new();
    for step in results.distinct("remote", |sample| &sample.step) {
        for tool in ["folder", "S3"] {
            let Some(time) = results.middle("remote", &step, tool, seconds) else { continue };
            let count = |name: &str| {
                let found = results.of("remote", &step, tool).find_map(|sample| sample.counts.get(name));
                found.map_or_else(String::new, u64::to_string)
            };
            if table.is_empty() {
                table = header(["", "repository", "seconds", "PUT", "GET", "HEAD"].map(str::to_owned));
            }
            let cells = [count("requests PUT"), count("requests GET"), count("requests HEAD")];
            table += &row([step.clone(), tool.to_owned(), seconds_text(time)].into_iter().chain(cells));
        }
    }
    table
}

fn commands(results: &Results) -> String {
    let mut text = String::new();
    for (what, commands) in results.commands.iter().filter(|(what, _)| what.starts_with("speed: ")) {
        let _ = writeln!(text, "    # {}", what.trim_start_matches("speed: "));
        commands.iter().for_each(|command| text += &format!("    {command}\n"));
    }
    text
}

fn facts(results: &Results) -> String {
    results.facts.iter().map(|(name, value)| format!("- {name}: {value}\n")).collect()
}
