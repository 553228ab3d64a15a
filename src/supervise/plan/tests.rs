//! The promise, held against random histories.
