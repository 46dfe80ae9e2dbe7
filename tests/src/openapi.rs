use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use crate::commands::output;
use crate::{Result, python};

/// Schemathesis draws its examples with Hypothesis: the same seed means the same examples as long as both stay the same.
const PACKAGES: [&str; 4] = [
    "schemathesis==4.32.5",
    "hypothesis==6.170.17",
    "jsonschema_rs==0.60.3",
    "openapi-spec-validator==0.9.0",
];

/// What schemathesis is to look for.
const CHECKS: &str = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance,\
                      negative_data_rejection,ignored_auth,missing_required_header";

/// The Python that has schemathesis and a validator of OpenAPI documents.
pub fn tools() -> Result<PathBuf> {
    python::environment("openapi", &PACKAGES)
}

/// Whether the document in this file is valid, by openapi-spec-validator.
pub fn validate(document: &Path) -> Result<Output> {
    output(Command::new(tools()?).args(["-m", "openapi_spec_validator"]).arg(document))
}

/// A run of schemathesis.
#[derive(Clone, Copy, Debug)]
pub struct Run<'a> {
    /// The document.
    pub document: &'a Path,
    /// Where the server is: scheme, host and port.
    pub server: &'a str,
    /// Sent with every request.
    pub token: &'a str,
    /// The repository that it may ruin.
    pub repository: &'a str,
    /// A Python module that changes requests before they are sent, and the file that it finds in `UNDERLAY_KNOWN`.
    pub hooks: Option<(&'a Path, &'a Path)>,
    /// Only this operation.
    pub only: Option<&'a str>,
    /// Requests to generate for each operation, besides those that the schemas' borders suggest.
    pub examples: u32,
}

impl Run<'_> {
    /// Asks what the document allows and what it forbids, and holds the answers against it; `folder` is for its files. Examples are drawn from the
    /// seed 1, or `UNDERLAY_SEED`.
    pub fn start(&self, folder: &Path) -> Result<Output> {
        let settings = folder.join("schemathesis.toml");
        fs::write(&settings, format!("[parameters]\n\"path.repository\" = {:?}\n", self.repository))?;
        let seed = std::env::var("UNDERLAY_SEED").unwrap_or_else(|_| "1".to_owned());
        let mut command = Command::new(tools()?);
        command.args(["-m", "schemathesis.cli", "--config-file"]).arg(settings).arg("run").arg(self.document);
        command.args(["--url", self.server, "--header", &format!("Authorization: Bearer {}", self.token)]);
        command.args(["--checks", CHECKS, "--seed", &seed, "--max-examples", &self.examples.to_string()]);
        command.args(["--phases", "examples,coverage,fuzzing", "--continue-on-failure", "--no-color"]);
        command.args(["--request-timeout", "60", "--warnings", "off"]);
        if let Some(operation) = self.only {
            command.args(["--include-operation-id", operation]);
        }
        if let Some((hooks, known)) = self.hooks {
            command.env("SCHEMATHESIS_HOOKS", hooks).env("UNDERLAY_KNOWN", known);
        }
        // The examples that once failed are not kept: another run would begin with them.
        output(command.current_dir(folder).env("HYPOTHESIS_STORAGE_DIRECTORY", folder.join("examples")))
    }
}
