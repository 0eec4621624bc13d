//! The MQTT topic tree.
