//! The publisher's side of updates: a TUF repository of plain static files, the keys that sign it, and the
//! rollout files that say who gets what.
//!
//! ```text
//! metadata/<n>.root.json       2 of 3 keys, offline; the one a device pins
//! metadata/<n>.targets.json    offline; delegates, lists nothing itself
//! metadata/<n>.team-<x>.json   "this artifact is genuine", for models/<x>/*/*
//! metadata/<n>.rollout.json    "who gets what", for rollout/*
//! metadata/<n>.snapshot.json   online, 7 days
//! metadata/timestamp.json      online, 1 day; written last, it makes everything before it visible
//! targets/<folders>/<SHA-256>.<file name>
//! ```
//!
//! What a key elsewhere must sign waits in `staged/`; see `docs/registry.md` for who keeps which key.
//!
//! The metadata is written by this crate itself rather than by a library's editor: the roles above are few, and
//! every repository written in the tests is read back by two independent TUF clients.
//!
//! Deliberately absent: anything a device links.

mod authority;
mod documents;
mod error;
mod files;
mod keys;
mod metadata;
mod registry;
mod request;
mod rollouts;
mod serve;
mod staging;
mod verify;
mod waves;

pub use documents::{Custom, Entry, Rollout, Wave};
pub use error::RegistryError;
pub use keys::{KeyError, KeyFolder, KeyInfo};
pub use metadata::{MetadataError, RoleKeys};
pub use registry::Registry;
pub use request::{
    Added, Delegate, HEALTHY_SECS, Options, Publish, Published, Refreshed, RoleStatus, Rotate, Share,
    SignedFile, Waiting,
};
pub use rollouts::Action;
pub use serve::Server;
pub use staging::{show, sign};
pub use verify::{Finding, Verified, verify};
