"""The section `runtime` of a configuration: what a job does on the machine that runs it."""

import dataclasses

from rin_jax import at_least_one


@dataclasses.dataclass(frozen=True)
class Runtime:
    """What changes no result."""

    # folder of the compiled programs, perhaps in a bucket; None: that of the environment's
    # JAX_COMPILATION_CACHE_DIR, or rin_jax/compiled in the user's cache; "": none are kept
    compile_cache: str | None
    profile_first_step: int | None  # the first that a trace for TensorBoard has; None: no trace
    profile_num_steps: int  # steps of that trace

    def __post_init__(self):
        at_least_one("runtime", self, "profile_first_step", "profile_num_steps")


# of configurations that were saved before they had the section, and of exports
DEFAULTS = {"compile_cache": None, "profile_first_step": None, "profile_num_steps": 5}
