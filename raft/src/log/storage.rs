//! openraft's storage traits on [`LogStore`].

use std::{fmt::Debug, io, ops::Bound, ops::RangeBounds};

use futures_util::{Stream, stream};
use openraft::{
    LogState, OptionalSend, RaftLogReader,
    storage::{IOFlushed, RaftLogStorage},
};

use super::{CHUNK_BYTES, LogStore};
use crate::types::{Entry, LogId, TypeConfig, Vote};

fn bounds(range: &impl RangeBounds<u64>) -> (u64, u64) {
    let start = match range.start_bound() {
        Bound::Included(start) => *start,
        Bound::Excluded(before) => before.saturating_add(1),
        Bound::Unbounded => 0,
    };
    let end = match range.end_bound() {
        Bound::Included(last) => last.saturating_add(1),
        Bound::Excluded(end) => *end,
        Bound::Unbounded => u64::MAX,
    };
    (start, end)
}

impl RaftLogReader<TypeConfig> for LogStore {
    async fn try_get_log_entries<RB>(&mut self, range: RB) -> io::Result<Vec<Entry>>
    where
        RB: RangeBounds<u64> + Clone + Debug + OptionalSend,
    {
        let (start, end) = bounds(&range);
        let mut entries = self.read(start, end, usize::MAX).await?;
        // The rest may be in memory.
        while let Some(next) = entries.last().map(|last| last.log_id.index + 1)
            && next < end
        {
            let more = self.read(next, end, usize::MAX).await?;
            if more.is_empty() {
                break;
            }
            entries.extend(more);
        }
        Ok(entries)
    }

    async fn read_vote(&mut self) -> io::Result<Option<Vote>> {
        Ok(self.vote())
    }

    async fn limited_get_log_entries(&mut self, start: u64, end: u64) -> io::Result<Vec<Entry>> {
        self.read(start, end, CHUNK_BYTES).await
    }

    /// In chunks, so that applying a long range does not hold all of it in memory.
    async fn entries_stream<RB>(
        &mut self,
        range: RB,
    ) -> impl Stream<Item = io::Result<Entry>> + OptionalSend
    where
        RB: RangeBounds<u64> + Clone + Debug + OptionalSend,
    {
        let (start, end) = bounds(&range);
        let state = (self.clone(), start, Vec::new().into_iter());
        Box::pin(stream::unfold(
            Some(state),
            move |state: Option<(Self, u64, std::vec::IntoIter<Entry>)>| async move {
                let (log, next, mut chunk) = state?;
                if let Some(entry) = chunk.next() {
                    return Some((Ok(entry), Some((log, next, chunk))));
                }
                if next >= end {
                    return None;
                }
                match log.read(next, end, CHUNK_BYTES).await {
                    Ok(entries) => {
                        let after = entries.last()?.log_id.index + 1;
                        let mut chunk = entries.into_iter();
                        let entry = chunk.next()?;
                        Some((Ok(entry), Some((log, after, chunk))))
                    }
                    Err(error) => Some((Err(error), None)),
                }
            },
        ))
    }
}

impl RaftLogStorage<TypeConfig> for LogStore {
    type LogReader = Self;

    async fn get_log_state(&mut self) -> io::Result<LogState<TypeConfig>> {
        let (last_purged_log_id, last_log_id) = self.bounds();
        Ok(LogState {
            last_purged_log_id,
            last_log_id,
        })
    }

    async fn get_log_reader(&mut self) -> Self {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote) -> io::Result<()> {
        let synced = Self::save_vote(self, vote)?;
        synced
            .await
            .map_err(|_| io::Error::other("the log was closed"))?
    }

    async fn save_committed(&mut self, committed: Option<LogId>) -> io::Result<()> {
        Self::save_committed(self, committed.as_ref())
    }

    async fn read_committed(&mut self) -> io::Result<Option<LogId>> {
        Ok(self.committed())
    }

    async fn append<I>(&mut self, entries: I, callback: IOFlushed<TypeConfig>) -> io::Result<()>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        self.room().await?;
        Self::append(self, entries.into_iter().collect(), callback)
    }

    async fn truncate_after(&mut self, last: Option<LogId>) -> io::Result<()> {
        Self::truncate_after(self, last)
    }

    async fn purge(&mut self, upto: LogId) -> io::Result<()> {
        Self::purge(self, upto)
    }
}
