//! The suite every backend passes, and the reference interpreter it compares with.
