"""The configuration that a run or an export has stored, as a configuration file.

The command line gives ml_collections this file with the path of a config.json as its argument, so
that fields of a stored configuration are overridden as those of any other.
"""

import ml_collections

from rin_jax.configuration import fields, stored


def get_config(path: str) -> ml_collections.ConfigDict:
    """The configuration in the file `path`; ConfigError if it has none."""
    return fields.typed(stored.read(path))
