//! OpenStack, as the user names it.

use clap::Args;

use super::App;
use super::report::Failure;
use super::text::warn;
use crate::openstack::{Cloud, Credentials, OpenStackError};

/// Which cloud, and who one is in it.
#[derive(Clone, Debug, Args)]
pub(super) struct CloudOptions {
    /// A cloud of a clouds.yaml; without it OS_CLOUD, or OS_AUTH_URL and the other OS_* variables
    #[arg(long, value_name = "CLOUD")]
    os_cloud: Option<String>,
}

impl CloudOptions {
    /// The cloud, if one is named.
    pub fn find(&self, app: &App) -> Result<Option<Cloud>, Failure> {
        let variable = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
        let Some(credentials) = Credentials::find(self.os_cloud.as_deref(), &variable)? else {
            return Ok(None);
        };
        if credentials.trust_anybody() {
            warn(
                "note: whoever answers is believed to be the cloud, and is given password and token: its certificate is not verified",
            );
        }
        // Its connections live on the runtime's threads.
        let _runtime = app.runtime.enter();
        Ok(Some(Cloud::new(credentials, Some(app.stopping.clone()))?))
    }

    /// The cloud.
    pub fn needed(&self, app: &App) -> Result<Cloud, Failure> {
        let nothing = || OpenStackError::Credentials { problem: "no cloud is named".into() };
        self.find(app)?.ok_or_else(|| nothing().into())
    }
}
