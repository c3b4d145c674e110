"""PyTorch with one thread: on these sizes others cost more than they bring. What pages need."""

import shutil

import pytest
import torch

from rin_jax import ConfigError
from rin_jax.interop import page
from tests.interop import browser

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def page_runtime(tmp_path_factory):
    """The files of ONNX Runtime for pages, fetched once; skips where a page cannot be tested."""
    if browser.CHROMIUM is None:
        pytest.skip("there is no Chromium (apt: chromium)")
    if shutil.which("npm") is None:
        pytest.skip("there is no npm")
    folder = tmp_path_factory.mktemp("runtime")
    try:
        page.find_runtime(folder)
    except ConfigError as error:
        pytest.skip(str(error))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(page, "MODULES", folder)
        yield
