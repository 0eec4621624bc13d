//! The device's side of updates.
//!
//! A check runs one way: fetch metadata, verify it from the pinned root, decide by policy, download, unpack,
//! self-test in a child the daemon provides, and commit at one point in the [`Store`]. Whatever happens before
//! that point, the device keeps what it had.
//!
//! - [`fs`]: the only module that touches `std::fs`; a trait, so that tests can cut the power at any operation.
//! - [`Store`]: bundles by digest, and a two-slot state file that says which are active.
//! - [`verify`]: TUF, behind one module; the rollback floors are ours.
//! - [`policy`]: pure: is this entry for this device, now?
//! - [`trial`]: pure: does a new version do as well as the one before, under real requests?
//! - [`source`]: a registry over HTTP(S), or a directory such as a memory stick.
//! - [`Updater`]: drives the above, blocking, on a thread of its own.
//!
//! Absent on purpose: MQTT, tract, an async runtime, and any way for the registry to tell a device its group.

mod certificates;
mod client;
mod clock;
mod crypto;
mod device;
mod download;
pub mod fs;
pub mod policy;
pub mod rollout;
mod schedule;
pub mod source;
mod state;
mod store;
pub mod tls;
pub mod trial;
mod updater;
pub mod verify;

pub use certificates::Validity;
pub use client::{Client, Fresh};
pub use clock::Clock;
pub use device::{
    Device, DeviceError, NODE_LEN_MAX, Provisioned, node_id, provision, provision_on, reset, reset_on,
};
pub use state::{Blocked, Installed, OnTrial, Release};
pub use store::{Store, StoreError, time_floor_s};
pub use tls::Roots;
pub use updater::{CheckError, Config, Event, Failure, Outcome, Refused, Unproven, Updater};
