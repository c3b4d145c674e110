"""What is written beside a figure, and the sentences that say what it can be compared with."""

from collections.abc import Mapping
from typing import Any

from rin_jax.evaluation.statistics import caution

# What a protocol of Inception's figures is comparable with.
COMPARABLE = {
    "adm": "figures of ADM's evaluator, torch-fidelity and EDM, if the reference is of the same "
    "images, split and crop",
    "rin_tfgan": "the figures of the RIN paper (arXiv 2212.11972), whose reference statistics are "
    "not published; not with tables that ADM's evaluator made",
}


OF_CLIPS = "published ones of the same data set, split, number of clips, frames and size"


def sentences(record: Mapping[str, Any]) -> list[str]:
    """What a reader of the figures in a record must know, a sentence each."""
    said = []
    for network, found in record["networks"].items():
        if text := caution(record["num_samples"], found["num_features"]):
            said.append(f"{network}: {text}")
        if found["accuracy"] is not None:
            said.append(f"{network} reads {100 * found['accuracy']:.2f} % of held-out real images.")
        if floor := record["reference"][network]["floor"].get("pool"):
            said.append(f"Two halves of the real images are {floor:.4f} apart in {network}.")
        protocol = found["identity"].get("protocol")
        if network == "i3d":
            said.append(f"The distance in {network} is FVD, like {OF_CLIPS}.")
        elif protocol is None:
            said.append(f"Figures in {network}'s features are not in published tables.")
        else:
            said.append(f"{network} by protocol {protocol}: like {COMPARABLE[protocol]}.")
    if clip := record.get("clip"):
        said.append(_of_clips(clip))
    if record.get("guidance_scale"):
        said.append(f"Guided with scale {record['guidance_scale']}; RIN's figures have none.")
    return said


def _of_clips(clip: Mapping[str, Any]) -> str:
    """Which frames are compared."""
    frames, given = clip["frames"], clip["cond_frames"]
    if not given:
        return f"Compared are clips of {frames} frames, all of them sampled."
    if clip["count_cond_frames"]:
        return f"Compared are clips of {frames} frames; the network was given the first {given}."
    return f"Compared are frames {given + 1} to {frames} of clips, without the given ones before."
