//! What a kernel takes.

/// The kind of an argument. All are passed by value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ParameterKind {
    /// A device address, 8 bytes. 0 where the specialisation does not use it.
    Pointer,
    /// `int`.
    I32,
    /// `long long`.
    I64,
    /// `float`.
    F32,
}

/// One argument of a kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Parameter {
    /// Its name in the source.
    pub name: &'static str,
    /// Its kind.
    pub kind: ParameterKind,
}

/// A pointer.
pub(crate) const fn pointer(name: &'static str) -> Parameter {
    Parameter { name, kind: ParameterKind::Pointer }
}

/// An `int`.
pub(crate) const fn int(name: &'static str) -> Parameter {
    Parameter { name, kind: ParameterKind::I32 }
}

/// A `long long`.
pub(crate) const fn long(name: &'static str) -> Parameter {
    Parameter { name, kind: ParameterKind::I64 }
}

/// A `float`.
pub(crate) const fn float(name: &'static str) -> Parameter {
    Parameter { name, kind: ParameterKind::F32 }
}
