//! One binary for all end-to-end tests: the real daemon, tool, broker and registry, on loopback and temporary folders.

mod arrows;
mod clients;
mod inputs;
mod lives;
mod loads;
mod path;
mod roads;
mod tool;
mod trust;
mod unit;
