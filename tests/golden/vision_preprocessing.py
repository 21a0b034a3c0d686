"""What Pillow decodes and what Transformers' image processors (of their Pillow backend) make of 12 images."""

import hashlib
import io
import json
import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import Image
from safetensors.numpy import save_file
from transformers.image_transforms import convert_to_rgb, normalize, rescale, resize
from transformers.image_utils import load_image
from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil, smart_resize
from transformers.models.smolvlm.image_processing_pil_smolvlm import SmolVLMImageProcessorPil

ORIENTATION = 0x0112
SAMPLES = 256  # values of each result that are written down, at random places

CLIP = {"image_mean": [0.48145466, 0.4578275, 0.40821073], "image_std": [0.26862954, 0.26130258, 0.27577711]}
HALF = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}
RESCALED = {"do_rescale": True, "rescale_factor": 0.00392156862745098, "do_normalize": True, "do_convert_rgb": True}

# The fields of published files, and the same with limits that small images meet.
PROCESSORS = {
    "qwen2.5-vl": {
        "image_processor_type": "Qwen2VLImageProcessor",
        "processor_class": "Qwen2_5_VLProcessor",
        "min_pixels": 3136,
        "max_pixels": 12845056,
        "patch_size": 14,
        "temporal_patch_size": 2,
        "merge_size": 2,
        **CLIP,
    },
    "qwen2-vl-few-pixels": {
        "image_processor_type": "Qwen2VLImageProcessorFast",
        "size": {"shortest_edge": 28 * 28 * 4, "longest_edge": 28 * 28 * 25},
        "do_resize": True,
        "resample": 3,
        "patch_size": 14,
        "temporal_patch_size": 2,
        "merge_size": 2,
        **RESCALED,
        **CLIP,
    },
    "eagle2": {
        "image_processor_type": "Eagle2ImageProcessor",
        "processor_class": "Eagle2Processor",
        "do_resize": False,
        "do_pad": True,
        "size": {"height": 448, "width": 448},
        "resample": 3,
        "min_dynamic_tiles": 1,
        "max_dynamic_tiles": 12,
        "use_thumbnail": True,
        "pad_during_tiling": False,
        **RESCALED,
        **HALF,
    },
    "eagle2-small-tiles": {
        "image_processor_type": "Eagle25VLImageProcessorFast",
        "size": {"height": 56, "width": 56},
        "resample": 3,
        "min_dynamic_tiles": 2,
        "max_dynamic_tiles": 6,
        "use_thumbnail": False,
        **RESCALED,
        **HALF,
    },
    "idefics3": {
        "image_processor_type": "Idefics3ImageProcessor",
        "do_resize": True,
        "size": {"longest_edge": 1456},
        "max_image_size": {"longest_edge": 364},
        "do_image_splitting": True,
        "do_pad": True,
        "resample": 1,
        **RESCALED,
        **HALF,
    },
    "smolvlm-one-tile": {
        "image_processor_type": "SmolVLMImageProcessor",
        "do_resize": True,
        "size": {"longest_edge": 512},
        "max_image_size": {"longest_edge": 128},
        "do_image_splitting": False,
        "do_pad": True,
        "resample": 1,
        **RESCALED,
        **HALF,
    },
}
# Of the models' own configs: (448 / 14 / 2)² and so on.
TOKENS_PER_TILE = {"eagle2": 256, "eagle2-small-tiles": 4, "idefics3": 169, "smolvlm-one-tile": 16}


