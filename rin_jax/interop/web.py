"""Files of exports that lie on a web server."""

import http.client
import shutil
import urllib.request

TIMEOUT_SECONDS = 60.0  # without a byte


def fetch(url: str, path: str) -> None:
    """Downloads a file of http(s)://... to a local path.

    Raises:
      ValueError: it is not there, or the server cannot be reached or breaks off.
    """
    try:
        with (
            urllib.request.urlopen(url, timeout=TIMEOUT_SECONDS) as source,
            open(path, "wb") as target,
        ):
            shutil.copyfileobj(source, target)
    except (OSError, http.client.HTTPException) as error:
        raise ValueError(
            f"cannot fetch {url}: {error}. The URL of an export is that of the folder in which "
            "config.json and model.safetensors lie, for anyone to read."
        ) from error
