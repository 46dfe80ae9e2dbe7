//! What requests and answers carry, as a route of the table says it.

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use underlay_store::document;

/// The JSON Schema of a type, made with the document's generator.
pub type SchemaOf = fn(&mut SchemaGenerator) -> Schema;

/// A body.
#[derive(Clone, Copy, Debug)]
pub enum Content {
    /// None.
    Nothing,
    /// JSON of this schema.
    Json(SchemaOf),
    /// Bytes, laid out so.
    Binary(&'static Layout),
}

/// What a binary body is.
#[derive(Debug)]
pub struct Layout {
    /// Its name, as in `docs/server.md`.
    pub name: &'static str,
    /// Its bytes, as `docs/server.md` draws them; little-endian.
    pub bytes: &'static str,
}

/// A number in the query.
#[derive(Debug)]
pub struct Query {
    /// Its name.
    pub name: &'static str,
    /// Whether it has to be there.
    pub required: bool,
    /// What it says.
    pub meaning: &'static str,
}

/// A status and the kind of problem that is told with it.
pub type Refused = (u16, &'static str);

pub(super) const IDS: Layout = Layout {
    name: "ids",
    bytes: r#""ULid" u8 version=1  u8 kind (1 chunks, 2 nodes)  u16 0  u32 n  n x 32 bytes, strictly ascending; n <= 65,535"#,
};
pub(super) const BITMAP: Layout = Layout {
    name: "bitmap",
    bytes: r#""ULbm" u8 version=1  u8 0  u16 0  u32 n  ceil(n/8) bytes; bit i%8 of byte i/8; unused bits 0"#,
};
pub(super) const NODES: Layout = Layout {
    name: "nodes",
    bytes: r#""ULnd" u8 version=1  u8 0  u16 0  u32 n  n x ( u32 length  bytes ); each at most 2 MiB"#,
};
pub(super) const PLACES: Layout = Layout {
    name: "places",
    bytes: "\"ULpl\" u8 version=1  u8 0  u16 0  u32 n  n x ( u16 m  m x place )\n\
            place: 32 bytes pack  u32 offset  u32 payload length  u32 plain length  u8 codec (0, 1)  u8 retired (0, 1)  u16 0",
};
pub(super) const DOCUMENTS: Layout = Layout {
    name: "documents",
    bytes: r#""ULdc" u8 version=1  u8 0  u16 0  u32 n  n x ( u16 length  name  u32 length  bytes ); a document at most 16 MiB"#,
};
/// Drawn in `docs/format.md`.
pub(super) const PACK: Layout =
    Layout { name: "pack", bytes: "a pack, or a part of one, as docs/format.md draws it" };

/// A type as its serde implementation reads and writes it.
pub(super) fn of<T: JsonSchema>(generator: &mut SchemaGenerator) -> Schema {
    generator.subschema_for::<T>()
}

/// A document with such a body: a text that has to stay as it is, byte for byte.
pub(super) fn document_of<T: JsonSchema>(generator: &mut SchemaGenerator) -> Schema {
    let body = generator.subschema_for::<T>();
    json_schema!({
        "type": "object",
        "properties": {
            "underlay": { "type": "string", "description": "What kind of document it is." },
            "version": { "const": document::VERSION },
            "body": body,
            "mac": { "type": "string", "pattern": "^[0-9a-f]{64}$" },
        },
        "required": ["underlay", "version", "body", "mac"],
        "additionalProperties": false,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layouts_are_those_of_the_contract() {
        let contract = include_str!("../../../docs/server.md");
        for layout in [IDS, BITMAP, NODES, PLACES, DOCUMENTS] {
            for line in layout.bytes.lines() {
                assert!(
                    contract.contains(line),
                    "docs/server.md draws {} otherwise than {line}",
                    layout.name
                );
            }
        }
    }
}