def picture(width: int, height: int, seed: int, detail: float = 9.0, noise: float = 5.0) -> Image.Image:
    """Waves of random directions, an edge and some noise."""
    random = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width] / max(width, height)
    values = np.full((height, width, 3), 128.0)
    for channel in range(3):
        for _ in range(6):
            fx, fy, phase = random.uniform(-detail, detail), random.uniform(-detail, detail), random.uniform(0, 6.3)
            values[..., channel] += random.uniform(10, 40) * np.sin(2 * np.pi * (fx * x + fy * y) + phase)
    values[height // 3 : height // 2, width // 4 : width // 2] = [250, 20, 30]
    values += random.normal(0, noise, values.shape)
    return Image.fromarray(values.clip(0, 255).astype(np.uint8))


def with_alpha(image: Image.Image) -> Image.Image:
    width, height = image.size
    alpha = np.linspace(0, 255, width)[None, :].repeat(height, 0).astype(np.uint8)
    image.putalpha(Image.fromarray(alpha))
    return image


def oriented(value: int) -> Image.Exif:
    exif = Image.Exif()
    exif[ORIENTATION] = value
    return exif


def encoded(image: Image.Image, kind: str, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def images() -> dict[str, bytes]:
    """The 12: odd sizes, extreme aspect ratios, grey, alpha, orientations, every format."""
    frames = [picture(83, 59, seed, noise=0).quantize(32) for seed in (11, 12, 13)]
    return {
        "photo.jpg": encoded(picture(331, 217, 1), "JPEG", quality=85),
        "large.jpg": encoded(picture(1301, 907, 2, detail=5, noise=0), "JPEG", quality=60, subsampling=0),
        "progressive.jpg": encoded(picture(257, 129, 3), "JPEG", quality=75, subsampling=1, progressive=True),
        "grey.jpg": encoded(picture(101, 167, 4).convert("L"), "JPEG", quality=80),
        "rotated.jpg": encoded(picture(175, 90, 5), "JPEG", quality=80, exif=oriented(6)),
        "transposed.png": encoded(picture(77, 45, 6, noise=0), "PNG", exif=oriented(5)),
        "alpha.png": encoded(with_alpha(picture(97, 61, 7, noise=0)), "PNG"),
        "palette.png": encoded(picture(133, 133, 8, noise=0).quantize(16), "PNG", transparency=3),
        "strip.png": encoded(picture(17, 1201, 9, noise=0), "PNG"),
        "wide.webp": encoded(picture(1502, 41, 10), "WEBP", quality=80),
        "lossless.webp": encoded(
            with_alpha(picture(64, 111, 14, noise=0)), "WEBP", lossless=True, exact=True, exif=oriented(8)
        ),
        "animated.gif": encoded(frames[0], "GIF", save_all=True, append_images=frames[1:], duration=100),
    }


def eagle2_grid(width: int, height: int, config: dict) -> tuple[int, int]:
    """Columns and rows of tiles by the rule of the published `Eagle2ImageProcessor`, which is not in Transformers.

    Of all grids of `min` to `max` tiles the one with the largest `min(area of tiles / area of image, 0.6) · min(r, 1 / r)`,
    where `r` is the aspect ratio of the grid over that of the image; the first of equals, in the order of a set of pairs
    sorted by their product.
    """
    size, low, high = config["size"]["height"], config["min_dynamic_tiles"], config["max_dynamic_tiles"]
    grids = {
        (i, j)
        for n in range(low, high + 1)
        for i in range(1, n + 1)
        for j in range(1, n + 1)
        if low <= i * j <= high
    }
    best, columns, rows = float("-inf"), 1, 1
    for i, j in sorted(grids, key=lambda grid: grid[0] * grid[1]):
        ratio = i / j
        factor = min((i * j * size * size) / (width * height), 0.6) * min(
            ratio / (width / height), (width / height) / ratio
        )
        if factor > best:
            best, columns, rows = factor, i, j
    return columns, rows


def eagle2(image: Image.Image, config: dict) -> np.ndarray:
    """The tiles of an image resized to its grid by Pillow, and one tile more of the whole image: the thumbnail."""
    size = config["size"]["height"]
    columns, rows = eagle2_grid(*image.size, config)
    options = {"resample": config["resample"], "input_data_format": "channels_last"}
    pixels = convert_to_rgb(image, return_numpy=True)
    grid = resize(pixels, (rows * size, columns * size), **options)
    tiles = [
        grid[row * size : (row + 1) * size, column * size : (column + 1) * size]
        for row in range(rows)
        for column in range(columns)
    ]
    if config["use_thumbnail"] and len(tiles) > 1:
        tiles.append(resize(pixels, (size, size), **options))
    tiles = [rescale(tile, config["rescale_factor"]) for tile in tiles]
    mean, std = config["image_mean"], config["image_std"]
    tiles = [normalize(tile, mean, std, input_data_format="channels_last") for tile in tiles]
    return np.stack(tiles).transpose(0, 3, 1, 2)


def sizes() -> list[tuple[int, int]]:
    """Widths and heights: squares, where grids are equally good, and everything else."""
    random = np.random.default_rng(5)
    squares = [(side, side) for side in (1, 13, 14, 15, 42, 70, 448, 449, 896, 1000, 1024, 1344, 2000, 2048, 4096)]
    ratios = [(200, 1), (1, 200), (2800, 14), (4000, 3000), (3000, 4000), (1920, 1080), (640, 480), (41, 1502)]
    return squares + ratios + [tuple(map(int, (2 ** random.uniform(2, 12.5, 2)))) for _ in range(200)]


def layouts() -> list[dict]:
    """What images of these sizes are resized to: patches in height and width, or columns and rows of tiles."""
    cases = []
    for name, config in PROCESSORS.items():
        if name.startswith("qwen"):
            low = config.get("min_pixels") or config["size"]["shortest_edge"]
            high = config.get("max_pixels") or config["size"]["longest_edge"]
            for width, height in sizes():
                if max(width, height) / min(width, height) <= 200:
                    grid = [side // 14 for side in smart_resize(height, width, 28, low, high)]
                    cases.append({"processor": name, "size": [width, height], "layout": grid})
        if name.startswith("eagle2"):
            for size in sizes():
                cases.append({"processor": name, "size": size, "layout": eagle2_grid(*size, config)})
    return cases


def process(name: str, config: dict, image: Image.Image) -> tuple[np.ndarray, list[int] | None, int]:
    """`pixel_values`, `image_grid_thw` where there is one, and placeholder tokens."""
    if name.startswith("qwen"):
        result = Qwen2VLImageProcessorPil.from_dict(config)(images=[image], return_tensors="np")
        grid = result["image_grid_thw"][0].tolist()
        return result["pixel_values"], grid, int(np.prod(grid)) // config["merge_size"] ** 2
    if name.startswith("eagle2"):
        values = eagle2(image, config)
    else:
        family = Idefics3ImageProcessorPil if name.startswith("idefics3") else SmolVLMImageProcessorPil
        values = family.from_dict(config)(images=[image], return_tensors="np")["pixel_values"][0]
    return values, None, values.shape[0] * TOKENS_PER_TILE[name]


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def raw_png(width: int, height: int, bits: int, colours: int, rows: bytes, interlaced=0, extra=b"") -> bytes:
    header = struct.pack(">IIBBBBB", width, height, bits, colours, 0, 0, interlaced)
    body = chunk(b"IHDR", header) + extra + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def rows_of(random: np.random.Generator, width: int, height: int, bits: int, channels: int) -> bytes:
    length = (width * channels * bits + 7) // 8
    return b"".join(b"\0" + random.bytes(length) for _ in range(height))


def adam7(width: int, height: int, pixels: np.ndarray) -> bytes:
    passes = [(0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)]
    rows = b""
    for x, y, step_x, step_y in passes:
        part = pixels[y::step_y, x::step_x]
        if part.size:
            rows += b"".join(b"\0" + row.tobytes() for row in part)
    return rows


def decodings() -> dict[str, bytes]:
    """Small files of every kind that is decoded."""
    random = np.random.default_rng(99)
    files = {}
    for width, height in [(1, 1), (3, 5), (5, 3), (8, 8), (16, 16), (17, 33), (39, 23)]:
        for name, subsampling in [("444", 0), ("422", 1), ("420", 2)]:
            image = picture(width, height, width * height, noise=30)
            files[f"jpeg-{name}-{width}x{height}"] = encoded(image, "JPEG", quality=90, subsampling=subsampling)
    image = picture(45, 37, 21, noise=40)
    for quality in (3, 30, 100):
        files[f"jpeg-quality-{quality}"] = encoded(image, "JPEG", quality=quality)
    for subsampling in (0, 1, 2):
        files[f"jpeg-progressive-{subsampling}"] = encoded(image, "JPEG", subsampling=subsampling, progressive=True)
    files["jpeg-optimised"] = encoded(image, "JPEG", optimize=True)
    files["jpeg-restarts"] = encoded(image, "JPEG", restart_marker_blocks=2)
    files["jpeg-restarts-progressive"] = encoded(image, "JPEG", restart_marker_rows=1, progressive=True)
    files["jpeg-rgb"] = encoded(image, "JPEG", keep_rgb=True)
    files["jpeg-grey"] = encoded(image.convert("L"), "JPEG")
    files["jpeg-grey-progressive"] = encoded(image.convert("L"), "JPEG", progressive=True)
    # Other sampling factors: as many blocks in as many MCUs, so that the same data is another picture.
    square = picture(32, 32, 22)
    for name, subsampling, old, new in [
        ("440", 1, b"\x01\x21\x00", b"\x01\x12\x00"),
        ("411", 2, b"\x01\x22\x00", b"\x01\x41\x00"),
        ("grey-2x2", None, b"\x01\x11\x00", b"\x01\x22\x00"),
    ]:
        source, options = (square.convert("L"), {}) if subsampling is None else (square, {"subsampling": subsampling})
        data = encoded(source, "JPEG", **options)
        frame = data.index(b"\xff\xc0")
        at = data.index(old, frame)
        files[f"jpeg-{name}"] = data[:at] + new + data[at + 3 :]
    for value in range(1, 9):
        files[f"jpeg-orientation-{value}"] = encoded(picture(11, 6, 23), "JPEG", exif=oriented(value))
    files["png-orientation"] = encoded(picture(11, 6, 23), "PNG", exif=oriented(6))
    files["webp-orientation"] = encoded(picture(11, 6, 23), "WEBP", exif=oriented(7))

    palette = chunk(b"PLTE", random.bytes(3 * 11))
    for name, colours, channels, depths in [
        ("grey", 0, 1, (1, 2, 4, 8, 16)),
        ("rgb", 2, 3, (8, 16)),
        ("palette", 3, 1, (1, 2, 4, 8)),
        ("grey-alpha", 4, 2, (8, 16)),
        ("rgba", 6, 4, (8, 16)),
    ]:
        for bits in depths:
            extra = palette if name == "palette" else b""
            rows = rows_of(random, 13, 7, bits, channels)
            files[f"png-{name}-{bits}"] = raw_png(13, 7, bits, colours, rows, extra=extra)
    # A transparent colour: of grey, of RGB, of a palette; and alpha of a palette's colours.
    for name, bits, colours, channels, key in [
        ("grey-1-black", 1, 0, 1, b"\0\0"),
        ("grey-1-white", 1, 0, 1, b"\0\1"),
        ("grey-2", 2, 0, 1, b"\0\2"),
        ("grey-8", 8, 0, 1, None),
        ("grey-16", 16, 0, 1, None),
        ("rgb-8", 8, 2, 3, None),
        ("rgb-16", 16, 2, 3, None),
        ("palette", 8, 3, 1, b"\xff\xff\0\xff"),
        ("palette-alpha", 8, 3, 1, b"\xff\x80\0\xff"),
        ("palette-opaque", 8, 3, 1, b"\xff\xff"),
    ]:
        rows = rows_of(random, 13, 7, bits, channels)
        if colours == 3:
            rows = bytes(value % 11 if at % 14 else 0 for at, value in enumerate(rows))
        if key is None:
            # The first pixel's.
            samples = rows[1 : 1 + channels * bits // 8]
            key = samples if bits == 16 else b"".join(bytes([0, sample]) for sample in samples)
        extra = (palette if colours == 3 else b"") + chunk(b"tRNS", key)
        files[f"png-transparent-{name}"] = raw_png(13, 7, bits, colours, rows, extra=extra)
    for width, height in [(1, 1), (4, 5), (13, 11)]:
        pixels = np.asarray(picture(width, height, 24))
        rows = adam7(width, height, pixels)
        files[f"png-interlaced-{width}x{height}"] = raw_png(width, height, 8, 2, rows, interlaced=1)
    files["png-filters"] = encoded(picture(40, 30, 25), "PNG")

    still = picture(20, 14, 26).quantize(7)
    gif = bytearray(encoded(still, "GIF", interlace=0))
    files["gif"] = bytes(gif)
    files["gif-interlaced"] = encoded(still, "GIF", interlace=1)
    files["gif-transparent"] = encoded(still, "GIF", transparency=2)
    for name, screen, source in [
        ("larger-screen", (25, 17), "gif"),
        ("larger-screen-transparent", (25, 17), "gif-transparent"),
        ("smaller-screen", (9, 9), "gif"),
    ]:
        data = bytearray(files[source])
        data[6:10] = struct.pack("<HH", *screen)
        files[f"gif-{name}"] = bytes(data)
    for quality in (10, 60, 95):
        files[f"webp-{quality}"] = encoded(picture(43, 29, 27), "WEBP", quality=quality)
    files["webp-alpha"] = encoded(with_alpha(picture(43, 29, 28)), "WEBP", quality=60)
    files["webp-lossless"] = encoded(picture(43, 29, 29), "WEBP", lossless=True)
    files["webp-lossless-alpha"] = encoded(with_alpha(picture(43, 29, 30)), "WEBP", lossless=True, exact=True)
    return files


def decoded(data: bytes) -> np.ndarray:
    """A file's pixels as a processor sees them: `load_image` turns it upright and drops alpha; a colour that is transparent as
    a whole is still known then, and becomes white."""
    return convert_to_rgb(load_image(Image.open(io.BytesIO(data))), return_numpy=True)


def write_lines(path: Path, cases: list[dict]) -> None:
    path.write_text("[\n" + ",\n".join(json.dumps(case) for case in cases) + "\n]\n")


def make(folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    files = images()
    for name, data in files.items():
        (folder / name).write_bytes(data)
    random = np.random.default_rng(7)
    tensors, cases = {}, []
    for processor, config in PROCESSORS.items():
        path = folder / f"{processor}.preprocessor_config.json"
        path.write_text(json.dumps(config, indent=2) + "\n")
        for name in files:
            image = load_image(str(folder / name))
            values, grid, tokens = process(processor, config, image)
            values = np.ascontiguousarray(values, dtype="<f4")
            places = random.integers(0, values.size, SAMPLES)
            key = f"{processor}.{name}"
            tensors[f"{key}.places"] = places.astype(np.uint32)
            tensors[f"{key}.values"] = values.reshape(-1)[places]
            cases.append(
                {
                    "processor": processor,
                    "image": name,
                    "tokens_per_tile": TOKENS_PER_TILE.get(processor),
                    "shape": list(values.shape),
                    "image_grid_thw": grid,
                    "tokens": tokens,
                    "sum": float(values.sum(dtype=np.float64)),
                    "sha256": hashlib.sha256(values.tobytes()).hexdigest(),
                }
            )
    write_lines(folder / "cases.json", cases)
    write_lines(folder / "layouts.json", layouts())
    save_file(tensors, folder / "pixel_values.golden.safetensors")

    tensors = {}
    for name, data in decodings().items():
        tensors[f"{name}.file"] = np.frombuffer(data, dtype=np.uint8)
        tensors[f"{name}.rgb"] = decoded(data).copy()
    # Refused: what these decode to does not matter.
    tensors["jpeg-cmyk.file"] = np.frombuffer(encoded(picture(16, 16, 1).convert("CMYK"), "JPEG"), dtype=np.uint8)
    frames = [picture(16, 16, seed) for seed in (1, 2)]
    for kind in ("PNG", "WEBP"):
        animation = encoded(frames[0], kind, save_all=True, append_images=frames[1:])
        tensors[f"{kind.lower()}-animated.file"] = np.frombuffer(animation, dtype=np.uint8)
    save_file(tensors, folder / "decoding.golden.safetensors")
