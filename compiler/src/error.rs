//! Why a graph is refused.

/// What is wrong with the file itself. What is merely not for the kernels is no error: it is left to tract.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CompileError {
    /// The file has no graph.
    #[error("the model has no graph")]
    NoGraph,
    /// More than a compiler should be made to look at.
    #[error("the graph has {got} {what}, more than the limit of {limit}")]
    TooLarge {
        /// Of which there are too many.
        what: &'static str,
        /// How many.
        got: usize,
        /// How many are taken.
        limit: usize,
    },
    /// A tensor nobody computes.
    #[error("node `{node}` reads `{value}`, which nothing produces")]
    Missing {
        /// The reader.
        node: String,
        /// The tensor.
        value: String,
    },
    /// A tensor with two sources.
    #[error("`{value}` is produced twice")]
    Twice {
        /// The tensor.
        value: String,
    },
    /// A node that needs its own result.
    #[error("the graph has a cycle through node `{node}`")]
    Cycle {
        /// One of its nodes.
        node: String,
    },
    /// An operator of a domain that only rewritten graphs may use.
    #[error("node `{node}` is of the domain `tractd`, which is reserved")]
    Reserved {
        /// The node.
        node: String,
    },
    /// Subgraphs within subgraphs.
    #[error("subgraphs are nested deeper than {limit} levels")]
    TooDeep {
        /// Levels looked into.
        limit: usize,
    },
    /// A constant whose dimensions, type and data do not go together.
    #[error("tensor `{tensor}`: {reason}")]
    Tensor {
        /// Which.
        tensor: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// A scale or zero point no quantisation can have.
    #[error("node `{node}`: {reason}")]
    Quantisation {
        /// Which.
        node: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// An operand its operator does not take.
    #[error("node `{node}`: {reason}")]
    Operand {
        /// Which.
        node: String,
        /// What is wrong with it.
        reason: &'static str,
    },
}
