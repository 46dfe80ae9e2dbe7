//! Requests, repeated while that can help.

use std::error::Error as StdError;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
pub(super) use reqwest::Method;
use reqwest::redirect::Policy;
use reqwest::tls::Version;
use reqwest::{Client, Response, StatusCode, header};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::watch;
use tokio::time::{Instant, sleep};
use underlay_store::Error;
use underlay_store::wire::{Problem, SignedRequest, kind};
use zeroize::Zeroizing;

use super::location::Location;
use super::{RemoteOptions, pinned};

/// After the first failure of a request, it is tried again for so long.
const PATIENCE: Duration = Duration::from_secs(120);
/// Attempts as long as the server has never answered: it may not exist at all.
const FIRST_ATTEMPTS: u32 = 3;
const SHORTEST_PAUSE: Duration = Duration::from_millis(200);
const LONGEST_PAUSE: Duration = Duration::from_secs(10);
/// One attempt at something short.
const SHORT: Duration = Duration::from_secs(90);
/// One attempt at something long: a pack over a slow line, the proof of a large commit.
pub(super) const LONG: Duration = Duration::from_secs(15 * 60);
/// An answer that is read without being asked for a larger one, in bytes.
const ANSWER: usize = 64 << 20;

/// What is asked.
#[derive(Debug)]
pub(super) struct Ask {
    pub(super) method: Method,
    /// Below the repository's path; with its query.
    pub(super) path: String,
    pub(super) body: Option<Bytes>,
    /// The longest answer, in bytes.
    pub(super) limit: usize,
    /// The time for one attempt.
    pub(super) time: Duration,
    pub(super) json: bool,
    /// The bucket is asked, by this request of the server's, and not the server.
    pub(super) signed: Option<SignedRequest>,
}

impl Ask {
    pub(super) fn new(method: Method, path: impl Into<String>) -> Self {
        Self { method, path: path.into(), body: None, limit: ANSWER, time: SHORT, json: false, signed: None }
    }

    pub(super) fn get(path: impl Into<String>) -> Self {
        Self::new(Method::GET, path)
    }

    /// With a binary body.
    pub(super) fn binary(method: Method, path: impl Into<String>, body: Bytes) -> Self {
        Self { body: Some(body), ..Self::new(method, path) }
    }

    /// Asks the bucket.
    pub(super) fn signed(method: Method, request: SignedRequest) -> Self {
        let path = request.url.split('?').next().unwrap_or_default().to_owned();
        Self { signed: Some(request), time: LONG, ..Self::new(method, path) }
    }

    /// With a JSON body.
    pub(super) fn json(
        method: Method,
        path: impl Into<String>,
        body: &impl Serialize,
    ) -> Result<Self, Error> {
        let body = serde_json::to_vec(body).map_err(|error| Error::Invalid {
            what: "request",
            value: error.to_string(),
            rule: "made of numbers that JSON has".to_owned(),
        })?;
        Ok(Self { json: true, ..Self::binary(method, path, body.into()) })
    }
}

/// What came of it.
#[derive(Debug)]
pub(super) struct Sent {
    pub(super) result: Result<Bytes, Error>,
    /// An earlier attempt may have reached the server.
    pub(super) repeated: bool,
    /// The kind of the problem that the server told of, if it did.
    pub(super) kind: Option<String>,
}

/// Why one attempt gave no answer.
enum Broken {
    /// It may go better the next time.
    Passing(underlay_store::error::Source),
    /// It will not.
    Lasting(Error),
    Problem(Problem),
}

/// One repository on one server.
pub(super) struct Http {
    client: Client,
    /// Speaks to the bucket, which has a certificate of its own and is told no token.
    bucket: Client,
    location: Location,
    token: Zeroizing<String>,
    stopping: Option<watch::Receiver<bool>>,
    /// The server has answered before.
    answered: AtomicBool,
    /// The bucket has.
    bucket_answered: AtomicBool,
}

impl std::fmt::Debug for Http {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Http({})", self.location.text)
    }
}

