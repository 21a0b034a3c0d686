//! Passes from a model graph to the graph that a backend builds.
