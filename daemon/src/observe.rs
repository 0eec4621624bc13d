//! What the daemon tells about itself, for the socket's queries and for MQTT.

use tokio::sync::watch;

/// A cheap handle on the daemon's state.
#[derive(Clone)]
pub struct Observer {
    changed: watch::Receiver<u64>,
}

impl Observer {
    /// `{"models": […]}`.
    pub fn models(&self) -> serde_json::Value {
        serde_json::json!({ "models": [] })
    }

    /// The whole status.
    pub fn status(&self) -> serde_json::Value {
        serde_json::json!({})
    }

    /// Counts up whenever a model is loaded, swapped, refused or quarantined.
    pub fn changed(&self) -> watch::Receiver<u64> {
        self.changed.clone()
    }
}
