//! Requests that others make: signed here, so that bytes go between them and the bucket and do not pass through this program.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use aws_lc_rs::digest::{SHA256, digest};
use bytes::Bytes;
use object_store::aws::{AmazonS3, AwsAuthorizer};
use object_store::client::{HttpClient, HttpConnector, HttpRequest, HttpRequestBody, ReqwestConnector};
use object_store::path::Path;
use object_store::signer::{HeaderName, HeaderValue, Method, Signer as _, Url};
use object_store::{ClientOptions, Error as StoreError};
use serde::{Deserialize, Serialize};

use super::{Backend, failed, path, report};
use crate::error::{Error, Result, Source};
use crate::key::random_bytes;

/// What is called `service` in signatures.
const SERVICE: &str = "s3";

/// A request that whoever has it may make, for a while: its method and its purpose are known from what it was asked for.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct SignedRequest {
    /// Where to.
    pub url: String,
    /// Headers that belong to it, names in lower case.
    pub headers: BTreeMap<String, String>,
}

/// Whoever reads a log has no use for it.
impl fmt::Debug for SignedRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SignedRequest({})", self.url.split('?').next().unwrap_or_default())
    }
}

/// Signs in a bucket's name.
#[derive(Debug)]
pub(super) struct Signer {
    pub(super) bucket: AmazonS3,
    pub(super) region: String,
    /// Before every name.
    pub(super) prefix: Path,
}

impl Signer {
    async fn url(&self, method: Method, name: &str, valid: Duration) -> Result<Url, StoreError> {
        let place = self.prefix.parts().chain(path(name).map_err(wrapped)?.parts()).collect();
        self.bucket.signed_url(method, &place, valid).await
    }

    /// The body's SHA-256 is part of what is signed, so nothing else can be written with it.
    async fn put(&self, name: &str, sha256: &[u8; 32]) -> Result<SignedRequest, StoreError> {
        let mut url = self.url(Method::PUT, name, Duration::from_secs(1)).await?;
        url.set_query(None);
        let mut request = HttpRequest::new(HttpRequestBody::empty());
        *request.method_mut() = Method::PUT;
        *request.uri_mut() = url.as_str().parse().map_err(wrapped)?;
        let credential = self.bucket.credentials().get_credential().await?;
        AwsAuthorizer::new(&credential, SERVICE, &self.region).try_authorize(&mut request, Some(sha256))?;
        let headers = request
            .headers()
            .iter()
            .map(|(name, value)| Ok((name.as_str().to_owned(), value.to_str().map_err(wrapped)?.to_owned())));
        Ok(SignedRequest { url: url.into(), headers: headers.collect::<Result<_, StoreError>>()? })
    }

    /// What the store answers if somebody makes the request with this body.
    async fn make(&self, client: &HttpClient, request: &SignedRequest, body: &'static [u8]) -> Result<u16> {
        let mut made = HttpRequest::new(Bytes::from_static(body).into());
        *made.method_mut() = Method::PUT;
        let odd = |error: Source| report("write", "probe", error);
        *made.uri_mut() = request.url.parse().map_err(|error| odd(Box::new(error)))?;
        for (name, value) in &request.headers {
            let name = name.parse::<HeaderName>().map_err(|error| odd(Box::new(error)))?;
            let value = value.parse::<HeaderValue>().map_err(|error| odd(Box::new(error)))?;
            made.headers_mut().insert(name, value);
        }
        let answer = client.execute(made).await.map_err(|error| odd(Box::new(error)))?;
        Ok(answer.status().as_u16())
    }
}

fn wrapped(error: impl std::error::Error + Send + Sync + 'static) -> StoreError {
    StoreError::Generic { store: "S3", source: Box::new(error) }
}

impl Backend {
    fn signer(&self) -> Result<&Signer> {
        self.inner.signer.as_deref().ok_or_else(|| Error::Location {
            location: self.inner.location.clone(),
            reason: "it is no bucket: nobody can be sent there".to_owned(),
        })
    }

    /// A PUT that stores the object of this name and SHA-256, and nothing else. A store takes it for a quarter of an hour, some for longer.
    ///
    /// # Errors
    /// [`Error::Location`] if this is no bucket; [`Error::Backend`] if there are no credentials to sign with.
    pub async fn sign_put(&self, name: &str, sha256: &[u8; 32]) -> Result<SignedRequest> {
        self.signer()?.put(name, sha256).await.map_err(|error| failed("sign a request for", name, error))
    }

    /// A GET of the object of this name, or of ranges of it, for `valid`.
    ///
    /// # Errors
    /// As [`Backend::sign_put`].
    pub async fn sign_get(&self, name: &str, valid: Duration) -> Result<SignedRequest> {
        let url = self.signer()?.url(Method::GET, name, valid).await;
        let url = url.map_err(|error| failed("sign a request for", name, error))?;
        Ok(SignedRequest { url: url.into(), headers: BTreeMap::new() })
    }

    /// Finds out, by trying, that the store takes signed requests, and holds those who make them to what was signed.
    ///
    /// # Errors
    /// [`Error::Location`] if it does not, or this is no bucket; [`Error::Backend`] if it cannot be asked.
    pub async fn probe_signed(&self) -> Result<()> {
        const RIGHT: &[u8] = b"right";
        let signer = self.signer()?;
        let unfit = |what: String| Error::Location { location: self.inner.location.clone(), reason: what };
        let client = ReqwestConnector::default().connect(&ClientOptions::new().with_allow_http(true));
        let client = client.map_err(|error| failed("write", "probe", error))?;
        let name = format!("probe/{}", hex::encode(random_bytes::<16>()));
        let mut sha256 = [0; 32];
        sha256.copy_from_slice(digest(&SHA256, RIGHT).as_ref());
        let request = self.sign_put(&name, &sha256).await?;
        let wrong = signer.make(&client, &request, b"wrong").await;
        let right = signer.make(&client, &request, RIGHT).await;
        let stored = self.get(&name).await;
        // Whatever came of them.
        self.delete(&name).await?;
        let (wrong, right) = (wrong?, right?);
        if (200..300).contains(&wrong) {
            return Err(unfit(
                "its store takes other bytes than were signed for: clients cannot be sent there".to_owned(),
            ));
        }
        if !(200..300).contains(&right) || stored? != RIGHT {
            return Err(unfit(format!("its store does not take what was signed for it: status {right}")));
        }
        Ok(())
    }
}
