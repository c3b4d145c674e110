"""Clips that tell the number of each frame: files of many kinds, made by PyAV and Pillow."""

import av
import numpy as np
from PIL import Image

FRAMES, HEIGHT, WIDTH = 23, 64, 96
BRIGHT, DARK = (220, 120, 60), (20, 40, 30)
VIDEOS = {  # file -> codec, pixel format, options; "bf" asks for B-frames
    "h264.mp4": ("libx264", "yuv420p", {"bf": "3", "crf": "10"}),
    "vp9.webm": ("libvpx-vp9", "yuv420p", {"crf": "10", "lag-in-frames": "8"}),
    "mpeg4.avi": ("mpeg4", "yuv420p", {"bf": "2", "qmin": "2", "qmax": "4"}),
    "ffv1.mkv": ("ffv1", "yuv444p", {}),
    "h264.mkv": ("libx264", "yuv420p", {"bf": "3", "crf": "10"}),
    "mpeg2.mpg": ("mpeg2video", "yuv420p", {"bf": "2", "qmin": "2", "qmax": "4"}),
    "av1.mp4": ("libsvtav1", "yuv420p", {"preset": "8", "crf": "10"}),
}
ANIMATIONS = ("palette.gif", "colour.webp")


def numbered(count=FRAMES, height=HEIGHT, width=WIDTH):
    """Frames uint8 [count, H, W, 3]; the bits of a frame's number are its 4 x 2 blocks."""
    bits = np.arange(count)[:, None] >> np.arange(8) & 1
    blocks = bits.reshape(count, 4, 2).repeat(height // 4, axis=1).repeat(width // 2, axis=2)
    return np.where(blocks[..., None], BRIGHT, DARK).astype(np.uint8)


def numbers(frames):
    """The number that each frame [T, H, W, C] tells."""
    count, height, width, channels = frames.shape
    blocks = frames.reshape(count, 4, height // 4, 2, width // 2, channels).mean(axis=(2, 4, 5))
    bits = blocks > (np.mean(BRIGHT) + np.mean(DARK)) / 2
    return (bits.reshape(count, 8) << np.arange(8)).sum(axis=1).tolist()


def save_video(path, frames, codec="libx264", pix_fmt="yuv420p", options=(), rotation=None):
    """Encodes frames uint8 [T, H, W, 3]."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25, options=dict(options))
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt, stream.codec_context.thread_count = pix_fmt, 1
        if rotation is not None:
            stream.set_display_rotation(rotation)
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())


def save_animation(path, frames):
    """A lossless animation."""
    first, *rest = [Image.fromarray(frame) for frame in frames]
    options = {"lossless": True} if path.suffix == ".webp" else {}
    first.save(path, save_all=True, append_images=rest, duration=40, **options)


def save_sound(path):
    """A second of silence, and not a picture."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=8000)
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 8000), np.float32), "fltp", "mono")
        sound.sample_rate = 8000
        container.mux(stream.encode(sound))
        container.mux(stream.encode())


def save_all(folder, frames):
    """Writes the same frames as each kind of file."""
    for file, (codec, pix_fmt, options) in VIDEOS.items():
        save_video(folder / file, frames, codec, pix_fmt, options)
    for file in ANIMATIONS:
        save_animation(folder / file, frames)
