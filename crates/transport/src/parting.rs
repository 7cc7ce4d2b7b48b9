//! The end of a connection on this side.

use quinn::{Connection, VarInt};

/// Closes a connection, unless it has ended already: quinn would forget why, and somebody else who watches
/// it may have to know that, such as that the other side does not take this node's certificate any more.
pub(crate) fn part(connection: &Connection, code: VarInt, reason: &[u8]) {
    if connection.close_reason().is_none() {
        connection.close(code, reason);
    }
}
