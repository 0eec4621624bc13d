//! The device's side of updates: verification, policy, download and the crash-safe store.
