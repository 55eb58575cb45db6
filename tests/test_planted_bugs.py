"""The contract catches every planted bug, and only because of the bug."""

import pytest

from tests import contract
from tests.builders import LAYERS
from tests.planted_bugs import BUGS, PlantedBug


def failures(bug: PlantedBug) -> list[str]:
    """Return what the contract says about the method and layer of a bug, one line per failed check."""
    found = []
    for check in contract.CHECKS:
        try:
            check(bug.find_method(), LAYERS[bug.kind])
        except Exception as error:  # noqa: BLE001 - a wrong model may fail anywhere, in onnxruntime too
            found.append(f"{check.__name__}: {error}")
    return found


@pytest.fixture
def _nothing_shared():
    contract.forget()
    yield
    contract.forget()


@pytest.mark.usefixtures("_nothing_shared")
@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: f"{bug.claim}-{bug.method}-{bug.kind}")
def test_the_contract_catches(bug, monkeypatch):
    assert failures(bug) == []
    contract.forget()
    monkeypatch.setattr(bug.owner, bug.attribute, bug.wrong(getattr(bug.owner, bug.attribute)))
    assert failures(bug)
