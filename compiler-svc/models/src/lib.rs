//! Model families: from config.json to a graph without any cache.
