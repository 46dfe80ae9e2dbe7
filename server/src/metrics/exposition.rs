//! The text format of Prometheus, version 0.0.4.

use std::collections::BTreeMap;
use std::fmt::Write as _;

/// What a number means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// Only grows, until the server is restarted.
    Counter,
    /// Goes up and down.
    Gauge,
    /// A sum and a count.
    Summary,
}

/// Metrics that are being written down; those of one name stand together.
#[derive(Debug, Default)]
pub(super) struct Exposition {
    families: BTreeMap<&'static str, (Kind, &'static str, Vec<String>)>,
}

impl Exposition {
    /// Adds a number. `suffix` is that of a summary's parts.
    pub(super) fn add(
        &mut self,
        (name, kind, help): (&'static str, Kind, &'static str),
        suffix: &str,
        labels: &[(&str, &str)],
        value: f64,
    ) {
        let (_, _, samples) = self.families.entry(name).or_insert_with(|| (kind, help, Vec::new()));
        let labels: Vec<String> =
            labels.iter().map(|(label, text)| format!("{label}=\"{}\"", escape(text))).collect();
        let labels = if labels.is_empty() { String::new() } else { format!("{{{}}}", labels.join(",")) };
        samples.push(format!("{name}{suffix}{labels} {value}"));
    }

    /// All of it.
    pub(super) fn text(self) -> String {
        let mut text = String::new();
        for (name, (kind, help, samples)) in self.families {
            let kind = match kind {
                Kind::Counter => "counter",
                Kind::Gauge => "gauge",
                Kind::Summary => "summary",
            };
            let samples = samples.join("\n");
            let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} {kind}\n{samples}");
        }
        text
    }
}

fn escape(text: &str) -> String {
    text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_stand_together_and_nothing_breaks_out_of_a_label() {
        let mut exposition = Exposition::default();
        let (one, two) = (("a_bytes", Kind::Gauge, "Bytes."), ("b_total", Kind::Counter, "Things."));
        exposition.add(one, "", &[("vm", "x\"} 1\n\\")], 1.5);
        exposition.add(two, "", &[], 3.0);
        exposition.add(one, "", &[("vm", "y"), ("z", "")], 1e12);
        let expected = "# HELP a_bytes Bytes.\n# TYPE a_bytes gauge\na_bytes{vm=\"x\\\"} 1\\n\\\\\"} 1.5\n\
                        a_bytes{vm=\"y\",z=\"\"} 1000000000000\n# HELP b_total Things.\n# TYPE b_total counter\nb_total 3\n";
        assert_eq!(exposition.text(), expected);
    }
}
