//! The floor between transports and workers.

use crate::intake::{Reply, ReplyTo, Request};
use tractd_wire::Status;

pub(crate) struct Floor;

impl Floor {
    pub(crate) fn submit(&self, request: Request, reply: ReplyTo) {
        reply.send(Reply::refusal(Status::Draining, &request.model, "not yet built"));
    }
}
