//! A repository this room made, read by the device's own code and by a second, independent TUF client; attacked
//! with stolen keys; and cut short at every operation.
#![allow(clippy::unwrap_used)] // a test of its own

mod attacks;
mod clock;
mod cuts;
mod faulty;
mod lifecycle;
mod power;
mod publisher;
mod second_client;
mod sim;
mod staging;
mod stolen;
mod support;
mod threats;
mod waves;
