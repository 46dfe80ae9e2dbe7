//! The variable parts of paths, and the query.

use schemars::{Schema, json_schema};
use serde_json::{Value, json};
use underlay_store::id::{JobId, NodeId, PackName, SessionHandle, SlotId, SnapshotId};

use super::schemas::Schemas;
use crate::routes::Query;

/// The variable parts of a path, each with its schema.
///
/// # Panics
/// If one is not known here.
pub(super) fn of_path(path: &str, schemas: &mut Schemas) -> Vec<Value> {
    let names = path.split('{').skip(1).filter_map(|rest| Some(rest.split_once('}')?.0));
    names
        .map(|name| {
            let (schema, meaning) = part(name, schemas);
            json!({ "name": name, "in": "path", "required": true, "description": meaning, "schema": schema })
        })
        .collect()
}

/// The numbers of a query.
pub(super) fn of_query(query: &[Query], schemas: &mut Schemas) -> Vec<Value> {
    let number = schemas.taken(|generator| generator.subschema_for::<u64>());
    query
        .iter()
        .map(|Query { name, required, meaning }| {
            json!({ "name": name, "in": "query", "required": required, "description": meaning, "schema": number })
        })
        .collect()
}

fn part(name: &str, schemas: &mut Schemas) -> (Schema, &'static str) {
    let schema = match name {
        "repository" => json_schema!({ "type": "string", "pattern": "^[a-z0-9][a-z0-9._-]{0,63}$" }),
        "kind" => json_schema!({ "type": "string", "enum": ["data", "nodes"] }),
        "slot" => schemas.taken(|generator| generator.subschema_for::<SlotId>()),
        "handle" => schemas.taken(|generator| generator.subschema_for::<SessionHandle>()),
        "name" => schemas.taken(|generator| generator.subschema_for::<PackName>()),
        "snapshot" => schemas.taken(|generator| generator.subschema_for::<SnapshotId>()),
        "node" => schemas.taken(|generator| generator.subschema_for::<NodeId>()),
        "job" => schemas.taken(|generator| generator.subschema_for::<JobId>()),
        other => panic!("nothing is known of {other} in a path"),
    };
    let meaning = match name {
        "repository" => "The name that the server's configuration gives the repository.",
        "kind" => "What the pack holds: chunks or tree nodes.",
        "slot" => "The passphrase slot.",
        "handle" => "What the client chose for the session. It means nothing to other tokens.",
        "name" => "The pack's SHA-256.",
        "snapshot" => "The snapshot.",
        "node" => "The tree node.",
        _ => "What the client chose for the job.",
    };
    (schema, meaning)
}
