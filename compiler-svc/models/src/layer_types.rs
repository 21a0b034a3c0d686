//! Which layers attend within a sliding window.

use serde_json::Value;

use crate::{Config, ConfigError};

/// What a layer's attention sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum LayerType {
    /// Everything before a position.
    Full,
    /// The `sliding_window` positions up to and with it.
    Sliding,
}

const FULL: &str = "full_attention";
const SLIDING: &str = "sliding_attention";

/// `layer_types`, one a layer; `None` if it is absent.
///
/// # Errors
/// When it names another type, or as many as there are no layers.
pub(crate) fn layer_types(
    config: &Config<'_>,
    num_hidden_layers: u32,
) -> Result<Option<Vec<LayerType>>, ConfigError> {
    const NAME: &str = "layer_types";
    let Some(list) = config.optional_list(NAME)? else { return Ok(None) };
    let parse = |value: &Value| match value.as_str() {
        Some(FULL) => Ok(LayerType::Full),
        Some(SLIDING) => Ok(LayerType::Sliding),
        _ => Err(config.unsupported(NAME, value, &format!("{FULL:?} or {SLIDING:?} for every layer"))),
    };
    let types = list.iter().map(parse).collect::<Result<Vec<_>, _>>()?;
    if u32::try_from(types.len()) != Ok(num_hidden_layers) {
        let expected = format!("one for each of {num_hidden_layers} layers");
        return Err(config.invalid(NAME, &Value::from(list.to_vec()), &expected));
    }
    Ok(Some(types))
}

/// The window of all layers, for a family whose layers are alike: its `layer_types` say no more than whether there is
/// one.
///
/// # Errors
/// When they do.
pub(crate) fn uniform(
    config: &Config<'_>,
    num_hidden_layers: u32,
    window: Option<u32>,
) -> Result<Option<u32>, ConfigError> {
    let (expected, name) = match window {
        None => (LayerType::Full, FULL),
        Some(_) => (LayerType::Sliding, SLIDING),
    };
    let types = layer_types(config, num_hidden_layers)?.unwrap_or_default();
    if types.iter().any(|&found| found != expected) {
        let found = config.get("layer_types").cloned().unwrap_or_default();
        return Err(config.unsupported("layer_types", &found, &format!("{name:?} for every layer")));
    }
    Ok(window)
}

/// As [`uniform`], each layer's.
///
/// # Errors
/// When `layer_types` say more.
pub(crate) fn uniform_windows(
    config: &Config<'_>,
    num_hidden_layers: u32,
    window: Option<u32>,
) -> Result<Vec<Option<u32>>, ConfigError> {
    let window = uniform(config, num_hidden_layers, window)?;
    Ok((0..num_hidden_layers).map(|_| window).collect())
}

/// Each layer's window, in a family with layers of both types. `sliding_window` is `None` where the config switches
/// windows off.
///
/// # Errors
/// When a layer is to have a window and there is none.
pub(crate) fn windows(
    config: &Config<'_>,
    types: &[LayerType],
    sliding_window: Option<u32>,
) -> Result<Vec<Option<u32>>, ConfigError> {
    if sliding_window.is_none() && types.contains(&LayerType::Sliding) {
        let (name, found) = match config.get("layer_types") {
            Some(types) => ("layer_types", types.clone()),
            None => ("sliding_window", Value::Null),
        };
        let expected = format!("{FULL:?} for every layer, where sliding_window is null or not used");
        return Err(config.invalid(name, &found, &expected));
    }
    Ok(types.iter().map(|kind| sliding_window.filter(|_| *kind == LayerType::Sliding)).collect())
}

/// Each layer's window as Qwen's configs have it: `use_sliding_window` switches it on, for the layers from
/// `max_window_layers` on unless `layer_types` says which.
///
/// # Errors
/// When a field is malformed, or a layer is to have a window that is switched off.
pub(crate) fn upper_windows(
    config: &Config<'_>,
    num_hidden_layers: u32,
) -> Result<Vec<Option<u32>>, ConfigError> {
    let window = config.positive_unless_null("sliding_window", Some(4096))?;
    let window = if config.boolean("use_sliding_window", false)? { window } else { None };
    let first = config.optional_unsigned("max_window_layers")?.unwrap_or(28);
    let by_index = |layer| match window {
        Some(_) if layer >= first => LayerType::Sliding,
        _ => LayerType::Full,
    };
    let types = match layer_types(config, num_hidden_layers)? {
        Some(types) => types,
        None => (0..num_hidden_layers).map(by_index).collect(),
    };
    windows(config, &types, window)
}
