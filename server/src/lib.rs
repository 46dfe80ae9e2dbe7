//! The authority over repositories for many hosts, over HTTP. `docs/server.md` is its contract, `docs/security.md` says whom it trusts with what.

pub mod cli;
mod coming;
pub mod config;
mod connection;
mod hosted;
mod jobs;
mod limits;
mod metrics;
pub mod openapi;
mod page;
mod routes;
pub mod schedule;
mod serve;
mod server;
mod text;
mod tls;
pub mod tokens;

pub use page::{PAGES, Page};
pub use routes::{
    Asker, Content, Layout, Machines, OWN_ROUTES, OwnRoute, Query, REPOSITORIES, ROUTES, Refused, Route,
    SchemaOf,
};
pub use serve::{Running, ServeError, start};
pub use tls::TlsError;