impl Http {
    pub(super) fn new(location: Location, options: &RemoteOptions) -> Result<Self, Error> {
        let unreachable = |source: underlay_store::error::Source| Error::Unreachable {
            server: location.server.clone(),
            source,
        };
        let basis = || {
            Client::builder()
                .user_agent(concat!("underlay/", env!("CARGO_PKG_VERSION")))
                .redirect(Policy::none())
                .no_proxy()
                .connect_timeout(Duration::from_secs(10))
                .tcp_keepalive(Duration::from_secs(20))
        };
        let mut builder = basis()
            .http2_initial_stream_window_size(4 << 20)
            .http2_initial_connection_window_size(16 << 20)
            .http2_keep_alive_interval(Duration::from_secs(20))
            .http2_keep_alive_timeout(Duration::from_secs(20));
        if let Some(fingerprint) = &options.fingerprint {
            let fingerprint = pinned::read(fingerprint).ok_or_else(|| Error::Invalid {
                what: "fingerprint",
                value: fingerprint.clone(),
                rule: "`sha256:` and 64 hex digits, as `underlay-server fingerprint` prints it".to_owned(),
            })?;
            let tls = pinned::config(fingerprint).map_err(|error| unreachable(error.into()))?;
            builder = builder.tls_backend_preconfigured(tls);
        } else {
            builder = builder.tls_version_min(Version::TLS_1_3);
        }
        let client = builder.build().map_err(|error| unreachable(error.into()))?;
        let bucket = basis().build().map_err(|error| unreachable(error.into()))?;
        let (token, stopping) = (options.token.clone(), options.stopping.clone());
        let (answered, bucket_answered) = <(AtomicBool, AtomicBool)>::default();
        Ok(Self { client, bucket, location, token, stopping, answered, bucket_answered })
    }

    /// An answer that means nothing.
    pub(super) fn nonsense(&self, what: impl Into<String>) -> Error {
        Error::Server { server: self.location.server.clone(), what: what.into() }
    }

    /// The error that a problem tells of.
    pub(super) fn told(&self, problem: Problem) -> Error {
        problem.into_error(&self.location.server, &self.location.text)
    }

    /// Asks, and reads the answer as JSON.
    pub(super) async fn read<T: DeserializeOwned>(&self, ask: &Ask) -> Result<T, Error> {
        self.understood(&self.send(ask).await.result?)
    }

    /// An answer, read as JSON.
    pub(super) fn understood<T: DeserializeOwned>(&self, answer: &[u8]) -> Result<T, Error> {
        serde_json::from_slice(answer).map_err(|error| self.nonsense(format!("its answer: {error}")))
    }

    /// Whether the bucket has ever answered.
    pub(super) fn bucket_has_answered(&self) -> bool {
        self.bucket_answered.load(Ordering::Relaxed)
    }

