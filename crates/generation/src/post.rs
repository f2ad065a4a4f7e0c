//! The way to the engine's thread: a bounded number of messages. While one is unread the thread has
//! something to do, so a thread that reads none is a stalled one.

use std::sync::Arc;
use std::sync::mpsc::{SendError, SyncSender, TrySendError};

use tokio::sync::oneshot;

use crate::gate::{Ask, Refusal};
use crate::guide::Guided;
use crate::health::Board;
use crate::updates::Mailbox;

/// What the engine's thread gets.
pub(crate) enum Mail {
    Arrival(Box<Arrival>),
    /// The request's mailbox says why.
    Left(u64),
    Guided(Box<Guided>),
    /// The doors have moved.
    Look,
}

/// Replies that are asked for together: all are let in or none is.
pub(crate) struct Arrival {
    pub(crate) arrived_us: u64,
    /// By prompt.
    pub(crate) prompts: Vec<Vec<Reply>>,
    pub(crate) answer: oneshot::Sender<Result<(), Refusal>>,
}

/// One of the replies, its key, and who reads it.
pub(crate) type Reply = (u64, Ask, Arc<Mailbox>);

/// See the file's head.
#[derive(Clone)]
pub(crate) struct Post {
    sender: SyncSender<Mail>,
    board: Arc<Board>,
}

impl Post {
    pub(crate) fn new(sender: SyncSender<Mail>, board: Arc<Board>) -> Self {
        Self { sender, board }
    }

    pub(crate) fn try_send(&self, mail: Mail) -> Result<(), TrySendError<Mail>> {
        self.board.posted();
        let sent = self.sender.try_send(mail);
        if let Err(error) = &sent {
            self.board.read();
            if matches!(error, TrySendError::Disconnected(_)) {
                self.board.idle();
            }
        }
        sent
    }

    /// Waits for room.
    pub(crate) fn send(&self, mail: Mail) -> Result<(), SendError<Mail>> {
        self.board.posted();
        let sent = self.sender.send(mail);
        if sent.is_err() {
            self.board.read();
            self.board.idle();
        }
        sent
    }
}
