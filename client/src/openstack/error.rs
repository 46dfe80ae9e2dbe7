//! What can go wrong between here and a cloud.

use std::path::PathBuf;

/// Everything that this room reports.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenStackError {
    /// It is not known who asks, or whom.
    #[error("no access to OpenStack: {problem}")]
    Credentials {
        /// What is missing or wrong.
        problem: String,
    },
    /// A file of the user's cannot be used.
    #[error("cannot read {path}")]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// Nobody answers.
    #[error("{url} does not answer")]
    Unreachable {
        /// Where.
        url: String,
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// Whoever answers there does not prove to be who it should be.
    #[error("{url} is not to be trusted")]
    Untrusted {
        /// Where.
        url: String,
        /// What is wrong with its certificate.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A service does not do what it was asked.
    #[error("{request}: the cloud answers {status}: {message}")]
    Refused {
        /// Method and URL.
        request: String,
        /// The status of HTTP.
        status: u16,
        /// What the service says.
        message: String,
    },
    /// A service answers something else than its interface says.
    #[error("{request}: the answer makes no sense: {problem}")]
    Nonsense {
        /// Method and URL.
        request: String,
        /// What is wrong with it.
        problem: String,
    },
    /// The cloud does not have this service where it was looked for.
    #[error(
        "the cloud's catalog has no endpoint of the service {service} ({sought}); of that it has {offered}"
    )]
    NoEndpoint {
        /// Its type, such as `image`.
        service: &'static str,
        /// Interface and region.
        sought: String,
        /// Interfaces and regions that there are.
        offered: String,
    },
    /// Something is not in the state that the work needs.
    #[error("{what}: {problem}")]
    State {
        /// What, such as `instance 5f3a…`.
        what: String,
        /// What is in the way.
        problem: String,
        /// What the user can do.
        hint: &'static str,
    },
    /// The user asks to stop.
    #[error("interrupted")]
    Interrupted,
}

impl OpenStackError {
    /// What the user can do next, where there is something.
    pub fn hint(&self) -> Option<&'static str> {
        Some(match self {
            Self::Credentials { .. } => {
                "set OS_CLOUD or give --os-cloud NAME of a clouds.yaml, or set OS_AUTH_URL and the other OS_* variables, as for \
                 the `openstack` command"
            }
            Self::Refused { status: 401, .. } => {
                "check user, password or application credential, and the domains"
            }
            Self::Refused { status: 403, .. } => "the cloud's policy does not allow this user to do that",
            Self::Refused { status: 406, .. } => {
                "backups need Nova's interface 2.73 (Stein) or later; --no-api does without"
            }
            Self::Refused { status: 300..=399, .. } => {
                "no password and no token is sent elsewhere: name the place itself, by OS_AUTH_URL (auth_url) or in the cloud's catalog"
            }
            Self::Unreachable { .. } => {
                "check the URL, and HTTPS_PROXY, HTTP_PROXY and NO_PROXY if they are set"
            }
            Self::Untrusted { .. } => {
                "set OS_CACERT (cacert) to a file with the certificate of who vouches for the cloud; a server's own must not be that of an \
                 authority (CA:FALSE)"
            }
            Self::NoEndpoint { .. } => {
                "check OS_REGION_NAME and OS_INTERFACE; `openstack catalog list` shows what there is"
            }
            Self::State { hint, .. } => hint,
            _ => return None,
        })
    }

    /// Whether what was asked may have been done all the same: nobody said that it was not.
    pub fn leaves_open(&self) -> bool {
        matches!(self, Self::Unreachable { .. } | Self::Nonsense { .. } | Self::Refused { status: 500.., .. })
    }

    /// Whether a service says that there is no such thing.
    pub fn is_missing(&self) -> bool {
        matches!(self, Self::Refused { status: 404, .. })
    }
}
