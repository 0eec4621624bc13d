//! End-to-end tests and the demo: real daemon, real broker, real registry.
