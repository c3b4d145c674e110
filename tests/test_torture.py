"""A training that is killed at random moments ends as if nothing had happened."""

import pytest

from tests import torture


@pytest.mark.slow
def test_killed_and_resumed_is_bit_identical(tmp_path):
    data_dir = str(tmp_path / "data")
    torture.undisturbed(tmp_path / "undisturbed", data_dir, 120)
    record = torture.torture(
        tmp_path / "tortured", data_dir, 120, kills=6, longest=20.0, seed=1
    )
    torture.assert_same(tmp_path / "tortured", tmp_path / "undisturbed")
    assert sum(record["where"].values()) == record["kills"]
    assert record["slowest_sigterm_seconds"] < 30
