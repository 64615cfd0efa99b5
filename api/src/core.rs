//! Everything that works on decrypted data; exists only while the node is unsealed.

use std::sync::Arc;

use crate::{
    mounts::Mounts,
    ports::{Barrier, SealWrap, Store},
    storage::Storage,
    token::Tokens,
};

/// How clients know the cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClusterIdentity {
    /// For people.
    pub name: String,
    /// UUID.
    pub id: String,
}

/// Storage, mount table, tokens and identity of an unsealed node.
pub struct Core {
    storage: Storage,
    mounts: Mounts,
    tokens: Tokens,
    cluster: ClusterIdentity,
}

impl Core {
    /// A core on the node's replicated state, barrier and seal.
    pub fn new(
        store: Arc<dyn Store>,
        barrier: Arc<dyn Barrier>,
        wrap: Arc<dyn SealWrap>,
        cluster: ClusterIdentity,
    ) -> Self {
        Self {
            storage: Storage::new(store, barrier, wrap),
            mounts: Mounts::default(),
            tokens: Tokens::default(),
            cluster,
        }
    }

    /// Reads and writes of decrypted values.
    #[must_use]
    pub fn storage(&self) -> &Storage {
        &self.storage
    }

    /// The mount table.
    #[must_use]
    pub fn mounts(&self) -> &Mounts {
        &self.mounts
    }

    /// The tokens.
    #[must_use]
    pub fn tokens(&self) -> &Tokens {
        &self.tokens
    }

    /// The cluster.
    #[must_use]
    pub fn cluster(&self) -> &ClusterIdentity {
        &self.cluster
    }
}
