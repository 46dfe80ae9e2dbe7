//! The server's certificate: from files, or made at the first start and signed by itself.

use std::fs;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use aws_lc_rs::digest::{SHA256, digest};
use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

use crate::config::Config;
use crate::tokens::write_whole;

/// Why there is no certificate.
#[derive(Debug, thiserror::Error)]
#[error("{path}: {what}")]
pub struct TlsError {
    /// The file.
    pub path: PathBuf,
    /// What is wrong.
    pub what: String,
}

/// A certificate that is ready to be used.
#[derive(Clone, Debug)]
pub struct Identity {
    /// For the connections.
    pub config: Arc<ServerConfig>,
    /// `sha256:` and the SHA-256 of the certificate in hex: what a client pins.
    pub fingerprint: String,
}

/// The certificate that the configuration names, or the self-signed one of the state folder, made if there is none.
///
/// # Errors
/// [`TlsError`].
pub fn identity(config: &Config) -> Result<Identity, TlsError> {
    let (certificate, key) = match &config.tls {
        Some(files) => (files.certificate.clone(), files.key.clone()),
        None => self_signed(&config.state, &config.listen.ip().to_string())?,
    };
    let wrong = |path: &Path, error: &dyn std::fmt::Display| TlsError {
        path: path.to_owned(),
        what: error.to_string(),
    };
    let chain: Vec<CertificateDer<'static>> = CertificateDer::pem_file_iter(&certificate)
        .and_then(Iterator::collect)
        .map_err(|error| wrong(&certificate, &error))?;
    let first = chain.first().ok_or_else(|| wrong(&certificate, &"it holds no certificate"))?;
    let fingerprint = format!("sha256:{}", hex::encode(digest(&SHA256, first)));
    let private = PrivateKeyDer::from_pem_file(&key).map_err(|error| wrong(&key, &error))?;
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(|error| wrong(&certificate, &error))?
        .with_no_client_auth()
        .with_single_cert(chain, private)
        .map_err(|error| wrong(&certificate, &error))?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(Identity { config: Arc::new(config), fingerprint })
}

fn self_signed(state: &Path, address: &str) -> Result<(PathBuf, PathBuf), TlsError> {
    let folder = state.join("tls");
    let (certificate, key) = (folder.join("certificate.pem"), folder.join("key.pem"));
    if certificate.exists() {
        return Ok((certificate, key));
    }
    let failed = |what: String| TlsError { path: certificate.clone(), what };
    let host = fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let mut names: Vec<String> = ["localhost", host.trim(), address].map(str::to_owned).to_vec();
    names.retain(|name| !name.is_empty());
    names.dedup();
    let made = rcgen::generate_simple_self_signed(names).map_err(|error| failed(error.to_string()))?;
    let write = || -> io::Result<()> {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&folder)?;
        // `serve` and `fingerprint` may be at it at the same moment: one of them makes it, for both.
        let lock = fs::File::create(folder.join("making.lock"))?;
        lock.lock()?;
        if certificate.exists() {
            return Ok(());
        }
        // The key first: a certificate that is there has its key.
        write_whole(&folder, "key.pem", made.signing_key.serialize_pem().as_bytes())?;
        write_whole(&folder, "certificate.pem", made.cert.pem().as_bytes())
    };
    write().map_err(|error| failed(error.to_string()))?;
    Ok((certificate, key))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_certificate_is_made_once() {
        let folder = tempfile::tempdir().unwrap();
        let text = format!("listen = \"127.0.0.1:0\"\nstate = {:?}", folder.path().join("s"));
        let config = Config::parse(&text).unwrap();
        let first = identity(&config).unwrap();
        assert_eq!(first.fingerprint, identity(&config).unwrap().fingerprint);
        assert!(first.fingerprint.starts_with("sha256:") && first.fingerprint.len() == 71);
        let named = format!("{text}\n[tls]\ncertificate = \"/nowhere.pem\"\nkey = \"/nowhere.key\"");
        let error = identity(&Config::parse(&named).unwrap()).unwrap_err();
        assert!(error.to_string().contains("/nowhere.pem"), "{error}");
    }
}
