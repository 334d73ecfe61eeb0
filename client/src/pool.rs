//! Connections by address: one each, made when first needed, made anew when broken.
//!
//! Owns: at most one live connection per address; callers that need the same one wait for one attempt.
//! Not here: pauses between attempts (the callers' `retry`).

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use crate::connection::{ConnectOptions, Connection};
use crate::error::ConnectError;

type Slot = Arc<tokio::sync::Mutex<Option<Connection>>>;

/// The connections of one producer, one consumer, or of the metadata.
pub(crate) struct ConnectionPool {
    options: ConnectOptions,
    slots: Mutex<HashMap<Arc<str>, Slot>>,
}

impl ConnectionPool {
    pub(crate) fn new(options: ConnectOptions) -> Self {
        Self { options, slots: Mutex::default() }
    }

    pub(crate) fn options(&self) -> &ConnectOptions {
        &self.options
    }

    /// A live connection to `address`, and whether it was there already (it may have died unnoticed).
    pub(crate) async fn get(&self, address: &Arc<str>) -> Result<(Connection, bool), ConnectError> {
        let slot = {
            let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
            Arc::clone(slots.entry(Arc::clone(address)).or_default())
        };
        let mut live = slot.lock().await;
        if let Some(connection) = live.as_ref().filter(|connection| connection.is_open()) {
            return Ok((connection.clone(), true));
        }
        *live = None;
        let connection = Connection::open(address, &self.options).await?;
        *live = Some(connection.clone());
        Ok((connection, false))
    }
}
