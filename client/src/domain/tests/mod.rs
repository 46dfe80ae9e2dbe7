//! The state machine against a scripted double of everything it acts on.

mod bitmaps;
mod every_step;
mod foreign;
mod guards;
mod host;
mod images;
mod jobs;
mod local;
mod machine;
mod others;
mod pulls;
mod repository;
mod rig;
mod saved;
mod scripts;
mod world;
