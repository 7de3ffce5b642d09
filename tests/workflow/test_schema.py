"""The JSON Schema with which editors complete, explain and check profiles."""

import json

import jsonschema
import pytest
import yaml

from lib.run.files import PROJECT
from lib.run.profile import Profile
from workflow import schema

PROFILES = sorted((PROJECT / "profiles").rglob("*.yaml"))
PROFILES.remove(PROJECT / "profiles" / "slurm" / "config.yaml")


def test_the_committed_schema_is_current():
    assert schema.PATH.read_text(encoding="utf-8") == schema.text(), "`make readme` writes it"


@pytest.mark.parametrize("path", PROFILES, ids=lambda path: path.stem)
def test_every_profile_names_the_schema_and_follows_it(path):
    first, _, rest = path.read_text(encoding="utf-8").partition("\n")
    assert (path.parent / first.removeprefix("# yaml-language-server: $schema=")).resolve() == schema.PATH
    jsonschema.validate(yaml.safe_load(rest), json.loads(schema.text()))


@pytest.mark.parametrize("wrong", [{"aggreement": "rot-agree"}, {"seed": "zero"}, {"layers": [-1]}, {"top_p": 2}])
def test_an_editor_marks_what_a_run_refuses(wrong):
    content = yaml.safe_load((PROJECT / "profiles" / "demo.yaml").read_text(encoding="utf-8"))
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(content | wrong, json.loads(schema.text()))


def test_every_key_is_explained():
    assert all(key["description"] for key in json.loads(schema.text())["properties"].values())
    assert set(json.loads(schema.text())["properties"]) == set(Profile.model_fields)
