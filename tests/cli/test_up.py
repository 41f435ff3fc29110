"""What ``propeller up`` makes of its options."""

import pytest
from typer.testing import CliRunner

from propeller.cli.app import app
from propeller.cli.up import tags_by_device


def test_tags_go_to_the_devices_that_are_named() -> None:
    given = ["hospital=proplet-1, proplet-3", "gpu=proplet-3", "floor=2=proplet-2"]
    assert tags_by_device(given, 3) == {
        "proplet-1": ["hospital"],
        "proplet-3": ["hospital", "gpu"],
        "proplet-2": ["floor=2"],
    }
    assert tags_by_device([], 0) == {}


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("hospital", "'hospital' is not TAG=NAME,"),
        ("=proplet-1", "is not TAG=NAME,"),
        ("a,b=proplet-1", "is not TAG=NAME,"),
        ("hospital=proplet-4", "there is no 'proplet-4'; the devices are proplet-1 to proplet-3"),
        ("hospital=", "there is no ''"),
    ],
)
def test_a_tag_that_no_device_can_have_is_refused(given: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        tags_by_device([given], 3)
    done = CliRunner().invoke(app, ["up", "--tag", given])
    assert done.exit_code == 2
    assert "--tag" in done.output
