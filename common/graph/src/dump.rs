//! Graphs as text, JSON and DOT.

mod dot;
mod json;
mod text;

#[cfg(test)]
mod tests;
