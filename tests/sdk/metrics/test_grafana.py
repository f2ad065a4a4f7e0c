"""Our dashboard as Grafana's own types read it: no field that they do not know, and every word of a
closed list is one of it."""

import enum
import json
import typing
from pathlib import Path

import pytest
from grafana_foundation_sdk.cog import plugins
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.dashboard import Dashboard

FOLDER = Path(__file__).parents[3] / "configs/grafana/dashboards"
# Grafana's page stores this with a query's variable, for people.
NOTES = {"definition"}


def lost(before, after, path=""):
    """Places whose value does not come back."""
    if isinstance(before, dict) and isinstance(after, dict):
        return [
            place
            for key, value in before.items()
            if key not in NOTES
            for place in lost(value, after.get(key), f"{path}/{key}")
        ]
    if isinstance(before, list) and isinstance(after, list) and len(before) == len(after):
        pairs = enumerate(zip(before, after))
        return [place for index, pair in pairs for place in lost(*pair, f"{path}/{index}")]
    return [] if before == after else [f"{path}: {before!r}"]


def members(hint):
    """The enum of a type that is one, or may be absent or listed."""
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        return hint
    return next(filter(None, map(members, typing.get_args(hint))), None)


def strange(value, path=""):
    """Values that are no member of their enum."""
    if isinstance(value, (list, dict)):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        return [place for key, item in items for place in strange(item, f"{path}/{key}")]
    if not hasattr(value, "to_json"):
        return []
    found = []
    for name, hint in typing.get_type_hints(type(value)).items():
        item, kind = getattr(value, name), members(hint)
        place = f"{path}/{name}"
        if kind and item is not None:
            known = {member.value for member in kind}
            words = item if isinstance(item, list) else [item]
            found += [f"{place}: {word!r}" for word in words if word not in known]
        found += strange(item, place)
    return found


def files():
    return sorted(FOLDER.glob("*.json"))


def test_there_are_dashboards():
    assert files()


@pytest.mark.parametrize("file", files(), ids=lambda file: file.stem)
def test_a_dashboard_is_what_grafana_reads(file):
    plugins.register_default_plugins()
    before = json.loads(file.read_text())
    dashboard = Dashboard.from_json(before)
    after = json.loads(json.dumps(dashboard, cls=JSONEncoder))
    assert lost(before, after) == []
    assert strange(dashboard) == []
    panels = before["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    for panel, read in zip(panels, dashboard.panels):
        # A kind of panel without its own type would be read unchecked.
        assert not isinstance(read.options, dict), panel["title"]
