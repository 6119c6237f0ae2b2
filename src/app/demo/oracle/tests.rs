//! The rules of the oracle.
