"""How near predicted frames are to the true ones, frame by frame: PSNR and SSIM of clips.

    PSNR = 10 log10(255^2 / MSE), the mean taken over pixels and channels
    SSIM = (2 m n + c1) (2 s_xy + c2) / ((m^2 + n^2 + c1) (s_x^2 + s_y^2 + c2))

with the means m and n, variances and covariance of two images under a Gaussian window of 11 x 11
pixels, c1 = (0.01 255)^2 and c2 = (0.03 255)^2, at each place where the window lies in the image,
and the mean over places and channels. Clips are uint8, or the same numbers in another type,
[B, T, H, W, C]. All float64, on the host.

Two predictions that know nothing of movement, or next to nothing, are measured beside those of a
network: `copied` and `extrapolated`.

Source of SSIM: Wang et al. 2004, "Image quality assessment: from error visibility to structural
similarity".
"""

from collections.abc import Collection

import numpy as np

from rin_jax import ConfigError

PEAK = 255.0
HIGHEST = 100.0  # dB, in means over clips: what an exact frame counts as, whose PSNR is infinite
WINDOW, SIGMA = 11, 1.5  # of SSIM, pixels
C1, C2 = (0.01 * PEAK) ** 2, (0.03 * PEAK) ** 2


def psnr(clips: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """PSNR in dB of each frame: [B, T]; infinite where a frame is the true one."""
    errors = np.square(np.subtract(clips, truth, dtype=np.float64))
    with np.errstate(divide="ignore"):
        return 10 * np.log10(PEAK**2 / errors.mean((2, 3, 4)))


def ssim(clips: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """SSIM of each frame, -1..1: [B, T]. ConfigError if the window is larger than a frame."""
    check_size(min(clips.shape[2:4]))
    x, y = (np.moveaxis(np.asarray(some, np.float64), -1, 2) for some in (clips, truth))
    rows, columns = (_window(size) for size in x.shape[3:])

    def mean(some: np.ndarray) -> np.ndarray:
        """Under the window, at each of its places; a product a frame, whatever the batch is."""
        return np.matmul(np.matmul(rows, some), columns.T)

    m, n = mean(x), mean(y)
    spread = mean(x * x) + mean(y * y) - m * m - n * n
    alike = (2 * m * n + C1) * (2 * (mean(x * y) - m * n) + C2)
    return (alike / ((m * m + n * n + C1) * (spread + C2))).mean((2, 3, 4))


def check_size(size: int) -> None:
    """Raises ConfigError if frames with a side of `size` pixels are too small for SSIM."""
    if size < WINDOW:
        raise ConfigError(
            f"SSIM looks through a window of {WINDOW} x {WINDOW} pixels, but the frames have "
            f"{size}: leave 'ssim' out of evaluation.measures."
        )


def _window(size: int) -> np.ndarray:
    """The weights [size - WINDOW + 1, size] of the pixels of an axis at each place."""
    weights = np.exp(-0.5 * np.square((np.arange(WINDOW) - WINDOW // 2) / SIGMA))
    places = np.arange(size - WINDOW + 1)[:, None]
    matrix = np.zeros((len(places), size))
    matrix[places, places + np.arange(WINDOW)] = weights / weights.sum()
    return matrix


def compare(
    measures: Collection[str], predicted: np.ndarray, truth: np.ndarray, cond_frames: int
) -> dict[str, np.ndarray]:
    """Measures of predictions [B, T - c, ..] of what follows the first c frames of [B, T, ..].

    {"psnr": [B, T - c], "psnr_copied": .., "psnr_extrapolated": .., and so on}, finite.
    """
    given, truth = truth[:, :cond_frames], truth[:, cond_frames:]
    frames = truth.shape[1]
    predictions = {
        "": predicted,
        "_copied": copied(given, frames),
        "_extrapolated": extrapolated(given, frames),
    }
    functions = {"psnr": lambda *clips: np.minimum(psnr(*clips), HIGHEST), "ssim": ssim}
    return {
        f"{measure}{suffix}": functions[measure](clips, truth)
        for measure in measures
        for suffix, clips in predictions.items()
    }


def copied(given: np.ndarray, frames: int) -> np.ndarray:
    """A prediction that knows nothing: the last of the given frames [B, c, ..], again and again."""
    return np.repeat(given[:, -1:], frames, axis=1)


def extrapolated(given: np.ndarray, frames: int) -> np.ndarray:
    """The straight line through the last two given frames, pixel by pixel, clipped to 0..255.

    With one given frame it is that frame.
    """
    last = given[:, -1:].astype(np.float64)
    steps = np.arange(1, frames + 1).reshape(1, -1, 1, 1, 1)
    change = last - given[:, -2:-1] if given.shape[1] > 1 else np.zeros_like(last)
    return np.clip(last + steps * change, 0, PEAK)
