use std::fmt::Write;

use super::{seconds_text, times};
use crate::results::{Results, seconds};

const WIDTH: f64 = 860.0;
const LEFT: f64 = 300.0;
const BAR: f64 = 16.0;
const COLOURS: [&str; 6] = ["#1b6e53", "#7a8aa6", "#a68a7a", "#c4b39b", "#9a7aa6", "#6f6f6f"];

/// How long every step took each program, on a logarithmic scale: one drawing.
pub fn svg(results: &Results) -> String {
    let mut tools = results.distinct("speed", |sample| &sample.tool);
    tools.sort_by_key(|tool| (tool == "limit", !tool.starts_with("underlay"), tool.clone()));
    let mut body = String::new();
    let mut y = 40.0;
    let (low, high) = (0.05f64.ln(), 100f64.ln());
    let x = |seconds: f64| LEFT + (seconds.max(0.05).ln() - low) / (high - low) * (WIDTH - LEFT - 110.0);
    for step in results.distinct("speed", |sample| &sample.step) {
        let bars = tools
            .iter()
            .enumerate()
            .filter_map(|(at, tool)| Some((at, tool, results.middle("speed", &step, tool, seconds)?)));
        let _ = writeln!(body, "<text x='8' y='{:.0}' font-weight='bold'>{step}</text>", y + 12.0);
        y += if step.len() > 30 { 18.0 } else { 0.0 };
        for (at, tool, time) in bars {
            let (colour, end) = (COLOURS[at.min(COLOURS.len() - 1)], x(time));
            let ratio =
                results.ratio("speed", &step, (tool, "underlay"), seconds).filter(|_| tool != "underlay");
            let ratio = ratio.map(|ratio| format!(", {}", times(ratio))).unwrap_or_default();
            let text = y + 12.0;
            let _ = writeln!(
                body,
                "<rect x='{LEFT}' y='{y:.0}' width='{:.1}' height='{:.0}' fill='{colour}'/>\
                 <text x='{:.0}' y='{text:.0}' text-anchor='end'>{tool}</text>\
                 <text x='{:.1}' y='{text:.0}'>{}{ratio}</text>",
                end - LEFT,
                BAR - 3.0,
                LEFT - 6.0,
                end + 5.0,
                seconds_text(time)
            );
            y += BAR;
        }
        y += 12.0;
    }
    format!(
        "<svg xmlns='http://www.w3.org/2000/svg' width='{WIDTH}' height='{y:.0}' font-family='sans-serif' font-size='12'>\n\
         <rect width='100%' height='100%' fill='white'/>\n\
         <text x='8' y='20' font-size='14'>Median seconds, logarithmic; how many times underlay's</text>\n{body}</svg>\n"
    )
}
