//! x
use std::time::Duration;
/// Patience.
#[derive(Debug, Clone, Default)]
pub struct Timing { /// x
 pub connect: Duration }
/// Why.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FetchError {
    /// x
    #[error("{0}")]
    Other(String),
}
