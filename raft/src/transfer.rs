//! Giving leadership away.
//!
//! In: who is wanted. Out: when another node leads, or why none does.
//!
//! Invariants
//! - While leadership is on offer this node takes no writes, and openraft never takes an offer back. So one that is not
//!   taken up is made again, to the next best node if any will do; in the worst case the voters elect by time-out.

use std::time::Instant;

use tokio::{sync::watch, time::timeout_at};

use crate::{
    error::TransferError,
    net::Call,
    plan::{Successor, View, newer, successor, taken_over},
    raft::Role,
    services::Services,
};

/// Hands leadership over and waits until another node has it.
pub(crate) async fn transfer(
    services: &Services,
    mut role: watch::Receiver<Role>,
    wanted: &Successor,
    deadline: Instant,
) -> Result<(), TransferError> {
    // The members' answers stop with the first offer: who was well then is all there is to go by.
    let view = services.view().ok_or(TransferError::NotLeader)?;
    let own = services.raft_id;
    let mut tried = Vec::new();
    loop {
        let target = match successor(&view, wanted, &tried) {
            Err(TransferError::NoTarget) if !tried.is_empty() => {
                tried.clear();
                continue;
            }
            target => target?,
        };
        if matches!(wanted, Successor::Named(_)) {
            say_that_it_is_chosen(services, &view, target).await;
        }
        tracing::info!(to = target, "handing leadership over");
        let trigger = services.core.trigger();
        trigger
            .transfer_leader(target)
            .await
            .map_err(|fatal| TransferError::Fatal(fatal.to_string()))?;
        let until = deadline.min(Instant::now() + services.timing.election_min);
        let taken = role.wait_for(|role| role.leader.is_some_and(|leader| leader != own));
        if let Ok(Ok(role)) = timeout_at(until.into(), taken).await {
            return taken_over(&view, wanted, target, role.leader.unwrap_or(target));
        }
        if Instant::now() >= deadline || role.has_changed().is_err() {
            return Err(TransferError::TimedOut);
        }
        tried.push(target);
    }
}

/// An operator wants a node of an older version to lead: it must not give leadership back at once.
async fn say_that_it_is_chosen(services: &Services, view: &View, target: u64) {
    let (Some(own), Some(other), Some(links)) = (
        view.info(view.leader),
        view.info(target),
        services.links.as_ref(),
    ) else {
        return;
    };
    if !newer(own, other) {
        return;
    }
    let call = Call::Chosen(true);
    let told = links
        .control(target)
        .call(call, services.timing.heartbeat)
        .await;
    if let Err(error) = told {
        tracing::warn!(%error, "the next leader does not know that it was chosen, and may give leadership back");
    }
}
