//! The bounded queue of commands to the engine's thread. Unread commands count as work: if the
//! thread does not read them for a long time, health reports the engine as stalled.

use std::sync::Arc;
use std::sync::mpsc::{SendError, SyncSender, TrySendError};

use tokio::sync::oneshot;

use crate::admission::{Refusal, ReplyRequest};
use crate::health::EngineStatus;
use crate::mask_workers::MaskResult;
use crate::reply_channel::ReplyChannel;

/// A command to the engine's thread.
pub(crate) enum Command {
    Submit(Box<Submit>),
    /// Cancels the reply with this key. The reason is in the reply's channel.
    Cancel(u64),
    Masks(Box<MaskResult>),
    /// Makes the thread look at the lifecycle, which has changed.
    Wake,
}

/// Replies that are submitted together: either all are admitted or none.
pub(crate) struct Submit {
    pub(crate) arrived_us: u64,
    /// Grouped by prompt. Each reply has its key, its request and its channel.
    pub(crate) prompts: Vec<Vec<(u64, ReplyRequest, Arc<ReplyChannel>)>>,
    pub(crate) answer: oneshot::Sender<Result<(), Refusal>>,
}

/// See the file's head.
#[derive(Clone)]
pub(crate) struct CommandQueue {
    sender: SyncSender<Command>,
    status: Arc<EngineStatus>,
}

impl CommandQueue {
    pub(crate) fn new(sender: SyncSender<Command>, status: Arc<EngineStatus>) -> Self {
        Self { sender, status }
    }

    pub(crate) fn try_send(&self, command: Command) -> Result<(), TrySendError<Command>> {
        self.status.command_sent();
        let sent = self.sender.try_send(command);
        if let Err(error) = &sent {
            self.status.command_read();
            if matches!(error, TrySendError::Disconnected(_)) {
                self.status.idle();
            }
        }
        sent
    }

    /// Sends a command, and waits while the queue is full.
    pub(crate) fn send(&self, command: Command) -> Result<(), SendError<Command>> {
        self.status.command_sent();
        let sent = self.sender.send(command);
        if sent.is_err() {
            self.status.command_read();
            self.status.idle();
        }
        sent
    }
}
