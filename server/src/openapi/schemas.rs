//! The schemas and answers that operations refer to.

use schemars::generate::SchemaSettings;
use schemars::transform::{RecursiveTransform, Transform};
use schemars::{Schema, SchemaGenerator};
use serde_json::{Map, Value, json};
use underlay_store::wire::Problem;

const PROBLEM: &str = "application/problem+json";
const HOME: &str = "/components/schemas";

/// Gathers what operations refer to.
pub(super) struct Schemas {
    /// Of what is read: fields that may be left out may be missing.
    taken: SchemaGenerator,
    /// Of what is written: every field that is always written is required.
    given: SchemaGenerator,
    responses: Map<String, Value>,
}

impl Schemas {
    pub(super) fn new() -> Self {
        let settings =
            || SchemaSettings::draft2020_12().with(|settings| settings.definitions_path = HOME.into());
        Self {
            taken: settings().for_deserialize().into_generator(),
            given: settings().for_serialize().into_generator(),
            responses: Map::new(),
        }
    }

    /// The schema of what is sent to the server.
    pub(super) fn taken(&mut self, schema: impl FnOnce(&mut SchemaGenerator) -> Schema) -> Schema {
        bounded(schema(&mut self.taken))
    }

    /// The schema of what the server answers.
    pub(super) fn given(&mut self, schema: impl FnOnce(&mut SchemaGenerator) -> Schema) -> Schema {
        bounded(schema(&mut self.given))
    }

    /// A reference to the answer that tells of one of these kinds of problems.
    pub(super) fn problem(&mut self, status: u16, kinds: &[&str]) -> Value {
        let name = format!("{status}-{}", kinds.join("-"));
        let reference = json!({ "$ref": format!("#/components/responses/{name}") });
        if !self.responses.contains_key(&name) {
            let problem = self.given(|generator| generator.subschema_for::<Problem>());
            let types: Vec<String> = kinds.iter().map(|kind| Problem::new(status, kind, "").urn).collect();
            let these = json!({ "properties": { "type": { "enum": types }, "status": { "const": status } } });
            let schema = json!({ "allOf": [problem, these] });
            let response = json!({
                "description": format!("A problem: {}.", kinds.join(", ")),
                "content": { PROBLEM: { "schema": schema } },
            });
            self.responses.insert(name, response);
        }
        reference
    }

    /// All schemas and all answers, by name.
    ///
    /// # Panics
    /// If a type that is both taken and given is not the same then: it would need two names.
    pub(super) fn finish(mut self) -> (Map<String, Value>, Map<String, Value>) {
        let mut all = definitions(&mut self.taken);
        for (name, schema) in definitions(&mut self.given) {
            match all.get(&name) {
                Some(other) => assert!(*other == schema, "{name} is taken as {other} and given as {schema}"),
                None => drop(all.insert(name, schema)),
            }
        }
        (all, self.responses)
    }
}

fn definitions(generator: &mut SchemaGenerator) -> Map<String, Value> {
    let definitions = generator.take_definitions(true);
    definitions
        .into_iter()
        .filter_map(|(name, schema)| Some((name, bounded(schema.try_into().ok()?).to_value())))
        .collect()
}

/// Says how large numbers can be where the type alone says it, and takes the brackets off references to code.
fn bounded(mut schema: Schema) -> Schema {
    RecursiveTransform(bound).transform(&mut schema);
    RecursiveTransform(unlink).transform(&mut schema);
    schema
}

fn unlink(schema: &mut Schema) {
    if let Some(Value::String(text)) = schema.get_mut("description") {
        *text = text.replace("[`", "`").replace("`]", "`");
    }
}

fn bound(schema: &mut Schema) {
    let maximum = match schema.get("format").and_then(Value::as_str) {
        Some("uint64") => u64::MAX,
        Some("uint32") => u32::MAX.into(),
        _ => return,
    };
    schema.ensure_object().entry("maximum").or_insert_with(|| maximum.into());
}
