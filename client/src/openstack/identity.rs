//! Keystone: proving who one is, and finding the other services. And requests to all of them.

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use reqwest::{Certificate, Client, Method, RequestBuilder, Response, header};
use tokio::sync::{Mutex, watch};
use tokio::time::sleep;
use zeroize::Zeroizing;

use super::answer::{body, refusal, unreachable};
use super::catalog::{Catalog, Service};
use super::credentials::Trust;
use super::{Credentials, OpenStackError};

/// One short request.
const SHORT: Duration = Duration::from_secs(60);
/// Nobody acknowledges what was sent.
const SILENCE: Duration = Duration::from_secs(120);
/// Attempts at what may be asked again.
const ATTEMPTS: u32 = 5;
const FIRST_PAUSE: Duration = Duration::from_millis(500);
/// Nova's and Glance's header for what Keystone gave.
const TOKEN: &str = "X-Auth-Token";

/// What is asked of a service.
#[derive(Debug)]
pub(super) struct Ask {
    pub service: Service,
    pub method: Method,
    /// Below the service's version.
    pub path: String,
    pub body: Option<serde_json::Value>,
    /// Asking twice does no harm.
    pub repeat: bool,
}

impl Ask {
    pub fn get(service: Service, path: impl Into<String>) -> Self {
        Self { service, method: Method::GET, path: path.into(), body: None, repeat: true }
    }

    pub fn post(service: Service, path: impl Into<String>, body: serde_json::Value) -> Self {
        Self { service, method: Method::POST, path: path.into(), body: Some(body), repeat: false }
    }
}

/// An OpenStack cloud, and somebody in it.
#[derive(Clone, Debug)]
pub struct Cloud {
    client: Client,
    credentials: Arc<Credentials>,
    session: Arc<Mutex<Option<Arc<Session>>>>,
    stopping: Option<watch::Receiver<bool>>,
}

/// What Keystone gave.
pub(super) struct Session {
    token: Zeroizing<String>,
    catalog: Catalog,
}

impl std::fmt::Debug for Session {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Session").finish_non_exhaustive()
    }
}

impl Cloud {
    /// A cloud. Nothing is asked yet. Must be called where there is a runtime. Once `stopping` turns true, nothing is tried again.
    ///
    /// # Errors
    /// [`OpenStackError::File`] if the certificates that vouch for it cannot be read, [`OpenStackError::Unreachable`] if there can be
    /// no TLS.
    pub fn new(
        credentials: Credentials,
        stopping: Option<watch::Receiver<bool>>,
    ) -> Result<Self, OpenStackError> {
        let mut builder = Client::builder()
            .user_agent(concat!("underlay/", env!("CARGO_PKG_VERSION")))
            .connect_timeout(Duration::from_secs(10))
            .tcp_keepalive(Duration::from_secs(20))
            .tcp_user_timeout(SILENCE)
            .redirect(reqwest::redirect::Policy::none());
        match &credentials.trust {
            Trust::Vouched(None) => {}
            Trust::Vouched(Some(path)) => {
                for certificate in certificates(path)? {
                    builder = builder.add_root_certificate(certificate);
                }
            }
            Trust::Anybody => builder = builder.tls_danger_accept_invalid_certs(true),
        }
        let unusable = |error: reqwest::Error| OpenStackError::Unreachable {
            url: credentials.auth_url.clone(),
            source: error.into(),
        };
        let client = builder.build().map_err(unusable)?;
        Ok(Self { client, credentials: Arc::new(credentials), session: Arc::default(), stopping })
    }

    /// Proves who one is, or remembers it.
    pub(super) async fn session(&self) -> Result<Arc<Session>, OpenStackError> {
        let mut known = self.session.lock().await;
        if let Some(session) = &*known {
            return Ok(Arc::clone(session));
        }
        let url = format!("{}/v3/auth/tokens", self.credentials.auth_url);
        let request = self.client.post(&url).header(header::CONTENT_TYPE, "application/json");
        let request = request.timeout(SHORT).body(self.credentials.request.to_string());
        let name = format!("POST {url}");
        let answer = self.repeated(&name, true, || request.try_clone()).await?;
        let token = answer.headers().get("X-Subject-Token").and_then(|token| token.to_str().ok());
        let token = token.map(|token| Zeroizing::new(token.to_owned()));
        let token = token.ok_or_else(|| OpenStackError::Nonsense {
            request: name.clone(),
            problem: "it holds no token: this is no Keystone".into(),
        })?;
        let catalog = Catalog::parse(&name, &body(&name, answer).await?)?;
        let session = Arc::new(Session { token, catalog });
        *known = Some(Arc::clone(&session));
        Ok(session)
    }

    /// Forgets what Keystone gave, unless that has been done already.
    async fn forget(&self, session: &Arc<Session>) {
        let mut known = self.session.lock().await;
        if known.as_ref().is_some_and(|known| Arc::ptr_eq(known, session)) {
            *known = None;
        }
    }

    /// Proves who one is, unless that is done, and asks for nothing.
    ///
    /// # Errors
    /// If Keystone is not convinced, or cannot be asked.
    pub async fn log_in(&self) -> Result<(), OpenStackError> {
        self.session().await.map(drop)
    }

