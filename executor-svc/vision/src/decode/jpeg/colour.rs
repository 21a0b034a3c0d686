//! From a file's colours to RGB.

use std::sync::LazyLock;

/// What the components of a frame are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ColourSpace {
    Grey,
    YCbCr,
    Rgb,
}

/// libjpeg's tables for YCbCr (JFIF's, full range): 16 bits of fraction, rounded where its `jdcolor.c` rounds.
struct Tables {
    cr_to_r: [i32; 256],
    cb_to_b: [i32; 256],
    /// Not yet scaled down.
    cr_to_g: [i32; 256],
    /// Not yet scaled down, with the rounding in it.
    cb_to_g: [i32; 256],
}

static TABLES: LazyLock<Tables> = LazyLock::new(|| {
    const HALF: i32 = 1 << 15;
    let fixed = |x: f64| (x * 65_536.0 + 0.5) as i32;
    let table = |entry: &dyn Fn(i32) -> i32| std::array::from_fn(|index| entry(index as i32 - 128));
    Tables {
        cr_to_r: table(&|x| (fixed(1.40200) * x + HALF) >> 16),
        cb_to_b: table(&|x| (fixed(1.77200) * x + HALF) >> 16),
        cr_to_g: table(&|x| -fixed(0.71414) * x),
        cb_to_g: table(&|x| -fixed(0.34414) * x + HALF),
    }
});

/// Makes a row `[width, 3]` of RGB of a row of each component.
pub(super) fn to_rgb(space: ColourSpace, components: &[&[u8]], row: &mut [u8]) {
    let (pixels, _) = row.as_chunks_mut::<3>();
    match (space, components) {
        (ColourSpace::Grey, [grey, ..]) => {
            for (pixel, &value) in pixels.iter_mut().zip(*grey) {
                *pixel = [value; 3];
            }
        }
        (ColourSpace::Rgb, [red, green, blue]) => {
            let values = red.iter().zip(*green).zip(*blue);
            for (pixel, ((&red, &green), &blue)) in pixels.iter_mut().zip(values) {
                *pixel = [red, green, blue];
            }
        }
        (ColourSpace::YCbCr, [y, cb, cr]) => {
            let tables = &*TABLES;
            let clamp = |value: i32| value.clamp(0, 255) as u8;
            for (pixel, ((&y, &cb), &cr)) in pixels.iter_mut().zip(y.iter().zip(*cb).zip(*cr)) {
                let (y, cb, cr) = (i32::from(y), usize::from(cb), usize::from(cr));
                *pixel = [
                    clamp(y + tables.cr_to_r[cr]),
                    clamp(y + ((tables.cb_to_g[cb] + tables.cr_to_g[cr]) >> 16)),
                    clamp(y + tables.cb_to_b[cb]),
                ];
            }
        }
        // The number of components is what the colour space was chosen by.
        _ => {}
    }
}
