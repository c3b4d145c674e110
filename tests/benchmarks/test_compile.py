"""The compile benchmark: its table, on a process that stands for a compiling one."""

from benchmarks import compile as compiling


def test_the_second_process_finds_what_the_first_has_kept(monkeypatch):
    child = """
        import json, pathlib, sys
        kept = pathlib.Path(sys.argv[2]) / sys.argv[1]
        print(json.dumps({"processor": 2.0 if kept.exists() else 40.0}))
        kept.touch()
    """
    monkeypatch.setattr(compiling, "CHILD", child)
    rows = {name: compiling.measured(name) for name in ("a", "b")}
    for row in rows.values():
        assert (row["cold"]["processor"], row["warm"]["processor"]) == (40.0, 2.0)
        assert row["cold"]["seconds"] > 0
    assert compiling.table(rows).count("| 40.0 |") == 2


def test_the_configurations_are_those_of_the_folder():
    assert {"digits", "imagenet256", "moving_digits"} <= set(compiling.CONFIGS)
    assert not {"modern", "released", "__init__"} & set(compiling.CONFIGS)
