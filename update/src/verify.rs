//! x
/// Why.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum VerifyError {
    /// x
    #[error("{0}")]
    Refused(String),
}
pub(crate) fn check_root(_root: &[u8]) -> Result<(), String> { Ok(()) }
