//! CPU kernels: matrix products, norms, rotary embedding, attention, and the thread pool under them.
