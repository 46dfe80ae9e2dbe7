//! The services of an OpenStack cloud, as far as backups need them: who one is (Keystone), instances (Nova), images (Glance).
//!
//! [`Cloud`] speaks to all of them with one token, which is made anew when it has run out. Reads are repeated while that can help; what
//! changes something is asked once, unless asking twice does no harm.

mod answer;
mod catalog;
mod credentials;
mod error;
mod identity;
mod images;
mod servers;
mod upload;

pub use answer::complaint;
pub use catalog::{Catalog, Service};
pub use credentials::Credentials;
pub use error::OpenStackError;
pub use identity::Cloud;
pub use images::{Image, NewImage, new_image_id, says_how_to_run};
pub use servers::{Created, Flavors, LOCKED_BY, NewServer, Ports, Server};
pub use upload::{ImageUpload, ImageWriter};
