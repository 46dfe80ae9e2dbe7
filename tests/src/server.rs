//! `underlay-server`, in this process or as a program of its own.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

use bytes::Bytes;
use tempfile::TempDir;
use underlay_client::remote::{RemoteAuthority, RemoteOptions};
use underlay_server::config::Config;
use underlay_server::tokens::{NewToken, Scope, TokenFile};
use underlay_server::{Running, start};
use underlay_store::cut::CutParameters;
use underlay_store::id::RepositoryId;
use underlay_store::key::RestoreKey;
use underlay_store::snapshot::{Descriptor, Timestamp};

use crate::commands::{run_command, terminate};
use crate::program::{Underlay, program};
use crate::s3::S3Server;
use crate::{Error, Result};

/// The name of the repository that a test's server has.
pub const NAME: &str = "vms";

/// A new repository's key and descriptor, and the text of it.
pub fn new_descriptor() -> (RestoreKey, Descriptor, Bytes) {
    let key = RestoreKey::generate();
    let descriptor = Descriptor {
        repository: RepositoryId::random(),
        created: Timestamp::now(),
        public_key: key.backup().public_key(),
        cut: CutParameters::default(),
    };
    let text = descriptor.seal(key.backup()).expect("a valid descriptor");
    (key, descriptor, text.into())
}

/// A new token in this file.
///
/// # Panics
/// If it cannot be made.
pub fn new_token(
    tokens: &TokenFile,
    scopes: &[Scope],
    repository: &str,
    machines: &str,
    expires: Option<Timestamp>,
) -> String {
    let new = NewToken {
        label: "test".to_owned(),
        scopes: scopes.to_vec(),
        repositories: vec![repository.to_owned()],
        machines: vec![machines.to_owned()],
        expires,
    };
    let (_, secret) = tokens.create(new).expect("a token");
    secret.expose().to_owned()
}

/// A server in this process, on a directory, with one repository.
#[derive(Debug)]
pub struct Served {
    /// Where it keeps everything.
    pub folder: TempDir,
    /// The server.
    pub running: Running,
    /// Opens everything.
    pub key: RestoreKey,
    /// What the repository is.
    pub descriptor: Descriptor,
}

impl Served {
    /// A server with a repository, over TLS. `more` goes into its configuration.
    ///
    /// # Panics
    /// If it does not start.
    pub async fn start(more: &str) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let running = Self::start_in(&folder, more).await;
        Self::made(folder, running).await
    }

    async fn made(folder: TempDir, running: Running) -> Self {
        let (key, descriptor, text) = new_descriptor();
        let served = Self { folder, running, key, descriptor };
        let admin = served.token(&[Scope::Admin], "*");
        served.authority(&admin).make(text, Vec::new()).await.expect("a new repository");
        served
    }

    /// A server whose repository has writers that do not trust each other.
    ///
    /// # Panics
    /// If it does not start.
    pub async fn start_strict() -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let running = Self::start_with(&folder, "", "strict = true").await;
        Self::made(folder, running).await
    }

    /// A server on what is in `folder`.
    ///
    /// # Panics
    /// If it does not start.
    pub async fn start_in(folder: &TempDir, more: &str) -> Running {
        Self::start_with(folder, more, "").await
    }

    /// The same; `of_repository` goes into the configuration of the repository.
    ///
    /// # Panics
    /// If it does not start.
    pub async fn start_with(folder: &TempDir, more: &str, of_repository: &str) -> Running {
        let path = |name: &str| folder.path().join(name).display().to_string();
        // Jobs belong to the repository, and so come after it.
        let (more, jobs) = more.split_at(more.find("[[repository.job]]").unwrap_or(more.len()));
        let config = format!(
            "listen = \"127.0.0.1:0\"\nstate = {:?}\n{more}\n[[repository]]\nname = {NAME:?}\nlocation = {:?}\n{of_repository}\n{jobs}\n",
            path("state"),
            path("repository")
        );
        let config = Config::parse(&config).expect("a good configuration");
        start(&config, &[]).await.expect("a server")
    }

    /// The same after it ended in order, `meanwhile` was done in its folder, and it was started again.
    ///
    /// # Panics
    /// If it does not start.
    pub async fn restarted(self, more: &str, meanwhile: impl FnOnce(&Path)) -> Self {
        let Self { folder, running, key, descriptor } = self;
        running.stop().await;
        meanwhile(folder.path());
        let running = Self::start_in(&folder, more).await;
        Self { folder, running, key, descriptor }
    }

    /// A new token for the repository and these machines.
    ///
    /// # Panics
    /// If it cannot be made.
    pub fn token(&self, scopes: &[Scope], machines: &str) -> String {
        self.token_for(scopes, NAME, machines, None)
    }

    /// A new token.
    ///
    /// # Panics
    /// If it cannot be made.
    pub fn token_for(
        &self,
        scopes: &[Scope],
        repository: &str,
        machines: &str,
        expires: Option<Timestamp>,
    ) -> String {
        new_token(&self.tokens(), scopes, repository, machines, expires)
    }

    /// The file with the tokens.
    pub fn tokens(&self) -> TokenFile {
        TokenFile::new(&self.folder.path().join("state"))
    }

    /// The URL of the repository.
    pub fn location(&self) -> String {
        let scheme = if self.running.fingerprint.is_some() { "https" } else { "http" };
        format!("{scheme}://{}/{NAME}", self.running.address)
    }

    /// The repository as whoever has that token reaches it.
    ///
    /// # Panics
    /// If there can be no TLS.
    pub fn authority(&self, token: &str) -> Arc<RemoteAuthority> {
        let options = RemoteOptions {
            token: token.to_owned().into(),
            fingerprint: self.running.fingerprint.clone(),
            ..RemoteOptions::default()
        };
        Arc::new(RemoteAuthority::new(&self.location(), &options).expect("a location"))
    }

    /// The repository as whoever may do everything reaches it.
    pub fn for_all(&self) -> Arc<RemoteAuthority> {
        self.authority(&self.token(&Scope::ALL, "*"))
    }
}

