"""Words of the scripts of EDM2 and of diffusers, by mode, and what is meant by them here."""

WORDS: dict[str, dict[tuple[str, ...], str]] = {
    "train": {
        ("preset",): "--config=NAME, an experiment of configs/",
        ("outdir", "output_dir"): "--workdir=DIR",
        ("resume", "resume_from_checkpoint"): "nothing: the same command resumes",
        ("data", "dataset_name"): "--config.data.name=NAME, once it is prepared by --mode=prepare",
        ("resolution",): "--config.data.image_size=SIDE",
        ("seed",): "--config.seed=SEED",
        ("duration", "max_train_steps"): "--config.train.num_steps=STEPS",
        ("batch", "train_batch_size"): "--config.train.batch_size=IMAGES, of all devices together",
        ("batch_gpu", "gradient_accumulation_steps"): "--config.train.accumulation_steps=TIMES",
        ("lr", "learning_rate"): "--config.optimizer.learning_rate=RATE",
        ("fp16", "mixed_precision"): "--config.model.dtype=bfloat16",
        ("report_to",): "--config.train.wandb=PROJECT, beside TensorBoard",
    },
    "sample": {
        ("net", "pretrained_model_name_or_path"): "--workdir=RUN, or --export=FOLDER",
        ("seeds", "seed", "generator"): "--config.seed=SEED --num=100, images 0..99 of that seed",
        ("class", "class_labels"): "--classes=3,7",
        ("steps", "num_inference_steps"): "--config.sampler.num_steps=STEPS",
        ("guidance", "guidance_scale"): "--config.sampler.guidance_scale=W, 1 less than there: "
        "0 is off",
        ("gnet",): "--config.sampler.guide=RUN, a weaker network",
        ("sampler", "scheduler"): "--config.sampler.name=RULE and --config.sampler.schedule=GRID",
        ("eta", "S_churn"): "--config.sampler.eta=SHARE, of fresh noise",
        ("sigma_min", "sigma_max", "rho"): "--config.sampler.schedule=\"{'name': 'edm', "
        "'sigma_min': 0.02, 'sigma_max': 80.0, 'rho': 7.0}\"",
        ("batch", "batch_size"): "--config.sampler.images_per_device=IMAGES",
        ("outdir", "output_dir"): "--workdir=DIR, in whose samples/ they are",
        ("image", "mask_image", "strength"): "the method edit of rin_jax.load(EXPORT)",
    },
    "evaluate": {
        ("metrics",): "--config.evaluation.measures=\"('frechet', 'kid')\"",
        ("images",): "--samples=FOLDER",
        ("ref", "dest"): "--config.evaluation.reference=FILE",
        ("num", "num_images"): "--config.evaluation.num_samples=NUM",
        ("seed",): "--config.seed=SEED",
    },
    "reconstruct": {("outstd",): "--length=SHARE"},
}


def table() -> str:
    """All of them for the end of --help."""
    lines = ["", "Words of EDM2 and of diffusers, and what they are here:"]
    for mode, words in WORDS.items():
        lines.append(f"  --mode={mode}")
        lines += [f"    {', '.join(theirs):38} {ours}" for theirs, ours in words.items()]
    return "\n".join(lines)


def here(word: str, mode: str) -> str | None:
    """What a word of theirs is in a mode, or else in any; None: it is none of theirs."""
    for there in (mode, *WORDS):
        for theirs, ours in WORDS.get(there, {}).items():
            if word.replace("-", "_") in theirs:
                return ours if there == mode else f"{ours} (--mode={there})"
    return None
