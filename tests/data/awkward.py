"""One image of each kind that a folder of photographs may have, made from one scene."""

import numpy as np
from PIL import Image


def scene(height=40, width=56):
    """A smooth colour picture, uint8 [H, W, 3], different in each corner."""
    y, x = np.mgrid[0:height, 0:width]
    waves = [np.sin(x / 9 + y / 17), np.cos(x / 13 - y / 7), np.sin((x + y) / 11)]
    ramp = (x / width + 2 * y / height) / 3
    return (
        np.stack([255 * (0.35 + 0.25 * w + 0.35 * ramp) for w in waves], -1)
        .clip(0, 255)
        .astype(np.uint8)
    )


def save_all(folder):
    """Writes the images into `folder`; returns {file: largest difference of two decoders}."""
    colour = Image.fromarray(scene())
    alpha = np.linspace(0, 255, 56).astype(np.uint8)[None].repeat(40, 0)
    deep = scene().astype(np.uint16)[..., 0] * 257 - 100 * (scene()[..., 1] > 128)
    tall = Image.fromarray(scene(71, 33))
    turned = Image.Exif()
    turned[0x0112] = 6  # the camera was turned: show it rotated by 90 degrees clockwise
    colour.save(folder / "colour.png")
    colour.save(folder / "colour.jpg", quality=95)
    tall.save(folder / "tall.PNG")
    colour.convert("L").save(folder / "grey.png")
    colour.convert("L").save(folder / "grey.jpg", quality=95)
    Image.fromarray(deep.astype(np.uint16)).save(folder / "deep.png")
    Image.fromarray(deep.astype(np.uint16)).save(folder / "deep.tif")
    colour.quantize(200).save(folder / "palette.png")
    colour.convert("1").save(folder / "bilevel.png")
    with_alpha = colour.copy()
    with_alpha.putalpha(Image.fromarray(alpha))
    with_alpha.save(folder / "alpha.png")
    with_alpha.save(folder / "alpha.webp", lossless=True, exact=True)
    colour.convert("CMYK").save(folder / "cmyk.jpg", quality=95)
    colour.save(folder / "turned.jpg", quality=95, exif=turned)
    Image.fromarray(scene(9, 12)).save(folder / "small.bmp")
