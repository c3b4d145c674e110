"""Independent renderings of what preparation does to an image: OpenCV's decoders, our algebra."""

import cv2
import numpy as np


def cubic_matrix(size_in, size_out):
    """The antialiased bicubic resize (a = -1/2) as a matrix [size_out, size_in]."""
    scale = size_in / size_out
    width = max(scale, 1)  # of the kernel: stretched when shrinking
    centres = (np.arange(size_out) + 0.5) * scale
    x = np.abs(np.arange(size_in) + 0.5 - centres[:, None]) / width
    near, far = 1.5 * x**3 - 2.5 * x**2 + 1, -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2
    weights = np.where(x < 1, near, np.where(x < 2, far, 0))
    return weights / weights.sum(1, keepdims=True)


def square(image):
    """The largest central square of [H, W, C]."""
    side = min(image.shape[:2])
    top, left = (image.shape[0] - side) // 2, (image.shape[1] - side) // 2
    return image[top : top + side, left : left + side]


def training_image(image, size):
    """uint8 [H, W, C] to float [size, size, C] in [0, 255], before rounding."""
    matrix = cubic_matrix(min(image.shape[:2]), size)
    resized = np.einsum("ih,jw,hwc->ijc", matrix, matrix, square(image).astype(float))
    return resized.clip(0, 255)


def read(path, channels):
    """An image file as float [H, W, channels] in [0, 255], alpha on white, by OpenCV."""
    turned = path.suffix == ".jpg"  # "unchanged" would leave out the camera's rotation
    pixels = cv2.imread(str(path), cv2.IMREAD_COLOR if turned else cv2.IMREAD_UNCHANGED)
    if pixels.ndim == 2:
        pixels = pixels[..., None]
    pixels = pixels.astype(float) * (255 / np.iinfo(pixels.dtype).max)
    if pixels.shape[-1] == 4:
        alpha = pixels[..., 3:] / 255
        pixels = pixels[..., :3] * alpha + 255 * (1 - alpha)
    colour = pixels[..., ::-1] if pixels.shape[-1] == 3 else np.repeat(pixels, 3, axis=-1)
    if channels == 3:
        return colour
    return colour @ np.array([[0.299], [0.587], [0.114]])
