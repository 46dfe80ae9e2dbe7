//! One operation.

use serde_json::{Map, Value, json};

use super::schemas::Schemas;
use super::{TOKEN, parameters, refusals};
use crate::routes::{Asker, Content, Layout, Machines, OwnRoute, REPOSITORIES, Refused, Route};

const BINARY: &str = "application/octet-stream";
const JSON: &str = "application/json";

/// The operation of a repository's route.
pub(super) fn of_repository(route: &Route, schemas: &mut Schemas) -> Value {
    let (room, _) = route.name.split_once("::").unwrap_or((route.name, ""));
    let mut parameters = parameters::of_path(&format!("{REPOSITORIES}{}", route.path), schemas);
    parameters.extend(parameters::of_query(route.query, schemas));
    let scopes: Vec<&str> = route.needs.iter().map(|scope| scope.name()).collect();
    let machines = match route.machines {
        Machines::Any => "any",
        Machines::All => "all",
        Machines::Own => "own",
    };
    let mut operation = json!({
        "operationId": route.name.replace("::", "_"),
        "summary": route.summary,
        "tags": [room],
        "security": [{ TOKEN: [] }],
        "x-underlay-scopes": scopes,
        "x-underlay-machines": machines,
        "parameters": parameters,
        "responses": responses(route, schemas),
    });
    if let Some(body) = request_body(route, schemas) {
        operation["requestBody"] = body;
    }
    operation
}

/// The operation of a route of the server itself.
pub(super) fn of_server(route: &OwnRoute, schemas: &mut Schemas) -> Value {
    let schema =
        if route.media_type == JSON { json!({ "type": "object" }) } else { json!({ "type": "string" }) };
    let content = json!({ route.media_type: { "schema": schema } });
    let mut responses = refused(route.asker.refuses(), schemas);
    responses.insert("200".to_owned(), json!({ "description": route.summary, "content": content }));
    if let Some((status, meaning)) = route.or_else {
        responses.insert(status.to_string(), json!({ "description": meaning, "content": content }));
    }
    let mut operation = json!({
        "operationId": route.name,
        "summary": route.summary,
        "tags": ["server"],
        "security": if route.asker == Asker::Everyone { json!([]) } else { json!([{ TOKEN: [] }]) },
        "responses": responses,
    });
    if let Asker::Trusted(scope) = route.asker {
        operation["x-underlay-scopes"] = json!([scope.name()]);
        operation["x-underlay-machines"] = json!("all");
    }
    operation
}

fn request_body(route: &Route, schemas: &mut Schemas) -> Option<Value> {
    let limit = route.limit;
    let (media_type, content, meaning) = match route.takes {
        Content::Nothing => return None,
        Content::Json(schema) => {
            let content = json!({ "schema": schemas.taken(schema) });
            (JSON, content, format!("JSON of at most {limit} bytes."))
        }
        Content::Binary(layout) => {
            let content = json!({ "schema": binary(layout, Some(limit)) });
            (BINARY, content, format!("{}, at most {limit} bytes.", drawn(layout)))
        }
    };
    Some(json!({
        "required": true,
        "description": meaning,
        "content": { media_type: content },
        "x-underlay-limit": limit,
    }))
}

fn responses(route: &Route, schemas: &mut Schemas) -> Map<String, Value> {
    let mut responses = refused(&refusals::of(route), schemas);
    let (status, response) = match route.gives {
        Content::Nothing => ("204", json!({ "description": "Done." })),
        Content::Json(schema) => {
            let content = json!({ JSON: { "schema": schemas.given(schema) } });
            ("200", json!({ "description": route.summary, "content": content }))
        }
        Content::Binary(layout) => {
            let content = json!({ BINARY: { "schema": binary(layout, None) } });
            ("200", json!({ "description": drawn(layout), "content": content }))
        }
    };
    responses.insert(status.to_owned(), response);
    responses
}

/// By status: references to the problems that can be told with it.
fn refused(refusals: &[Refused], schemas: &mut Schemas) -> Map<String, Value> {
    let mut responses = Map::new();
    for same in refusals.chunk_by(|a, b| a.0 == b.0) {
        let kinds: Vec<&str> = same.iter().map(|(_, kind)| *kind).collect();
        responses.insert(same[0].0.to_string(), schemas.problem(same[0].0, &kinds));
    }
    responses
}

fn drawn(layout: &Layout) -> String {
    format!("{}: {}", layout.name, layout.bytes)
}

fn binary(layout: &Layout, limit: Option<u64>) -> Value {
    let mut schema = json!({ "type": "string", "format": "binary", "x-underlay-layout": layout.name });
    if let Some(limit) = limit {
        schema["maxLength"] = json!(limit);
    }
    schema
}
