//! openraft's own storage suite on the real stores.

use openraft::{
    StorageError,
    testing::log::{StoreBuilder, Suite},
};
use tempfile::TempDir;

use crate::{identity::Identity, log::LogStore, state::Machine, stores::Stores, types::TypeConfig};

struct Builder;

/// Closes the stores before their directory goes.
struct Guard {
    stores: Option<Stores>,
    _dir: TempDir,
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.stores.take().into_iter().for_each(Stores::close_now);
    }
}

impl StoreBuilder<TypeConfig, LogStore, Machine, Guard> for Builder {
    async fn build(&self) -> Result<(Guard, LogStore, Machine), StorageError<TypeConfig>> {
        let dir = tempfile::tempdir().unwrap();
        let identity = Identity {
            cluster_id: [1; 16],
            raft_id: 0,
            name: "node".to_owned(),
        };
        let stores = Stores::open(dir.path(), &identity).unwrap();
        let (log, state) = (stores.log.clone(), stores.state());
        let guard = Guard {
            stores: Some(stores),
            _dir: dir,
        };
        Ok((guard, log.clone(), Machine::new(state, log)))
    }
}

#[tokio::test]
async fn the_stores_keep_openrafts_contract() {
    Suite::test_all(Builder).await.unwrap();
}
