//! Nodes joined by perfect wires: what each rule does, and what is refused.
