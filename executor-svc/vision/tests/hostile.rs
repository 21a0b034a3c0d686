//! Images that are made to hurt are refused with the reason, in bounded memory and time.

#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a panic in a test's helper is a failed test")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use png::{BitDepth, ColorType, Encoder};
use roundhouse_vision::{Fault, ImageLimits, RgbImage, VisionError, decode};
use safetensors::SafeTensors;

/// Counts what each thread holds, and the most that it held.
struct Counting;

thread_local! {
    static HELD: Cell<isize> = const { Cell::new(0) };
    static MOST: Cell<isize> = const { Cell::new(0) };
}

fn count(bytes: isize) {
    let held = HELD.get() + bytes;
    HELD.set(held);
    MOST.set(MOST.get().max(held));
}

// SAFETY: every call is passed on to the system's allocator as it came; counting allocates nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as isize);
        // SAFETY: the caller's promises are those that the system's allocator asks for.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as isize);
        // SAFETY: as above.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        count(-(layout.size() as isize));
        // SAFETY: as above.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count(size as isize - layout.size() as isize);
        // SAFETY: as above.
        unsafe { System.realloc(pointer, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// What decoding gave, the most bytes that it held, and how long it took.
fn measured(bytes: &[u8], limits: &ImageLimits) -> (Result<RgbImage, VisionError>, usize, Duration) {
    let held = HELD.get();
    MOST.set(held);
    let started = Instant::now();
    let result = decode(bytes, limits);
    (result, (MOST.get() - held) as usize, started.elapsed())
}

/// The error of an image that must be refused at once, and without memory to speak of.
fn refused(bytes: &[u8]) -> VisionError {
    let (result, most, took) = measured(bytes, &ImageLimits::default());
    let error = result.expect_err("the image must be refused");
    assert!(most < 1 << 20, "{error}: {most} bytes");
    assert!(took < Duration::from_secs(1), "{error}: {took:?}");
    assert_eq!(error.fault(), Fault::Caller, "{error}");
    error
}

fn golden(name: &str) -> Vec<u8> {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/vision");
    match name.strip_prefix("decoding/") {
        None => std::fs::read(folder.join(name)).unwrap(),
        Some(name) => {
            let bytes = std::fs::read(folder.join("decoding.golden.safetensors")).unwrap();
            let tensors = SafeTensors::deserialize(&bytes).unwrap();
            tensors.tensor(&format!("{name}.file")).unwrap().data().to_vec()
        }
    }
}

const IMAGES: [&str; 12] = [
    "photo.jpg",
    "large.jpg",
    "progressive.jpg",
    "grey.jpg",
    "rotated.jpg",
    "transposed.png",
    "alpha.png",
    "palette.png",
    "strip.png",
    "wide.webp",
    "lossless.webp",
    "animated.gif",
];

fn crc(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(u32::MAX, |crc, &byte| {
        (0..8).fold(
            crc ^ u32::from(byte),
            |crc, _| if crc & 1 == 1 { crc >> 1 ^ 0xEDB8_8320 } else { crc >> 1 },
        )
    })
}

/// A PNG of this size, of which there is only the header and the beginning of the data.
fn png_header(width: u32, height: u32) -> Vec<u8> {
    let mut header = b"IHDR".to_vec();
    header.extend(width.to_be_bytes());
    header.extend(height.to_be_bytes());
    header.extend([8, 2, 0, 0, 0]);
    let mut file = b"\x89PNG\r\n\x1a\n\0\0\0\x0d".to_vec();
    file.extend(&header);
    file.extend(crc(&header).to_be_bytes());
    file.extend(b"\0\0\x10\0IDAT\x78\x9c");
    file
}

/// A PNG of zeros that is far smaller than what it decodes to.
fn png_bomb(width: u32, height: u32, colours: ColorType, bits: BitDepth) -> Vec<u8> {
    let mut file = Vec::new();
    let mut encoder = Encoder::new(&mut file, width, height);
    encoder.set_color(colours);
    encoder.set_depth(bits);
    let mut writer = encoder.write_header().unwrap();
    let mut stream = writer.stream_writer().unwrap();
    let row = vec![0; width as usize * colours.samples() * (bits as usize) / 8];
    for _ in 0..height {
        std::io::Write::write_all(&mut stream, &row).unwrap();
    }
    stream.finish().unwrap();
    writer.finish().unwrap();
    file
}

fn jpeg_with_size(width: u16, height: u16) -> Vec<u8> {
    let mut file = golden("photo.jpg");
    let frame = file.windows(2).position(|marker| marker == [0xFF, 0xC0]).unwrap();
    file[frame + 5..frame + 7].copy_from_slice(&height.to_be_bytes());
    file[frame + 7..frame + 9].copy_from_slice(&width.to_be_bytes());
    file
}

#[test]
fn what_is_no_image_is_refused_by_its_first_bytes() {
    assert!(matches!(refused(b""), VisionError::Empty));
    for bytes in [
        b"%PDF-1.7\n".as_slice(),
        b"BM6\x30",
        b"<svg xmlns=",
        b"II*\0",
        b"\x89PNG",
        b"RIFF\0\0\0\0WAVE",
        &[0; 64],
    ] {
        let error = refused(bytes);
        assert_eq!(error.reason(), "IMAGE_FORMAT_UNSUPPORTED", "{error}");
    }
    // The magic of one format and the rest of another.
    for (magic, rest) in
        [("photo.jpg", "alpha.png"), ("alpha.png", "photo.jpg"), ("animated.gif", "wide.webp")]
    {
        let mut bytes = golden(magic)[..16].to_vec();
        bytes.extend(&golden(rest)[16..]);
        let error = refused(&bytes);
        assert!(["IMAGE_CORRUPT", "IMAGE_TRUNCATED", "IMAGE_TOO_LARGE"].contains(&error.reason()), "{error}");
    }
}

#[test]
fn truncated_files_are_refused_wherever_they_end() {
    // Of the animation the first frame is read, which ends in the file's first half.
    let still = IMAGES.into_iter().filter(|&name| name != "animated.gif").chain(["decoding/gif"]);
    for name in still {
        let bytes = golden(name);
        for part in [1, 2, 4, 5, 6, 7] {
            let (result, most, _) = measured(&bytes[..bytes.len() * part / 8], &ImageLimits::default());
            let error = result.expect_err(name);
            assert!(["IMAGE_TRUNCATED", "IMAGE_CORRUPT"].contains(&error.reason()), "{name}: {error}");
            assert!(most < 32 << 20, "{name}: {most} bytes");
        }
    }
    let photo = golden("photo.jpg");
    assert!(matches!(refused(&photo[..photo.len() - 2]), VisionError::Truncated { .. }));
    let picture = golden("alpha.png");
    assert!(matches!(refused(&picture[..picture.len() / 2]), VisionError::Truncated { .. }));
}

#[test]
fn sizes_that_only_a_header_claims_are_refused_before_memory_is_taken() {
    for (width, height) in
        [(100_000, 100_000), (1, 1 << 20), (1 << 20, 1), (16_384, 16_384), (u32::MAX >> 1, 3)]
    {
        let error = refused(&png_header(width, height));
        assert!(matches!(error, VisionError::TooLarge { .. }), "{width}×{height}: {error}");
    }
    assert!(matches!(refused(&jpeg_with_size(65_500, 65_500)), VisionError::TooLarge { .. }));
    let mut gif = golden("animated.gif");
    gif[6..10].fill(0xFF);
    assert!(matches!(refused(&gif), VisionError::TooLarge { .. }));
    let mut webp = golden("lossless.webp");
    assert_eq!(&webp[12..16], b"VP8X");
    for (width, height) in [(60_000_u32, 60_000_u32), (1 << 24, 1)] {
        webp[24..27].copy_from_slice(&(width - 1).to_le_bytes()[..3]);
        webp[27..30].copy_from_slice(&(height - 1).to_le_bytes()[..3]);
        let error = refused(&webp);
        assert!(matches!(error, VisionError::TooLarge { .. }), "{width}×{height}: {error}");
    }
    // More pixels than the format has.
    webp[24..30].fill(0xFF);
    assert!(matches!(refused(&webp), VisionError::Corrupt { .. }));
}

#[test]
fn an_image_without_pixels_is_refused() {
    for (width, height) in [(0, 0), (0, 5), (5, 0)] {
        let error = refused(&png_header(width, height));
        assert!(["IMAGE_EMPTY", "IMAGE_CORRUPT"].contains(&error.reason()), "{error}");
    }
    assert!(matches!(refused(&jpeg_with_size(0, 0)), VisionError::NoPixels { .. }));
    assert!(matches!(refused(&jpeg_with_size(0, 7)), VisionError::NoPixels { .. }));
    assert!(matches!(refused(&jpeg_with_size(7, 0)), VisionError::Unsupported { .. }));
    let mut gif = golden("decoding/gif");
    let frame = gif.iter().rposition(|&byte| byte == b',').unwrap();
    let frame =
        (0..=frame).rev().find(|&at| gif[at..].starts_with(&[b',', 0, 0, 0, 0, 20, 0, 14, 0])).unwrap();
    gif[frame + 5..frame + 9].fill(0);
    assert!(matches!(refused(&gif), VisionError::NoPixels { .. }));
}

#[test]
fn bombs_decode_in_the_memory_of_the_image_or_not_at_all() {
    // 32 Mi pixels of 16-bit RGBA: 256 MiB of rows, of which there is one at a time.
    let bomb = png_bomb(8192, 4096, ColorType::Rgba, BitDepth::Sixteen);
    assert!(bomb.len() < 2 << 20, "{} bytes", bomb.len());
    let limits = ImageLimits::default();
    let (result, most, took) = measured(&bomb, &limits);
    assert!(result.is_ok() && most < 110 << 20, "{most} bytes");
    assert!(took < limits.max_decode_time + Duration::from_secs(1), "{took:?}");

    let (result, most, took) =
        measured(&bomb, &ImageLimits { max_decode_time: Duration::from_millis(2), ..limits });
    assert!(matches!(result, Err(VisionError::DecodeTimeout { .. })), "{took:?}");
    assert!(most < 110 << 20 && took < Duration::from_secs(1), "{most} bytes, {took:?}");

    let (result, most, _) = measured(&bomb, &ImageLimits { max_decode_bytes: 64 << 20, ..limits });
    assert!(matches!(result, Err(VisionError::TooLarge { limit, .. }) if limit == 64 << 20));
    assert!(most < 1 << 20, "{most} bytes");

    // One pixel more than there may be.
    assert!(matches!(refused(&png_header(8193, 4096)), VisionError::TooLarge { .. }));
    // Metadata that is a bomb is not unpacked.
    let mut file = Vec::new();
    let mut encoder = Encoder::new(&mut file, 2, 2);
    encoder.set_color(ColorType::Rgb);
    encoder.add_ztxt_chunk("comment".to_owned(), " ".repeat(64 << 20)).unwrap();
    encoder.write_header().unwrap().write_image_data(&[7; 12]).unwrap();
    let (result, most, _) = measured(&file, &limits);
    assert_eq!(result.unwrap().pixels(), [7; 12]);
    assert!(most < 1 << 20, "{most} bytes");
}

#[test]
fn a_jpeg_of_very_many_scans_is_refused() {
    let file = golden("decoding/jpeg-progressive-0");
    let scans: Vec<usize> = (0..file.len() - 1).filter(|&at| file[at..at + 2] == [0xFF, 0xDA]).collect();
    // The first scan and the tables that follow it, again and again.
    let mut bomb = file[..scans[0]].to_vec();
    for _ in 0..1000 {
        bomb.extend(&file[scans[0]..scans[1]]);
    }
    bomb.extend(&file[scans[1]..]);
    let error = refused(&bomb);
    assert!(matches!(error, VisionError::Unsupported { .. }), "{error}");
}

#[test]
fn kinds_that_are_not_decoded_are_named() {
    let cmyk = refused(&golden("decoding/jpeg-cmyk")).to_string();
    assert!(cmyk.contains("CMYK"), "{cmyk}");
    for name in ["png-animated", "webp-animated"] {
        let error = refused(&golden(&format!("decoding/{name}")));
        assert!(
            matches!(error, VisionError::Unsupported { .. }) && error.to_string().contains("animation"),
            "{error}"
        );
    }
    for (code, word) in [(0xC3, "lossless"), (0xC5, "hierarchical"), (0xC9, "arithmetic")] {
        let mut file = golden("photo.jpg");
        let frame = file.windows(2).position(|marker| marker == [0xFF, 0xC0]).unwrap();
        file[frame + 1] = code;
        let error = refused(&file);
        assert!(
            matches!(error, VisionError::Unsupported { .. }) && error.to_string().contains(word),
            "{error}"
        );
    }
}

#[test]
fn of_an_animated_gif_only_the_first_frame_is_read() {
    let mut file = golden("animated.gif");
    let whole = decode(&file, &ImageLimits::default()).unwrap();
    // Frames that follow may be anything.
    let second = file.len() / 2;
    file[second..].fill(0xEE);
    assert_eq!(decode(&file, &ImageLimits::default()).unwrap(), whole);
}

#[test]
fn every_limit_holds() {
    for name in IMAGES {
        let bytes = golden(name);
        let image = decode(&bytes, &ImageLimits::default()).unwrap();
        let pixels = u64::from(image.width()) * u64::from(image.height());
        let limits = ImageLimits::default();
        for limits in [
            ImageLimits { max_encoded_bytes: bytes.len() - 1, ..limits },
            ImageLimits { max_pixels: pixels - 1, ..limits },
            ImageLimits { max_side: image.width().max(image.height()) - 1, ..limits },
            ImageLimits { max_decode_bytes: image.pixels().len() - 1, ..limits },
        ] {
            let (result, most, _) = measured(&bytes, &limits);
            let error = result.expect_err(name);
            assert_eq!(error.reason(), "IMAGE_TOO_LARGE", "{name}: {error}");
            assert!(most < 1 << 20, "{name}: {most} bytes");
        }
        let error =
            decode(&bytes, &ImageLimits { max_decode_time: Duration::ZERO, ..limits }).expect_err(name);
        assert_eq!(error.reason(), "IMAGE_DECODE_TIMEOUT", "{name}: {error}");
        let exact = ImageLimits {
            max_encoded_bytes: bytes.len(),
            max_pixels: pixels,
            max_side: image.width().max(image.height()),
            ..limits
        };
        assert_eq!(decode(&bytes, &exact).unwrap(), image, "{name}");
    }
}

#[test]
fn what_decoding_holds_is_what_was_checked() {
    for name in IMAGES {
        let bytes = golden(name);
        // The least that is allowed is enough.
        let most_allowed = (1..).map(|kib| kib << 10).find(|&limit| {
            let limits = ImageLimits { max_decode_bytes: limit, ..ImageLimits::default() };
            let (result, most, _) = measured(&bytes, &limits);
            // Small tables and buffers of the decoders are not counted.
            assert!(most < limit + (1 << 20), "{name}: {most} bytes of {limit}");
            result.is_ok()
        });
        assert!(most_allowed.is_some_and(|limit| limit < 64 << 20), "{name}: {most_allowed:?}");
    }
}