    /// Asks until there is an answer, or no hope for one.
    pub(super) async fn send(&self, ask: &Ask) -> Sent {
        let (mut attempts, mut failing_since) = (0, None);
        let mut pause = SHORTEST_PAUSE;
        let outcome = |result, attempts, kind| Sent { result, repeated: attempts > 1, kind };
        let answered = if ask.signed.is_some() { &self.bucket_answered } else { &self.answered };
        loop {
            attempts += 1;
            let source = match self.once(ask).await {
                Ok(answer) => return outcome(Ok(answer), attempts, None),
                Err(Broken::Lasting(error)) => return outcome(Err(error), attempts, None),
                Err(Broken::Problem(problem))
                    if ![kind::INTERRUPTED, kind::TOO_MANY].contains(&problem.kind()) =>
                {
                    let kind = Some(problem.kind().to_owned());
                    return outcome(Err(self.told(problem)), attempts, kind);
                }
                Err(Broken::Problem(problem)) => problem.title.into(),
                Err(Broken::Passing(source)) => source,
            };
            let since = *failing_since.get_or_insert_with(Instant::now);
            let strange = !answered.load(Ordering::Relaxed);
            if since.elapsed() + pause > PATIENCE || (strange && attempts >= FIRST_ATTEMPTS) {
                let server = self.whom(ask);
                return outcome(Err(Error::Unreachable { server, source }), attempts, None);
            }
            tracing::warn!(
                error = &*source as &dyn StdError,
                "no answer to {} {}; asking again",
                ask.method,
                ask.path
            );
            if !self.rest(pause).await {
                return outcome(Err(Error::Interrupted), attempts, None);
            }
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    /// Waits between two attempts; false if the user asks to stop.
    pub(super) async fn rest(&self, pause: Duration) -> bool {
        let Some(mut stopping) = self.stopping.clone() else {
            sleep(pause).await;
            return true;
        };
        let stopped = async {
            // Without anybody who could stop it, nothing stops it.
            if stopping.wait_for(|stop| *stop).await.is_err() {
                std::future::pending::<()>().await;
            }
        };
        tokio::select! {
            () = sleep(pause) => true,
            () = stopped => false,
        }
    }

    /// Who is asked, for people: the server, or where in the bucket.
    fn whom(&self, ask: &Ask) -> String {
        if ask.signed.is_some() { ask.path.clone() } else { self.location.server.clone() }
    }

    async fn once(&self, ask: &Ask) -> Result<Bytes, Broken> {
        if let Some(signed) = &ask.signed {
            return self.once_in_the_bucket(ask, signed).await;
        }
        let Location { server, name, .. } = &self.location;
        let url = format!("{server}/{}/repositories/{name}{}", underlay_store::wire::VERSION, ask.path);
        let mut request =
            self.client.request(ask.method.clone(), url).timeout(ask.time).bearer_auth(&*self.token);
        if let Some(body) = &ask.body {
            let kind = if ask.json { "application/json" } else { "application/octet-stream" };
            request = request.header(header::CONTENT_TYPE, kind).body(body.clone());
        }
        let answer = request.send().await.map_err(|error| self.broken(error))?;
        self.answered.store(true, Ordering::Relaxed);
        let status = answer.status();
        let bytes = self.body(ask, answer).await?;
        if status.is_success() {
            return Ok(bytes);
        }
        let problem =
            serde_json::from_slice::<Problem>(&bytes).ok().filter(|problem| !problem.urn.is_empty());
        match problem {
            Some(problem) => Err(Broken::Problem(problem)),
            // Something between here and there.
            None if matches!(
                status,
                StatusCode::BAD_GATEWAY | StatusCode::SERVICE_UNAVAILABLE | StatusCode::GATEWAY_TIMEOUT
            ) =>
            {
                Err(Broken::Passing(format!("status {status}").into()))
            }
            None => {
                Err(Broken::Lasting(self.nonsense(format!("status {status}: this is no underlay-server"))))
            }
        }
    }

    async fn once_in_the_bucket(&self, ask: &Ask, signed: &SignedRequest) -> Result<Bytes, Broken> {
        let mut request = self.bucket.request(ask.method.clone(), &signed.url).timeout(ask.time);
        // No others, whatever the server says: it may be somebody else's by now.
        let belongs = |name: &str| name.starts_with("x-amz-") || ["authorization", "range"].contains(&name);
        for (name, value) in signed.headers.iter().filter(|(name, _)| belongs(name)) {
            request = request.header(name, value);
        }
        if let Some(body) = &ask.body {
            request = request.body(body.clone());
        }
        let answer = request.send().await.map_err(|error| Broken::Passing(error.without_url().into()))?;
        self.bucket_answered.store(true, Ordering::Relaxed);
        let status = answer.status();
        let bytes = self.body(ask, answer).await?;
        if status.is_success() {
            return Ok(bytes);
        }
        let said = String::from_utf8_lossy(&bytes);
        let said: String = said.chars().filter(|c| !c.is_control()).take(300).collect();
        let what = format!("status {status}: {said}");
        match status {
            StatusCode::TOO_MANY_REQUESTS | StatusCode::REQUEST_TIMEOUT => Err(Broken::Passing(what.into())),
            _ if status.is_server_error() => Err(Broken::Passing(what.into())),
            _ => Err(Broken::Lasting(Error::Server { server: ask.path.clone(), what })),
        }
    }

    /// What an answer says, unless it is too long.
    async fn body(&self, ask: &Ask, mut answer: Response) -> Result<Bytes, Broken> {
        let mut bytes = BytesMut::new();
        while let Some(part) = answer.chunk().await.map_err(|error| self.broken(error))? {
            if bytes.len() + part.len() > ask.limit {
                let server = self.whom(ask);
                return Err(Broken::Lasting(Error::Server { server, what: "its answer is too long".into() }));
            }
            bytes.extend_from_slice(&part);
        }
        Ok(bytes.freeze())
    }

    /// A request that broke: for good, if the server is not who it should be.
    fn broken(&self, error: reqwest::Error) -> Broken {
        let error = error.without_url();
        if is_wrong_server(&error) {
            let source = "its certificate is not the one that is expected: check --server-fingerprint against \
                          `underlay-server fingerprint`";
            let server = self.location.server.clone();
            return Broken::Lasting(Error::Unreachable { server, source: source.into() });
        }
        Broken::Passing(error.into())
    }
}

/// Whether TLS failed for what the server is, not for how the line is.
pub(crate) fn is_wrong_server(error: &(dyn StdError + 'static)) -> bool {
    // An I/O error does not count what it holds among its sources, and holds another one at times.
    if let Some(inner) = error.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref) {
        return is_wrong_server(inner);
    }
    matches!(error.downcast_ref(), Some(rustls::Error::InvalidCertificate(_)))
        || error.source().is_some_and(is_wrong_server)
}
