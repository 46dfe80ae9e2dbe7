//! Defining a domain that is not there yet.

use super::{Adapted, Hypervisor, HypervisorError};

/// Why a domain was not defined.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DefineError {
    /// Another domain has the name.
    #[error("there is a domain {name:?} already")]
    NameTaken { name: String },

    /// Another domain has the UUID.
    #[error("the UUID {uuid} is that of domain {name:?}")]
    UuidTaken { uuid: String, name: String },

    /// The hypervisor reported success, and knows of no such domain.
    #[error("the hypervisor took the definition of domain {name:?} and does not have it")]
    Lost { name: String },

    /// The hypervisor failed.
    #[error(transparent)]
    Hypervisor(#[from] HypervisorError),
}

impl DefineError {
    /// What the user can do next, where there is something.
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            Self::NameTaken { .. } => {
                Some("restore it as another machine with --name NEW, or undefine the one that is there")
            }
            Self::UuidTaken { .. } => Some(
                "restore it as another machine with --name NEW, or under its own name with --new-identity",
            ),
            Self::Lost { .. } => None,
            Self::Hypervisor(error) => error.hint(),
        }
    }
}

/// Refuses if a domain has that name or that UUID.
///
/// # Errors
/// [`DefineError::NameTaken`], [`DefineError::UuidTaken`], or what the hypervisor reports.
pub fn ensure_free(hypervisor: &dyn Hypervisor, name: &str, uuid: &str) -> Result<(), DefineError> {
    if hypervisor.domains()?.iter().any(|taken| taken == name) {
        return Err(DefineError::NameTaken { name: name.to_owned() });
    }
    match hypervisor.name_of(uuid)? {
        Some(name) => Err(DefineError::UuidTaken { uuid: uuid.to_owned(), name }),
        None => Ok(()),
    }
}

/// Defines a domain whose name and UUID must be free. What the hypervisor has afterwards decides.
///
/// # Errors
/// As for [`ensure_free`], and [`DefineError::Lost`].
pub fn define_new(hypervisor: &dyn Hypervisor, adapted: &Adapted) -> Result<(), DefineError> {
    ensure_free(hypervisor, &adapted.name, &adapted.uuid)?;
    let told = hypervisor.define(&adapted.xml);
    let there = match hypervisor.domain(&adapted.name) {
        Ok(domain) => domain.inactive.is_some() && domain.uuid.eq_ignore_ascii_case(&adapted.uuid),
        Err(HypervisorError::NoDomain { .. }) => false,
        // Nobody knows, so that the hypervisor's own word counts.
        Err(_) => told.is_ok(),
    };
    match (told, there) {
        (_, true) => Ok(()),
        (Ok(()), false) => Err(DefineError::Lost { name: adapted.name.clone() }),
        (Err(error), false) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::sync::Mutex;
    use std::time::Duration;

    use super::super::{Backing, BlockJob, Definition, Domain, Overlay};
    use super::*;

    /// What becomes of definitions.
    #[derive(Clone, Copy, PartialEq)]
    enum Fate {
        Kept,
        KeptWithAnError,
        Refused,
        Forgotten,
    }

    /// A hypervisor that only has names and UUIDs.
    struct Names {
        domains: Mutex<Vec<(String, String)>>,
        fate: Fate,
    }

    type Answer<T> = Result<T, HypervisorError>;

    impl Hypervisor for Names {
        fn domains(&self) -> Answer<Vec<String>> {
            Ok(self.domains.lock().unwrap().iter().map(|(name, _)| name.clone()).collect())
        }

        fn domain(&self, name: &str) -> Answer<Domain> {
            let domains = self.domains.lock().unwrap();
            let found = domains.iter().find(|domain| domain.0 == name);
            let (name, uuid) =
                found.cloned().ok_or_else(|| HypervisorError::NoDomain { domain: name.to_owned() })?;
            Ok(Domain { name, uuid, live: None, inactive: Some(Definition::parse("", "<domain/>").unwrap()) })
        }

        fn define(&self, xml: &str) -> Answer<()> {
            let refused = || HypervisorError::Failed { command: "define".into(), message: "no".into() };
            if matches!(self.fate, Fate::Kept | Fate::KeptWithAnError) {
                self.domains.lock().unwrap().push((xml.to_owned(), format!("uuid of {xml}")));
            }
            match self.fate {
                Fate::Kept | Fate::Forgotten => Ok(()),
                Fate::KeptWithAnError | Fate::Refused => Err(refused()),
            }
        }

        fn uri(&self) -> Answer<String> {
            unreachable!()
        }
        fn is_stuck(&self, _: &str) -> Answer<bool> {
            unreachable!()
        }
        fn is_saved(&self, _: &str) -> Answer<bool> {
            unreachable!()
        }
        fn snapshots(&self, _: &str) -> Answer<Vec<String>> {
            unreachable!()
        }
        fn checkpoints(&self, _: &str) -> Answer<Vec<String>> {
            unreachable!()
        }
        fn domain_job(&self, _: &str) -> Answer<Option<String>> {
            unreachable!()
        }
        fn block_job(&self, _: &str, _: &str) -> Answer<Option<BlockJob>> {
            unreachable!()
        }
        fn capacity(&self, _: &str, _: &str) -> Answer<u64> {
            unreachable!()
        }
        fn agent_answers(&self, _: &str, _: Duration) -> Answer<bool> {
            unreachable!()
        }
        fn freeze(&self, _: &str, _: &[Overlay], _: Option<Duration>) -> Answer<()> {
            unreachable!()
        }
        fn thaw(&self, _: &str, _: Duration) -> Answer<()> {
            unreachable!()
        }
        fn commit(&self, _: &str, _: &str, _: &Path, _: &Path) -> Answer<()> {
            unreachable!()
        }
        fn commit_active(&self, _: &str, _: &str, _: &Path) -> Answer<()> {
            unreachable!()
        }
        fn pivot(&self, _: &str, _: &str) -> Answer<()> {
            unreachable!()
        }
        fn commit_stopped(&self, _: &Path, _: &Backing) -> Answer<()> {
            unreachable!()
        }
    }

    fn define(name: &str, uuid: &str, fate: Fate) -> Result<(), DefineError> {
        let domains = Mutex::new(vec![("web".to_owned(), "uuid of web".to_owned())]);
        let (name, uuid) = (name.to_owned(), uuid.to_owned());
        let adapted = Adapted { xml: name.clone(), name, uuid, removed: Vec::new(), has_tpm: false };
        define_new(&Names { domains, fate }, &adapted)
    }

    #[test]
    fn a_taken_name_or_uuid_is_refused() {
        let error = define("web", "uuid of mail", Fate::Kept).unwrap_err();
        assert!(matches!(&error, DefineError::NameTaken { name } if name == "web"), "{error}");
        assert!(error.hint().unwrap().contains("--name NEW"));
        let error = define("mail", "UUID of web", Fate::Kept).unwrap_err();
        assert!(matches!(&error, DefineError::UuidTaken { name, .. } if name == "web"), "{error}");
        assert!(error.hint().unwrap().contains("--new-identity"));
    }

    #[test]
    fn what_the_hypervisor_has_afterwards_decides() {
        let defined = |fate| define("mail", "uuid of mail", fate);
        assert!(defined(Fate::Kept).is_ok() && defined(Fate::KeptWithAnError).is_ok());
        assert!(matches!(
            defined(Fate::Refused),
            Err(DefineError::Hypervisor(HypervisorError::Failed { .. }))
        ));
        assert!(matches!(defined(Fate::Forgotten), Err(DefineError::Lost { .. })));
    }
}
