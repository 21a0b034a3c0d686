//! Element types in the sources.

use roundhouse_graph::DType;

/// The type in CUDA C++. Kernels compute on floats: another type names none and does not compile.
pub(crate) const fn c_type(dtype: DType) -> &'static str {
    match dtype {
        DType::F32 => "float",
        DType::F16 => "f16",
        DType::Bf16 => "bf16",
        DType::I64 | DType::Bool | DType::U8 => "no_such_activation_type",
    }
}

/// `1` or `0`, for template arguments and names.
pub(crate) const fn flag(value: bool) -> u8 {
    value as u8
}
