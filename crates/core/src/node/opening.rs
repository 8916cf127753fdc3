//! Why a node cannot start on what it finds.

use crate::replica::MetaError;
use crate::store::StoreError;

/// Why a node cannot start on what its store holds.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum OpenError {
    Store(StoreError),
    /// The directory belongs to another cluster.
    ForeignCluster {
        found: String,
    },
    /// The node's own records have another format version.
    ForeignFormat {
        found: u8,
    },
    /// The node's own records cannot be read.
    Malformed {
        record: &'static str,
    },
}

impl OpenError {
    pub(super) fn from_meta(error: MetaError, record: &'static str) -> OpenError {
        match error {
            MetaError::Store(error) => OpenError::Store(error),
            MetaError::Format { found } => OpenError::ForeignFormat { found },
            MetaError::Malformed => OpenError::Malformed { record },
        }
    }
}

impl std::fmt::Display for OpenError {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        match self {
            OpenError::Store(error) => error.fmt(f),
            OpenError::ForeignCluster { found } => {
                write!(f, "the directory belongs to the cluster '{}'", found.escape_debug())
            }
            OpenError::ForeignFormat { found } => {
                let known = crate::replica::META_FORMAT;
                write!(
                    f,
                    "the directory's records have format version {found}, this program reads version {known}"
                )
            }
            OpenError::Malformed { record } => write!(f, "the directory's {record} record cannot be read"),
        }
    }
}

impl std::error::Error for OpenError {}
