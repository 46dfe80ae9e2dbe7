use std::fs::{self, File};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Child, Command};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use crate::commands::{spawn, terminate, wait_until};
use crate::crates::Program;
use crate::loopback::{free_address, http_status};
use crate::{Error, Result, python};

const MOTO_PACKAGES: [&str; 3] = ["moto[s3]==5.2.5", "flask==3.1.3", "flask-cors==6.0.5"];

/// A running S3 server on loopback with one empty bucket, ended when dropped. Each has its own folder and ports.
#[derive(Debug)]
pub struct S3Server {
    /// Base URL, such as `http://127.0.0.1:34567`. Addresses buckets by path.
    pub endpoint: String,
    /// Name of the bucket that exists.
    pub bucket: String,
    /// Access key that may read, write and list the bucket.
    pub access_key: String,
    /// The access key's secret.
    pub secret_key: String,
    /// Region that requests are signed for.
    pub region: String,
    kind: Kind,
    process: Option<Child>,
    folder: tempfile::TempDir,
}

#[derive(Clone, Copy, Debug)]
enum Kind {
    Garage { health: SocketAddr },
    Moto { address: SocketAddr },
}

impl S3Server {
    /// Garage: checks signatures, keeps its data on disk over a restart, ignores conditional PUT without a word.
    pub fn garage() -> Result<Self> {
        let (api, rpc, health) = (free_address()?, free_address()?, free_address()?);
        let server = Self {
            endpoint: format!("http://{api}"),
            bucket: "underlay".into(),
            access_key: "GK0123456789abcdef01234567".into(),
            secret_key: "0123456789abcdef".repeat(4),
            region: "garage".into(),
            kind: Kind::Garage { health },
            process: None,
            folder: tempfile::tempdir()?,
        };
        let folder = server.folder.path().display();
        let configuration = format!(
            "metadata_dir = \"{folder}/meta\"\ndata_dir = \"{folder}/data\"\ndb_engine = \"sqlite\"\n\
             replication_factor = 1\nrpc_bind_addr = \"{rpc}\"\nrpc_public_addr = \"{rpc}\"\nrpc_secret = \"{}\"\n\
             [s3_api]\ns3_region = \"garage\"\napi_bind_addr = \"{api}\"\nroot_domain = \".s3.garage.localhost\"\n\
             [admin]\napi_bind_addr = \"{health}\"\n",
            "5a".repeat(32)
        );
        fs::write(server.configuration(), configuration)?;
        server.started()
    }

    /// moto: honours conditional PUT (a real 412) and object lock, checks no signature, forgets all when it ends.
    pub fn moto() -> Result<Self> {
        let address = free_address()?;
        let server = Self {
            endpoint: format!("http://{address}"),
            bucket: "underlay".into(),
            access_key: "moto".into(),
            secret_key: "moto-secret".into(),
            region: "us-east-1".into(),
            kind: Kind::Moto { address },
            process: None,
            folder: tempfile::tempdir()?,
        };
        server.started()
    }

    /// What a program finds the bucket by in its environment.
    #[must_use]
    pub fn variables(&self) -> [(&'static str, &str); 4] {
        [
            ("AWS_ENDPOINT_URL", &self.endpoint),
            ("AWS_ACCESS_KEY_ID", &self.access_key),
            ("AWS_SECRET_ACCESS_KEY", &self.secret_key),
            ("AWS_REGION", &self.region),
        ]
    }

    /// Starts a stopped server again on the same address. Garage still has its objects, moto has an empty bucket.
    pub fn start(&mut self) -> Result<()> {
        let log = File::create(self.log())?;
        let mut command = match self.kind {
            Kind::Garage { .. } => self.garage_command()?,
            Kind::Moto { address } => moto_command(address)?,
        };
        command.stdout(log.try_clone()?).stderr(log);
        self.process = Some(spawn(&mut command)?);
        let kind = self.kind;
        wait_until("an S3 server getting ready", Duration::from_secs(60), || {
            if let Some(Ok(Some(status))) = self.process.as_mut().map(Child::try_wait) {
                let log = fs::read_to_string(self.log())?;
                return Err(Error::new(format!("the S3 server ended at once ({status}):\n{log}")));
            }
            let status = match kind {
                Kind::Garage { health } => http_status(health, "GET", "/health"),
                Kind::Moto { address } => http_status(address, "GET", "/"),
            };
            Ok(status == Some(200))
        })?;
        match kind {
            Kind::Moto { address }
                if http_status(address, "PUT", &format!("/{}", self.bucket)) != Some(200) =>
            {
                Err(Error::new("moto created no bucket"))
            }
            _ => Ok(()),
        }
    }

    /// Ends the server. Its endpoint then refuses connections.
    pub fn stop(&mut self) {
        // Who stands still does not hear that it is to end.
        let _ = self.resume();
        if let Some(mut process) = self.process.take() {
            terminate(&mut process);
        }
    }

    /// Lets the server stand still: connections stay, and nothing is answered until [`Self::resume`].
    pub fn pause(&self) -> Result<()> {
        self.signal(Signal::STOP)
    }

    /// Lets it go on.
    pub fn resume(&self) -> Result<()> {
        self.signal(Signal::CONT)
    }

    fn signal(&self, signal: Signal) -> Result<()> {
        let id = self.process.as_ref().and_then(|process| i32::try_from(process.id()).ok());
        let id = id.and_then(Pid::from_raw).ok_or_else(|| Error::new("the S3 server does not run"))?;
        kill_process(id, signal)
            .map_err(|error| Error::new(format!("the S3 server takes no signal: {error}")))
    }

    /// Everything the server has logged since its last start.
    pub fn server_log(&self) -> Result<String> {
        Ok(fs::read_to_string(self.log())?)
    }

    fn started(mut self) -> Result<Self> {
        self.start()?;
        Ok(self)
    }

    fn configuration(&self) -> PathBuf {
        self.folder.path().join("garage.toml")
    }

    fn log(&self) -> PathBuf {
        self.folder.path().join("log")
    }

    fn garage_command(&self) -> Result<Command> {
        let mut command = Command::new(garage_program()?);
        command.arg("-c").arg(self.configuration()).args(["server", "--single-node", "--default-bucket"]);
        command.env("GARAGE_DEFAULT_ACCESS_KEY", &self.access_key);
        command.env("GARAGE_DEFAULT_SECRET_KEY", &self.secret_key);
        command.env("GARAGE_DEFAULT_BUCKET", &self.bucket);
        Ok(command)
    }
}

impl Drop for S3Server {
    fn drop(&mut self) {
        self.stop();
    }
}

/// The Garage program, compiled on first use: 6 to 10 minutes on two cores.
pub fn garage_program() -> Result<PathBuf> {
    let program = Program {
        name: "garage",
        version: "2.5.0",
        arguments: &["--no-default-features", "--features", "bundled-libs,sqlite"],
        optimisation: "1",
    };
    Ok(program.install()?.join("bin/garage"))
}

/// The Python that has moto installed: a virtual environment, made on first use in about ten seconds.
pub fn moto_python() -> Result<PathBuf> {
    python::environment("moto", &MOTO_PACKAGES)
}

/// Not the environment's own `moto_server`: that script remembers the path it was installed at.
fn moto_command(address: SocketAddr) -> Result<Command> {
    let mut command = Command::new(moto_python()?);
    let (host, port) = (address.ip().to_string(), address.port().to_string());
    command.args(["-m", "moto.server", "-H", &host, "-p", &port]);
    Ok(command)
}
