//! The OpenAPI 3.1 document of everything the server answers, made of the tables that the router is made of. Pure.

mod operation;
mod parameters;
mod refusals;
mod schemas;

use serde_json::{Map, Value, json};

use crate::routes::{OWN_ROUTES, REPOSITORIES, ROUTES};
use schemas::Schemas;

/// What every operation has in common, for people.
const DESCRIPTION: &str = "The authority over underlay repositories for many hosts. docs/server.md says what the operations mean, \
    docs/security.md whom the server trusts with what.\n\n\
    `x-underlay-scopes`: the token needs any of these. `x-underlay-machines`: `all`, if it must not be bound to certain machines; \
    `own`, if the operation shows and changes only those of the token; else `any`. `x-underlay-limit`: the longest body, in bytes.\n\n\
    Binary bodies are little-endian; their descriptions draw them.";

/// The name of the security scheme.
const TOKEN: &str = "token";

/// The document.
///
/// # Panics
/// If the tables contradict themselves, which a test finds out.
#[must_use]
pub fn document() -> Value {
    let mut schemas = Schemas::new();
    let mut paths: Map<String, Value> = Map::new();
    for route in OWN_ROUTES {
        paths.insert(route.path.to_owned(), json!({ "get": operation::of_server(route, &mut schemas) }));
    }
    for route in ROUTES {
        let path = format!("{REPOSITORIES}{}", route.path);
        let item = paths.entry(path).or_insert_with(|| json!({}));
        item[route.method.as_str().to_lowercase()] = operation::of_repository(route, &mut schemas);
    }
    let (schemas, responses) = schemas.finish();
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "underlay-server",
            "version": env!("CARGO_PKG_VERSION"),
            "description": DESCRIPTION,
            "license": { "name": "MIT OR Apache-2.0", "identifier": "MIT OR Apache-2.0" },
        },
        "servers": [{ "url": "/" }],
        "paths": paths,
        "components": {
            "schemas": schemas,
            "responses": responses,
            "securitySchemes": {
                TOKEN: { "type": "http", "scheme": "bearer", "description": "As `underlay-server token create` prints it." },
            },
        },
    })
}

#[cfg(test)]
mod tests;
