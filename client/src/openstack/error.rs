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
    #[error("the cloud's catalog has no endpoint of the service {service} ({sought})")]
    NoEndpoint {
        /// Its type, such as `image`.
        service: &'static str,
        /// Interface and region.
        sought: String,
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
            Self::Unreachable { .. } => {
                "check the URL, and OS_CACERT if the cloud's certificate is of its own making"
            }
            Self::NoEndpoint { .. } => {
                "check OS_REGION_NAME and OS_INTERFACE; `openstack catalog list` shows what there is"
            }
            Self::State { hint, .. } => hint,
            _ => return None,
        })
    }

    /// Whether a service says that there is no such thing.
    pub fn is_missing(&self) -> bool {
        matches!(self, Self::Refused { status: 404, .. })
    }
}
