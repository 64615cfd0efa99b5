//! Reads of this node's state for callers that must not be held up: the disk is waited for on other threads.
//!
//! Invariants
//! - A row that is kept in memory is read at once, on the caller's thread. None of the callers' threads ever waits for the disk, or
//!   steps over keys without number.
//! - A disk that hangs holds as many threads as [`Readers`] have, and no more.

use std::{io, sync::Arc};

use bytes::Bytes;

use crate::{
    error::StateError,
    readers::Readers,
    state::{AtHand, State},
};

/// The state, and who reads it from the disk.
pub(crate) struct Reads {
    state: Arc<State>,
    readers: Readers,
}

impl Reads {
    pub(crate) fn new(state: Arc<State>) -> Self {
        Self {
            state,
            readers: Readers::new(),
        }
    }

    /// See [`State::get_at`].
    pub(crate) async fn get_at(
        &self,
        restores: u64,
        key: &[u8],
    ) -> Result<Option<(u64, Bytes)>, StateError> {
        match self.state.get_at_hand(restores, key)? {
            AtHand::Found(found) => Ok(found),
            AtHand::OnDisk => {
                let key = key.to_vec();
                self.handed_over(move |state| state.get_at(restores, &key))
                    .await
            }
        }
    }

    /// See [`State::mod_index`].
    pub(crate) async fn mod_index(&self, key: &[u8]) -> Result<Option<u64>, StateError> {
        match self.state.mod_index_at_hand(key)? {
            AtHand::Found(found) => Ok(found),
            AtHand::OnDisk => {
                let key = key.to_vec();
                self.handed_over(move |state| state.mod_index(&key)).await
            }
        }
    }

    /// See [`State::keys_at`].
    pub(crate) async fn keys_at(
        &self,
        restores: u64,
        prefix: &[u8],
        after: Option<&[u8]>,
        limit: usize,
    ) -> Result<Vec<Bytes>, StateError> {
        let (prefix, after) = (prefix.to_vec(), after.map(<[u8]>::to_vec));
        self.handed_over(move |state| state.keys_at(restores, &prefix, after.as_deref(), limit))
            .await
    }

    /// Reads on another thread.
    async fn handed_over<T: Send + 'static>(
        &self,
        read: impl FnOnce(&State) -> Result<T, StateError> + Send + 'static,
    ) -> Result<T, StateError> {
        let state = Arc::clone(&self.state);
        let read = self.readers.run(move || read(&state)).await;
        read.unwrap_or_else(|error| Err(io::Error::other(error).into()))
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;
    use crate::{
        readers::tests::hold,
        state::tests::{append, apply, identity, put},
        stores::Stores,
    };

    #[tokio::test]
    async fn only_what_is_on_the_disk_waits_for_a_reader() {
        let dir = tempfile::tempdir().unwrap();
        let stores = Stores::open(dir.path(), &identity(1)).unwrap();
        append(&stores.log, vec![put(0, "a"), put(1, "b")]).await;
        apply(&stores, vec![put(0, "a"), put(1, "b")]).await;
        let reads = Reads::new(stores.state());
        // With every reader held up, as by a disk that hangs.
        let held = hold(&reads.readers).await;
        assert!(reads.get_at(0, b"a").now_or_never().is_none());
        assert!(reads.mod_index(b"b").now_or_never().is_none());
        assert!(reads.keys_at(0, b"", None, 9).now_or_never().is_none());
        drop(held);
        let found = reads.get_at(0, b"a").await.unwrap();
        assert_eq!(found.map(|(index, _)| index), Some(0));
        assert_eq!(reads.mod_index(b"b").await.unwrap(), Some(1));
        assert_eq!(reads.get_at(0, b"c").await.unwrap(), None);
        assert_eq!(reads.keys_at(0, b"", None, 9).await.unwrap(), ["a", "b"]);
        // In memory from now on.
        assert!(reads.get_at(0, b"a").now_or_never().is_some());
        assert!(reads.mod_index(b"b").now_or_never().is_some());
        let other = reads.get_at(1, b"a").await;
        assert!(matches!(other, Err(StateError::Superseded)), "{other:?}");
        stores.close().await;
        let closed = reads.get_at(0, b"a").await;
        assert!(matches!(closed, Err(StateError::Closed)), "{closed:?}");
    }
}
