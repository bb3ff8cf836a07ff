"""The bill of materials: what the published schema asks for, every part with its licence and digest."""

import json

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

from pipeline import files
from pipeline.artifacts import BaseModel
from pipeline.bases import catalog
from pipeline.provenance import bom, packages
from tests.provenance import made

VALIDATOR = JsonStrictValidator(SchemaVersion.V1_6)
EMBEDDED = catalog.entries()["smollm2-135m"]


def bill(tmp_path, base=made.BASE, wheels=None):
    listed = packages.installed()[:wheels]
    return bom.bill(made.metadata(made.run(tmp_path)), base, made.FACTS, "d" * 64, listed)


def embedded():
    origin = " ".join(f"{wheel.package}=={wheel.version}" for wheel in EMBEDDED.embedded.wheels)
    return BaseModel(EMBEDDED.name, made.BASE.path, "b" * 64, "llama", EMBEDDED.licence, origin=origin)


def from_hub():
    return BaseModel("gemma-3-1b-it", made.BASE.path, "b" * 64, "gemma3_text", "Gemma", origin=f"google/x@{'a' * 40}")


@pytest.mark.parametrize(
    ("base", "wheels"), [(made.BASE, None), (embedded(), 2), (from_hub(), 2)], ids=["folder", "embedded", "hub"]
)
def test_the_bill_is_valid_by_the_published_schema(tmp_path, base, wheels):
    assert VALIDATOR.validate_str(json.dumps(bill(tmp_path, base, wheels))) is None


def test_the_schema_check_finds_a_planted_fault(tmp_path):
    faulty = bill(tmp_path, wheels=2)
    faulty["components"][0]["hashes"] = [{"alg": "SHA-256", "content": "short"}]
    assert VALIDATOR.validate_str(json.dumps(faulty)) is not None


def test_every_reference_in_the_bill_leads_somewhere(tmp_path):
    made_bill = bill(tmp_path, embedded())
    known = {"model", *(part["bom-ref"] for part in made_bill["components"])}
    assert len(known) == len(made_bill["components"]) + 1
    for dependency in made_bill["dependencies"]:
        assert {dependency["ref"], *dependency["dependsOn"]} <= known


def test_an_embedded_base_names_its_package_and_the_file_in_it(tmp_path):
    parts = {part["bom-ref"]: part for part in bill(tmp_path, embedded())["components"]}
    wheel = EMBEDDED.embedded.wheels[0]
    assert parts["base"]["hashes"] == [{"alg": "SHA-256", "content": EMBEDDED.embedded.gguf_sha256}]
    assert parts["base"]["licenses"] == [{"expression": "Apache-2.0"}]
    assert parts[f"pkg:pypi/{wheel.package}@{wheel.version}"]["hashes"][0]["content"] == wheel.sha256


def test_every_wheel_has_a_licence_and_the_digests_of_the_lock(tmp_path):
    wheels = [part for part in bill(tmp_path)["components"] if part["type"] == "library"]
    assert {"torch", "transformers", "trl", "peft", "numpy"} <= {wheel["name"] for wheel in wheels}
    for wheel in wheels:
        assert wheel["licenses"], wheel["name"]
        assert wheel["externalReferences"][0]["hashes"], f"{wheel['name']} {wheel['version']} is in no lock"


def test_two_bills_of_the_same_run_are_the_same_bytes(tmp_path):
    assert files.json_bytes(bill(tmp_path / "a")) == files.json_bytes(bill(tmp_path / "b"))
