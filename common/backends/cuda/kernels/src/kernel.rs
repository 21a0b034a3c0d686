//! All kernels.

use serde::{Deserialize, Serialize};

use crate::parameter::Parameter;
use crate::source::Header;
use crate::{
    Advance, ArgMax, AttentionCombine, AttentionDecode, AttentionPrefill, Binary, Embedding, ExpertsDown,
    ExpertsGateUp, Linear, Map, Norm, Numbers, RotaryAppend, Router, Sample, SelectRows, Softmax,
};

/// What a specialisation says of itself.
pub(crate) trait Specialization {
    /// The function's name: says all that it is specialised by.
    fn name(&self) -> String;
    /// The source that defines its template.
    fn header(&self) -> Header;
    /// The line that makes the function of the template.
    fn instantiation(&self) -> String;
    /// Its arguments, in order.
    fn parameters(&self) -> &'static [Parameter];
}

macro_rules! kernels {
    ($($name:ident),* $(,)?) => {
        /// One specialisation of one kernel.
        #[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
        #[serde(tag = "kernel", rename_all = "snake_case")]
        pub enum Kernel {
            $(
                #[doc = concat!("[`", stringify!($name), "`].")]
                $name($name),
            )*
        }

        $(
            impl From<$name> for Kernel {
                fn from(kernel: $name) -> Self {
                    Self::$name(kernel)
                }
            }
        )*

        impl Kernel {
            pub(crate) fn specialization(&self) -> &dyn Specialization {
                match self {
                    $(Self::$name(kernel) => kernel,)*
                }
            }
        }
    };
}

kernels!(
    Embedding,
    SelectRows,
    Norm,
    Linear,
    RotaryAppend,
    AttentionDecode,
    AttentionCombine,
    AttentionPrefill,
    Map,
    Binary,
    Numbers,
    Advance,
    Softmax,
    Router,
    ExpertsGateUp,
    ExpertsDown,
    ArgMax,
    Sample,
);

impl Kernel {
    /// The name of its function. Equal names are equal kernels.
    #[must_use]
    pub fn name(&self) -> String {
        self.specialization().name()
    }

    /// Its arguments, in order.
    #[must_use]
    pub fn parameters(&self) -> &'static [Parameter] {
        self.specialization().parameters()
    }
}
