//! Reading `preprocessor_config.json` so that nothing in it is passed over that changes the result.

use serde_json::{Map, Value};

use crate::VisionError;
use crate::normalise::Normalisation;
use crate::resample::Filter;

/// Fields that say who made the file, or how Transformers is to run and return things: they change no value.
const WITHOUT_EFFECT: [&str; 11] = [
    "_processor_class",
    "auto_map",
    "data_format",
    "default_to_square",
    "device",
    "disable_grouping",
    "feature_extractor_type",
    "input_data_format",
    "processor_class",
    "return_row_col_info",
    "return_tensors",
];

/// The fields that have not been read yet.
pub(super) struct Fields {
    rest: Map<String, Value>,
}

impl Fields {
    pub(super) fn new(config: &Value) -> Result<Self, VisionError> {
        let object = config.as_object().ok_or_else(|| unsupported("expected an object".to_owned()))?;
        let mut rest = object.clone();
        rest.retain(|name, value| !value.is_null() && !WITHOUT_EFFECT.contains(&name.as_str()));
        Ok(Self { rest })
    }

    /// The family, by the class's name.
    pub(super) fn image_processor_type(&mut self) -> Result<String, VisionError> {
        match self.rest.remove("image_processor_type") {
            Some(Value::String(name)) => Ok(name),
            Some(other) => Err(wrong("image_processor_type", &other, "a class's name")),
            None => Err(unsupported("image_processor_type is missing".to_owned())),
        }
    }

    /// A whole number from 1 on, if it is there.
    pub(super) fn size(&mut self, name: &str) -> Result<Option<usize>, VisionError> {
        self.rest.remove(name).map(|value| size_of(name, &value)).transpose()
    }

    /// A flag, or what it is where it is not there.
    pub(super) fn flag(&mut self, name: &str, default: bool) -> Result<bool, VisionError> {
        match self.rest.remove(name) {
            None => Ok(default),
            Some(Value::Bool(value)) => Ok(value),
            Some(other) => Err(wrong(name, &other, "true or false")),
        }
    }

    /// A flag of which one value is supported, and is the default.
    pub(super) fn only(&mut self, name: &str, supported: bool) -> Result<(), VisionError> {
        if self.flag(name, supported)? == supported {
            return Ok(());
        }
        Err(unsupported(format!("{name} is {}: only {supported} is supported", !supported)))
    }

    /// A field that has no effect beside what [`Fields::only`] made sure of.
    pub(super) fn skip(&mut self, name: &str) {
        self.rest.remove(name);
    }

    /// An object of whole numbers, of which only some keys are known.
    pub(super) fn sizes<const N: usize>(
        &mut self,
        name: &str,
        keys: [&str; N],
    ) -> Result<[Option<usize>; N], VisionError> {
        let Some(value) = self.rest.remove(name) else { return Ok([None; N]) };
        let Value::Object(mut object) = value else { return Err(wrong(name, &value, "an object")) };
        object.retain(|_, value| !value.is_null());
        let mut sizes = [None; N];
        for (size, key) in sizes.iter_mut().zip(keys) {
            *size = object.remove(key).map(|value| size_of(&format!("{name}.{key}"), &value)).transpose()?;
        }
        match object.keys().next() {
            None => Ok(sizes),
            Some(key) => {
                Err(unsupported(format!("{name}.{key} is not supported: expected {}", keys.join(", "))))
            }
        }
    }

    /// `resample`, by Pillow's numbers.
    pub(super) fn filter(&mut self, default: Filter) -> Result<Filter, VisionError> {
        let Some(value) = self.rest.remove("resample") else { return Ok(default) };
        match value.as_u64() {
            Some(1) => Ok(Filter::Lanczos),
            Some(2) => Ok(Filter::Bilinear),
            Some(3) => Ok(Filter::Bicubic),
            _ => Err(wrong("resample", &value, "1 (Lanczos), 2 (bilinear) or 3 (bicubic)")),
        }
    }

    /// Rescaling and normalisation, with the family's own mean and standard deviation where there are none.
    pub(super) fn normalisation(
        &mut self,
        mean: [f64; 3],
        std: [f64; 3],
    ) -> Result<Normalisation, VisionError> {
        self.only("do_rescale", true)?;
        self.only("do_normalize", true)?;
        self.only("do_convert_rgb", true)?;
        let factor = match self.rest.remove("rescale_factor") {
            None => 1.0 / 255.0,
            Some(value) => number("rescale_factor", &value)?,
        };
        let mean = self.channels("image_mean")?.unwrap_or(mean);
        let std = self.channels("image_std")?.unwrap_or(std);
        if std.contains(&0.0) {
            return Err(unsupported("image_std has a 0".to_owned()));
        }
        Ok(Normalisation::new(factor, mean, std))
    }

    fn channels(&mut self, name: &str) -> Result<Option<[f64; 3]>, VisionError> {
        let Some(value) = self.rest.remove(name) else { return Ok(None) };
        let expected = || wrong(name, &value, "a number, or three");
        let channels = match &value {
            Value::Number(_) => [number(name, &value)?; 3],
            Value::Array(values) => {
                let values: Vec<f64> =
                    values.iter().map(|value| number(name, value)).collect::<Result<_, _>>()?;
                values.try_into().map_err(|_| expected())?
            }
            _ => return Err(expected()),
        };
        Ok(Some(channels))
    }

    /// # Errors
    /// [`VisionError::UnsupportedProcessor`] naming the first field that nobody read.
    pub(super) fn finish(self) -> Result<(), VisionError> {
        match self.rest.iter().next() {
            None => Ok(()),
            Some((name, value)) => Err(unsupported(format!("{name} ({value}) is not supported"))),
        }
    }
}

fn size_of(name: &str, value: &Value) -> Result<usize, VisionError> {
    // Far more than any image has, and small enough to multiply.
    let size = value.as_u64().filter(|size| (1..=1 << 31).contains(size));
    size.map(|size| size as usize).ok_or_else(|| wrong(name, value, "a whole number from 1 on"))
}

fn number(name: &str, value: &Value) -> Result<f64, VisionError> {
    value.as_f64().filter(|value| value.is_finite()).ok_or_else(|| wrong(name, value, "a number"))
}

fn wrong(name: &str, value: &Value, expected: &str) -> VisionError {
    unsupported(format!("{name} is {value}: expected {expected}"))
}

pub(super) fn unsupported(what: String) -> VisionError {
    VisionError::UnsupportedProcessor { what }
}