/// The program `underlay-server`, killed when dropped.
#[derive(Debug)]
pub struct ServerProgram {
    folder: PathBuf,
    child: Child,
    scheme: String,
    /// Where it listens.
    pub address: String,
    /// Of its certificate; empty if it has none.
    pub fingerprint: String,
}

impl ServerProgram {
    /// Starts it below `folder`, on the repository `location`, on any free port.
    pub fn start(folder: &Path, location: &str) -> Result<Self> {
        Self::listen(folder, location, "127.0.0.1:0")
    }

    /// Starts it on that address.
    pub fn listen(folder: &Path, location: &str, address: &str) -> Result<Self> {
        Self::configure(folder, location, address, "")?;
        Self::serve(folder, &[])
    }

    /// Starts it on a repository in a server's bucket.
    pub fn on_s3(folder: &Path, s3: &S3Server, address: &str) -> Result<Self> {
        Self::on_s3_with(folder, s3, address, "")
    }

    /// The same; `of_repository` are lines of the repository's configuration.
    pub fn on_s3_with(folder: &Path, s3: &S3Server, address: &str, of_repository: &str) -> Result<Self> {
        Self::configure(folder, &format!("s3://{}/vms", s3.bucket), address, "")?;
        Self::configure_more(folder, of_repository)?;
        Self::serve(folder, &s3.variables())
    }

    /// Writes its configuration; `settings` are lines before the first section.
    pub fn configure(folder: &Path, location: &str, address: &str, settings: &str) -> Result<()> {
        let state = folder.join("server").display().to_string();
        let config = format!(
            "listen = {address:?}\nstate = {state:?}\n{settings}\n[[repository]]\nname = {NAME:?}\nlocation = {location:?}\n"
        );
        Ok(std::fs::write(folder.join("server.toml"), config)?)
    }

    /// Adds lines to its configuration: of the repository, and then of what comes after it.
    pub fn configure_more(folder: &Path, lines: &str) -> Result<()> {
        let config = folder.join("server.toml");
        let configured = std::fs::read_to_string(&config)?;
        Ok(std::fs::write(config, format!("{configured}{lines}\n"))?)
    }

    /// Starts it as it is configured, with these variables in its environment.
    pub fn serve(folder: &Path, variables: &[(&str, &str)]) -> Result<Self> {
        let log = std::fs::OpenOptions::new().create(true).append(true).open(folder.join("server.log"))?;
        let mut command = Self::command_in(folder)?;
        command.envs(variables.iter().copied());
        let mut child =
            command.arg("serve").stdin(Stdio::null()).stdout(Stdio::piped()).stderr(log).spawn()?;
        let mut lines = BufReader::new(child.stdout.take().ok_or_else(|| Error::new("no stdout"))?).lines();
        let mut next = |what: &str| -> Result<String> {
            let line = lines.next().transpose()?.unwrap_or_default();
            let value = line.strip_prefix(what).map(|rest| rest.trim().to_owned());
            value.ok_or_else(|| {
                let log = std::fs::read_to_string(folder.join("server.log")).unwrap_or_default();
                Error::new(format!("the server said {line:?} and not {what:?}; its log:\n{log}"))
            })
        };
        let url = next("listening on ")?;
        let (scheme, address) =
            url.split_once("://").ok_or_else(|| Error::new(format!("{url:?} is no URL")))?;
        let fingerprint = if scheme == "https" { next("fingerprint ")? } else { String::new() };
        let (scheme, address) = (scheme.to_owned(), address.to_owned());
        Ok(Self { folder: folder.to_owned(), child, scheme, address, fingerprint })
    }

    fn command_in(folder: &Path) -> Result<Command> {
        let mut command = Command::new(program("underlay-server")?);
        command.arg("--config").arg(folder.join("server.toml"));
        Ok(command)
    }

    /// A new token, made by the program.
    pub fn token(&self, arguments: &[&str]) -> Result<String> {
        let mut command = Self::command_in(&self.folder)?;
        let token = run_command(command.args(["token", "create", "--repository", NAME]).args(arguments))?;
        Ok(token.trim().to_owned())
    }

    /// The URL of the server.
    pub fn url(&self) -> String {
        format!("{}://{}", self.scheme, self.address)
    }

    /// The URL of the repository.
    pub fn location(&self) -> String {
        format!("{}/{NAME}", self.url())
    }

    /// A client with this token, whose key file lies in `folder`.
    pub fn client(&self, folder: &Path, token: &str) -> Result<Underlay> {
        let client = Underlay::existing(&self.location(), folder)?;
        let client = client.with_variable("UNDERLAY_TOKEN", token);
        Ok(match self.fingerprint.as_str() {
            "" => client,
            fingerprint => client.with_variable("UNDERLAY_SERVER_FINGERPRINT", fingerprint),
        })
    }

    /// The number of its process.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Ends it at once, as a power cut would.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Ends it in order.
    pub fn terminate(&mut self) {
        terminate(&mut self.child);
    }
}

impl Drop for ServerProgram {
    fn drop(&mut self) {
        self.kill();
    }
}