    /// Proves anew who one is, so that a token lives as long as it can from now on.
    pub(super) async fn renew(&self) -> Result<(), OpenStackError> {
        let session = self.session().await?;
        self.forget(&session).await;
        self.session().await.map(drop)
    }

    /// The URL of something that a service has.
    fn url(&self, session: &Session, service: Service, path: &str) -> Result<String, OpenStackError> {
        let Credentials { interface, region, .. } = &*self.credentials;
        let base = match self.credentials.endpoint(service) {
            Some(url) => session.catalog.at(service, url)?,
            None => session.catalog.base(service, interface, region.as_deref())?,
        };
        Ok(format!("{base}{path}"))
    }

    /// A request that carries the token.
    pub(super) async fn request(
        &self,
        service: Service,
        method: Method,
        path: &str,
    ) -> Result<(RequestBuilder, String, Arc<Session>), OpenStackError> {
        let session = self.session().await?;
        let url = self.url(&session, service, path)?;
        let mut token = header::HeaderValue::from_str(&session.token)
            .map_err(|error| OpenStackError::Nonsense { request: url.clone(), problem: error.to_string() })?;
        token.set_sensitive(true);
        let request = self.client.request(method.clone(), &url).header(TOKEN, token);
        Ok((request, format!("{method} {url}"), session))
    }

    /// Asks; the name of the request and its answer, which is one of success.
    pub(super) async fn ask(&self, ask: &Ask) -> Result<(String, Response), OpenStackError> {
        let mut renewed = false;
        loop {
            let (request, name, session) = self.request(ask.service, ask.method.clone(), &ask.path).await?;
            let mut request = request.timeout(SHORT);
            if ask.service == Service::Compute {
                request =
                    request.header("OpenStack-API-Version", format!("compute {}", super::servers::VERSION));
            }
            if let Some(body) = &ask.body {
                request = request.header(header::CONTENT_TYPE, "application/json").body(body.to_string());
            }
            match self.repeated(&name, ask.repeat, || request.try_clone()).await {
                // A token lives for an hour or so.
                Err(OpenStackError::Refused { status: 401, .. }) if !renewed => {
                    renewed = true;
                    self.forget(&session).await;
                }
                answer => return Ok((name, answer?)),
            }
        }
    }

    /// Asks, and reads the answer with `parse`, which is told the request's name.
    pub(super) async fn read<T>(
        &self,
        ask: &Ask,
        parse: impl FnOnce(&str, &[u8]) -> Result<T, OpenStackError>,
    ) -> Result<T, OpenStackError> {
        let (name, answer) = self.ask(ask).await?;
        parse(&name, &body(&name, answer).await?)
    }

    /// Sends a request until there is an answer, or no hope for one.
    async fn repeated(
        &self,
        name: &str,
        repeat: bool,
        request: impl Fn() -> Option<RequestBuilder>,
    ) -> Result<Response, OpenStackError> {
        let mut pause = FIRST_PAUSE;
        for attempt in 1.. {
            let Some(request) = request() else { break };
            let sent = async { Ok(request.send().await) };
            // Whoever waits for something that changes nothing need not wait on.
            let sent = if repeat { self.unless_stopped(sent).await? } else { sent.await? };
            let error = match sent {
                Ok(answer) if answer.status().is_success() => return Ok(answer),
                Ok(answer) => refusal(name, answer).await,
                Err(error) => unreachable(name, error),
            };
            let passing = match &error {
                OpenStackError::Unreachable { .. } => true,
                OpenStackError::Refused { status, .. } => [429, 502, 503, 504].contains(status),
                _ => false,
            };
            if !passing || !repeat || attempt == ATTEMPTS {
                return Err(error);
            }
            tracing::warn!(%error, "asking again");
            self.rest(pause).await?;
            pause *= 2;
        }
        Err(OpenStackError::Nonsense { request: name.to_owned(), problem: "it cannot be sent twice".into() })
    }

    /// Waits.
    pub(super) async fn rest(&self, pause: Duration) -> Result<(), OpenStackError> {
        self.unless_stopped(async {
            sleep(pause).await;
            Ok(())
        })
        .await
    }

    /// Does what may be given up in the middle.
    async fn unless_stopped<T>(
        &self,
        work: impl Future<Output = Result<T, OpenStackError>>,
    ) -> Result<T, OpenStackError> {
        let Some(mut stopping) = self.stopping.clone() else { return work.await };
        let stopped = async {
            // Without anybody who could stop it, nothing stops it.
            if stopping.wait_for(|stop| *stop).await.is_err() {
                std::future::pending::<()>().await;
            }
        };
        tokio::select! {
            done = work => done,
            () = stopped => Err(OpenStackError::Interrupted),
        }
    }

    /// The same cloud for somebody who cleans up: it goes on when the user asks to stop.
    pub(super) fn unstoppable(&self) -> Self {
        Self { stopping: None, ..self.clone() }
    }
}

/// The certificates in a file.
fn certificates(path: &Path) -> Result<Vec<Certificate>, OpenStackError> {
    let failed = |source: Box<dyn std::error::Error + Send + Sync>| OpenStackError::File {
        path: path.to_owned(),
        source,
    };
    let text = fs::read(path).map_err(|error| failed(error.into()))?;
    match Certificate::from_pem_bundle(&text) {
        Ok(found) if found.is_empty() => Err(failed("it holds no certificate".into())),
        found => found.map_err(|error| failed(error.into())),
    }
}
