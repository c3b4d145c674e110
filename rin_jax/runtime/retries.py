"""Reading again what could not be read: a network, a server or a disk may be back in a moment."""

import time
from collections.abc import Callable
from errno import EDQUOT, ENOSPC, EROFS
from typing import TypeVar

from absl import logging

Result = TypeVar("Result")

PAUSES = 0.5, 2.0, 8.0  # seconds before the second and each later try
LASTING = (
    FileNotFoundError, FileExistsError, NotADirectoryError, IsADirectoryError, PermissionError,
)  # fmt: skip
CLIENTS = "aiohttp", "gcsfs", "google", "requests"  # their errors are not all OSError
# how a message of TensorStore or XLA begins then; both have no classes of errors
STATUS = "UNAVAILABLE", "DEADLINE_EXCEEDED", "ABORTED", "RESOURCE_EXHAUSTED"


class ReadError(OSError):
    """What could not be read at any try, with its name and the last reason.

    It may be the network or a disk: not a mistake of the user, and the same command may go on.
    """


def may_pass(error: BaseException) -> bool:
    """Whether an error says that something was out of reach, and nothing of what is there."""
    if isinstance(error, OSError):
        return not isinstance(error, LASTING) and error.errno not in (ENOSPC, EDQUOT, EROFS)
    if type(error).__module__.partition(".")[0] in CLIENTS or str(error).startswith(STATUS):
        return True
    return error.__cause__ is not None and may_pass(error.__cause__)


def read(
    name: Callable[[], str], attempt: Callable[[], Result],
    is_tried_again: Callable[[Exception], bool] = may_pass, remedy: str = "",
) -> Result:  # fmt: skip
    """attempt(), which is tried again after each of PAUSES; what fails is logged by its name.

    ReadError: the last try failed too. Errors that are not to be tried again come as they are.
    """
    for number, pause in enumerate((*PAUSES, None), start=1):
        try:
            return attempt()
        except Exception as error:
            if not is_tried_again(error):
                raise
            logging.warning("%s, try %d: %s: %s", name(), number, type(error).__name__, error)
            if pause is None:
                text = f"{name()} cannot be read, after {number} tries: {error}"
                raise ReadError(text + remedy) from error
        time.sleep(pause)
    raise AssertionError
