use std::collections::BTreeSet;

use super::*;
use crate::routes::Content;

/// All values below `value` that are called `key`.
fn found<'a>(value: &'a Value, key: &str, all: &mut Vec<&'a Value>) {
    match value {
        Value::Object(fields) => {
            all.extend(fields.get(key));
            fields.values().for_each(|field| found(field, key, all));
        }
        Value::Array(items) => items.iter().for_each(|item| found(item, key, all)),
        _ => {}
    }
}

fn operations(document: &Value) -> Vec<(String, &Value)> {
    let mut all = Vec::new();
    for (path, item) in document["paths"].as_object().unwrap() {
        for (method, operation) in item.as_object().unwrap() {
            all.push((format!("{} {path}", method.to_uppercase()), operation));
        }
    }
    all
}

#[test]
fn every_route_is_described_and_nothing_else() {
    let document = document();
    let described: BTreeSet<String> = operations(&document).into_iter().map(|(name, _)| name).collect();
    let own = OWN_ROUTES.iter().map(|route| format!("GET {}", route.path));
    let of_repositories = ROUTES.iter().map(|route| format!("{} {REPOSITORIES}{}", route.method, route.path));
    let routes: BTreeSet<String> = own.chain(of_repositories).collect();
    assert_eq!(described, routes);
    assert_eq!(routes.len(), OWN_ROUTES.len() + ROUTES.len());
}

#[test]
fn each_operation_says_what_it_takes_and_gives() {
    let document = document();
    let mut ids = BTreeSet::new();
    for (name, operation) in operations(&document) {
        assert!(ids.insert(operation["operationId"].as_str().unwrap().to_owned()), "{name}");
        let summary = operation["summary"].as_str().unwrap();
        assert!(summary.contains(' ') && !summary.ends_with('.'), "{name}: {summary}");
        let variable = name.matches('{').count();
        let of_path = operation["parameters"]
            .as_array()
            .map_or(0, |all| all.iter().filter(|parameter| parameter["in"] == "path").count());
        assert_eq!(of_path, variable, "{name}");
        let responses = operation["responses"].as_object().unwrap();
        assert!(responses.contains_key("200") != responses.contains_key("204"), "{name}");
        if operation["security"] != json!([]) {
            assert!(responses.contains_key("401"), "{name}");
        }
    }
    for route in ROUTES {
        assert_eq!(route.limit == 0, matches!(route.takes, Content::Nothing), "{route:?}");
    }
}

#[test]
fn references_lead_somewhere_and_nothing_is_left_over() {
    let document = document();
    let mut references = Vec::new();
    found(&document, "$ref", &mut references);
    let references: BTreeSet<&str> = references.into_iter().map(|text| text.as_str().unwrap()).collect();
    for reference in &references {
        let pointer = reference.strip_prefix('#').unwrap();
        assert!(document.pointer(pointer).is_some(), "{reference}");
    }
    for part in ["schemas", "responses"] {
        for name in document["components"][part].as_object().unwrap().keys() {
            assert!(references.contains(format!("#/components/{part}/{name}").as_str()), "{name}");
        }
    }
}
