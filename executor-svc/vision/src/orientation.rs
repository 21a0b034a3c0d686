//! Which way up an image is: the Orientation tag of EXIF, or of XMP where EXIF has none.

/// The Orientation tag of TIFF's IFD0.
const ORIENTATION_TAG: u16 = 0x0112;
/// What an XMP packet calls it.
const XMP_NAME: &[u8] = b"tiff:Orientation";

/// What to do to an image as it is stored, to have it upright. Rotations are counter-clockwise.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Orientation {
    #[default]
    Upright,
    Mirrored,
    Rotated180,
    MirroredVertically,
    Transposed,
    Rotated270,
    Transversed,
    Rotated90,
}

impl Orientation {
    /// The orientation that the metadata of a file says: EXIF (a TIFF structure, with or without `Exif\0\0` before it)
    /// wins over XMP. Metadata that cannot be read says nothing.
    pub(crate) fn of(exif: Option<&[u8]>, xmp: Option<&[u8]>) -> Self {
        let value = exif.and_then(of_exif).or_else(|| xmp.and_then(of_xmp));
        Self::from_tag(value.unwrap_or(1))
    }

    fn from_tag(value: u32) -> Self {
        match value {
            2 => Self::Mirrored,
            3 => Self::Rotated180,
            4 => Self::MirroredVertically,
            5 => Self::Transposed,
            6 => Self::Rotated270,
            7 => Self::Transversed,
            8 => Self::Rotated90,
            _ => Self::Upright,
        }
    }

    pub(crate) fn swaps_sides(self) -> bool {
        matches!(self, Self::Transposed | Self::Rotated270 | Self::Transversed | Self::Rotated90)
    }
}

/// The value in IFD0 of a TIFF structure.
fn of_exif(exif: &[u8]) -> Option<u32> {
    let tiff = exif.strip_prefix(b"Exif\0\0").unwrap_or(exif);
    let big_endian = match tiff.get(..4)? {
        b"MM\0\x2a" => true,
        b"II\x2a\0" => false,
        _ => return None,
    };
    let u16_at = |at: usize| {
        let bytes = tiff.get(at..at.checked_add(2)?)?.try_into().ok()?;
        Some(if big_endian { u16::from_be_bytes(bytes) } else { u16::from_le_bytes(bytes) })
    };
    let u32_at = |at: usize| {
        let bytes = tiff.get(at..at.checked_add(4)?)?.try_into().ok()?;
        Some(if big_endian { u32::from_be_bytes(bytes) } else { u32::from_le_bytes(bytes) })
    };
    let directory = u32_at(4)? as usize;
    let entries = u16_at(directory)?;
    (0..usize::from(entries)).find_map(|index| {
        let entry = directory.checked_add(2 + index * 12)?;
        if u16_at(entry)? != ORIENTATION_TAG || u32_at(entry + 4)? != 1 {
            return None;
        }
        match u16_at(entry + 2)? {
            1 => Some(u32::from(*tiff.get(entry + 8)?)),
            3 => Some(u32::from(u16_at(entry + 8)?)),
            4 => u32_at(entry + 8),
            _ => None,
        }
    })
}

/// The digit in an attribute or an element of an XMP packet.
fn of_xmp(xmp: &[u8]) -> Option<u32> {
    let mut rest = xmp;
    while let Some(at) = rest.windows(XMP_NAME.len()).position(|window| window == XMP_NAME) {
        rest = &rest[at + XMP_NAME.len()..];
        let value = rest.strip_prefix(b"=\"").or_else(|| rest.strip_prefix(b">"));
        if let Some(digit) = value.and_then(<[u8]>::first).filter(|byte| byte.is_ascii_digit()) {
            return Some(u32::from(digit - b'0'));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tiff(big_endian: bool, kind: u16, value: u32) -> Vec<u8> {
        let short = |v: u16| if big_endian { v.to_be_bytes() } else { v.to_le_bytes() };
        let long = |v: u32| if big_endian { v.to_be_bytes() } else { v.to_le_bytes() };
        let mut bytes = if big_endian { b"MM\0\x2a".to_vec() } else { b"II\x2a\0".to_vec() };
        bytes.extend(long(8));
        bytes.extend(short(1));
        bytes.extend(short(ORIENTATION_TAG));
        bytes.extend(short(kind));
        bytes.extend(long(1));
        if kind == 3 {
            bytes.extend(short(value as u16));
            bytes.extend([0; 2]);
        } else {
            bytes.extend(long(value));
        }
        bytes
    }

    #[test]
    fn the_tag_is_read_in_both_byte_orders_and_with_the_marker() {
        for big_endian in [true, false] {
            for kind in [3, 4] {
                let exif = tiff(big_endian, kind, 6);
                assert_eq!(Orientation::of(Some(&exif), None), Orientation::Rotated270);
                let marked = [b"Exif\0\0".as_slice(), &exif].concat();
                assert_eq!(Orientation::of(Some(&marked), None), Orientation::Rotated270);
            }
        }
    }

    #[test]
    fn broken_metadata_says_nothing() {
        let exif = tiff(true, 3, 6);
        for length in 0..exif.len() - 4 {
            assert_eq!(Orientation::of(Some(&exif[..length]), None), Orientation::Upright, "{length}");
        }
        for value in [0, 1, 9, 65_535] {
            assert_eq!(Orientation::of(Some(&tiff(false, 3, value)), None), Orientation::Upright);
        }
        let mut far = tiff(false, 3, 6);
        far[4..8].copy_from_slice(&u32::MAX.to_le_bytes());
        assert_eq!(Orientation::of(Some(&far), None), Orientation::Upright);
    }

    #[test]
    fn xmp_speaks_where_exif_does_not() {
        let xmp = b"<x tiff:OrientationX tiff:Orientation=\"8\"/>".as_slice();
        assert_eq!(Orientation::of(None, Some(xmp)), Orientation::Rotated90);
        assert_eq!(
            Orientation::of(None, Some(b"<tiff:Orientation>3</tiff:Orientation>")),
            Orientation::Rotated180
        );
        assert_eq!(Orientation::of(Some(&tiff(true, 3, 1)), Some(xmp)), Orientation::Upright);
    }
}
