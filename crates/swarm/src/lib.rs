//! Who fetches what from whom: the sans-IO node state machine.
